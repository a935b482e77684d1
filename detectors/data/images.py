"""Image files decoded: which way up, which bits, which of several channels.

All pictures become RGB of 8 bits. A single channel is repeated; a palette is looked up; CMYK and
other colours are converted by Pillow; transparency is dropped, and what is below it shown; of
several frames or pages the first is used. orientation.py has the rule of EXIF orientations,
depth.py that of more than 8 bits.
"""

import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detectors.data import depth
from detectors.data.loading import read_in_time
from detectors.data.orientation import UPRIGHT, display, displayed, orientation, undo
from detectors.errors import DataError
from detectors.utils.files import refuse_endless
from detectors.utils.names import shortened
from detectors.utils.printable import counted

# What Pillow raises on broken files: AVIF's RuntimeError, EXIF's most kinds.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError),
    *(EOFError, ArithmeticError, LookupError, AttributeError, TypeError, struct.error, zlib.error),
)
# Pillow's, with a line of its source, of images beyond half its limit: aerial ones are that large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LONGEST_REASON = 160
"""Characters of what Pillow says."""
BLACK = 8
"""A picture whose brightest pixel is below this shows nothing."""
NO_PIXEL = f"no pixel reaches {BLACK} of 255"


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        turn: its EXIF orientation, 1 to 8.
        as_stored: whether the pixels are in stored order though `turn` is not 1.
        white: the value that 255 stands for, where the file has more than 8 bits.
    """

    pixels: np.ndarray
    turn: int
    as_stored: bool
    white: float | None


def decode(file: Path, size: tuple[int, int] | None, where: str) -> Tensor:
    """The pixels of `read_picture` as uint8 [3, H, W]."""
    pixels = read_picture(file, size, where).pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read_picture(file: Path, size: tuple[int, int] | None, where: str) -> Picture:
    """The image, of the (width, height) the annotation file promises.

    It is as its EXIF orientation says it is displayed, unless `size` fits only the stored order.
    None: nothing is promised.

    Raises:
        DataError: beginning with `where`: an image that cannot be decoded, or has another size.
    """
    try:
        refuse_endless(file)
        with Image.open(file) as opened:
            found = opened.size
            if size in (None, found, found[::-1]):  # else refused before its pixels fill memory
                wide = depth.has_wide_colours(opened)
                turn = orientation(opened, UNREADABLE)  # may load it
                opened.load()
                turned = turn != UPRIGHT and orientation(opened, UNREADABLE) == UPRIGHT  # TIFF's
                shown = found if turned else displayed(found, turn)
                as_stored = size is not None and size != shown
                if not as_stored or size == displayed(shown, turn):
                    pixels, white = _rgb(opened, file, wide)
                    if turned == as_stored:
                        pixels = (undo if turned else display)(pixels, turn)
                    return Picture(pixels, turn, as_stored, white)
    except UNREADABLE as error:
        raise DataError(f"{where}: {file} cannot be decoded: {reason(error)}") from error
    assert size is not None
    got, wanted = f"{found[0]}x{found[1]}", f"{size[0]}x{size[1]}"
    raise DataError(f"{where}: {file} is {got} pixels, the annotation file says {wanted}")


def reason(error: Exception) -> str:
    """Why an image is unreadable, in our words where Pillow's say what no user can know."""
    if isinstance(error, UnidentifiedImageError):
        return "no kind of image that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        assert Image.MAX_IMAGE_PIXELS is not None
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; cut it into tiles"
    # an OSError names the file again
    return shortened(str(getattr(error, "strerror", None) or error), LONGEST_REASON)


def traits(picture: Picture) -> list[str]:
    """What is worth knowing of a picture, in words that follow a number of images."""
    found = []
    if picture.turn != UPRIGHT:
        order = "as stored, which alone has their size" if picture.as_stored else "as displayed"
        found.append(f"with an EXIF orientation, used {order}")
    if picture.white is not None:
        found.append(f"of more than 8 bits, scaled from 0 to {picture.white:g}")
    if is_black(picture.pixels):
        found.append(f"black: {NO_PIXEL}")
    return found


def is_black(pixels: np.ndarray | Tensor) -> bool:
    """Whether a picture of uint8 of any shape shows nothing, as masks of a few values do."""
    return int(pixels.max()) < BLACK


def black_images(number: int) -> str:
    """A warning of this many black images among those that were read."""
    return (
        f"{counted(number, 'image')} of those read came out black: {NO_PIXEL}; save masks and dark "
        "pictures with values up to 255"
    )


def displayed_size(file: Path) -> tuple[int, int]:
    """(width, height) of the image as displayed, without decoding it if possible.

    Raises:
        UNREADABLE: LoadingError, an image that is not read in time, is one of them.
    """
    return read_in_time(partial(_displayed_size, file), "the image")


def _displayed_size(file: Path) -> tuple[int, int]:
    refuse_endless(file)
    with file.open("rb") as stream, Image.open(stream) as opened:
        if opened.format == "PNG" and not _may_be_turned(stream):
            return opened.size
        turn = orientation(opened, UNREADABLE)
        # Pillow gives a TIFF's size as displayed
        return opened.size if opened.format == "TIFF" else displayed(opened.size, turn)


def _may_be_turned(png: BinaryIO) -> bool:
    """Whether a PNG has chunks that may hold an orientation, for which Pillow decodes all of it."""
    png.seek(8)
    while len(head := png.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return True
        png.seek(length + 4, os.SEEK_CUR)
    return False


def _rgb(picture: Image.Image, file: Path, wide: bool) -> tuple[np.ndarray, float | None]:
    """Pixels uint8 [H, W, 3], and what is white in a file of more than 8 bits."""
    if picture.mode.startswith(("I", "F")):
        grey, white = depth.scaled(np.asarray(picture), depth.declared_white(picture))
        return np.repeat(grey[..., None], 3, axis=2), white
    if wide and picture.mode in ("RGB", "RGBA", "RGBX"):
        colours = depth.wide_colours(np.asarray(picture), file)[..., :3]
        return depth.scaled(colours, depth.declared_white(picture))
    if picture.mode in ("P", "PA"):  # by way of RGBA, the form a palette's transparency fits
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB")), None
