"""Assigners by a threshold of similarity: iou, simd, nwd, dotd."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.assigners.priors import BACKGROUND, IGNORED, Level, Similarity, chunks
from detectors.assigners.similarities import dotd_similarity, nwd_similarity, simd_similarity

TIE = 1e-6
"""Similarities within this share of each other are equal: float32 rounds what are equals."""


LEAST = 1e-5
"""An object less like every prior than this has no best ones: all of them would be tied."""


def iou(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    high: float = 0.7,
    low: float = 0.3,
    min_low_quality: float | None = 0.3,
) -> Tensor:
    """By IoU, Faster R-CNN's RPN as it stands; RetinaNet takes .5, .4 and 0.

    A prior goes to the object it is most like (ties: the first) if they are `high` alike or more;
    below `low` it is background, between ignored.

    min_low_quality: an object whose best prior is at least this alike makes positives of every
        prior tied at its best. As in torchvision each of these goes to the object *it* is most
        like, which need not be this one; MMDetection gives it to this one. torchvision sets no
        bar (0), MMDetection .3 in an RPN and 0 in RetinaNet; None: threshold matches only.

    Raises:
        ValueError: low above high.
    """
    return _max_overlap(box_iou, boxes, priors, high, low, min_low_quality)


def simd(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    m: float = 6.13,
    n: float = 4.59,
    high: float = 0.7,
    low: float = 0.3,
    min_low_quality: float | None = 0.3,
) -> Tensor:
    """As `iou`, by SimD. m, n: the release's for VisDrone; statistics.simd_constants finds them."""
    similarity = partial(simd_similarity, m=m, n=n)
    return _max_overlap(similarity, boxes, priors, high, low, min_low_quality)


def nwd(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    constant: float = 12.7,
    high: float = 0.7,
    low: float = 0.3,
    min_low_quality: float | None = 0.3,
) -> Tensor:
    """As `iou`, by NWD. constant: the mean object size in pixels; 12.7 is AI-TOD-v2's."""
    similarity = partial(nwd_similarity, constant=constant)
    return _max_overlap(similarity, boxes, priors, high, low, min_low_quality)


def dotd(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    size: float = 12.7,
    high: float = 0.7,
    low: float = 0.3,
    min_low_quality: float | None = 0.3,
) -> Tensor:
    """As `iou`, by DotD. size: the mean object size in pixels; 12.7 is AI-TOD-v2's."""
    similarity = partial(dotd_similarity, size=size)
    return _max_overlap(similarity, boxes, priors, high, low, min_low_quality)


def _max_overlap(
    similarity: Similarity,
    boxes: Tensor,
    priors: Tensor,
    high: float,
    low: float,
    min_low_quality: float | None,
) -> Tensor:
    if low > high:
        raise ValueError(f"low: got {low}, wanted at most high, {high}")
    best = priors.new_full((len(priors),), -torch.inf)
    matches = torch.full((len(priors),), BACKGROUND, device=priors.device)
    low_quality = torch.zeros_like(matches, dtype=torch.bool)
    for start, chunk in chunks(boxes, len(priors)):
        alike = similarity(chunk, priors)
        value, index = alike.max(dim=0)
        matches = torch.where(value > best, start + index, matches)
        best = torch.maximum(best, value)
        if min_low_quality is not None:
            top = alike.amax(dim=1, keepdim=True)
            bar = max(min_low_quality, LEAST)
            low_quality |= ((alike >= top * (1 - TIE)) & (top >= bar)).any(dim=0)
    unsure = torch.where(best < low, BACKGROUND, IGNORED)
    return torch.where((best >= high) | low_quality, matches, unsure)
