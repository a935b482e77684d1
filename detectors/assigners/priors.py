"""What assigners share: the values of a match, levels of priors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.assigners.similarities import centres

BACKGROUND, IGNORED = -1, -2
RECEPTIVE_FIELDS = {2: 45.0, 3: 91.0, 4: 267.0, 5: 427.0, 6: 555.0, 7: 811.0}
"""Pyramid level → theoretical receptive field of ResNet-50 with an FPN, in pixels (RFLA)."""


class Level(NamedTuple):
    """One pyramid level; its priors are consecutive.

    Attributes:
        priors: number of priors, over all locations.
        per_location: number of anchors at each location.
        receptive_field: side of the theoretical receptive field in pixels; only RFLA needs it.
    """

    priors: int
    per_location: int = 1
    receptive_field: float = 0.0


Assigner = Callable[[Tensor, Tensor, Sequence[Level]], Tensor]


def check_levels(levels: Sequence[Level], priors: Tensor) -> None:
    """Raise ValueError unless the levels add up to the priors."""
    count = sum(level.priors for level in levels)
    if count != len(priors):
        raise ValueError(f"levels: got {count} priors, wanted {len(priors)}")


def per_prior(levels: Sequence[Level], priors: Tensor, values: Sequence[float]) -> Tensor:
    """The value of each prior's level, [A]."""
    check_levels(levels, priors)
    counts = [level.priors for level in levels]
    repeats = torch.tensor(counts, dtype=torch.int64, device=priors.device)
    return priors.new_tensor(values).repeat_interleave(repeats, output_size=len(priors))


def around(priors: Tensor, sides: Tensor) -> Tensor:
    """Squares of these sides [A] at the priors' centres."""
    at, half = centres(priors), sides[:, None] / 2
    return torch.cat([at - half, at + half], dim=1)
