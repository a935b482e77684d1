"""How a level [B, A * C, H, W] or [B, A * C, P] lies in memory, for the kernels and the C passes.

In planes its positions are neighbours, in each column of each image; in rows the columns of a
position are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels.dense import Levels, positions


class Strides(NamedTuple):
    """How far apart the images, columns and positions of a level are."""

    image: int
    column: int
    position: int


def strides(x: Tensor) -> Strides | None:
    """Those of a level; None: its positions do not lie at one stride."""
    if not x.numel():
        return Strides(0, 1, 1)
    image, column, *inner = x.stride()
    if len(inner) == 1 or x.shape[3] == 1:
        return Strides(image, column, inner[0])
    if x.shape[2] == 1 or inner[0] == x.shape[3] * inner[1]:
        return Strides(image, column, inner[1])
    return None


def is_in_planes(x: Tensor) -> bool:
    """Whether positions of a level are neighbours, in each column of each image."""
    found = strides(x)
    return found is not None and (found.position == 1 or positions(x) == 1)


def is_in_rows(x: Tensor) -> bool:
    """Whether the columns of a position are neighbours."""
    found = strides(x)
    return found is not None and (found.column == 1 or x.shape[1] == 1)


def kind_of_level(x: Tensor) -> str:
    """How a level's gradient should lie: in "rows", if the level does, and only so, or "planes"."""
    return "rows" if is_in_rows(x) and not is_in_planes(x) else "planes"


def empty_level(x: Tensor, kind: str) -> Tensor:
    """Memory for a level like x, without gaps."""
    if kind == "planes":
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.ndim == 3:
        return torch.empty_like(x.mT, memory_format=torch.contiguous_format).mT
    return torch.empty_like(x, memory_format=torch.channels_last)


def has_no_gaps(x: Tensor, kind: str) -> bool:
    """Whether a level lies as that of empty_level does."""
    if kind == "planes":
        return x.is_contiguous()
    return (
        x.mT.is_contiguous() if x.ndim == 3 else x.is_contiguous(memory_format=torch.channels_last)
    )


def strides_of_gradient(x: Tensor) -> tuple[int, ...]:
    """The strides that torch.empty_like gives a level's gradient."""
    if torch.ops.aten.is_non_overlapping_and_dense(x):
        return x.stride()
    return torch.empty_like(x, device="meta").stride()


def as_levels(gradients: Levels, like: Levels) -> Levels:
    """Gradients in the dtype and memory formats of these levels, as torch.empty_like has them.

    Copied where a pass wrote others.
    """
    found = []
    for g, x in zip(gradients, like, strict=True):
        as_is = g.dtype is x.dtype and g.stride() == strides_of_gradient(x)
        found.append(g if as_is else torch.empty_like(x).copy_(g))
    return tuple(found)
