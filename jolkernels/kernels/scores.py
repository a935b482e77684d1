"""Device functions of the location scores S_loc.

    f(x, t, PARAMS) -> score in [0, 1], d

for a predicted box x and its target t, tuples of the corners x1 y1 x2 y2 as d is of the derivatives
for x. Both boxes are of positive extent: the kernels set score and derivatives to 0 elsewhere.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import center_offsets, extents, iou, nwd, root, scaled
from jolkernels.kernels.regression import giou_loss
from jolkernels.registry import KERNEL


@triton.jit
def iou_score(x, t, PARAMS: tl.constexpr):
    return iou(x, t, 0.0)


@triton.jit
def giou_score(x, t, PARAMS: tl.constexpr):
    """(1 + GIoU) / 2 = 1 - loss / 2."""
    loss, d = giou_loss(x, t, PARAMS)
    return 1.0 - 0.5 * loss, scaled(-0.5, d)


@triton.jit
def nwd_score(x, t, PARAMS: tl.constexpr):
    """PARAMS = constant, mix."""
    return nwd(x, t, PARAMS[0])


@triton.jit
def dotd_score(x, t, PARAMS: tl.constexpr):
    """exp(-D / size) of the centres' distance D; PARAMS = size."""
    dx, dy = center_offsets(x, t)
    distance, inverse = root(dx * dx + dy * dy)
    score = tl.exp(-distance / PARAMS[0])
    g = -0.5 * score * inverse / PARAMS[0]
    return score, scaled(g, (dx, dy, dx, dy))


@triton.jit
def simd_score(x, t, PARAMS: tl.constexpr):
    """exp(-(location + shape)), at least 1e-6; PARAMS = m, n.

    location^2 = A^2 + B^2 and shape^2 = C^2 + D^2 with A = m dx / (w + wt), C = m dw / (w + wt) and
    B, D likewise in y; w itself is in the denominators.
    """
    dx, dy = center_offsets(x, t)
    w, h = extents(x)
    wt, ht = extents(t)
    per_w, per_h = 1.0 / (w + wt), 1.0 / (h + ht)
    a, b = PARAMS[0] * dx * per_w, PARAMS[1] * dy * per_h
    c, d = PARAMS[0] * (w - wt) * per_w, PARAMS[1] * (h - ht) * per_h
    location, per_location = root(a * a + b * b)
    shape, per_shape = root(c * c + d * d)
    score = tl.exp(-(location + shape))
    floor = tl.full(score.shape, 1e-6, score.dtype)
    low = score < floor
    score, g = tl.where(low, floor, score), tl.where(low, 0.0, -score)  # NaN stays NaN
    by_a, by_b = a * per_location * per_w, b * per_location * per_h
    by_c, by_d = c * per_shape * per_w, d * per_shape * per_h
    by_dx, by_dy = 0.5 * PARAMS[0] * by_a, 0.5 * PARAMS[1] * by_b
    by_w = by_c * (PARAMS[0] - c) - by_a * a
    by_h = by_d * (PARAMS[1] - d) - by_b * b
    d0, d1 = g * (by_dx - by_w), g * (by_dy - by_h)
    return score, (d0, d1, g * (by_dx + by_w), g * (by_dy + by_h))


KERNEL["location_score"] |= {
    spec.IoU: iou_score,
    spec.GIoU: giou_score,
    spec.NWD: nwd_score,
    spec.SimD: simd_score,
    spec.DotD: dotd_score,
}
