"""Device functions of the box losses.

    f(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS) -> loss, d0, d1, d2, d3

One number a row each: the four numbers x of a box against those of its target t (codes or corners,
as the spec's `on_codes` says), the row's loss and its derivatives with respect to x. The forward
kernel leaves the derivatives unused and the compiler drops them.
"""

import triton
import triton.language as tl


@triton.jit
def sign(d):
    return (d > 0).to(d.dtype) - (d < 0).to(d.dtype)


@triton.jit
def l1(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    d0, d1, d2, d3 = x0 - t0, x1 - t1, x2 - t2, x3 - t3
    loss = tl.abs(d0) + tl.abs(d1) + tl.abs(d2) + tl.abs(d3)
    return loss, sign(d0), sign(d1), sign(d2), sign(d3)


@triton.jit
def smooth(d, BETA: tl.constexpr):
    """PyTorch's smooth L1 of one difference, and its derivative."""
    value, slope = tl.abs(d), sign(d)
    if BETA > 0.0:
        near = value < BETA
        value = tl.where(near, 0.5 * d * d / BETA, value - 0.5 * BETA)
        slope = tl.where(near, d / BETA, slope)
    return value, slope


@triton.jit
def smooth_l1(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """PARAMS = beta."""
    v0, d0 = smooth(x0 - t0, PARAMS[0])
    v1, d1 = smooth(x1 - t1, PARAMS[0])
    v2, d2 = smooth(x2 - t2, PARAMS[0])
    v3, d3 = smooth(x3 - t3, PARAMS[0])
    return v0 + v1 + v2 + v3, d0, d1, d2, d3


@triton.jit
def share(d):
    """The part of max(x, t) or of -min(x, t) that moves with x, for d = x - t: 1, 1/2 or 0."""
    return 0.5 + 0.5 * sign(d)


@triton.jit
def overlap(x0, x1, x2, x3, t0, t1, t2, t3):
    """Intersection i and union u of two boxes, and their derivatives, as (i, di*4, u, du*4)."""
    w = tl.minimum(x2, t2) - tl.maximum(x0, t0)
    h = tl.minimum(x3, t3) - tl.maximum(x1, t1)
    meets = (w > 0) & (h > 0)
    w, h = tl.where(meets, w, 0.0), tl.where(meets, h, 0.0)
    i0, i1 = -h * share(x0 - t0), -w * share(x1 - t1)
    i2, i3 = h * share(t2 - x2), w * share(t3 - x3)
    i = w * h
    xw, xh = x2 - x0, x3 - x1
    u = xw * xh + (t2 - t0) * (t3 - t1) - i
    return i, i0, i1, i2, i3, u, -xh - i0, -xw - i1, xh - i2, xw - i3


@triton.jit
def iou(x0, x1, x2, x3, t0, t1, t2, t3):
    """IoU without eps and its derivatives; 0 where the union is not positive."""
    i, i0, i1, i2, i3, u, u0, u1, u2, u3 = overlap(x0, x1, x2, x3, t0, t1, t2, t3)
    empty = u <= 0
    inverse = tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, u))
    v = i * inverse
    d0, d1 = (i0 - v * u0) * inverse, (i1 - v * u1) * inverse
    d2, d3 = (i2 - v * u2) * inverse, (i3 - v * u3) * inverse
    return v, d0, d1, d2, d3


@triton.jit
def iou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3)
    return 1.0 - v, -d0, -d1, -d2, -d3


@triton.jit
def giou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """torchvision.ops.generalized_box_iou_loss with its eps, for the hull c of both boxes.

    loss = 1 - i / (u + eps) + (c - u) / (c + eps)
    """
    EPS: tl.constexpr = 1e-7
    i, i0, i1, i2, i3, u, u0, u1, u2, u3 = overlap(x0, x1, x2, x3, t0, t1, t2, t3)
    w = tl.maximum(x2, t2) - tl.minimum(x0, t0)
    h = tl.maximum(x3, t3) - tl.minimum(x1, t1)
    c0, c1 = -h * share(t0 - x0), -w * share(t1 - x1)
    c2, c3 = h * share(x2 - t2), w * share(x3 - t3)
    c = w * h
    iou, gap = i / (u + EPS), (c - u) / (c + EPS)
    d0 = (c0 - u0 - gap * c0) / (c + EPS) - (i0 - iou * u0) / (u + EPS)
    d1 = (c1 - u1 - gap * c1) / (c + EPS) - (i1 - iou * u1) / (u + EPS)
    d2 = (c2 - u2 - gap * c2) / (c + EPS) - (i2 - iou * u2) / (u + EPS)
    d3 = (c3 - u3 - gap * c3) / (c + EPS) - (i3 - iou * u3) / (u + EPS)
    return 1.0 - iou + gap, d0, d1, d2, d3
