"""Replacing files such that whoever is killed in the middle leaves the old one whole."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""What the name of a file ends with while it is written."""


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` writes in the place of `path`: all of it, on the disk, or nothing.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can open folders."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)
