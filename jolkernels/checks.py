"""Checks of single values, whose errors name the argument, what came and what was wanted."""

import math
from dataclasses import fields
from numbers import Real
from typing import Any


def real(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
) -> float:
    """`value` as a float, if it is finite and from `least` (`above`: greater than it) to `most`.

    Raises:
        TypeError: not a number.
        ValueError: not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    bounds = {f"{'>' if above else '>='} {least:g}": least, f"<= {most:g}": most}
    limits = " and ".join(text for text, bound in bounds.items() if math.isfinite(bound))
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: got an integer beyond the range of float64") from None
    inside = least < number <= most if above else least <= number <= most
    if not (math.isfinite(number) and inside):
        raise ValueError(f"{name}: got {value}, wanted a finite number {limits}".rstrip())
    return number


def one_of(name: str, choice: object, choices: tuple[str, ...]) -> str:
    """`choice`, perhaps a member of a string enum, as a plain string if it is one of `choices`."""
    if not isinstance(choice, str) or choice not in choices:
        raise ValueError(f"{name}: got {choice!r}, wanted one of {', '.join(choices)}")
    return str.__str__(choice)


def check_fields(
    choice: Any, *names: str, least: float = 0, most: float = math.inf, above: bool = False
) -> None:
    """Check that fields of a choice, all or these, are in a range; make them floats.

    Raises as `real`.
    """
    for name in names or [field.name for field in fields(choice)]:
        label = f"{type(choice).__name__}: {name}"
        value = real(label, getattr(choice, name), least, most, above=above)
        object.__setattr__(choice, name, value)
