"""Values on the command line: what argparse turns a text into, or says is wrong with it."""

import argparse
import math
from collections.abc import Sequence

import torch

from detectors.errors import Unusable


def count(text: str) -> int:
    """0, 1, 2, ..."""
    return int(_number(text, text.isdecimal(), "a whole number of 0 or more"))


def count_or_none(text: str) -> int | None:
    """1, 2, 3, ...; None for 0."""
    return count(text) or None


def on_off(text: str) -> bool:
    """Whether it is "on" and not "off"."""
    return one_of(("on", "off"), text) == "on"


def one_of(known: Sequence[str], text: str) -> str | None:
    """The text, one of those known; None for "none"."""
    _number(text, text in known, f"one of {', '.join(known)}")
    return None if text == "none" else text


def default_device() -> str:
    """Where to compute if nothing is said."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise Unusable if there is no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda: PyTorch finds no GPU here")


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    return int(_number(text, text.isdecimal() and int(text) > 0, "a whole number of 1 or more"))


def rate(text: str) -> float:
    """A positive number."""
    return float(_number(text, 0 < _parsed(text) < math.inf, "a positive number"))


def share(text: str) -> float:
    """A number from 0 to below 1."""
    return float(_number(text, 0 <= _parsed(text) < 1, "a number from 0 to below 1"))


def _parsed(text: str) -> float:
    """The number in the text, NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def setting(text: str) -> tuple[str, float | None]:
    """NAME=NUMBER, or NAME=none."""
    name, _, value = text.partition("=")
    if value == "none":
        return name, None
    try:
        return name, int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted NAME=NUMBER") from None


def _number(text: str, good: bool, wanted: str) -> str:
    if not good:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
    return text
