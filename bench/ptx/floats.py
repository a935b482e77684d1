"""Floating-point numbers as PTX has them, in numpy.

numpy has no bfloat16, no fused multiply-add, and other rules than PTX for NaN, signed zeros and
conversions to integers. A bfloat16 is held as the uint16 of its bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BF16 = "bf16"
F16, F32, F64 = np.dtype("f2"), np.dtype("f4"), np.dtype("f8")
SMALLEST_NORMAL = {F16: 2.0**-14, F32: 2.0**-126, F64: 2.0**-1022}
TAIL = {F16: (1 << 42) - 1, F32: (1 << 29) - 1}  # bits of a float64 that these have not
MIDDLE = {F16: 1 << 41, F32: 1 << 28}
CANONICAL_NAN = np.uint16(0x7FFF)  # of half precision, sections 9.7.4 and 9.7.9.21
CANONICAL_NAN_32 = np.uint32(0x7FFFFFFF).view(F32)


def from_bf16(x: Array) -> Array:
    """The float32 of some bfloat16 bits."""
    return (x.astype(np.uint32) << np.uint32(16)).view(F32)


def to_bf16(x: Array) -> Array:
    """The bits of float32 rounded to the nearest bfloat16, ties to even."""
    u = x.view(np.uint32)
    half = np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))
    rounded = ((u + half) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), CANONICAL_NAN, rounded)


def truncated_to_bf16(x: Array) -> Array:
    """The bits of float32 rounded towards zero."""
    return np.where(np.isnan(x), CANONICAL_NAN, (x.view(np.uint32) >> np.uint32(16)).astype("u2"))


def to_f16(x: Array) -> Array:
    """Rounded to the nearest float16; NaN is the canonical one."""
    return np.where(np.isnan(x), CANONICAL_NAN.view(F16), x.astype(F16))


def canonical(x: Array) -> Array:
    """float32 with the one NaN that operations give (section 9.7.3); this CPU's has a sign."""
    nan = np.isnan(x)
    return np.where(nan, CANONICAL_NAN_32, x) if nan.any() else x


def flushed(x: Array) -> Array:
    """.ftz: subnormal numbers as zeros of their sign (section 9.7.3)."""
    small = np.abs(x) < x.dtype.type(SMALLEST_NORMAL[x.dtype])
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def odd(s: Array, error: Array) -> Array:
    """s + error, an exact sum of which s is the rounded part, rounded to odd instead.

    Rounding the result once more, to at most two bits less, gives the exact sum rounded once
    (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    """
    bits = s.view(np.int64)
    even = (bits & 1) == 0
    step = np.where((error > 0) == (s > 0), 1, -1)
    inexact = (error != 0) & even & np.isfinite(s)
    # At s = 0 nothing is inexact: a sum of two float64 is never rounded to zero.
    return np.where(inexact, bits + step, bits).view(F64)


def sum_error(a: Array, b: Array, s: Array) -> Array:
    """a + b - s for s = a + b rounded, exactly (Knuth); 0 where that is not finite."""
    v = s - a
    e = (a - (s - v)) + (b - v)
    return np.where(np.isfinite(e), e, 0.0)


def fma(x: Array, y: Array, z: Array) -> Array:
    """x y + z of float16, float32 or float64, rounded once."""
    if x.dtype == F64:
        return fma64(x, y, z)
    product = x.astype(F64) * y.astype(F64)  # exact
    z = z.astype(F64)
    s = product + z
    # Rounding s is rounding twice only where s lies between two neighbours of the result's type,
    # exactly in the middle as far as s can tell, or the result is subnormal.
    unsure = (np.abs(s) < SMALLEST_NORMAL[x.dtype]) & (s != 0)
    unsure |= (s.view(np.int64) & TAIL[x.dtype]) == MIDDLE[x.dtype]
    if unsure.any():
        p, z = (np.broadcast_to(v, s.shape)[unsure] for v in (product, z))
        s[unsure] = odd(s[unsure], sum_error(p, z, s[unsure]))
    return s.astype(x.dtype)


def fma_bf16(x: Array, y: Array, z: Array) -> Array:
    """x y + z of bfloat16 bits, rounded once."""
    a, b, c = (from_bf16(v).astype(F64) for v in (x, y, z))
    s = a * b + c
    s = odd(s, sum_error(a * b, c, s))
    nearest = s.astype(F32)
    error = s - nearest.astype(F64)  # exact
    bits = nearest.view(np.int32)
    step = np.where((error > 0) == (nearest > 0), 1, -1).astype(np.int32)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(nearest) & (nearest != 0)
    return to_bf16(np.where(inexact, bits + step, bits).view(F32))


def fma64(x: Array, y: Array, z: Array) -> Array:
    """x y + z of float64, rounded once.

    By the algorithm of Boldo and Melquiond. Where halves or their products leave the range of
    normal numbers (|x| or |y| above 2^995, |x y| below 2^-968), rounded twice.
    """
    product = x * y
    s = product + z
    with np.errstate(all="ignore"):
        low = product_error(x, y, product)
        exact = np.isfinite(low) & np.isfinite(s) & (np.abs(product) > 2.0**-968)
        low = np.where(exact, low, 0.0)
        tail = z + low
        tail_error = sum_error(z, low, tail)
        head = product + tail
        head_error = sum_error(product, tail, head)
        rest = tail_error + head_error
        rest = odd(rest, sum_error(tail_error, head_error, rest))
        return np.where(exact, head + rest, s)


def product_error(x: Array, y: Array, product: Array) -> Array:
    """x y - product for the rounded product, exactly (Dekker, Veltkamp)."""
    factor = 134217729.0  # 2^27 + 1
    xs, ys = factor * x, factor * y
    xh, yh = xs - (xs - x), ys - (ys - y)
    xl, yl = x - xh, y - yh
    return xl * yl - (((product - xh * yh) - xl * yh) - xh * yl)


def larger(x: Array, y: Array) -> Array:
    """max: the number where one is NaN, and +0 above -0 (section 9.7.3.10)."""
    return same_or(x, y, np.fmax(x, y), np.bitwise_and)


def smaller(x: Array, y: Array) -> Array:
    """min: the number where one is NaN, and -0 below +0."""
    return same_or(x, y, np.fmin(x, y), np.bitwise_or)


def same_or(x: Array, y: Array, chosen: Array, of_zeros: np.ufunc) -> Array:
    """`chosen`, but where x = y = 0 the zero whose sign is of_zeros of both signs."""
    zeros = (x == 0) & (y == 0)
    if not zeros.any():
        return chosen
    bits = np.dtype(f"u{x.itemsize}")
    return np.where(zeros, of_zeros(x.view(bits), y.view(bits)).view(x.dtype), chosen)


def to_integer(x: Array, dtype: np.dtype) -> Array:
    """Integral floating-point numbers as integers, clamped to the range (section 9.7.9.21).

    NaN is 0 if neither side has 64 bits, else the highest bit alone.
    """
    info = np.iinfo(dtype)
    low, high = float(info.min), float(info.max)  # the latter may round up to 2^63 or 2^64
    inside = (x >= low) & (x < high)
    made = np.where(inside, x, 0).astype(dtype)
    made = np.where(x >= high, info.max, made)
    made = np.where(x < low, info.min, made)
    wide = x.dtype == F64 or dtype.itemsize == 8
    nan = info.min if wide and info.min < 0 else (1 << (8 * dtype.itemsize - 1)) * wide
    return np.where(np.isnan(x), dtype.type(nan), made).astype(dtype)
