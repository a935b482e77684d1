"""Values on the command line: what argparse turns a text into, or says is wrong with it."""

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectors.utils.parser import meant


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
    wanted = "a whole number" if kind is int else "a number"
    if above == 0:
        wanted = "a positive number"
    elif least is not None and below is not None:
        wanted += f" from {least:g} to below {below:g}"
    elif least is not None:
        wanted += f" of {least:g} or more"

    def parse(text: str) -> Any:
        if text == none:
            return None
        try:
            value = kind(text) if kind is float or text.isdecimal() else None
        except ValueError:
            value = None
        good = value is not None and (
            (least is None or value >= least)
            and (above is None or above < value < math.inf)
            and (below is None or value < below)
        )
        _refuse_unless(good, text, wanted)
        return value

    return parse


count = number(int, least=0)
positive = number(int, least=1)


def file(text: str) -> Path:
    """A file that exists, and no pipe or device, which could be read without end."""
    if not os.path.isfile(text):
        wanted = ": not a regular file" if os.path.exists(text) else ": no such file"
        raise argparse.ArgumentTypeError(text + wanted)
    return Path(text)


def folder(text: str) -> Path:
    """A folder that exists."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def file_or_folder(text: str) -> Path:
    """A file or a folder that exists."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return folder(text) if os.path.isdir(text) else file(text)


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
