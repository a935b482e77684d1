"""What each arithmetic opcode computes: `operation` gives types and a numpy function.

Sections are those of the PTX ISA 9.0. Approximations (.approx, div.full) are computed exactly and
rounded; only rcp.approx.ftz.f64 is as coarse as the ISA says, since code refines it. `.ftz` flushes
subnormal inputs and results. A modifier that is not listed here is an error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.ptx import floats
from bench.ptx.errors import PtxError
from bench.ptx.floats import Array

TYPES = {
    "pred": np.dtype("?"),
    **{f"b{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"u{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"f{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
    "bf16": np.dtype("u2"),
}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
PACKED_IN = {"f16x2": "b32", "bf16x2": "b32", "f32x2": "b64"}


class Operation(NamedTuple):
    """The types of the operands and of the result, by their names in PTX, and the function."""

    operands: tuple[str, ...]
    result: str
    function: Callable[..., Array]


def operation(opcode: str, count: int) -> Operation:
    """The meaning of an arithmetic opcode with `count` operands and a result.

    Raises:
        PtxError: naming the opcode, if it or a modifier is unknown.
    """
    kind, *modifiers = opcode.split(".")
    try:
        if kind in ("cvt", "setp", "selp"):
            made = {"cvt": conversion, "setp": comparison, "selp": selection}[kind](modifiers)
            return checked(made, count)
        type_name = modifiers.pop()
        if modifiers[-1:] == ["f32"] and type_name in ("f16", "bf16"):
            return checked(mixed(kind, modifiers[:-1], type_name), count)
        flush = "ftz" in modifiers and type_name in ("f32", "f32x2")
        if "ftz" in modifiers:
            modifiers.remove("ftz")
        key = ".".join([kind, *modifiers])
        if key in THREE and count == 3 and type_name in ("f32", "f64"):
            return Operation((type_name,) * 3, type_name, three(THREE[key], flush))
        made = (packed if type_name in PACKED else plain)(key, type_name, flush)
        return checked(made, count)
    except (KeyError, IndexError, ValueError):
        raise PtxError(f"unknown opcode {opcode}") from None


def checked(made: Operation, count: int) -> Operation:
    """The operation, if it has as many operands."""
    if len(made.operands) != count:
        raise ValueError(count)
    return made


def plain(key: str, type_name: str, flush: bool) -> Operation:
    """An operation whose operands have its one type, or nearly."""
    dtype = TYPES[type_name]
    if key in SHIFTS:
        return Operation((type_name, "u32"), type_name, SHIFTS[key])
    if type_name == "bf16":
        count, function = BFLOAT[key]
        return Operation((type_name,) * count, type_name, function)
    if dtype.kind == "f":
        count, function = FLOAT[key]
        if key == "rcp.approx" and type_name == "f64":
            function = gross_reciprocal
        if flush:
            function = flushing(function)
        return Operation((type_name,) * count, type_name, function)
    if key in WIDE:
        wide = f"{type_name[0]}{2 * dtype.itemsize * 8}"
        operands = (type_name, type_name, wide)[: WIDE[key]]
        return Operation(operands, wide, partial(multiply_wide, TYPES[wide]))
    if key in FIELDS:
        operands, function = FIELDS[key]
        names = tuple(type_name if o == "t" else o for o in operands)
        result = "u32" if key in ("popc", "clz") else type_name
        return Operation(names, result, function)
    count, function = (LOGIC if type_name[0] in "bp" else INTEGER)[key]
    return Operation((type_name,) * count, type_name, function)


def mixed(kind: str, modifiers: list[str], type_name: str) -> Operation:
    """add, sub and fma of float32, whose first operands are halves (section 9.7.5)."""
    count, function = FLOAT[".".join([kind, *modifiers])]
    if kind not in ("add", "sub", "fma"):
        raise KeyError(kind)
    widen = converter("f32", type_name, [])
    narrow = 2 if kind == "fma" else 1

    def widened(*operands: Array) -> Array:
        return function(*map(widen, operands[:narrow]), *operands[narrow:])

    return Operation((type_name,) * narrow + ("f32",) * (count - narrow), "f32", widened)


def packed(key: str, type_name: str, flush: bool) -> Operation:
    """Two halves at a time, in one register (section 9.7.3)."""
    each = plain(key, PACKED[type_name], flush)
    dtype, whole = TYPES[PACKED[type_name]], PACKED_IN[type_name]

    def function(*operands: Array) -> Array:
        halves = (x.view(dtype).reshape(*x.shape, 2) for x in operands)
        made = np.ascontiguousarray(each.function(*halves))
        return made.view(TYPES[whole])[..., 0]

    return Operation((whole,) * len(each.operands), whole, function)


def flushing(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function with subnormal inputs and results flushed."""

    def flushed(*operands: Array) -> Array:
        return floats.flushed(function(*map(floats.flushed, operands)))

    return flushed


# Floating point: sections 9.7.3 (f32, f64), 9.7.4 (f16, bf16).


def propagating(choose: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """min or max with .NaN: NaN where either is."""

    def function(x: Array, y: Array) -> Array:
        return np.where(np.isnan(x) | np.isnan(y), x.dtype.type(np.nan), choose(x, y))

    return function


def three(choose: Callable[..., Array], flush: bool) -> Callable[..., Array]:
    """min or max of three, which sm_100 has."""
    choose = flushing(choose) if flush else choose
    return lambda x, y, z: choose(choose(x, y), z)


def reciprocal(x: Array) -> Array:
    """1 / x."""
    return x.dtype.type(1) / x


def reciprocal_root(x: Array) -> Array:
    """1 / sqrt(x)."""
    return x.dtype.type(1) / np.sqrt(x)


def gross_reciprocal(x: Array) -> Array:
    """rcp.approx.ftz.f64 (section 9.7.3.14): of the upper 32 bits, and only those of the result."""
    upper = np.uint64(0xFFFFFFFF00000000)
    x = floats.flushed((x.view(np.uint64) & upper).view("f8"))
    return (floats.flushed(1.0 / x).view(np.uint64) & upper).view("f8")


larger_nan, smaller_nan = propagating(floats.larger), propagating(floats.smaller)
FLOAT: dict[str, tuple[int, Callable[..., Array]]] = {
    **{name + rounding: (2, function)
       for name, function in {"add": np.add, "sub": np.subtract, "mul": np.multiply}.items()
       for rounding in ("", ".rn")},
    "fma.rn": (3, floats.fma),
    **{f"div.{how}": (2, np.divide) for how in ("rn", "full", "approx")},
    **{f"rcp.{how}": (1, reciprocal) for how in ("rn", "approx")},
    **{f"sqrt.{how}": (1, np.sqrt) for how in ("rn", "approx")},
    "rsqrt.approx": (1, reciprocal_root),
    "ex2.approx": (1, np.exp2),
    "lg2.approx": (1, np.log2),
    "sin.approx": (1, np.sin),
    "cos.approx": (1, np.cos),
    "tanh.approx": (1, np.tanh),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "copysign": (2, lambda x, y: np.copysign(y, x)),
    "max": (2, floats.larger),
    "min": (2, floats.smaller),
    "max.NaN": (2, larger_nan),
    "min.NaN": (2, smaller_nan),
}  # fmt: skip
THREE = {"max": floats.larger, "min": floats.smaller, "max.NaN": larger_nan, "min.NaN": smaller_nan}


def in_float32(function: Callable[..., Array]) -> Callable[..., Array]:
    """An operation on bfloat16, by float32: exact but for the last rounding, since 24 > 2 * 8 + 1.

    Holds for sums, products and quotients (Figueroa, 1995).
    """
    return lambda *operands: floats.to_bf16(function(*map(floats.from_bf16, operands)))


SIGN = np.uint16(0x8000)
BFLOAT: dict[str, tuple[int, Callable[..., Array]]] = {
    **{name: (count, in_float32(function)) for name, (count, function) in FLOAT.items()
       if name.partition(".")[0] in ("add", "sub", "mul", "max", "min", "ex2", "tanh")},
    "fma.rn": (3, floats.fma_bf16),
    "neg": (1, lambda x: x ^ SIGN),
    "abs": (1, lambda x: x & ~SIGN),
}  # fmt: skip

# Integers: section 9.7.1; logic and shifts: section 9.7.8.


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

# Comparison and selection: section 9.7.6.

ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def not_equal(x: Array, y: Array) -> Array:
    """x != y, false for NaN."""
    return (x < y) | (x > y)


def unordered(x: Array, y: Array) -> Array:
    """Whether either is NaN."""
    return np.isnan(x) | np.isnan(y)


def or_unordered(compare: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """The comparison, true for NaN."""
    return lambda x, y: compare(x, y) | unordered(x, y)


FLOAT_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    **ORDERED,
    "ne": not_equal,
    **{f"{name}u": or_unordered(f) for name, f in (ORDERED | {"ne": not_equal}).items()},
    "num": lambda x, y: ~unordered(x, y),
    "nan": unordered,
}


def comparison(modifiers: list[str]) -> Operation:
    """setp.CMP[.BOOL][.ftz].TYPE; with BOOL the result is combined with a third operand."""
    name, *rest, type_name = modifiers
    if type_name in PACKED and not rest:
        return packed_comparison(name, type_name)
    dtype = TYPES[type_name]
    if dtype.kind == "f" or type_name == "bf16":
        compare = FLOAT_COMPARE[name]
    else:
        compare = (ORDERED | {"ne": np.not_equal})[UNSIGNED.get(name, name)]
    if type_name == "bf16":
        halves = compare
        compare = lambda x, y: halves(floats.from_bf16(x), floats.from_bf16(y))  # noqa: E731
    if "ftz" in rest:
        rest.remove("ftz")
        full = compare
        compare = lambda x, y: full(floats.flushed(x), floats.flushed(y))  # noqa: E731
    if not rest:
        return Operation((type_name, type_name), "pred", compare)
    (how,) = rest
    combine = LOGIC[how][1]
    return Operation(
        (type_name, type_name, "pred"), "pred", lambda x, y, p: combine(compare(x, y), p)
    )


def packed_comparison(name: str, type_name: str) -> Operation:
    """setp of two halves: two results, [..., 2]."""
    each = comparison([name, PACKED[type_name]])
    dtype, whole = TYPES[PACKED[type_name]], PACKED_IN[type_name]

    def function(*operands: Array) -> Array:
        return each.function(*(x.view(dtype).reshape(*x.shape, 2) for x in operands))

    return Operation((whole, whole), "pred", function)


def selection(modifiers: list[str]) -> Operation:
    """selp: the first where the predicate holds, else the second."""
    (type_name,) = modifiers
    _ = TYPES[type_name]

    def choose(x: Array, y: Array, p: Array) -> Array:
        return np.where(p, x, y)

    return Operation((type_name, type_name, "pred"), type_name, choose)


# Conversion: section 9.7.9.21.

INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


def conversion(modifiers: list[str]) -> Operation:
    """cvt[.RND][.ftz][.sat].TO.FROM, and cvt.RND.TWO.f32, which packs two numbers."""
    *how, to, source = modifiers
    flush, saturate = "ftz" in how, "sat" in how
    rounding = [h for h in how if h not in ("ftz", "sat")]
    if to in ("f16x2", "bf16x2"):
        return pack_two(to, source, rounding)
    narrow = converter(to, source, rounding)
    if saturate:
        narrow = saturated(narrow, to, source)
    if flush and source == "f32":
        narrow = compose(narrow, floats.flushed)
    if flush and to == "f32":
        narrow = compose(floats.flushed, narrow)
    return Operation((source,), to, narrow)


def compose(outer: Callable[[Array], Array], inner: Callable[[Array], Array]) -> Any:
    """One conversion after the other."""
    return lambda x: outer(inner(x))


def converter(to: str, source: str, rounding: list[str]) -> Callable[[Array], Array]:
    """One number to another type."""
    target, start = TYPES[to], TYPES[source]
    is_float = to[0] == "f" or to == "bf16", source[0] == "f" or source == "bf16"
    mode = rounding[0] if rounding else ""
    if is_float == (False, False) and not mode:
        return lambda x: x.astype(target)
    if is_float == (True, False) and mode == "rn" and to != "bf16":
        return lambda x: x.astype(target)
    if is_float == (False, True) and source != "bf16":
        round_off = INTEGRAL[mode]
        return lambda x: floats.to_integer(round_off(x), target)
    if is_float == (True, True):
        if to == source and mode in INTEGRAL and to != "bf16":
            return INTEGRAL[mode]
        if source == "bf16" and to in ("f32", "f64") and not mode:
            return lambda x: floats.from_bf16(x).astype(target)
        if source == "f32" and to == "bf16":
            return {"rn": floats.to_bf16, "rz": floats.truncated_to_bf16}[mode]
        wanted = "" if target.itemsize > start.itemsize else "rn"
        if "bf16" not in (to, source) and mode == wanted and to != source:
            return floats.to_f16 if to == "f16" else lambda x: x.astype(target)
    raise KeyError(to)


def saturated(convert: Callable[[Array], Array], to: str, source: str) -> Callable[[Array], Array]:
    """.sat: floats to [0, 1] with NaN as 0, integers to the range of the result."""
    if to[0] == "f":
        return lambda x: np.clip(np.nan_to_num(convert(x), nan=0.0), 0, 1)
    if source[0] == "f":
        return convert  # clamps always
    info = np.iinfo(TYPES[to])
    low, high = (np.iinfo(TYPES[source]).min, np.iinfo(TYPES[source]).max)
    return lambda x: convert(np.clip(x, max(info.min, low), min(info.max, high)))


def pack_two(to: str, source: str, rounding: list[str]) -> Operation:
    """The first operand in the upper half, the second in the lower."""
    narrow = converter(PACKED[to], source, rounding)

    def function(high: Array, low: Array) -> Array:
        upper, lower = (narrow(x).view(np.uint16).astype(np.uint32) for x in (high, low))
        return (upper << np.uint32(16)) | lower

    return Operation((source, source), "b32", function)
