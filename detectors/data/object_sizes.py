"""How large an object is: the square root of its box's area, and the limits of AI-TOD's sizes.

Wang et al., "Tiny Object Detection in Aerial Images", ICPR 2020: objects are very tiny up to 8
pixels, tiny up to 16, small up to 32, and of medium size beyond.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the limits are read without torch, which takes seconds to import
    from torch import Tensor

VERY_TINY, TINY, SMALL = 8, 16, 32
"""The upper limits of AI-TOD's sizes, in pixels."""
LIMITS = (0.0, VERY_TINY, TINY, SMALL, float("inf"))
"""The sizes as ranges; each lower limit belongs to its range."""


def box_sizes(boxes: "Tensor", least_side: float = 0.0) -> "Tensor":
    """sqrt(w h) [n] of boxes [n, 4] as x1 y1 x2 y2, in their unit and dtype.

    Sides shorter than `least_side` count as that long.
    """
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=least_side).prod(dim=1).sqrt()


def size_range(sizes: "Tensor", limits: Sequence[float] = LIMITS) -> "Tensor":
    """For each of `sizes` [n] the index of its range, int64 [n]."""
    return (sizes[:, None] >= sizes.new_tensor(limits[1:-1])).sum(dim=1)


def size_name(low: float, high: float) -> str:
    """Sizes from `low` to below `high` in words, such as "<8 px", "8-16 px" or ">=32 px"."""
    if low == 0:
        return f"<{high:g} px"
    if high == float("inf"):
        return f">={low:g} px"
    return f"{low:g}-{high:g} px"
