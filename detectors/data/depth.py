"""Pixels of more than 8 bits, scaled to 8 by one rule.

White is the end of the range that the file declares. PNG and most TIFF files declare 16 or 32 bits
whatever their camera has. There white is the end of the smallest of the usual ranges that holds the
brightest pixel: 12-bit data in a 16-bit file are scaled from 4,095. Fractions are scaled from 1 or,
as reflectances and resized images may exceed it, from their brightest pixel below 2. The rule looks
at the file alone, so a picture looks the same in training and prediction.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

LITTLE = sys.byteorder == "little"
BITS = range(8, 33, 2)
"""So that the brightest pixel is at least a quarter of white, unless the picture is black."""
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281
"""Tags of TIFF 6.0."""
_FULL = {"PPM": 65535.0, "JPEG2000": 65535.0}
"""Formats whose files declare their range; Pillow has stretched it to 16 bits."""
_OTHER_ORDER = {";16L": ";16B", ";16B": ";16L", ";16N": ";16B" if LITTLE else ";16L"}
"""How Pillow names the order of a 16-bit sample's bytes in a file → the other order."""
_GREY_ALPHA = "LA;16B"
"""Two channels of 16 bits in a PNG, for which Pillow has no other order."""


def declared_white(picture: Image.Image) -> float | None:
    """The end of the range that the file declares, if it is one worth believing."""
    if picture.format != "TIFF":
        return _FULL.get(str(picture.format))
    tags = picture.tag_v2  # type: ignore[attr-defined]
    most = tags.get(_MAX_SAMPLE_VALUE)
    most = most[0] if isinstance(most, tuple) and most else most
    if isinstance(most, int | float) and most > 0:
        return float(most)
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return float(2**bits - 1) if 8 < bits < 16 else None


def scaled(values: np.ndarray, declared: float | None = None) -> tuple[np.ndarray, float]:
    """Pixels as uint8, and the value that is white.

    Args:
        values: integers or floats of any shape.
        declared: the end of the range that the file declares, not believed where pixels exceed it.

    Raises:
        ValueError: negative, infinite or too large pixels, or NaN.
    """
    least, most = float(values.min()), float(values.max())
    if not 0 <= least <= most < 2 ** BITS[-1]:
        got = f"from {least:g} to {most:g}"
        raise ValueError(f"pixels {got}, wanted 0 to below 2^{BITS[-1]}; save it as 8 or 16 bits")
    if declared is not None and most <= declared:
        white = declared
    elif most < 2 and np.issubdtype(values.dtype, np.floating):
        white = max(1.0, most)
    else:
        white = float(next(2**bits - 1 for bits in BITS if most < 2**bits))
    if white < 2:
        return np.rint(values * (255 / white)).astype(np.uint8), white
    return (values.astype(np.float64) * (256 / (white + 1))).astype(np.uint8), white


def has_wide_colours(picture: ImageFile.ImageFile) -> bool:
    """Whether this opened, not yet loaded file has several channels of 16 bits.

    Pillow keeps the upper 8 bits of each, which leaves 12-bit data black.
    """
    return any(_raw_mode(tile.args)[-4:] in _OTHER_ORDER for tile in picture.tile) and (
        picture.mode != "LA"  # of which Pillow reads one order only
    )


def wide_colours(upper: np.ndarray, file: Path) -> np.ndarray:
    """The samples of 16 bits, uint16 [H, W, C], of which Pillow has read the upper 8.

    Read in the other order of bytes, each sample gives its lower 8. A grey channel with alpha is
    read as if each of its four bytes were a channel: the second has the lower 8 of the grey one.
    """
    with Image.open(file) as opened:
        grey = any(_raw_mode(tile.args) == _GREY_ALPHA for tile in opened.tile)
        opened.tile = [tile._replace(args=_swapped(tile.args)) for tile in opened.tile]
        lower = np.asarray(opened)
    return upper.astype(np.uint16) << 8 | (lower[..., 1:2] if grey else lower)


def _raw_mode(args: object) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _swapped(args: Any) -> Any:
    mode = _raw_mode(args)
    other = "RGBA" if mode == _GREY_ALPHA else mode[:-4] + _OTHER_ORDER[mode[-4:]]
    return (other, *args[1:]) if isinstance(args, tuple) else other
