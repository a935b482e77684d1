"""What a data set's boxes and an anchor layout mean for label assignment, before any training.

Two questions: which m and n SimD should use, and how many priors an assigner gives to objects of
each size. Both take images as (boxes [G, 4] as x1 y1 x2 y2, (height, width)), in native pixels,
and resize them as a detector would.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from detectors.assigners.priors import Assigner, Level
from detectors.data.object_counts import Image
from detectors.data.object_sizes import LIMITS, box_sizes, size_name, size_range
from detectors.models.anchor_plans import Layout
from detectors.models.anchors import LevelledAnchors, PlainAnchors

BUCKETS = (*LIMITS[:-1], 96.0, float("inf"))
"""Limits of the sizes sqrt(w h), in pixels of the resized image; the lower one belongs to it."""


@dataclass(frozen=True)
class Bucket:
    """Objects of low <= sqrt(w h) < high pixels; positives: the mean an object gets, 0 if none."""

    low: float
    high: float
    objects: int
    positives: float

    @property
    def name(self) -> str:
        """Such as "<8 px" or "8-16 px"."""
        return size_name(self.low, self.high)


def resized(image: Image, layout: Layout) -> Image:
    """Boxes on the resized image, float64, and its padded (height, width)."""
    boxes, (height, width) = image
    boxes = boxes.double()
    if layout.fit is not None:
        scale = layout.scale(height, width)
        old = (height, width)
        height, width = int(height * scale + 0.5), int(width * scale + 0.5)
        boxes = boxes * boxes.new_tensor([width / old[1], height / old[0]] * 2)
    step = layout.multiple
    return boxes, (-(-height // step) * step, -(-width // step) * step)


def make_priors(layout: Layout, height: int, width: int) -> tuple[Tensor, list[Level]]:
    """The layout's anchors, float32 [A, 4], on an image of this padded size, and their levels."""
    anchors: LevelledAnchors
    if layout.whole:
        anchors = LevelledAnchors(layout.strides, layout.level_sizes, layout.ratios)
    else:
        anchors = PlainAnchors(layout.strides, layout.scales, layout.ratios, layout.offset)
    grids = [[rows, columns] for _, rows, columns in _grids(layout, height, width)]
    strides = [[torch.tensor(stride)] * 2 for stride in layout.strides]
    return torch.cat(anchors.grid_anchors(grids, strides)), anchors.describe(grids)


def simd_constants(images: Iterable[Image], layout: Layout | None = None) -> tuple[float, float]:
    """SimD's m and n: the means of |dx| / (wg + wa) and |dy| / (hg + ha).

    The mean is over all (object, anchor) pairs of an image, and over those of all images equally.
    Exact, and yet no pair is formed: on a grid |dx| depends on the column alone and its sum over
    the columns has a closed form. VisDrone's 382,000 objects, 9e10 pairs, take seconds.

    Source: arXiv 2407.02394.

    Raises:
        ValueError: no objects.
    """
    layout = layout or Layout()
    sums, pairs = torch.zeros(2, dtype=torch.float64), 0
    for image in images:
        boxes, (height, width) = resized(image, layout)
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        for stride, rows, columns in _grids(layout, height, width):
            count = torch.tensor([columns, rows], dtype=torch.float64)
            # Sum over the columns, times the rows: [G, 2], the second for y.
            distance = _distance_sum(centres / stride - layout.offset, count) * stride
            distance = distance * count.flip(0)
            for sides in _sides(layout, stride):
                sums += (distance / (sizes + sizes.new_tensor(sides))).sum(dim=0)
                pairs += len(boxes) * rows * columns
    if pairs == 0:
        raise ValueError("simd_constants: got no objects, wanted at least 1")
    m, n = (sums / pairs).tolist()
    return m, n


def positives(
    images: Iterable[Image], assign: Assigner, layout: Layout | None = None
) -> list[Bucket]:
    """The mean number of priors an object gets, by its size on the resized image.

    For matches above the threshold alone give an assigner without low-quality matches:
    make_assigner("simd", min_low_quality=None). RFLA has one prior a location: Layout(ratios=(1,)).
    IoU's low-quality matches of objects smaller than every anchor are ties, of all the anchors an
    object lies in, and rounding decides how many stay tied: VisDrone's objects of 16 to 32 pixels
    get 6.7 in exact arithmetic, 4.3 were float32 compared bit by bit, 5.4 within matching.TIE.
    """
    layout = layout or Layout()
    objects = torch.zeros(len(BUCKETS) - 1, dtype=torch.float64)
    matched = torch.zeros_like(objects)
    for image in images:
        boxes, (height, width) = resized(image, layout)
        priors, levels = make_priors(layout, height, width)
        matches = assign(boxes.float(), priors, levels)
        gets = torch.bincount(matches[matches >= 0], minlength=len(boxes)).double()
        bucket = size_range(box_sizes(boxes), BUCKETS)
        objects += torch.bincount(bucket, minlength=len(objects))
        matched += torch.bincount(bucket, weights=gets, minlength=len(objects))
    means = (matched / objects.clamp(min=1)).tolist()
    counts = [int(count) for count in objects.tolist()]
    return [
        Bucket(low, high, count, mean)
        for (low, high), count, mean in zip(pairwise(BUCKETS), counts, means, strict=True)
    ]


def without_positives(buckets: Iterable[Bucket]) -> list[str]:
    """The sizes whose objects get no prior at all, such as "<8 px" or "8-16 px"."""
    return [bucket.name for bucket in buckets if bucket.objects and bucket.positives == 0]


def _grids(layout: Layout, height: int, width: int) -> list[tuple[int, int, int]]:
    """(stride, rows, columns) of every level."""
    return [(stride, -(-height // stride), -(-width // stride)) for stride in layout.strides]


def _sides(layout: Layout, stride: int) -> list[tuple[float, float]]:
    """(width, height) of the anchors at one location, scale after scale."""
    return [
        (size / ratio**0.5, size * ratio**0.5)
        for size in layout.level_sizes[layout.strides.index(stride)]
        for ratio in layout.ratios
    ]


def _distance_sum(at: Tensor, count: Tensor) -> Tensor:
    """Σ |at − i| over i = 0 .. count − 1, elementwise."""
    below = (at.floor() + 1).clamp(min=0).minimum(count)  # how many i lie at or below `at`
    # (at − i) over those below, plus (i − at) over the rest; Σ i over the first k is k (k − 1) / 2.
    return at * (2 * below - count) - below * (below - 1) + count * (count - 1) / 2
