"""Reading regular files, and replacing them so that a killed process leaves the old one whole."""

import contextlib
import errno
import io
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

PART = ".part"
"""What the name of a file ends with while it is written."""


def read_bytes(path: Path) -> bytes:
    """The content of a file; a pipe or device, which may never end, is refused.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    refuse_endless(path)
    return path.read_bytes()


def refuse_endless(path: Path) -> None:
    """Raise OSError if `path` is a pipe or a device, which may block or never end."""
    if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` writes: all of it, on the disk, or nothing.

    Raises:
        OSError: it cannot be written, or is a pipe or a device; `path` is as it was.
    """
    part = path.with_name(path.name + PART)
    with naming(path):
        if path.exists():
            refuse_endless(path)
        try:
            with _Remembering(io.FileIO(part, "wb")) as file:
                try:
                    write(file)
                except RuntimeError as error:
                    raise file.error or error from error
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


class _Remembering(io.BufferedWriter):
    """Remembers its first error: torch's own message hides why a file could not be written."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of what is done within name `path`; a full disk's names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


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


def parse_json(raw: bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: none that Python reads; says so in our words, not in its own.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = f"a number of more than {sys.get_int_max_str_digits():,} digits"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        elif isinstance(error, UnicodeDecodeError):
            reason = f"no text in {error.encoding}"
        elif isinstance(error, RecursionError):
            reason = "nested too deeply"
        raise ValueError(f"not valid JSON: {reason}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, NaN as null."""
    text = json.dumps(finite(content), indent=2) + "\n"
    replace(path, lambda file: file.write(text.encode()))


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity in it replaced by None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
