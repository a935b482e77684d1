"""Adaptive Training Sample Selection (arXiv 1912.02424)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detectors.assigners.priors import BACKGROUND, Level, check_levels
from detectors.assigners.similarities import centres, paired_iou
from jolkernels.integrations.matching import chunks


def atss(boxes: Tensor, priors: Tensor, levels: Sequence[Level], *, k: int = 9) -> Tensor:
    """Adaptive: candidates are the priors at the k locations of each level nearest an object.

    An object's threshold is the mean plus the standard deviation of its candidates' IoU. Candidates
    at or above it whose centre lies inside the object are positive, all others background.
    A prior chosen by several objects goes to the one of highest IoU.

    Raises:
        ValueError: the levels do not add up to the priors.
    """
    locations = centres(priors)
    items, chosen, overlaps = [], [], []
    for start, chunk in chunks(boxes, len(priors)):
        candidates = _nearest(centres(chunk), locations, levels, k)
        overlap = paired_iou(chunk[:, None], priors[candidates])
        deviation = overlap.std(dim=1) if overlap.shape[1] > 1 else torch.zeros_like(overlap[:, 0])
        enough = overlap >= (overlap.mean(dim=1) + deviation)[:, None]
        at = locations[candidates]
        inside = torch.cat([at - chunk[:, None, :2], chunk[:, None, 2:] - at], -1).amin(-1) > 0
        item, column = (enough & inside).nonzero(as_tuple=True)
        items.append(start + item)
        chosen.append(candidates[item, column])
        overlaps.append(overlap[item, column])
    if not items:
        return torch.full((len(priors),), BACKGROUND, device=priors.device)
    return _highest(torch.cat(items), torch.cat(chosen), torch.cat(overlaps), len(priors))


def _highest(item: Tensor, prior: Tensor, value: Tensor, priors: int) -> Tensor:
    """Each prior's item of highest value, of the pairs (item, prior) [P]; ties: the first item."""
    best = value.new_full((priors,), -torch.inf).scatter_reduce(0, prior, value, "amax")
    wins = value == best[prior]
    none = torch.iinfo(torch.int64).max
    matches = torch.full((priors,), none, device=prior.device)
    matches = matches.scatter_reduce(0, prior[wins], item[wins], "amin")
    return torch.where(matches == none, BACKGROUND, matches)


def _nearest(objects: Tensor, locations: Tensor, levels: Sequence[Level], k: int) -> Tensor:
    """int64 [G, K]: the priors at each level's k locations nearest the objects' centres."""
    check_levels(levels, locations)
    found, begin = [], 0
    for level in levels:
        here = locations[begin : begin + level.priors]
        # Without a matrix product, whose rounding would break ties.
        distance = torch.cdist(objects, here, compute_mode="donot_use_mm_for_euclid_dist")
        wanted = min(k * level.per_location, level.priors)
        found.append(begin + distance.topk(wanted, dim=1, largest=False).indices)
        begin += level.priors
    return torch.cat(found, dim=1)
