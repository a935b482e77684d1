"""The box around an outline, for annotations that have a segmentation and no box."""

import math
from typing import Any, TypeGuard

_LEAST = 6
"""Numbers of a polygon: three corners."""
_CONTINUED = 0x20
"""Bit of a character of a compressed mask that says that the number goes on in the next."""


def outline_box(segmentation: Any) -> list[float] | None:
    """[x, y, w, h] in pixels around polygons or a run-length encoded mask; None: there is none.

    Args:
        segmentation: as COCO has it: [[x1, y1, x2, y2, ...], ...] or {"size": [h, w], "counts":
            text or numbers}; a single polygon without the outer list is taken too.
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation.get("size"), segmentation.get("counts"))
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(map(_is_polygon, polygons)):
        return None
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= _LEAST
        and len(value) % 2 == 0
        and all(map(is_finite, value))
    )


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold; JSON's may have any number of digits."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _mask_box(size: Any, counts: Any) -> list[float] | None:
    """By pycocotools, which trusts what it is given: so it is checked before."""
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
        return None
    if not all(0 < side < 2**16 for side in size):
        return None
    if isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != math.prod(size):
            return None
    elif isinstance(counts, str):
        if not counts or not all(48 <= ord(letter) < 112 for letter in counts):
            return None
        if (ord(counts[-1]) - 48) & _CONTINUED:
            return None
    else:
        return None
    from pycocotools import mask

    encoded = {"size": size, "counts": counts}
    if isinstance(counts, list):
        encoded = mask.frPyObjects(encoded, *size)
    x, y, w, h = mask.toBbox(encoded).tolist()
    return [x, y, w, h] if w > 0 and h > 0 else None
