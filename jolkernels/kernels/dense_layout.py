"""How the levels of a dense batch lie, and the tiles of their images.

All of it follows from shapes and strides, and is worked out once for each: of a hundred numbers,
that takes longer than a launch.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from jolkernels.dense import DenseBatch, Levels, anchors, positions
from jolkernels.kernels.arguments import tiles
from jolkernels.kernels.levels import packed_sizes, packed_stride
from jolkernels.kernels.tiles import PART
from jolkernels.layout import (
    empty_level,
    has_no_gaps,
    is_in_planes,
    is_in_rows,
    kind_of_level,
    strides,
    strides_of_gradient,
)

Geometry = tuple[tuple[torch.Size, tuple[int, ...]], ...]
"""Shapes and strides of levels."""


class Gradient(NamedTuple):
    """A level's gradient."""

    shape: torch.Size
    strides: tuple[int, ...]
    """As a kernel writes it: without gaps."""
    format: tuple[int, ...]
    """The strides that the level's own has, as torch.empty_like says."""


class Layout(NamedTuple):
    """Of a batch."""

    kind: str
    """In "planes" or "rows"."""
    dense: bool
    """Whether all levels are without gaps, in one format."""
    copied: tuple[bool, ...]
    """Which levels, of logits and then of boxes, must be copied to be read."""
    levels: tuple[tuple[int, ...], ...]
    """Of each level, packed, its sizes and, if not `dense`, its strides."""
    tiles: dict[str, Any]
    tiles_of_image: int
    gradients: tuple[Gradient, ...]
    """Of logits and then of boxes."""


def layout_of(batch: DenseBatch, softmax: bool) -> Layout:
    """The layout of a batch."""
    logits, boxes = (
        tuple((x.shape, x.stride()) for x in levels) for levels in (batch.logits, batch.box_preds)
    )
    return from_geometry(logits, boxes, batch.logits[0].dtype, softmax)


@lru_cache(maxsize=1024)
def from_geometry(logits: Geometry, boxes: Geometry, dtype: torch.dtype, softmax: bool) -> Layout:
    """The layout of levels of these shapes and strides."""

    def like(geometry: Geometry) -> Levels:
        return tuple(torch.empty_strided(*x, dtype=dtype, device="meta") for x in geometry)

    given_z, given_b = like(logits), like(boxes)
    kind = kind_of_levels(given_z)
    fits = is_in_planes if kind == "planes" else is_in_rows
    z = tuple(x if fits(x) else empty_level(x, kind) for x in given_z)
    b = tuple(x if strides(x) else torch.empty(x.shape, device="meta") for x in given_b)
    columns = 4 * z[0].shape[1] // b[0].shape[1]
    dense = all(has_no_gaps(x, kind) for x in (*z, *b))
    constants = tiles(columns, softmax)
    if kind == "planes":
        constants = tiles_in_planes(columns, dtype.itemsize, vector_of(z, b))
    gradients = (*(gradient_of(x, kind) for x in given_z), *(gradient_of(x, None) for x in given_b))
    numbers, count, rows = [], 0, constants["ROWS"]
    for x, box, of_box in zip(z, b, gradients[len(z) :], strict=True):
        p, a, of_x = positions(x), anchors(box), strides(x)
        assert of_x is not None
        whole = all(n % (constants.get("VECTOR") or 1) == 0 for n in (p, *of_x[:2]))
        sizes = packed_sizes(p if x.shape[0] else 0, a, whole)
        written = torch.empty_strided(of_box.shape, of_box.strides, device="meta")
        more = (*of_x, *(strides(box) or ()), *(strides(written) or ())[1:])
        numbers.append((sizes, *(() if dense else map(packed_stride, more))))
        count += -(-p // rows) * a if kind == "planes" else -(-p * a // rows)
    copied = tuple(x is not y for x, y in zip((*given_z, *given_b), (*z, *b), strict=True))
    count = count if z[0].shape[0] else 0
    return Layout(kind, dense, copied, tuple(numbers), constants, count, gradients)


def kind_of_levels(logits: Levels) -> str:
    """How the first level lies that is not both: in "planes" or "rows"."""
    for x in logits:
        if positions(x) > 1 and x.shape[1] > 1:
            return kind_of_level(x)
    return "planes"


def gradient_of(x: Tensor, kind: str | None) -> Gradient:
    """That of a level, written in this way; None: in the level's own."""
    wanted = torch.empty_strided(x.shape, strides_of_gradient(x), device="meta")
    kind = kind or kind_of_level(x)
    written = wanted if has_no_gaps(wanted, kind) else empty_level(x, kind)
    return Gradient(x.shape, written.stride(), wanted.stride())


def vector_of(logits: Levels, boxes: Levels) -> int:
    """How many positions of planes are read at once: 16 bytes, or 8 if many more rows allow it."""
    most = 16 // logits[0].itemsize

    def allowing(vector: int) -> int:
        sizes = [(positions(x), anchors(b)) for x, b in zip(logits, boxes, strict=True)]
        return sum(p * a for p, a in sizes if p % vector == 0)

    return most if 10 * allowing(most) >= 9 * allowing(most // 2) else most // 2


def tiles_in_planes(columns: int, itemsize: int, vector: int) -> dict[str, Any]:
    """Rows of a tile and columns of a block in planes: 128 bytes of each plane in float32."""
    rows = 32 if itemsize <= 4 else 16
    block = min(8, triton.next_power_of_2(columns))
    made = {"KIND": "planes", "ROWS": rows, "BLOCK": block, "VECTOR": vector, "num_warps": 1}
    if columns <= PART.value:
        return made
    # Left alone, compilers take up to 200 registers, which leave room for 10 programs and not 16.
    registers = {} if itemsize > 4 or torch.version.hip else {"maxnreg": 128}
    return made | {"KIND": "long planes"} | registers


def as_read(layout: Layout, batch: DenseBatch) -> tuple[Levels, Levels]:
    """The levels of logits and boxes, copies of those that do not lie as they are read."""
    if not any(layout.copied):
        return batch.logits, batch.box_preds
    n = len(batch.logits)
    logits = tuple(
        empty_level(x, layout.kind).copy_(x) if copy else x
        for x, copy in zip(batch.logits, layout.copied, strict=False)
    )
    boxes = tuple(
        x.contiguous() if copy else x
        for x, copy in zip(batch.box_preds, layout.copied[n:], strict=True)
    )
    return logits, boxes


def empty_gradients(gradients: tuple[Gradient, ...], like: Tensor) -> Levels:
    """Memory for the gradients of levels."""
    return tuple(like.new_empty_strided(g.shape, g.strides) for g in gradients)


def in_formats(written: Levels, gradients: tuple[Gradient, ...]) -> Levels:
    """Gradients in the formats of their levels; copied where a kernel wrote another."""
    return tuple(
        x if g.strides == g.format else x.new_empty_strided(g.shape, g.format).copy_(x)
        for x, g in zip(written, gradients, strict=True)
    )
