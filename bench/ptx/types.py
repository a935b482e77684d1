"""The types of PTX in numpy, and what an arithmetic opcode is (section 5.2)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

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
