"""What box losses and scores share: geometry of corner boxes x and t, tuples of x1 y1 x2 y2.

One number a row each. Values come with their derivatives for the corners x, tuples of four too; the
compiler drops those that are unused.
"""

import triton
import triton.language as tl

MIN_EXTENT = tl.constexpr(1e-6)  # pixels; as jolkernels.formulas.boxes.MIN_EXTENT


@triton.jit
def added(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


@triton.jit
def difference(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]


@triton.jit
def negated(d):
    return -d[0], -d[1], -d[2], -d[3]


@triton.jit
def scaled(k, d):
    return k * d[0], k * d[1], k * d[2], k * d[3]


@triton.jit
def sign(d):
    return (d > 0).to(d.dtype) - (d < 0).to(d.dtype)


@triton.jit
def share(d):
    """The part of max(x, t) or of -min(x, t) that moves with x, for d = x - t: 1, 1/2 or 0."""
    return 0.5 + 0.5 * sign(d)


@triton.jit
def extents(x):
    return x[2] - x[0], x[3] - x[1]


@triton.jit
def overlap(x, t):
    """Intersection i and union u of two boxes, and their derivatives, as (i, di, u, du)."""
    x0, x1, x2, x3 = x
    t0, t1, t2, t3 = t
    w = tl.minimum(x2, t2) - tl.maximum(x0, t0)
    h = tl.minimum(x3, t3) - tl.maximum(x1, t1)
    meets = (w > 0) & (h > 0)
    w, h = tl.where(meets, w, 0.0), tl.where(meets, h, 0.0)
    di = -h * share(x0 - t0), -w * share(x1 - t1), h * share(t2 - x2), w * share(t3 - x3)
    i = w * h
    xw, xh = x2 - x0, x3 - x1
    u = xw * xh + (t2 - t0) * (t3 - t1) - i
    return i, di, u, difference((-xh, -xw, xh, xw), di)


@triton.jit
def hull_sides(x, t):
    """Width w and height h of the smallest box around both, and (dw/dx0, dh/dx1, dw/dx2, dh/dx3).

    A corner moves one side only.
    """
    x0, x1, x2, x3 = x
    t0, t1, t2, t3 = t
    w = tl.maximum(x2, t2) - tl.minimum(x0, t0)
    h = tl.maximum(x3, t3) - tl.minimum(x1, t1)
    w0, w2 = -share(t0 - x0), share(x2 - t2)
    h1, h3 = -share(t1 - x1), share(x3 - t3)
    return w, h, (w0, h1, w2, h3)


@triton.jit
def iou(x, t, EPS: tl.constexpr):
    """i / (u + EPS) and its derivatives; 0 where u + EPS is not positive."""
    i, di, u, du = overlap(x, t)
    u = u + EPS
    empty = u <= 0
    inverse = tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, u))
    v = i * inverse
    return v, scaled(inverse, difference(di, scaled(v, du)))


@triton.jit
def center_offsets(x, t):
    """The centres' distance in x and in y."""
    d0, d1, d2, d3 = difference(x, t)
    return 0.5 * (d0 + d2), 0.5 * (d1 + d3)  # 0 for equal boxes


@triton.jit
def extent_offsets(x, t):
    """The differences of width and of height."""
    w, h = extents(x)
    wt, ht = extents(t)
    return w - wt, h - ht


@triton.jit
def root(square):
    """Square root and its inverse, 0 at 0."""
    positive = square > 0
    value = tl.sqrt(tl.where(positive, square, 1.0))
    return tl.where(positive, value, 0.0 * square), tl.where(positive, 1.0 / value, 0.0)


@triton.jit
def nwd(x, t, CONSTANT: tl.constexpr):
    """exp(-W / constant), W^2 = dx^2 + dy^2 + (dw^2 + dh^2) / 4, and its derivatives."""
    dx, dy = center_offsets(x, t)
    dw, dh = extent_offsets(x, t)
    distance, inverse = root(dx * dx + dy * dy + 0.25 * (dw * dw + dh * dh))
    score = tl.exp(-distance / CONSTANT)
    g = -0.5 * score * inverse / CONSTANT  # of half the squares' derivatives
    return score, scaled(g, (dx - 0.5 * dw, dy - 0.5 * dh, dx + 0.5 * dw, dy + 0.5 * dh))


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
    """As jolkernels.formulas.boxes.off_zero."""
    least = tl.full(extent.shape, MIN_EXTENT, extent.dtype)
    return tl.where(extent < 0, tl.minimum(extent, -least), tl.maximum(extent, least))
