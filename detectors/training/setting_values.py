"""Whether a value that a file holds is one that a setting may have; the limits are the options'."""

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from detectors.utils.argument_types import in_words, within
from jolkernels.registry import resolve


def misfit(value: Any, hint: Any, about: Mapping[str, Any]) -> str:
    """What a setting should be, in words; "" if it is that.

    Args:
        value: as read from JSON or a checkpoint.
        hint: the type of the setting.
        about: of settings.setting `choices`, `spec`, `metavar`, `least`, `above` and `below`.
    """
    if not _fits(value, hint):
        return hint.__name__ if isinstance(hint, type) else str(hint)
    if value == []:  # which the command line cannot say
        return "one or more numbers"
    if value == "" and "metavar" in about:
        return str(about["metavar"])
    if "choices" in about and value is not None and value not in about["choices"]:
        return f"one of {', '.join(about['choices'])}"
    if "spec" in about and value is not None:
        try:
            resolve(about["spec"], value)
        except (TypeError, ValueError) as error:
            return str(error).rpartition("wanted ")[2]
    limits = {name: about[name] for name in ("least", "above", "below") if name in about}
    items = value.values() if isinstance(value, dict) else value
    numbers = [
        item
        for item in (items if isinstance(value, dict | list) else [value])
        if isinstance(item, int | float) and not isinstance(item, bool)
    ]
    if all(within(number, **limits) for number in numbers):
        return ""
    return in_words(int if "int" in str(hint) else float, **limits)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of this type; whole numbers are floats too."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
