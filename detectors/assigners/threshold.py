"""Assigners by a threshold on a similarity: iou, simd, nwd, dotd; and torchvision's matching."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detectors.assigners.priors import Assigner, Level
from detectors.assigners.similarities import dotd_similarity, nwd_similarity, simd_similarity
from jolkernels.integrations.matching import match_as, match_by


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
    return match_by(box_iou, boxes, priors, high, low, min_low_quality)


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
    return match_by(similarity, boxes, priors, high, low, min_low_quality)


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
    return match_by(similarity, boxes, priors, high, low, min_low_quality)


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
    return match_by(similarity, boxes, priors, high, low, min_low_quality)


def chunked(matcher: Matcher) -> Assigner:
    """torchvision's matching by IoU, bit for bit, without its [G, A] matrix.

    Unlike `iou`, it ties only equal IoUs, and an object that overlaps no prior is tied with all of
    them. Without objects, which the Matcher refuses, all priors are background.
    """
    return partial(_as_torchvision, matcher)


def _as_torchvision(
    matcher: Matcher, boxes: Tensor, priors: Tensor, levels: Sequence[Level]
) -> Tensor:
    return match_as(matcher, boxes, priors)
