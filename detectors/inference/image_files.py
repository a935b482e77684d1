"""The image files that the user names, alone or by folder. Nothing here imports torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors.errors import Unusable
from detectors.utils.locks import LOCK

SUFFIXES = tuple(
    f".{kind}" for kind in ("bmp", "gif", "jp2", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
)
"""Files of a folder with these suffixes are images."""


@dataclass(frozen=True)
class Found:
    """An image file, its id (1, 2, ... in the order given) and its name in its folder."""

    id: int
    name: str
    path: Path


def find_images(given: Sequence[Path]) -> list[Found]:
    """The image files among these files and folders, each once, in this order.

    A folder stands for the images in it, sorted by name: files with one of SUFFIXES, not hidden,
    not in folders below. A file given by its own name is taken whatever it is called.

    Raises:
        Unusable: no such file or folder, or a folder without images.
    """
    files: dict[str, tuple[str, Path]] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _is_image(p))
            if not inside:
                raise Unusable(
                    f"{path}: no image files in this folder (folders below do not count)"
                )
        elif path.is_file():
            inside = [path]
        else:
            raise Unusable(f"{path}: no such file or folder")
        for file in inside:
            files.setdefault(os.path.abspath(file), (file.name, file))
    return [Found(number, *file) for number, file in enumerate(files.values(), 1)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def refuse_used(out: Path) -> None:
    """Raise Unusable unless `out` is an empty folder or does not exist: results never mix."""
    if out.exists() and not out.is_dir():
        raise Unusable(f"--out {out}: is a file, wanted a folder")
    if out.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise Unusable(f"--out {out}: holds files already, wanted a new or an empty folder")
