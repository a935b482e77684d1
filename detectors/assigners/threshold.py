"""Assigners by a threshold on a similarity: iou, simd, nwd, dotd; and torchvision's matching."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detectors.assigners.priors import BACKGROUND, IGNORED, Assigner, Level, Similarity, chunks
from detectors.assigners.similarities import dotd_similarity, nwd_similarity, simd_similarity

TIE = 1e-6
"""Similarities within this share of each other are tied: float32 rounds equal ones apart."""
LEAST = 1e-5
"""Below this similarity to every prior an object has no best prior: all would be tied."""


def iou(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    high: float = 0.7,
    low: float = 0.3,
    min_low_quality: float | None = 0.3,
) -> Tensor:
    """By IoU. The defaults are those of Faster R-CNN's RPN; RetinaNet has .5, .4 and 0.

    A prior goes to its most similar object (ties: the first) if their similarity is at least
    `high`; below `low` it is background, in between ignored.

    min_low_quality: an object whose best similarity is at least this also gets all priors tied at
        its best. As in torchvision, each of these goes to *its own* most similar object, which may
        be another; MMDetection gives it to this one. torchvision has no bar (0), MMDetection .3 in
        an RPN and 0 in RetinaNet; None: matches by threshold only.

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
    """As `iou`, by SimD. m, n: the release's for VisDrone; prior_coverage.simd_constants."""
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


def chunked(matcher: Matcher) -> Assigner:
    """torchvision's matching by IoU, bit for bit, without its [G, A] matrix.

    Unlike `iou`, it ties only equal IoUs, and an object that overlaps no prior is tied with all of
    them. Without objects, which the Matcher refuses, all priors are background.
    """
    return partial(_as_torchvision, matcher)


def _as_torchvision(
    matcher: Matcher, boxes: Tensor, priors: Tensor, levels: Sequence[Level]
) -> Tensor:
    bar = 0.0 if matcher.allow_low_quality_matches else None
    high, low = matcher.high_threshold, matcher.low_threshold
    return _max_overlap(box_iou, boxes, priors, high, low, bar, tie=0.0, least=0.0)


def _max_overlap(
    similarity: Similarity,
    boxes: Tensor,
    priors: Tensor,
    high: float,
    low: float,
    min_low_quality: float | None,
    *,
    tie: float = TIE,
    least: float = LEAST,
) -> Tensor:
    if low > high:
        raise ValueError(f"low: got {low}, wanted at most high, {high}")
    best = priors.new_full((len(priors),), -torch.inf)
    matches = torch.full((len(priors),), BACKGROUND, device=priors.device)
    low_quality = torch.zeros_like(matches, dtype=torch.bool)
    for start, chunk in chunks(boxes, len(priors)):
        scores = similarity(chunk, priors)
        value, index = scores.max(dim=0)
        matches = torch.where(value > best, start + index, matches)
        best = torch.maximum(best, value)
        if min_low_quality is not None:
            top = scores.amax(dim=1, keepdim=True)
            bar = max(min_low_quality, least)
            low_quality |= ((scores >= top * (1 - tie)) & (top >= bar)).any(dim=0)
    unsure = torch.where(best < low, BACKGROUND, IGNORED)
    return torch.where((best >= high) | low_quality, matches, unsure)
