"""Device functions of the location scores S_loc.

    f(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS) -> score in [0, 1], d0, d1, d2, d3

for the corners x of a predicted box and t of its target, both of positive extent: the kernels set
score and derivatives to 0 elsewhere.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import center_offsets, iou, nwd, root
from jolkernels.kernels.regression import giou_loss
from jolkernels.registry import KERNEL


@triton.jit
def iou_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    return v, d0, d1, d2, d3


@triton.jit
def giou_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """(1 + GIoU) / 2 = 1 - loss / 2."""
    loss, d0, d1, d2, d3 = giou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS)
    return 1.0 - 0.5 * loss, -0.5 * d0, -0.5 * d1, -0.5 * d2, -0.5 * d3


@triton.jit
def nwd_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """PARAMS = constant, mix."""
    v, d0, d1, d2, d3 = nwd(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS[0])
    return v, d0, d1, d2, d3


@triton.jit
def dotd_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """exp(-D / size) of the centres' distance D; PARAMS = size."""
    dx, dy = center_offsets(x0, x1, x2, x3, t0, t1, t2, t3)
    distance, inverse = root(dx * dx + dy * dy)
    score = tl.exp(-distance / PARAMS[0])
    g = -0.5 * score * inverse / PARAMS[0]
    return score, g * dx, g * dy, g * dx, g * dy


@triton.jit
def simd_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """exp(-(location + shape)), at least 1e-6; PARAMS = m, n.

    location^2 = A^2 + B^2 and shape^2 = C^2 + D^2 with A = m dx / (w + wt), C = m dw / (w + wt) and
    B, D likewise in y; w itself is in the denominators.
    """
    dx, dy = center_offsets(x0, x1, x2, x3, t0, t1, t2, t3)
    w, h, wt, ht = x2 - x0, x3 - x1, t2 - t0, t3 - t1
    per_w, per_h = 1.0 / (w + wt), 1.0 / (h + ht)
    a, b = PARAMS[0] * dx * per_w, PARAMS[1] * dy * per_h
    c, d = PARAMS[0] * (w - wt) * per_w, PARAMS[1] * (h - ht) * per_h
    location, per_location = root(a * a + b * b)
    shape, per_shape = root(c * c + d * d)
    score = tl.exp(-(location + shape))
    floor = tl.full(score.shape, 1e-6, score.dtype)
    score, g = tl.maximum(score, floor), tl.where(score >= floor, -score, 0.0)
    by_a, by_b = a * per_location * per_w, b * per_location * per_h
    by_c, by_d = c * per_shape * per_w, d * per_shape * per_h
    by_dx, by_dy = 0.5 * PARAMS[0] * by_a, 0.5 * PARAMS[1] * by_b
    by_w = by_c * (PARAMS[0] - c) - by_a * a
    by_h = by_d * (PARAMS[1] - d) - by_b * b
    return score, g * (by_dx - by_w), g * (by_dy - by_h), g * (by_dx + by_w), g * (by_dy + by_h)


KERNEL["location_score"] |= {
    spec.IoU: iou_score,
    spec.GIoU: giou_score,
    spec.NWD: nwd_score,
    spec.SimD: simd_score,
    spec.DotD: dotd_score,
}
