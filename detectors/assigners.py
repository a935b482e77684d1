"""Label assigners: which object each prior is trained on.

A prior is an anchor box or, for RFLA, the place of one. Every assigner has one signature,

    assign(boxes [G, 4], priors [A, 4], levels, *, settings) → int64 [A],

boxes and priors as x1 y1 x2 y2 in pixels, and answers in torchvision's convention: the index of
the object, BACKGROUND or IGNORED. Without objects all is background. Assigners are pure
functions; give them boxes without gradient.

Memory: a [G, A] matrix is never held. Objects are taken in chunks of at most PAIRS (object, prior)
pairs; 1,500 objects and 160,000 priors take 0.4 GB (the matrix alone would be 1 GB, several times).
What outlives a chunk is [A], and of ATSS the positive pairs.

Sources:
    iou: Faster R-CNN, arXiv 1506.01497; torchvision's Matcher
    simd: Similarity Distance-Based Label Assignment, arXiv 2407.02394
    nwd: Normalized Gaussian Wasserstein Distance, arXiv 2110.13389
    nwd-rka: Detecting Tiny Objects in Aerial Images, arXiv 2206.13996
    dotd: Dot Distance for Tiny Object Detection, CVPR Workshops 2021
    rfla: Gaussian Receptive Field based Label Assignment, arXiv 2208.08738
    atss: Adaptive Training Sample Selection, arXiv 1912.02424
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.similarities import (
    centres,
    dotd_similarity,
    nwd_similarity,
    paired_iou,
    rfla_similarity,
    simd_similarity,
)

BACKGROUND, IGNORED = -1, -2
PAIRS = 1 << 22
TIE = 1e-6
"""Similarities within this share of each other are equal: float32 rounds what are equals."""
LEAST = 1e-5
"""An object less like every prior than this has no best ones: all of them would be tied."""
RECEPTIVE_FIELDS = {2: 45.0, 3: 91.0, 4: 267.0, 5: 427.0, 6: 555.0, 7: 811.0}
"""Pyramid level → the theoretical receptive field of ResNet-50 with an FPN, in pixels (RFLA)."""


SCALES = ("m", "n", "constant", "size", "shrink", "fraction")
"""Settings that have to be positive."""


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


def nwd_rka(
    boxes: Tensor,
    priors: Tensor,
    levels: Sequence[Level],
    *,
    k: int = 2,
    constant: float = 12.7,
    low: float = 0.3,
) -> Tensor:
    """Ranking-based: the k priors of highest NWD are an object's (2 two-stage, 3 RetinaNet).

    As in the release, priors tied with the k-th count too and a prior several objects chose goes
    to the last of them. Of the others, those below `low` to every object are background, the rest
    ignored.

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
    """Hierarchical, by the KL divergence of receptive fields; of the priors only the centre counts.

    An object takes the `first` priors whose effective receptive field (the level's theoretical
    one times `fraction`) is most like it. Then, with the fields times `shrink`, it takes those of
    its `second` best that are nobody's yet: as in the release, it does not look for another where
    they are not. Ties and conflicts are settled as in `nwd_rka`. Of the others, those below `low`
    to every object are background, the rest ignored. Meant for one prior a location.

    Raises:
        ValueError: a level has no receptive field, or first or second is below 1.
    """
    known = [level.receptive_field for level in levels]
    if min(known, default=1) <= 0:
        raise ValueError(
            "rfla: got a level without a receptive field, wanted its side in pixels, "
            f"for P2 to P7 {', '.join(f'{side:g}' for side in RECEPTIVE_FIELDS.values())}"
        )
    sides = _per_prior(levels, priors, known)
    chosen, best = _ranked(rfla_similarity, boxes, _around(priors, sides * fraction), first)
    smaller = _around(priors, sides * fraction * shrink)
    more, _ = _ranked(rfla_similarity, boxes, smaller, second)
    chosen = torch.where(chosen >= 0, chosen, more)
    return torch.where(chosen >= 0, chosen, torch.where(best < low, BACKGROUND, IGNORED))


def atss(boxes: Tensor, priors: Tensor, levels: Sequence[Level], *, k: int = 9) -> Tensor:
    """Adaptive: candidates are the priors at the k locations of each level nearest an object.

    The object's threshold is mean + standard deviation of its candidates' IoU; the candidates
    at or above it whose centre lies inside the object are positive, all else background.
    A prior several objects chose goes to the one of highest IoU.

    Raises:
        ValueError: the levels do not add up to the priors.
    """
    places = centres(priors)
    items, chosen, overlaps = [], [], []
    for start, chunk in _chunks(boxes, len(priors)):
        candidates = _nearest(centres(chunk), places, levels, k)
        overlap = paired_iou(chunk[:, None], priors[candidates])
        deviation = overlap.std(dim=1) if overlap.shape[1] > 1 else torch.zeros_like(overlap[:, 0])
        enough = overlap >= (overlap.mean(dim=1) + deviation)[:, None]
        at = places[candidates]
        inside = torch.cat([at - chunk[:, None, :2], chunk[:, None, 2:] - at], -1).amin(-1) > 0
        item, column = (enough & inside).nonzero(as_tuple=True)
        items.append(start + item)
        chosen.append(candidates[item, column])
        overlaps.append(overlap[item, column])
    if not items:
        return torch.full((len(priors),), BACKGROUND, device=priors.device)
    return _highest(torch.cat(items), torch.cat(chosen), torch.cat(overlaps), len(priors))


ASSIGNERS: dict[str, Callable[..., Tensor]] = {
    "iou": iou,
    "simd": simd,
    "nwd": nwd,
    "nwd-rka": nwd_rka,
    "dotd": dotd,
    "rfla": rfla,
    "atss": atss,
}


def make_assigner(name: str, **settings: float | None) -> Assigner:
    """The assigner of this name with some of its settings changed, tried on one object.

    Raises:
        ValueError: an unknown name or setting, or a value that cannot be used.
    """
    if name not in ASSIGNERS:
        raise ValueError(f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}")
    parameters = inspect.signature(ASSIGNERS[name]).parameters.values()
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
    assign = partial(ASSIGNERS[name], **checked)
    box = torch.tensor([[8.0, 8, 24, 24]])
    try:
        assign(box, torch.cat([box, box + 4]), [Level(2, 1, RECEPTIVE_FIELDS[2])])
    except (TypeError, RuntimeError, ValueError) as error:  # such as half a prior
        raise ValueError(f"setting of assigner {name}: {error}") from error
    return assign


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
    for start, chunk in _chunks(boxes, len(priors)):
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


def _ranked(similarity: Similarity, boxes: Tensor, priors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each object's k most similar priors and those tied with the last of them.

    Returns:
        int64 [A]: the last object that chose the prior, BACKGROUND where none did; and the
        prior's best similarity [A].
    """
    if k < 1:
        raise ValueError(f"priors an object takes: got {k}, wanted 1 or more")
    chosen = torch.full((len(priors),), BACKGROUND, device=priors.device)
    best = priors.new_full((len(priors),), -torch.inf)
    for start, chunk in _chunks(boxes, len(priors)):
        alike = similarity(chunk, priors)
        best = torch.maximum(best, alike.amax(dim=0))
        least = alike.topk(min(k, len(priors)), dim=1).values[:, -1:]
        item, prior = (alike >= least).nonzero(as_tuple=True)
        chosen.scatter_reduce_(0, prior, start + item, "amax")
    return chosen, best


def _highest(item: Tensor, prior: Tensor, value: Tensor, priors: int) -> Tensor:
    """Of the pairs (item, prior) [P], each prior's of highest value, of equals the first item."""
    best = value.new_full((priors,), -torch.inf).scatter_reduce(0, prior, value, "amax")
    wins = value == best[prior]
    none = torch.iinfo(torch.int64).max
    matches = torch.full((priors,), none, device=prior.device)
    matches = matches.scatter_reduce(0, prior[wins], item[wins], "amin")
    return torch.where(matches == none, BACKGROUND, matches)


def _chunks(boxes: Tensor, priors: int) -> Iterator[tuple[int, Tensor]]:
    """(index of its first object, objects) of chunks of at most PAIRS pairs."""
    step = max(1, PAIRS // max(1, priors))
    for start in range(0, len(boxes) if priors else 0, step):
        yield start, boxes[start : start + step]


def _nearest(objects: Tensor, places: Tensor, levels: Sequence[Level], k: int) -> Tensor:
    """int64 [G, K]: the priors at each level's k locations nearest the objects' centres."""
    _check_levels(levels, places)
    found, begin = [], 0
    for level in levels:
        here = places[begin : begin + level.priors]
        # Not by way of a matrix product, whose rounding would decide between equals.
        distance = torch.cdist(objects, here, compute_mode="donot_use_mm_for_euclid_dist")
        wanted = min(k * level.per_location, level.priors)
        found.append(begin + distance.topk(wanted, dim=1, largest=False).indices)
        begin += level.priors
    return torch.cat(found, dim=1)


def _check_levels(levels: Sequence[Level], priors: Tensor) -> None:
    count = sum(level.priors for level in levels)
    if count != len(priors):
        raise ValueError(f"levels: got {count} priors, wanted {len(priors)}")


def _per_prior(levels: Sequence[Level], priors: Tensor, values: Sequence[float]) -> Tensor:
    """[A]: each prior's level's value."""
    _check_levels(levels, priors)
    counts = [level.priors for level in levels]
    repeats = torch.tensor(counts, dtype=torch.int64, device=priors.device)
    return priors.new_tensor(values).repeat_interleave(repeats, output_size=len(priors))


def _around(priors: Tensor, sides: Tensor) -> Tensor:
    """Squares of these sides [A] at the priors' centres."""
    at, half = centres(priors), sides[:, None] / 2
    return torch.cat([at - half, at + half], dim=1)
