"""Device functions of the box losses.

    f(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS) -> loss, d0, d1, d2, d3

One number a row each: the four numbers x of a box against those of its target t (codes or corners,
as the spec's `on_codes` says), the row's loss and its derivatives with respect to x. The forward
kernel leaves the derivatives unused and the compiler drops them.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.coding import MIN_EXTENT
from jolkernels.registry import KERNEL


@triton.jit
def sign(d):
    return (d > 0).to(d.dtype) - (d < 0).to(d.dtype)


@triton.jit
def l1_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    d0, d1, d2, d3 = x0 - t0, x1 - t1, x2 - t2, x3 - t3
    loss = tl.abs(d0) + tl.abs(d1) + tl.abs(d2) + tl.abs(d3)
    return loss, sign(d0), sign(d1), sign(d2), sign(d3)


@triton.jit
def l2_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    d0, d1, d2, d3 = x0 - t0, x1 - t1, x2 - t2, x3 - t3
    return d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3, 2.0 * d0, 2.0 * d1, 2.0 * d2, 2.0 * d3


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
def smooth_l1_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
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
def hull_sides(x0, x1, x2, x3, t0, t1, t2, t3):
    """Width and height of the smallest box around both, and the width's and height's derivatives.

    As (w, w0, w2, h, h1, h3), for the corners x0, x2 and x1, x3.
    """
    w = tl.maximum(x2, t2) - tl.minimum(x0, t0)
    h = tl.maximum(x3, t3) - tl.minimum(x1, t1)
    return w, -share(t0 - x0), share(x2 - t2), h, -share(t1 - x1), share(x3 - t3)


@triton.jit
def iou(x0, x1, x2, x3, t0, t1, t2, t3, EPS: tl.constexpr):
    """i / (u + EPS) and its derivatives; 0 where u + EPS is not positive."""
    i, i0, i1, i2, i3, u, u0, u1, u2, u3 = overlap(x0, x1, x2, x3, t0, t1, t2, t3)
    u = u + EPS
    empty = u <= 0
    inverse = tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, u))
    v = i * inverse
    d0, d1 = (i0 - v * u0) * inverse, (i1 - v * u1) * inverse
    d2, d3 = (i2 - v * u2) * inverse, (i3 - v * u3) * inverse
    return v, d0, d1, d2, d3


@triton.jit
def iou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    return 1.0 - v, -d0, -d1, -d2, -d3


@triton.jit
def giou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """torchvision.ops.generalized_box_iou_loss: 1 - i / (u + eps) + (c - u) / (c + eps)."""
    i, i0, i1, i2, i3, u, u0, u1, u2, u3 = overlap(x0, x1, x2, x3, t0, t1, t2, t3)
    w, w0, w2, h, h1, h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    c, per_u, per_c = w * h, 1.0 / (u + 1e-7), 1.0 / (w * h + 1e-7)
    v, gap = i * per_u, (c - u) * per_c
    d0 = ((1.0 - gap) * h * w0 - u0) * per_c - (i0 - v * u0) * per_u
    d1 = ((1.0 - gap) * w * h1 - u1) * per_c - (i1 - v * u1) * per_u
    d2 = ((1.0 - gap) * h * w2 - u2) * per_c - (i2 - v * u2) * per_u
    d3 = ((1.0 - gap) * w * h3 - u3) * per_c - (i3 - v * u3) * per_u
    return 1.0 - v + gap, d0, d1, d2, d3


@triton.jit
def diou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """torchvision.ops.distance_box_iou_loss: the centres' distance over the hull's diagonal."""
    v, v0, v1, v2, v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 1e-7)
    w, w0, w2, h, h1, h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    dx, dy = 0.5 * ((x0 - t0) + (x2 - t2)), 0.5 * ((x1 - t1) + (x3 - t3))
    per = 1.0 / (w * w + h * h + 1e-7)
    q = (dx * dx + dy * dy) * per
    d0, d1 = (dx - 2.0 * q * w * w0) * per - v0, (dy - 2.0 * q * h * h1) * per - v1
    d2, d3 = (dx - 2.0 * q * w * w2) * per - v2, (dy - 2.0 * q * h * h3) * per - v3
    return 1.0 - v + q, d0, d1, d2, d3


@triton.jit
def atan(x):
    """Arc tangent within 1e-15 (float64) or 3e-7 (float32): the interpreter has no libdevice.

    Two half-angle steps bring |x| <= 1 below tan(pi / 16) = 0.199, where twelve terms of the
    series leave less than 2e-19.
    """
    a = tl.abs(x)
    y = tl.where(a > 1.0, 1.0 / tl.where(a > 1.0, a, 1.0), a)
    y = y / (1.0 + tl.sqrt(1.0 + y * y))
    y = y / (1.0 + tl.sqrt(1.0 + y * y))
    z = y * y
    s = 1.0 / 21.0 - z / 23.0
    s = 1.0 / 17.0 - z * (1.0 / 19.0 - z * s)
    s = 1.0 / 13.0 - z * (1.0 / 15.0 - z * s)
    s = 1.0 / 9.0 - z * (1.0 / 11.0 - z * s)
    s = 1.0 / 5.0 - z * (1.0 / 7.0 - z * s)
    angle = 4.0 * y * (1.0 - z * (1.0 / 3.0 - z * s))
    return tl.where(a > 1.0, 1.5707963267948966 - angle, angle) * sign(x)


@triton.jit
def off_zero(extent):
    """As jolkernels.reference.off_zero."""
    least = tl.full(extent.shape, MIN_EXTENT, extent.dtype)
    return tl.where(extent < 0, tl.minimum(extent, -least), tl.maximum(extent, least))


@triton.jit
def ciou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """torchvision.ops.complete_box_iou_loss, its trade-off factor a constant.

    atan(wt / ht) - atan(w / h) is one arc tangent, of (wt h - w ht) / (w wt + h ht), and half a
    turn where the two heights' signs and the denominator's say that it is beyond a quarter.
    """
    loss, d0, d1, d2, d3 = diou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS)
    v, _v0, _v1, _v2, _v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 1e-7)
    w, h, wt, ht = off_zero(x2 - x0), off_zero(x3 - x1), off_zero(t2 - t0), off_zero(t3 - t1)
    upright = sign(h) * sign(ht)
    cross, dot = upright * (wt * h - w * ht), upright * (w * wt + h * ht)
    angle = atan(cross / tl.where(dot == 0, 1e-30, dot))  # not -0
    angle += tl.where(dot < 0, 3.141592653589793 * sign(cross), 0.0)
    aspect = 0.4052847345693511 * angle * angle  # 4 / pi^2
    factor = aspect / (1.0 - v + aspect + 1e-7)
    slope = 2.0 * 0.4052847345693511 * factor * angle / (w * w + h * h)
    dw = tl.where(x2 - x0 == w, -slope * h, 0.0)  # an extent that was moved stays
    dh = tl.where(x3 - x1 == h, slope * w, 0.0)
    return loss + factor * aspect, d0 - dw, d1 - dh, d2 + dw, d3 + dh


@triton.jit
def eiou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """DIoU plus the differences of width and height over the hull's, squared."""
    loss, d0, d1, d2, d3 = diou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS)
    w, w0, w2, h, h1, h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    dw, dh = (x2 - x0) - (t2 - t0), (x3 - x1) - (t3 - t1)
    per_w, per_h = 1.0 / (w * w + 1e-7), 1.0 / (h * h + 1e-7)
    qw, qh = dw * dw * per_w, dh * dh * per_h
    d0, d2 = d0 - 2.0 * per_w * (dw + qw * w * w0), d2 + 2.0 * per_w * (dw - qw * w * w2)
    d1, d3 = d1 - 2.0 * per_h * (dh + qh * h * h1), d3 + 2.0 * per_h * (dh - qh * h * h3)
    return loss + qw + qh, d0, d1, d2, d3


KERNEL["regression"] |= {
    spec.L1: l1_loss,
    spec.SmoothL1: smooth_l1_loss,
    spec.L2: l2_loss,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
    spec.DIoU: diou_loss,
    spec.CIoU: ciou_loss,
    spec.EIoU: eiou_loss,
}
