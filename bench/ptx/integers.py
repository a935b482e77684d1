"""Integer arithmetic (section 9.7.1), logic and shifts (section 9.7.8), by their names."""

from collections.abc import Callable

import numpy as np

from bench.ptx.floats import Array


def multiply_high(x: Array, y: Array) -> Array:
    """The upper half of a product."""
    bits = 8 * x.itemsize
    if bits < 64:
        wide = np.dtype(f"{x.dtype.kind}{2 * x.itemsize}")
        return ((x.astype(wide) * y.astype(wide)) >> wide.type(bits)).astype(x.dtype)
    a, b = x.view(np.uint64), y.view(np.uint64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    low = a0 * b1 + (middle & mask)
    high = a1 * b1 + (middle >> half) + (low >> half)
    if x.dtype.kind == "i":  # a negative x is 2^64 too large
        high = high - np.where(x < 0, b, 0).astype("u8") - np.where(y < 0, a, 0).astype("u8")
    return high.view(x.dtype)


def multiply_wide(wide: np.dtype, x: Array, y: Array, z: Array | None = None) -> Array:
    """The whole product of x and y, plus z."""
    product = x.astype(wide) * y.astype(wide)
    return product if z is None else product + z


def quotient(x: Array, y: Array) -> Array:
    """Truncated division; by zero, which the ISA leaves open, all ones."""
    safe = np.where(y == 0, y.dtype.type(1), y)
    if x.dtype.kind == "i":
        floor = x // safe
        made = floor + ((floor < 0) & (floor * safe != x)).astype(x.dtype)
    else:
        made = x // safe
    return np.where(y == 0, ~x.dtype.type(0), made)


def remainder(x: Array, y: Array) -> Array:
    """What the truncated division leaves, of the sign of x."""
    return x - quotient(x, y) * y


INTEGER: dict[str, tuple[int, Callable[..., Array]]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul.lo": (2, np.multiply),
    "mul.hi": (2, multiply_high),
    "mad.lo": (3, lambda x, y, z: x * y + z),
    "mad.hi": (3, lambda x, y, z: multiply_high(x, y) + z),
    "div": (2, quotient),
    "rem": (2, remainder),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "max": (2, np.maximum),
    "min": (2, np.minimum),
}
WIDE = {"mul.wide": 2, "mad.wide": 3}
LOGIC: dict[str, tuple[int, Callable[..., Array]]] = {
    "and": (2, np.bitwise_and),
    "or": (2, np.bitwise_or),
    "xor": (2, np.bitwise_xor),
    "not": (1, np.invert),
}


def shift_left(x: Array, count: Array) -> Array:
    """Counts beyond the width give zero."""
    bits = 8 * x.itemsize
    shifted = x << np.minimum(count, bits - 1).astype(x.dtype)
    return np.where(count >= bits, x.dtype.type(0), shifted)


def shift_right(x: Array, count: Array) -> Array:
    """Counts beyond the width give the sign or zero."""
    bits = 8 * x.itemsize
    shifted = x >> np.minimum(count, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(count >= bits, x.dtype.type(0), shifted)


SHIFTS = {"shl": shift_left, "shr": shift_right}


def extract_field(x: Array, position: Array, length: Array) -> Array:
    """bfe (section 9.7.1.18): beyond the highest bit a field has its sign, or zeros."""
    bits = 8 * x.itemsize
    position = np.minimum(position & 0xFF, bits).astype("i8")
    length = np.minimum(length & 0xFF, bits).astype("i8")
    top = np.minimum(position + length, bits)
    # Up to the highest bit and down again: the second shift extends the sign.
    up = shift_left(x, bits - top)
    down = shift_right(up, bits - (top - position))
    return np.where(length == 0, x.dtype.type(0), down)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi (section 9.7.1.19): the low bits of a at a position in b."""
    bits = 8 * a.itemsize
    position, length = position & 0xFF, np.minimum(length & 0xFF, bits)
    ones = ~shift_left(np.full_like(a, ~a.dtype.type(0)), length)
    mask = shift_left(ones, position)
    return (b & ~mask) | (shift_left(a, position) & mask)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt (section 9.7.8.7): four bytes chosen from those of a and b, or their signs."""
    both = a.astype("u8") | (b.astype("u8") << np.uint64(32))
    made = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        chosen = (selector >> np.uint32(4 * i)) & np.uint32(0xF)
        byte = ((both >> ((chosen & 7) * 8).astype("u8")) & np.uint64(0xFF)).astype(np.uint32)
        sign = np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0))
        made |= np.where(chosen & 8, sign, byte) << np.uint32(8 * i)
    return made


def funnel(left: bool, wrap: bool) -> Callable[..., Array]:
    """shf (section 9.7.8.8): a shift of the 64 bits b:a by 0 to 31 or, clamped, 32."""

    def function(a: Array, b: Array, count: Array) -> Array:
        n = (count & 31 if wrap else np.minimum(count, 32)).astype("u8")
        both = a.astype("u8") | (b.astype("u8") << np.uint64(32))
        moved = (both << n) >> np.uint64(32) if left else both >> n
        return moved.astype(np.uint32)

    return function


def leading_zeros(x: Array) -> Array:
    """How many bits above the highest that is set."""
    bits = 8 * x.itemsize
    for shift in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
        x = x | (x >> x.dtype.type(shift))
    return (bits - np.bitwise_count(x)).astype(np.uint32)


FIELDS: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    "bfe": (("t", "u32", "u32"), extract_field),
    "bfi": (("t", "t", "u32", "u32"), insert_field),
    "prmt": (("t", "t", "t"), permute),
    **{f"shf.{'l' if left else 'r'}.{'wrap' if wrap else 'clamp'}":
       (("t", "t", "u32"), funnel(left, wrap)) for left in (True, False) for wrap in (True, False)},
    "popc": (("t",), lambda x: np.bitwise_count(x).astype(np.uint32)),
    "clz": (("t",), leading_zeros),
}  # fmt: skip
