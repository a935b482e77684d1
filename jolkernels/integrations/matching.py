"""Objects matched to priors by the largest similarity, without a matrix of all pairs.

torchvision's Matcher takes one: of 2,500 objects and 270,000 anchors it has 2.5 GiB, several times.

Letters: G objects, A priors (anchors, points, proposals) of an image.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

PAIRS = 1 << 22
"""Most (object, prior) pairs that are compared at once."""
TIE = 1e-6
"""Similarities within this share of each other are tied: float32 rounds equal ones apart."""
LEAST = 1e-5
"""Below this similarity to every prior an object has no best prior: all would be tied."""
Similarity = Callable[[Tensor, Tensor], Tensor]
"""boxes [G, 4], priors [A, 4] → [G, A], larger is more similar."""


def chunks(boxes: Tensor, priors: int) -> Iterator[tuple[int, Tensor]]:
    """Chunks of at most PAIRS pairs: (index of the first object, objects)."""
    step = max(1, PAIRS // max(1, priors))
    for start in range(0, len(boxes) if priors else 0, step):
        yield start, boxes[start : start + step]


def match_as(matcher: Matcher, boxes: Tensor, priors: Tensor) -> Tensor:
    """matcher(box_iou(boxes, priors)), bit for bit; without objects, which it refuses, all -1."""
    bar = 0.0 if matcher.allow_low_quality_matches else None
    high, low = matcher.high_threshold, matcher.low_threshold
    return match_by(box_iou, boxes, priors, high, low, bar, tie=0.0, least=0.0)


def match_by(
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
    """The object of each prior int64 [A], -1 for background and -2 for ignored, as a Matcher's.

    Args:
        similarity: what is compared.
        boxes: objects [G, 4].
        priors: [A, 4].
        high: least similarity of a match; below `low` a prior is background, in between ignored.
        low: at most `high`.
        min_low_quality: an object whose best similarity is at least this also gets the priors tied
            at its best, each of which goes to its own most similar object; None: it does not.
        tie: share of a similarity within which others are tied with it; 0, as torchvision: equal
            ones alone.
        least: least similarity of a best prior; 0, as torchvision: an object that overlaps no
            prior is tied with all of them.

    Raises:
        ValueError: low above high.
    """
    if low > high:
        raise ValueError(f"low: got {low}, wanted at most high, {high}")
    best = priors.new_full((len(priors),), -torch.inf)
    matches = torch.full((len(priors),), Matcher.BELOW_LOW_THRESHOLD, device=priors.device)
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
    unsure = torch.where(best < low, Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)
    return torch.where((best >= high) | low_quality, matches, unsure)


def matched_boxes(targets: list[dict[str, Tensor]], matches: list[Tensor]) -> list[Tensor]:
    """The objects [N, 4] that each image's samples are matched to; any box, or 0, for none."""
    return [gather(t["boxes"], m) for t, m in zip(targets, matches, strict=True)]


def matched_labels(
    targets: list[dict[str, Tensor]], matched: Tensor, background: int, ignore: int
) -> Tensor:
    """Labels [B, A] of priors matched [B, A] to objects, to -1 (background) or -2 (ignored)."""
    found = torch.stack([gather(t["labels"], m) for t, m in zip(targets, matched, strict=True)])
    return found.where(matched >= 0, background).masked_fill(matched == -2, ignore)


def gather(values: Tensor, matches: Tensor) -> Tensor:
    """values[matches], [G, ...] and [N] to [N, ...]; any row for -1, zeros without objects."""
    if values.shape[0] == 0:
        return values.new_zeros((matches.shape[0], *values.shape[1:]))
    return values[matches.clamp(min=0)]
