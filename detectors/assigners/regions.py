"""Regions to ignore: priors inside them that match no object are not learned as background.

The rule is that of MMDetection's MaxIoUAssigner (ignore_iof_thr, ignore_wrt_candidates): a prior
is ignored if one region covers more than COVERED of its area. MMDetection ignores the priors that
match an object too; here they stay positive, because an object is annotated there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detectors.assigners.priors import BACKGROUND, IGNORED
from jolkernels.integrations.matching import chunks

COVERED = 0.5
"""Share of a box's area above which it lies in a region."""


def ignore_boxes(matches: Tensor, boxes: Tensor, regions: Tensor | None) -> Tensor:
    """Matches [A], IGNORED instead of BACKGROUND where a region covers more than COVERED of a box.

    Args:
        matches: an assigner's.
        boxes: anchors or proposals [A, 4], x1 y1 x2 y2.
        regions: [n, 4] in the same pixels, or None.
    """
    return _ignore(_covers, matches, boxes, regions)


def ignore_points(matches: Tensor, points: Tensor, regions: Tensor | None) -> Tensor:
    """Matches [A], IGNORED instead of BACKGROUND where a point [A, 2] lies inside a region.

    A point has no area to cover. FCOS decides by the same rule which objects a point belongs to.
    """
    return _ignore(_surrounds, matches, points, regions)


def _ignore(
    inside: Callable[[Tensor, Tensor], Tensor],
    matches: Tensor,
    priors: Tensor,
    regions: Tensor | None,
) -> Tensor:
    if regions is None:
        return matches
    found = torch.zeros_like(matches, dtype=torch.bool)
    for _, chunk in chunks(regions.to(priors), len(priors)):
        found |= inside(chunk, priors).any(dim=0)
    return matches.masked_fill(found & (matches == BACKGROUND), IGNORED)


def _covers(regions: Tensor, boxes: Tensor) -> Tensor:
    """Bool [n, A]."""
    upper, lower = regions[:, None, :2], regions[:, None, 2:]
    sides = torch.minimum(lower, boxes[:, 2:]) - torch.maximum(upper, boxes[:, :2])
    return sides.clamp(min=0).prod(-1) > COVERED * (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _surrounds(regions: Tensor, points: Tensor) -> Tensor:
    """Bool [n, A]."""
    return ((regions[:, None, :2] < points) & (points < regions[:, None, 2:])).all(-1)
