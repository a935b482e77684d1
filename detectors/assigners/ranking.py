"""Assigners by rank, nwd-rka and rfla: each object takes the priors most similar to it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from detectors.assigners.priors import (
    BACKGROUND,
    IGNORED,
    RECEPTIVE_FIELDS,
    Level,
    around,
    per_prior,
)
from detectors.assigners.similarities import nwd_similarity, rfla_similarity
from jolkernels.integrations.matching import Similarity, chunks


def nwd_rka(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    k: int = 2,
    constant: float = 12.7,
    low: float = 0.3,
) -> Tensor:
    """Ranking-based: an object takes the k priors of highest NWD (2 two-stage, 3 RetinaNet).

    As in the release, priors tied with the k-th count too, and a prior chosen by several objects
    goes to the last of them. Of the others, those below `low` for every object are background, the
    rest ignored.

    Raises:
        ValueError: k below 1.
    """
    similarity = partial(nwd_similarity, constant=constant)
    chosen, best = _ranked(similarity, boxes, priors, k)
    return torch.where(chosen >= 0, chosen, torch.where(best < low, BACKGROUND, IGNORED))


def rfla(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    first: int = 3,
    second: int = 1,
    shrink: float = 0.9,
    fraction: float = 0.5,
    low: float = 0.8,
) -> Tensor:
    """Hierarchical, by the KL divergence of receptive fields at the priors' centres.

    An object takes the `first` priors whose effective receptive field (the level's theoretical
    one times `fraction`) is most similar. Then, with the fields times `shrink`, it takes those of
    its `second` best that are still free; as in the release, it does not replace taken ones. Ties
    and conflicts are resolved as in `nwd_rka`. Of the others, those below `low` for every object
    are background, the rest ignored. Meant for one prior a location.

    Raises:
        ValueError: a level has no receptive field, or first or second is below 1.
    """
    known = [level.receptive_field for level in levels]
    if min(known, default=1) <= 0:
        raise ValueError(
            "rfla: got a level without a receptive field, wanted its side in pixels, "
            f"for P2 to P7 {', '.join(f'{side:g}' for side in RECEPTIVE_FIELDS.values())}"
        )
    sides = per_prior(levels, priors, known)
    chosen, best = _ranked(rfla_similarity, boxes, around(priors, sides * fraction), first)
    smaller = around(priors, sides * fraction * shrink)
    more, _ = _ranked(rfla_similarity, boxes, smaller, second)
    chosen = torch.where(chosen >= 0, chosen, more)
    return torch.where(chosen >= 0, chosen, torch.where(best < low, BACKGROUND, IGNORED))


def _ranked(similarity: Similarity, boxes: Tensor, priors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each object's k most similar priors and those tied with the last of them.

    Returns:
        The last object that chose each prior, or BACKGROUND, int64 [A]; each prior's best
        similarity [A].
    """
    if k < 1:
        raise ValueError(f"priors an object takes: got {k}, wanted 1 or more")
    chosen = torch.full((len(priors),), BACKGROUND, device=priors.device)
    best = priors.new_full((len(priors),), -torch.inf)
    for start, chunk in chunks(boxes, len(priors)):
        scores = similarity(chunk, priors)
        best = torch.maximum(best, scores.amax(dim=0))
        least = scores.topk(min(k, len(priors)), dim=1).values[:, -1:]
        item, prior = (scores >= least).nonzero(as_tuple=True)
        chosen.scatter_reduce_(0, prior, start + item, "amax")
    return chosen, best
