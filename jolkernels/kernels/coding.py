"""Device functions of the box codings, for codes b, corner boxes x or t, and priors p.

    decode(b, p, PARAMS)  -> x
    encode(t, p, PARAMS)  -> codes of t
    pull(g, b, p, PARAMS) -> dL/db from g = dL/dx

All are tuples of four, one number a row each; boxes are x1 y1 x2 y2.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.kernels.boxes import MIN_EXTENT, extents
from jolkernels.registry import KERNEL

UNSCALED = tl.constexpr(spec.CXCYWH().pixels)


@triton.jit
def decode_xyxy(b, p, PARAMS: tl.constexpr):
    return b


@triton.jit
def encode_xyxy(t, p, PARAMS: tl.constexpr):
    return t


@triton.jit
def pull_xyxy(g, b, p, PARAMS: tl.constexpr):
    return g


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
def decode_delta(b, p, PARAMS: tl.constexpr):
    """PARAMS = (wx, wy, ww, wh), clip, low_clip."""
    W: tl.constexpr = PARAMS[0]
    x0, x2 = decode_delta_side(b[0], b[2], p[0], p[2], W[0], W[2], PARAMS[1], PARAMS[2])
    x1, x3 = decode_delta_side(b[1], b[3], p[1], p[3], W[1], W[3], PARAMS[1], PARAMS[2])
    return x0, x1, x2, x3


@triton.jit
def extent(low, high):
    """high - low, at least MIN_EXTENT; NaN stays NaN."""
    least = tl.full(low.shape, MIN_EXTENT, low.dtype)
    return tl.maximum(high - low, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def encode_delta_side(t_low, t_high, low, high, W: tl.constexpr, V: tl.constexpr):
    """One axis of torchvision's BoxCoder.encode_single, extents at least MIN_EXTENT."""
    offset = (t_low + 0.5 * (t_high - t_low)) - (low + 0.5 * (high - low))
    size, t_size = extent(low, high), extent(t_low, t_high)
    return offset / size * W, tl.log(t_size / size) * V


@triton.jit
def encode_delta(t, p, PARAMS: tl.constexpr):
    W: tl.constexpr = PARAMS[0]
    c0, c2 = encode_delta_side(t[0], t[2], p[0], p[2], W[0], W[2])
    c1, c3 = encode_delta_side(t[1], t[3], p[1], p[3], W[1], W[3])
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
def pull_delta(g, b, p, PARAMS: tl.constexpr):
    W: tl.constexpr = PARAMS[0]
    d0, d2 = pull_delta_side(g[0], g[2], b[2], p[0], p[2], W[0], W[2], PARAMS[1], PARAMS[2])
    d1, d3 = pull_delta_side(g[1], g[3], b[3], p[1], p[3], W[1], W[3], PARAMS[1], PARAMS[2])
    return d0, d1, d2, d3


@triton.jit
def middle(p):
    return 0.5 * (p[0] + p[2]), 0.5 * (p[1] + p[3])


@triton.jit
def decode_ltrb(b, p, PARAMS: tl.constexpr):
    """torchvision's BoxLinearCoder.decode with normalize_by_size."""
    x, y = middle(p)
    w, h = extents(p)
    return x - b[0] * w, y - b[1] * h, x + b[2] * w, y + b[3] * h


@triton.jit
def encode_ltrb(t, p, PARAMS: tl.constexpr):
    x, y = middle(p)
    w, h = extent(p[0], p[2]), extent(p[1], p[3])
    return (x - t[0]) / w, (y - t[1]) / h, (t[2] - x) / w, (t[3] - y) / h


@triton.jit
def pull_ltrb(g, b, p, PARAMS: tl.constexpr):
    w, h = extents(p)
    return -g[0] * w, -g[1] * h, g[2] * w, g[3] * h


@triton.jit
def decode_cxcywh(b, p, PARAMS: tl.constexpr):
    """PARAMS = scale."""
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    x, y, w, h = b[0] * PIXELS[0], b[1] * PIXELS[1], b[2] * PIXELS[0], b[3] * PIXELS[1]
    return x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h


@triton.jit
def encode_cxcywh(t, p, PARAMS: tl.constexpr):
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    w, h = extents(t)
    x, y = t[0] + 0.5 * w, t[1] + 0.5 * h
    return x / PIXELS[0], y / PIXELS[1], w / PIXELS[0], h / PIXELS[1]


@triton.jit
def pull_cxcywh(g, b, p, PARAMS: tl.constexpr):
    PIXELS: tl.constexpr = UNSCALED if PARAMS[0] is None else PARAMS[0]
    d0, d1 = (g[0] + g[2]) * PIXELS[0], (g[1] + g[3]) * PIXELS[1]
    return d0, d1, 0.5 * (g[2] - g[0]) * PIXELS[0], 0.5 * (g[3] - g[1]) * PIXELS[1]


KERNEL["coding"] |= {
    spec.XYXY: (decode_xyxy, encode_xyxy, pull_xyxy),
    spec.Delta: (decode_delta, encode_delta, pull_delta),
    spec.LTRB: (decode_ltrb, encode_ltrb, pull_ltrb),
    spec.CXCYWH: (decode_cxcywh, encode_cxcywh, pull_cxcywh),
}
