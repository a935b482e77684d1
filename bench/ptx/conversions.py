"""cvt, from one type to another (section 9.7.9.21)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.ptx import floats
from bench.ptx.floats import Array
from bench.ptx.types import PACKED, TYPES, Operation

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
