"""The image files that the user names, alone or by folder; torch waits for `image_sizes`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from detectors.errors import LoadingError, Unusable
from detectors.utils.locks import LOCK
from detectors.utils.printable import counted

UNDECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow knows but decodes not at all, or by a program of others."""
MEASURED = 1000
"""Images whose sizes are looked at before any is decoded."""


@dataclass(frozen=True)
class Found:
    """An image file, its id (1, 2, ... in the order given) and its name in its folder."""

    id: int
    name: str
    path: Path


def find_images(given: Sequence[Path]) -> list[Found]:
    """The image files among these files and folders, each once, in this order.

    A folder stands for the images in it, sorted by name: files with one of `suffixes`, not hidden,
    not in folders below. A file given by its own name is taken whatever it is called.

    Raises:
        Unusable: no such file or folder, or a folder without images.
    """
    files: dict[str, tuple[str, Path]] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _is_image(p))
            if not inside:
                others = counted(count_skipped([path]), "other file")
                raise Unusable(
                    f"{path}: no image files in this folder, {others} (folders below do not count)"
                )
        elif path.is_file():
            inside = [path]
        else:
            raise Unusable(f"{path}: no such file or folder")
        for file in inside:
            files.setdefault(os.path.abspath(file), (file.name, file))
    return [Found(number, *file) for number, file in enumerate(files.values(), 1)]


def count_skipped(given: Sequence[Path]) -> int:
    """How many files in these folders, each counted once, are not those of find_images."""
    folders = {os.path.abspath(path): path for path in given if path.is_dir()}
    inside = (file for folder in folders.values() for file in folder.iterdir())
    return sum(not file.is_dir() and not _is_image(file) for file in inside)


@cache
def suffixes() -> frozenset[str]:
    """Files of a folder with these suffixes are images: all that Pillow decodes by itself."""
    from PIL import Image

    kinds = Image.registered_extensions()
    return frozenset(k for k, kind in kinds.items() if kind in Image.OPEN.keys() - UNDECODED)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in suffixes() and not path.name.startswith(".") and path.is_file()


def image_sizes(images: Sequence[Found]) -> list[tuple[int, int]]:
    """Width and height of the first MEASURED images, without those that are no images.

    Raises:
        LoadingError: an image that is not read in time.
    """
    from detectors.data.loading import read_in_time  # imports torch

    sizes = []
    for image in images[:MEASURED]:
        try:
            sizes.append(read_in_time(partial(_size, image.path), str(image.path)))
        except LoadingError:
            raise
        except Exception:  # Pillow raises many kinds; it is reported where the image is decoded
            continue
    return sizes


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def refuse_used(out: Path) -> None:
    """Raise Unusable unless `out` is an empty folder or does not exist: results never mix."""
    if out.exists() and not out.is_dir():
        raise Unusable(f"--out {out}: is a file, wanted a folder")
    if out.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise Unusable(f"--out {out}: holds files already, wanted a new or an empty folder")
