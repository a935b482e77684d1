"""Image files decoded to tensors; an error says why a file cannot be decoded."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from detectors.errors import DataError
from detectors.utils.files import refuse_endless

# What Pillow raises on broken files: AVIF's RuntimeError, EXIF's most kinds.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError),
    *(EOFError, ArithmeticError, LookupError, AttributeError, TypeError, struct.error, zlib.error),
)


def decode(file: Path, size: tuple[int, int] | None, where: str) -> Tensor:
    """The image as uint8 [3, H, W] RGB, of the (width, height) the annotation file promises.

    An EXIF orientation is followed only where that is what makes the size right: boxes are
    drawn on the pixels as stored by some tools and as shown by others, and only the size tells.
    None: nothing is promised, and the picture is as viewers show it.

    Raises:
        DataError: beginning with `where`: an image that cannot be decoded, or has another size.
    """
    try:
        refuse_endless(file)
        with Image.open(file) as opened:
            picture: Image.Image = opened
            stored = picture.size
            if size in (None, stored, stored[::-1]):  # else refused before its pixels fill memory
                picture.load()
                if stored != size and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    picture = ImageOps.exif_transpose(picture)
            if size in (None, picture.size):
                return torch.from_numpy(np.ascontiguousarray(_rgb(picture).transpose(2, 0, 1)))
    except UNREADABLE as error:
        raise DataError(f"{where}: {file} cannot be decoded: {error}") from error
    assert size is not None
    found, wanted = f"{stored[0]}x{stored[1]}", f"{size[0]}x{size[1]}"
    raise DataError(f"{where}: {file} is {found} pixels, the annotation file says {wanted}")


def _rgb(picture: Image.Image) -> np.ndarray:
    """Pixels uint8 [H, W, 3]. Alpha is dropped; of 16-bit greys the upper 8 bits are used."""
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits at 255
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no defined range; wanted 8 or 16 bits")
    if picture.mode in ("P", "PA"):  # by way of RGBA, the form a palette's transparency fits
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))
