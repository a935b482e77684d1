"""EXIF orientation: which way up a picture is shown.

Annotators see a picture as its orientation says, so boxes are in displayed pixels. Where the width
and height in an annotation file fit only the stored order of the pixels, that order is meant.
Training, evaluation and prediction follow this one rule.

Source of the eight values: Exif 2.32 (CIPA DC-008-2019), tag 274.
"""

from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = 1

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
_OPPOSITE = {6: 8, 8: 6}
"""The others undo themselves."""


def orientation(picture: Image.Image, unreadable: tuple[type[Exception], ...]) -> int:
    """The EXIF orientation, 1 to 8; 1, as in viewers, where it has another value or none.

    Args:
        picture: opened.
        unreadable: errors of EXIF data so damaged that they say nothing.
    """
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation)
    except unreadable:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def displayed(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """(width, height) as displayed of a picture stored with `size`."""
    return size[::-1] if turn >= 5 else size


def display(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels [H, W, ...] as they are displayed."""
    return _TURNS[turn](pixels) if turn in _TURNS else pixels


def undo(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Displayed pixels [H, W, ...] as they are stored."""
    return display(pixels, _OPPOSITE.get(turn, turn))
