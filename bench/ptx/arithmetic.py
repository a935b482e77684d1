"""What each arithmetic opcode computes: `operation` gives types and a numpy function.

Sections are those of the PTX ISA 9.0. Approximations (.approx, div.full) are computed exactly and
rounded; only rcp.approx.ftz.f64 is as coarse as the ISA says, since code refines it. `.ftz` flushes
subnormal inputs and results. A modifier that is not listed here is an error.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from bench.ptx import floats
from bench.ptx.conversions import conversion, converter
from bench.ptx.errors import PtxError
from bench.ptx.floats import Array
from bench.ptx.integers import FIELDS, INTEGER, LOGIC, SHIFTS, WIDE, multiply_wide
from bench.ptx.types import PACKED, PACKED_IN, TYPES, Operation


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
