"""Device functions of the box losses.

    f(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS) -> loss, d0, d1, d2, d3

One number a row each: the four numbers x of a box against those of its target t (codes or corners,
as the spec's `on_codes` says), the row's loss and its derivatives with respect to x. The forward
kernel leaves the derivatives unused and the compiler drops them.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import (
    MIN_EXTENT,
    atan,
    center_offsets,
    hull_sides,
    iou,
    nwd,
    off_zero,
    overlap,
    share,
    sign,
)
from jolkernels.registry import KERNEL

LEAST_IOU = tl.constexpr(1e-6)  # as jolkernels.formulas.regression.LEAST_IOU


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
def iou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """1 - v, -log v or 1 - v^2 of the IoU v; PARAMS = mode."""
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    if PARAMS[0] == "log":
        least = tl.full(v.shape, LEAST_IOU, v.dtype)  # a bare constant would be float32
        low = v < least
        bounded = tl.where(low, least, v)  # NaN stays NaN
        loss, slope = -tl.log(bounded), tl.where(low, 0.0, 1.0 / bounded)
        d0, d1, d2, d3 = slope * d0, slope * d1, slope * d2, slope * d3
    elif PARAMS[0] == "square":
        loss = 1.0 - v * v
        d0, d1, d2, d3 = 2.0 * v * d0, 2.0 * v * d1, 2.0 * v * d2, 2.0 * v * d3
    else:
        loss = 1.0 - v
    return loss, -d0, -d1, -d2, -d3


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


@triton.jit
def size_cost(size, target, factor):
    """(1 - exp(-factor |size - target| / the larger))^4 and its derivative for the size."""
    d = size - target
    least = tl.full(size.shape, MIN_EXTENT, size.dtype)
    larger = tl.maximum(size, target)
    moves = tl.where(larger < least, 0.0, share(d))
    larger = tl.maximum(larger, least)
    u = factor * tl.abs(d) / larger
    e = tl.exp(-u)
    rest = 1.0 - e
    cube = rest * rest * rest
    return cube * rest, 4.0 * cube * e * (factor * sign(d) - u * moves) / larger


@triton.jit
def siou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """1 - IoU + (distance + shape) / 2, the distance less along an axis than off both.

    distance = 2 - exp(rate qx) - exp(rate qy), q the squared offsets over the hull's squared sides.
    """
    v, v0, v1, v2, v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 1e-7)
    w, w0, w2, h, h1, h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    dx, dy = center_offsets(x0, x1, x2, x3, t0, t1, t2, t3)
    squares, per_w, per_h = dx * dx + dy * dy, 1.0 / (w * w + 1e-7), 1.0 / (h * h + 1e-7)
    per = 1.0 / tl.where(squares > 0, squares, 1.0)
    angle = 2.0 * tl.abs(dx * dy) * per
    rate, qx, qy = angle - 2.0, dx * dx * per_w, dy * dy * per_h
    ex, ey = tl.exp(rate * qx), tl.exp(rate * qy)
    by_qx, by_qy, by_angle = -rate * ex, -rate * ey, -(qx * ex + qy * ey)

    # Of the offsets, halved: each corner moves the centre by one half.
    upright = sign(dx * dy)
    by_dx = by_qx * dx * per_w + by_angle * (upright * dy - angle * dx) * per
    by_dy = by_qy * dy * per_h + by_angle * (upright * dx - angle * dy) * per
    by_w, by_h = -2.0 * by_qx * qx * w * per_w, -2.0 * by_qy * qy * h * per_h
    shape_w, dw = size_cost(x2 - x0, t2 - t0, 1.0)
    shape_h, dh = size_cost(x3 - x1, t3 - t1, 1.0)
    d0, d2 = 0.5 * (by_dx + by_w * w0 - dw) - v0, 0.5 * (by_dx + by_w * w2 + dw) - v2
    d1, d3 = 0.5 * (by_dy + by_h * h1 - dh) - v1, 0.5 * (by_dy + by_h * h3 + dh) - v3
    return 1.0 - v + 0.5 * (2.0 - ex - ey + shape_w + shape_h), d0, d1, d2, d3


@triton.jit
def shape_iou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """DIoU and half a shape cost, both weighed by the target's shape; PARAMS = scale."""
    v, v0, v1, v2, v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 1e-7)
    w, w0, w2, h, h1, h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    dx, dy = center_offsets(x0, x1, x2, x3, t0, t1, t2, t3)
    wt, ht = t2 - t0, t3 - t1
    least = tl.full(wt.shape, MIN_EXTENT, wt.dtype)
    power = PARAMS[0] * tl.log(tl.maximum(wt, least) / tl.maximum(ht, least))
    of_w, of_h = 2.0 / (1.0 + tl.exp(-power)), 2.0 / (1.0 + tl.exp(power))
    per = 1.0 / (w * w + h * h + 1e-7)
    q = (of_h * dx * dx + of_w * dy * dy) * per
    shape_w, dw = size_cost(x2 - x0, wt, of_h)
    shape_h, dh = size_cost(x3 - x1, ht, of_w)
    by_dx, by_dy, dw, dh = of_h * dx, of_w * dy, 0.5 * dw, 0.5 * dh
    d0, d1 = (by_dx - 2.0 * q * w * w0) * per - dw - v0, (by_dy - 2.0 * q * h * h1) * per - dh - v1
    d2, d3 = (by_dx - 2.0 * q * w * w2) * per + dw - v2, (by_dy - 2.0 * q * h * h3) * per + dh - v3
    return 1.0 - v + q + 0.5 * (shape_w + shape_h), d0, d1, d2, d3


@triton.jit
def wiou_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """exp(the centres' distance over the hull's diagonal, a constant) (1 - IoU)."""
    v, v0, v1, v2, v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    w, _w0, _w2, h, _h1, _h3 = hull_sides(x0, x1, x2, x3, t0, t1, t2, t3)
    dx, dy = center_offsets(x0, x1, x2, x3, t0, t1, t2, t3)
    per = 1.0 / (w * w + h * h + 1e-7)
    factor = tl.exp((dx * dx + dy * dy) * per)
    loss = factor * (1.0 - v)
    by_dx, by_dy = loss * dx * per, loss * dy * per
    return loss, by_dx - factor * v0, by_dy - factor * v1, by_dx - factor * v2, by_dy - factor * v3


@triton.jit
def nwd_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """mix (1 - NWD) + (1 - mix) (1 - IoU); PARAMS = constant, mix."""
    MIX: tl.constexpr = PARAMS[1]
    v, d0, d1, d2, d3 = nwd(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS[0])
    if MIX != 1.0:
        u, u0, u1, u2, u3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
        v, d0, d1 = (
            MIX * v + (1.0 - MIX) * u,
            MIX * d0 + (1.0 - MIX) * u0,
            MIX * d1 + (1.0 - MIX) * u1,
        )
        d2, d3 = MIX * d2 + (1.0 - MIX) * u2, MIX * d3 + (1.0 - MIX) * u3
    return 1.0 - v, -d0, -d1, -d2, -d3


@triton.jit
def scaled_side(low, high, RATIO: tl.constexpr):
    """The side low..high scaled about its middle."""
    size = high - low
    middle, half = low + 0.5 * size, 0.5 * (RATIO * size)
    return middle - half, middle + half


@triton.jit
def inner_gap(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """IoU minus the IoU of both boxes with their sides scaled; PARAMS = ratio."""
    NEAR: tl.constexpr = 0.5 + 0.5 * PARAMS[0]  # how a scaled corner moves with its own corner
    FAR: tl.constexpr = 0.5 - 0.5 * PARAMS[0]
    v, v0, v1, v2, v3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    y0, y2 = scaled_side(x0, x2, PARAMS[0])
    y1, y3 = scaled_side(x1, x3, PARAMS[0])
    s0, s2 = scaled_side(t0, t2, PARAMS[0])
    s1, s3 = scaled_side(t1, t3, PARAMS[0])
    u, u0, u1, u2, u3 = iou(y0, y1, y2, y3, s0, s1, s2, s3, 0.0)
    d0, d1 = v0 - (NEAR * u0 + FAR * u2), v1 - (NEAR * u1 + FAR * u3)
    d2, d3 = v2 - (NEAR * u2 + FAR * u0), v3 - (NEAR * u3 + FAR * u1)
    return v - u, d0, d1, d2, d3


@triton.jit
def focaler_gap(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    """IoU minus the IoU mapped from low..high to 0..1; PARAMS = low, high."""
    RANGE: tl.constexpr = PARAMS[1] - PARAMS[0]
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3, 0.0)
    mapped = (v - PARAMS[0]) / RANGE  # fused with v's product, not exactly 0 or 1 at a limit
    low, high = v < PARAMS[0], v > PARAMS[1]
    slope = 1.0 - (~(low | high)).to(v.dtype) / RANGE
    mapped = tl.where(low, 0.0, tl.where(high, 1.0, mapped))  # NaN stays NaN
    return v - mapped, slope * d0, slope * d1, slope * d2, slope * d3


KERNEL["regression"] |= {
    spec.L1: l1_loss,
    spec.SmoothL1: smooth_l1_loss,
    spec.L2: l2_loss,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
    spec.DIoU: diou_loss,
    spec.CIoU: ciou_loss,
    spec.EIoU: eiou_loss,
    spec.SIoU: siou_loss,
    spec.ShapeIoU: shape_iou_loss,
    spec.WIoU: wiou_loss,
    spec.NWD: nwd_loss,
    spec.InnerGap: inner_gap,
    spec.FocalerGap: focaler_gap,
}
