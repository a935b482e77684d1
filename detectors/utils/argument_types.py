"""Values on the command line: what argparse turns a text into, or says is wrong with it."""

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectors.utils.names import short_path
from detectors.utils.parser import meant

LARGEST = 2**63 - 1
"""The largest whole number that torch takes, as a seed too."""


def choice(known: Iterable[Any]) -> dict[str, Any]:
    """What makes an option take one of these values."""
    words = {str(value): value for value in known}
    return {"type": one_of(words), "metavar": "|".join(words)}


def one_of(known: dict[str, Any]) -> Callable[[str], Any]:
    """The type of an argument that is one of these words, and what each stands for."""

    def parse(text: str) -> Any:
        _refuse_unless(text in known, text, f"one of {', '.join(known)}{meant(text, known)}")
        return known[text]

    return parse


def number(
    kind: type[int] | type[float],
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    none: str | None = None,
) -> Callable[[str], Any]:
    """The type of an argument that is a number in these limits; `none` is the word for None."""
    wanted = in_words(kind, least=least, above=above, below=below)
    if none is not None:
        wanted += f", or {none}"

    def parse(text: str) -> Any:
        if text == none:
            return None
        try:
            value = kind(text) if kind is float or text.isdecimal() else None
        except ValueError:
            value = None
        good = value is not None and within(value, least=least, above=above, below=below)
        _refuse_unless(good, text, wanted)
        return value

    return parse


def within(
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> bool:
    """Whether a number is finite, no larger than LARGEST if it is whole, and in these limits."""
    return (
        (abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value))
        and (least is None or value >= least)
        and (above is None or above < value)
        and (below is None or value < below)
    )


def in_words(
    kind: type[int] | type[float],
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """What a number in these limits is."""
    wanted = "a whole number" if kind is int else "a number"
    if above == 0:
        return "a positive number" + ("" if below is None else f" below {below:g}")
    if least is not None and below is not None:
        return f"{wanted} from {least:g} to below {below:g}"
    return wanted if least is None else f"{wanted} of {least:g} or more"


count = number(int, least=0)
positive = number(int, least=1)


def nonempty(text: str) -> str:
    """A name of something; "", as of a variable that is not set, names nothing."""
    _refuse_unless(bool(text), text, "a name")
    return text


def path(text: str) -> Path:
    """A file or a folder, which need not exist."""
    return Path(nonempty(text))


def file(text: str) -> Path:
    """A file that exists, and no pipe or device, which could be read without end."""
    _refuse_unless(bool(text), text, "a file")
    if not os.path.isfile(text):
        wanted = ": not a regular file" if os.path.exists(text) else ": no such file"
        raise argparse.ArgumentTypeError(text + wanted)
    return Path(text)


def folder(text: str) -> Path:
    """A folder that exists."""
    _refuse_unless(bool(text), text, "a folder")
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def file_or_folder(text: str) -> Path:
    """A file or a folder that exists."""
    _refuse_unless(bool(text), text, "a file or a folder")
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return folder(text) if os.path.isdir(text) else file(text)


def folder_to_write(text: str) -> Path:
    """A folder that is there or can be made; "" would be the one that this process is in."""
    _refuse_unless(bool(text), text, "a folder")
    folder = Path(text)
    there = next(parent for parent in (folder, *folder.parents) if _is_there(parent))
    if not os.path.isdir(there):
        what = "is a file" if os.path.exists(there) else "is a broken link"
        raise argparse.ArgumentTypeError(f"{there}: {what}, wanted a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there}: cannot be written")
    return folder


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # such as a name that is too long
        raise argparse.ArgumentTypeError(f"{short_path(path)}: {error.strerror}") from None
    return True


def file_to_write(text: str) -> Path:
    """A file that is there or can be made, with its folder."""
    _refuse_unless(bool(text), text, "a file")
    if os.path.exists(text) and not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text}: is a folder or a device, wanted a file")
    folder_to_write(os.path.dirname(text) or os.curdir)
    return Path(text)


def named_number(text: str) -> tuple[str, float | None]:
    """NAME=NUMBER, or NAME=none."""
    name, _, value = text.partition("=")
    if value == "none":
        return name, None
    try:
        return name, int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted NAME=NUMBER") from None


def _refuse_unless(good: bool, text: str, wanted: str) -> None:
    if not good:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
