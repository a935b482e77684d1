"""Device functions of the box losses.

    f(x, t, PARAMS) -> loss, d

x and t are a box and its target, tuples of four with one number a row each: codes or corners, as
the spec's `on_codes` says. d are the derivatives of the row's loss with respect to x, a tuple of
four too. The forward kernel leaves them unused and the compiler drops them.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import (
    MIN_EXTENT,
    added,
    atan,
    center_offsets,
    difference,
    extent_offsets,
    extents,
    hull_sides,
    iou,
    negated,
    nwd,
    off_zero,
    overlap,
    scaled,
    share,
    sign,
)
from jolkernels.registry import KERNEL

LEAST_IOU = tl.constexpr(1e-6)  # as jolkernels.formulas.regression.LEAST_IOU


@triton.jit
def l1_loss(x, t, PARAMS: tl.constexpr):
    d0, d1, d2, d3 = difference(x, t)
    loss = tl.abs(d0) + tl.abs(d1) + tl.abs(d2) + tl.abs(d3)
    return loss, (sign(d0), sign(d1), sign(d2), sign(d3))


@triton.jit
def l2_loss(x, t, PARAMS: tl.constexpr):
    d = difference(x, t)
    return d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + d[3] * d[3], scaled(2.0, d)


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
def smooth_l1_loss(x, t, PARAMS: tl.constexpr):
    """PARAMS = beta."""
    v0, d0 = smooth(x[0] - t[0], PARAMS[0])
    v1, d1 = smooth(x[1] - t[1], PARAMS[0])
    v2, d2 = smooth(x[2] - t[2], PARAMS[0])
    v3, d3 = smooth(x[3] - t[3], PARAMS[0])
    return v0 + v1 + v2 + v3, (d0, d1, d2, d3)


@triton.jit
def iou_loss(x, t, PARAMS: tl.constexpr):
    """1 - v, -log v or 1 - v^2 of the IoU v; PARAMS = mode."""
    v, d = iou(x, t, 0.0)
    if PARAMS[0] == "log":
        least = tl.full(v.shape, LEAST_IOU, v.dtype)  # a bare constant would be float32
        low = v < least
        bounded = tl.where(low, least, v)  # NaN stays NaN
        loss, slope = -tl.log(bounded), tl.where(low, 0.0, 1.0 / bounded)
        d = scaled(slope, d)
    elif PARAMS[0] == "square":
        loss = 1.0 - v * v
        d = scaled(2.0 * v, d)
    else:
        loss = 1.0 - v
    return loss, negated(d)


@triton.jit
def giou_loss(x, t, PARAMS: tl.constexpr):
    """torchvision.ops.generalized_box_iou_loss: 1 - i / (u + eps) + (c - u) / (c + eps)."""
    i, di, u, du = overlap(x, t)
    w, h, sides = hull_sides(x, t)
    w0, h1, w2, h3 = sides
    c, per_u, per_c = w * h, 1.0 / (u + 1e-7), 1.0 / (w * h + 1e-7)
    v, gap = i * per_u, (c - u) * per_c
    d0 = ((1.0 - gap) * h * w0 - du[0]) * per_c - (di[0] - v * du[0]) * per_u
    d1 = ((1.0 - gap) * w * h1 - du[1]) * per_c - (di[1] - v * du[1]) * per_u
    d2 = ((1.0 - gap) * h * w2 - du[2]) * per_c - (di[2] - v * du[2]) * per_u
    d3 = ((1.0 - gap) * w * h3 - du[3]) * per_c - (di[3] - v * du[3]) * per_u
    return 1.0 - v + gap, (d0, d1, d2, d3)


@triton.jit
def diou_loss(x, t, PARAMS: tl.constexpr):
    """torchvision.ops.distance_box_iou_loss: the centres' distance over the hull's diagonal."""
    v, dv = iou(x, t, 1e-7)
    w, h, sides = hull_sides(x, t)
    w0, h1, w2, h3 = sides
    dx, dy = center_offsets(x, t)
    per = 1.0 / (w * w + h * h + 1e-7)
    q = (dx * dx + dy * dy) * per
    d0, d1 = (dx - 2.0 * q * w * w0) * per - dv[0], (dy - 2.0 * q * h * h1) * per - dv[1]
    d2, d3 = (dx - 2.0 * q * w * w2) * per - dv[2], (dy - 2.0 * q * h * h3) * per - dv[3]
    return 1.0 - v + q, (d0, d1, d2, d3)


@triton.jit
def ciou_loss(x, t, PARAMS: tl.constexpr):
    """torchvision.ops.complete_box_iou_loss, its trade-off factor a constant.

    atan(wt / ht) - atan(w / h) is one arc tangent, of (wt h - w ht) / (w wt + h ht), and half a
    turn where the two heights' signs and the denominator's say that it is beyond a quarter.
    """
    loss, d = diou_loss(x, t, PARAMS)
    v, _dv = iou(x, t, 1e-7)
    xw, xh = extents(x)
    wt, ht = extents(t)
    w, h, wt, ht = off_zero(xw), off_zero(xh), off_zero(wt), off_zero(ht)
    upright = sign(h) * sign(ht)
    cross, dot = upright * (wt * h - w * ht), upright * (w * wt + h * ht)
    angle = atan(cross / tl.where(dot == 0, 1e-30, dot))  # not -0
    angle += tl.where(dot < 0, 3.141592653589793 * sign(cross), 0.0)
    aspect = 0.4052847345693511 * angle * angle  # 4 / pi^2
    factor = aspect / (1.0 - v + aspect + 1e-7)
    slope = 2.0 * 0.4052847345693511 * factor * angle / (w * w + h * h)
    dw = tl.where(xw == w, -slope * h, 0.0)  # an extent that was moved stays
    dh = tl.where(xh == h, slope * w, 0.0)
    return loss + factor * aspect, (d[0] - dw, d[1] - dh, d[2] + dw, d[3] + dh)


@triton.jit
def eiou_loss(x, t, PARAMS: tl.constexpr):
    """DIoU plus the differences of width and height over the hull's, squared."""
    loss, d = diou_loss(x, t, PARAMS)
    w, h, sides = hull_sides(x, t)
    w0, h1, w2, h3 = sides
    dw, dh = extent_offsets(x, t)
    per_w, per_h = 1.0 / (w * w + 1e-7), 1.0 / (h * h + 1e-7)
    qw, qh = dw * dw * per_w, dh * dh * per_h
    d0, d2 = d[0] - 2.0 * per_w * (dw + qw * w * w0), d[2] + 2.0 * per_w * (dw - qw * w * w2)
    d1, d3 = d[1] - 2.0 * per_h * (dh + qh * h * h1), d[3] + 2.0 * per_h * (dh - qh * h * h3)
    return loss + qw + qh, (d0, d1, d2, d3)


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
def siou_loss(x, t, PARAMS: tl.constexpr):
    """1 - IoU + (distance + shape) / 2, the distance less along an axis than off both.

    distance = 2 - exp(rate qx) - exp(rate qy), q the squared offsets over the hull's squared sides.
    """
    v, dv = iou(x, t, 1e-7)
    w, h, sides = hull_sides(x, t)
    w0, h1, w2, h3 = sides
    xw, xh = extents(x)
    wt, ht = extents(t)
    dx, dy = center_offsets(x, t)
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
    shape_w, dw = size_cost(xw, wt, 1.0)
    shape_h, dh = size_cost(xh, ht, 1.0)
    d0, d2 = by_dx + by_w * w0 - dw, by_dx + by_w * w2 + dw
    d1, d3 = by_dy + by_h * h1 - dh, by_dy + by_h * h3 + dh
    loss = 1.0 - v + 0.5 * (2.0 - ex - ey + shape_w + shape_h)
    return loss, difference(scaled(0.5, (d0, d1, d2, d3)), dv)


@triton.jit
def shape_iou_loss(x, t, PARAMS: tl.constexpr):
    """DIoU and half a shape cost, both weighed by the target's shape; PARAMS = scale."""
    v, dv = iou(x, t, 1e-7)
    w, h, sides = hull_sides(x, t)
    w0, h1, w2, h3 = sides
    dx, dy = center_offsets(x, t)
    xw, xh = extents(x)
    wt, ht = extents(t)
    least = tl.full(wt.shape, MIN_EXTENT, wt.dtype)
    power = PARAMS[0] * tl.log(tl.maximum(wt, least) / tl.maximum(ht, least))
    of_w, of_h = 2.0 / (1.0 + tl.exp(-power)), 2.0 / (1.0 + tl.exp(power))
    per = 1.0 / (w * w + h * h + 1e-7)
    q = (of_h * dx * dx + of_w * dy * dy) * per
    shape_w, dw = size_cost(xw, wt, of_h)
    shape_h, dh = size_cost(xh, ht, of_w)
    by_dx, by_dy, dw, dh = of_h * dx, of_w * dy, 0.5 * dw, 0.5 * dh
    d0, d1 = (by_dx - 2.0 * q * w * w0) * per - dw, (by_dy - 2.0 * q * h * h1) * per - dh
    d2, d3 = (by_dx - 2.0 * q * w * w2) * per + dw, (by_dy - 2.0 * q * h * h3) * per + dh
    return 1.0 - v + q + 0.5 * (shape_w + shape_h), difference((d0, d1, d2, d3), dv)


@triton.jit
def wiou_loss(x, t, PARAMS: tl.constexpr):
    """exp(the centres' distance over the hull's diagonal, a constant) (1 - IoU)."""
    v, dv = iou(x, t, 0.0)
    w, h, _sides = hull_sides(x, t)
    dx, dy = center_offsets(x, t)
    per = 1.0 / (w * w + h * h + 1e-7)
    factor = tl.exp((dx * dx + dy * dy) * per)
    loss = factor * (1.0 - v)
    by_dx, by_dy = loss * dx * per, loss * dy * per
    return loss, difference((by_dx, by_dy, by_dx, by_dy), scaled(factor, dv))


@triton.jit
def nwd_loss(x, t, PARAMS: tl.constexpr):
    """mix (1 - NWD) + (1 - mix) (1 - IoU); PARAMS = constant, mix."""
    MIX: tl.constexpr = PARAMS[1]
    v, d = nwd(x, t, PARAMS[0])
    if MIX != 1.0:
        u, du = iou(x, t, 0.0)
        v, d = MIX * v + (1.0 - MIX) * u, added(scaled(MIX, d), scaled(1.0 - MIX, du))
    return 1.0 - v, negated(d)


@triton.jit
def inner_side(low, high, RATIO: tl.constexpr):
    """The side low..high scaled about its middle."""
    size = high - low
    middle, half = low + 0.5 * size, 0.5 * (RATIO * size)
    return middle - half, middle + half


@triton.jit
def inner_box(x, RATIO: tl.constexpr):
    x0, x2 = inner_side(x[0], x[2], RATIO)
    x1, x3 = inner_side(x[1], x[3], RATIO)
    return x0, x1, x2, x3


@triton.jit
def inner_gap(x, t, PARAMS: tl.constexpr):
    """IoU minus the IoU of both boxes with their sides scaled; PARAMS = ratio."""
    NEAR: tl.constexpr = 0.5 + 0.5 * PARAMS[0]  # how a scaled corner moves with its own corner
    FAR: tl.constexpr = 0.5 - 0.5 * PARAMS[0]
    v, dv = iou(x, t, 0.0)
    u, du = iou(inner_box(x, PARAMS[0]), inner_box(t, PARAMS[0]), 0.0)
    u0, u1, u2, u3 = du
    du = added(scaled(NEAR, du), scaled(FAR, (u2, u3, u0, u1)))
    return v - u, difference(dv, du)


@triton.jit
def focaler_gap(x, t, PARAMS: tl.constexpr):
    """IoU minus the IoU mapped from low..high to 0..1; PARAMS = low, high."""
    RANGE: tl.constexpr = PARAMS[1] - PARAMS[0]
    v, d = iou(x, t, 0.0)
    mapped = (v - PARAMS[0]) / RANGE  # fused with v's product, not exactly 0 or 1 at a limit
    low, high = v < PARAMS[0], v > PARAMS[1]
    slope = 1.0 - (~(low | high)).to(v.dtype) / RANGE
    mapped = tl.where(low, 0.0, tl.where(high, 1.0, mapped))  # NaN stays NaN
    return v - mapped, scaled(slope, d)


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
