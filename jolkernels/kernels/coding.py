"""Device functions of the box codings, for codes b, corner boxes x or t, and priors p.

decode(b0, b1, b2, b3, p0, p1, p2, p3, PARAMS)                  -> x0, x1, x2, x3
encode(t0, t1, t2, t3, p0, p1, p2, p3, PARAMS)                  -> codes of t
pull(g0, g1, g2, g3, b0, b1, b2, b3, p0, p1, p2, p3, PARAMS)    -> dL/db from g = dL/dx
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import MIN_EXTENT
from jolkernels.registry import KERNEL

UNSCALED = tl.constexpr(spec.CXCYWH().pixels)


@triton.jit
def decode_xyxy(b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    return b0, b1, b2, b3


@triton.jit
def encode_xyxy(t0, t1, t2, t3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    return t0, t1, t2, t3


@triton.jit
def pull_xyxy(g0, g1, g2, g3, b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    return g0, g1, g2, g3


@triton.jit
def half_size(size_code, size, V: tl.constexpr, CLIP: tl.constexpr, LOW_CLIP: tl.constexpr):
    """Half the decoded size; NaN stays NaN."""
    clip = tl.full(size_code.shape, CLIP, size_code.dtype)  # a bare constant would be float32
    code = tl.minimum(size_code / V, clip, propagate_nan=tl.PropagateNan.ALL)
    if LOW_CLIP is not None:
        low = tl.full(code.shape, LOW_CLIP, code.dtype)
        code = tl.maximum(code, low, propagate_nan=tl.PropagateNan.ALL)
    return 0.5 * tl.exp(code) * size


@triton.jit
def decode_delta_side(
    center_code, size_code, low, high,
    W: tl.constexpr, V: tl.constexpr, CLIP: tl.constexpr, LOW_CLIP: tl.constexpr,
):  # fmt: skip
    """One axis of torchvision's BoxCoder.decode_single."""
    size = high - low
    center = low + 0.5 * size + center_code / W * size
    half = half_size(size_code, size, V, CLIP, LOW_CLIP)
    return center - half, center + half


@triton.jit
def decode_delta(b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    """PARAMS = (wx, wy, ww, wh), clip, low_clip."""
    x0, x2 = decode_delta_side(b0, b2, p0, p2, PARAMS[0][0], PARAMS[0][2], PARAMS[1], PARAMS[2])
    x1, x3 = decode_delta_side(b1, b3, p1, p3, PARAMS[0][1], PARAMS[0][3], PARAMS[1], PARAMS[2])
    return x0, x1, x2, x3


@triton.jit
def extent(low, high):
    """high - low, at least MIN_EXTENT."""
    return tl.maximum(high - low, tl.full(low.shape, MIN_EXTENT, low.dtype))


@triton.jit
def encode_delta_side(t_low, t_high, low, high, W: tl.constexpr, V: tl.constexpr):
    """One axis of torchvision's BoxCoder.encode_single, extents at least MIN_EXTENT."""
    offset = (t_low + 0.5 * (t_high - t_low)) - (low + 0.5 * (high - low))
    size, t_size = extent(low, high), extent(t_low, t_high)
    return offset / size * W, tl.log(t_size / size) * V


@triton.jit
def encode_delta(t0, t1, t2, t3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    c0, c2 = encode_delta_side(t0, t2, p0, p2, PARAMS[0][0], PARAMS[0][2])
    c1, c3 = encode_delta_side(t1, t3, p1, p3, PARAMS[0][1], PARAMS[0][3])
    return c0, c1, c2, c3


@triton.jit
def pull_delta_side(
    g_low, g_high, size_code, low, high,
    W: tl.constexpr, V: tl.constexpr, CLIP: tl.constexpr, LOW_CLIP: tl.constexpr,
):  # fmt: skip
    """One axis: the centre's code moves both corners, the size's code moves them apart."""
    size = high - low
    half = half_size(size_code, size, V, CLIP, LOW_CLIP)
    free = size_code / V <= CLIP
    if LOW_CLIP is not None:
        free &= size_code / V >= LOW_CLIP
    g_size = tl.where(free, (g_high - g_low) * half / V, 0.0)
    return (g_low + g_high) * size / W, g_size


@triton.jit
def pull_delta(g0, g1, g2, g3, b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    d0, d2 = pull_delta_side(g0, g2, b2, p0, p2, PARAMS[0][0], PARAMS[0][2], PARAMS[1], PARAMS[2])
    d1, d3 = pull_delta_side(g1, g3, b3, p1, p3, PARAMS[0][1], PARAMS[0][3], PARAMS[1], PARAMS[2])
    return d0, d1, d2, d3


@triton.jit
def decode_ltrb(b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    """torchvision's BoxLinearCoder.decode with normalize_by_size."""
    x, y, w, h = 0.5 * (p0 + p2), 0.5 * (p1 + p3), p2 - p0, p3 - p1
    return x - b0 * w, y - b1 * h, x + b2 * w, y + b3 * h


@triton.jit
def encode_ltrb(t0, t1, t2, t3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    x, y = 0.5 * (p0 + p2), 0.5 * (p1 + p3)
    w, h = extent(p0, p2), extent(p1, p3)
    return (x - t0) / w, (y - t1) / h, (t2 - x) / w, (t3 - y) / h


@triton.jit
def pull_ltrb(g0, g1, g2, g3, b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    w, h = p2 - p0, p3 - p1
    return -g0 * w, -g1 * h, g2 * w, g3 * h


@triton.jit
def decode_cxcywh(b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    """PARAMS = scale."""
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    x, y, w, h = b0 * PIXELS[0], b1 * PIXELS[1], b2 * PIXELS[0], b3 * PIXELS[1]
    return x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h


@triton.jit
def encode_cxcywh(t0, t1, t2, t3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    w, h = t2 - t0, t3 - t1
    x, y = t0 + 0.5 * w, t1 + 0.5 * h
    return x / PIXELS[0], y / PIXELS[1], w / PIXELS[0], h / PIXELS[1]


@triton.jit
def pull_cxcywh(g0, g1, g2, g3, b0, b1, b2, b3, p0, p1, p2, p3, PARAMS: tl.constexpr):
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    d0, d1 = (g0 + g2) * PIXELS[0], (g1 + g3) * PIXELS[1]
    return d0, d1, 0.5 * (g2 - g0) * PIXELS[0], 0.5 * (g3 - g1) * PIXELS[1]


KERNEL["coding"] |= {
    spec.XYXY: (decode_xyxy, encode_xyxy, pull_xyxy),
    spec.Delta: (decode_delta, encode_delta, pull_delta),
    spec.LTRB: (decode_ltrb, encode_ltrb, pull_ltrb),
    spec.CXCYWH: (decode_cxcywh, encode_cxcywh, pull_cxcywh),
}
