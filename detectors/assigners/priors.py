"""Priors as assigners see them: levels, chunks of objects, and what a match may be."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.assigners.similarities import centres

BACKGROUND, IGNORED = -1, -2


PAIRS = 1 << 22


RECEPTIVE_FIELDS = {2: 45.0, 3: 91.0, 4: 267.0, 5: 427.0, 6: 555.0, 7: 811.0}
"""Pyramid level → the theoretical receptive field of ResNet-50 with an FPN, in pixels (RFLA)."""


class Level(NamedTuple):
    """A run of the priors: those of one pyramid level, which follow each other.

    Attributes:
        priors: how many, all locations and all anchors at each.
        per_location: how many anchors share one location.
        receptive_field: side of the theoretical receptive field in pixels; RFLA alone needs it.
    """

    priors: int
    per_location: int = 1
    receptive_field: float = 0.0


Similarity = Callable[[Tensor, Tensor], Tensor]
"""boxes [G, 4], priors [A, 4] → [G, A], larger is more alike."""


Assigner = Callable[[Tensor, Tensor, Sequence[Level]], Tensor]


def chunks(boxes: Tensor, priors: int) -> Iterator[tuple[int, Tensor]]:
    """(index of its first object, objects) of chunks of at most PAIRS pairs."""
    step = max(1, PAIRS // max(1, priors))
    for start in range(0, len(boxes) if priors else 0, step):
        yield start, boxes[start : start + step]


def check_levels(levels: Sequence[Level], priors: Tensor) -> None:
    """Raise ValueError unless the levels add up to the priors."""
    count = sum(level.priors for level in levels)
    if count != len(priors):
        raise ValueError(f"levels: got {count} priors, wanted {len(priors)}")


def per_prior(levels: Sequence[Level], priors: Tensor, values: Sequence[float]) -> Tensor:
    """[A]: each prior's level's value."""
    check_levels(levels, priors)
    counts = [level.priors for level in levels]
    repeats = torch.tensor(counts, dtype=torch.int64, device=priors.device)
    return priors.new_tensor(values).repeat_interleave(repeats, output_size=len(priors))


def around(priors: Tensor, sides: Tensor) -> Tensor:
    """Squares of these sides [A] at the priors' centres."""
    at, half = centres(priors), sides[:, None] / 2
    return torch.cat([at - half, at + half], dim=1)
