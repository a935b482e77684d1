"""Assigners by name, with their settings checked."""

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from detectors.assigners.names import ASSIGNERS
from detectors.assigners.priors import RECEPTIVE_FIELDS, Assigner, Level

SCALES = ("m", "n", "constant", "size", "shrink", "fraction")
"""Settings that have to be positive."""


def make_assigner(name: str, **settings: float | None) -> Assigner:
    """The assigner of this name with some of its settings changed, tried on one object.

    Raises:
        ValueError: an unknown name or setting, or a value that cannot be used.
    """
    if name not in ASSIGNERS:
        raise ValueError(f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}")
    module, _, attribute = ASSIGNERS[name].rpartition(".")
    function: Callable[..., Tensor] = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    checked: dict[str, float | None] = {}
    for setting, value in settings.items():
        what = f"setting of assigner {name}: "
        if setting not in known:
            raise ValueError(f"{what}got {setting!r}, wanted one of {', '.join(known)}")
        if value is None and setting == "min_low_quality":
            checked[setting] = None
            continue
        number = value if isinstance(value, int | float) else math.nan
        if type(known[setting]) is int:
            wanted, good = "a whole number of 1 or more", number >= 1 and number == number // 1
        elif setting in SCALES:
            wanted, good = "a number > 0", 0 < number < math.inf
        else:
            wanted, good = "a number from 0 to 1", 0 <= number <= 1
        if not good:
            raise ValueError(f"{what}got {setting}={value}, wanted {wanted}")
        checked[setting] = type(known[setting])(number)
    assign = partial(function, **checked)
    box = torch.tensor([[8.0, 8, 24, 24]])
    try:
        assign(box, torch.cat([box, box + 4]), [Level(2, 1, RECEPTIVE_FIELDS[2])])
    except (TypeError, RuntimeError, ValueError) as error:  # such as half a prior
        raise ValueError(f"setting of assigner {name}: {error}") from error
    return assign
