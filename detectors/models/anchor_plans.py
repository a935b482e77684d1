"""Where the priors of a detector lie: strides, scales and ratios, by preset.

The one place for these numbers: models.py builds anchor generators of them, `jol data stats` counts
with the same ones without building a detector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from detectors.models.presets import Detector, find_detector

RATIOS = (0.5, 1.0, 2.0)
ATSS_SCALE = 8
"""Side of the square that an assigner sees at a point, in strides (ATSS, arXiv 1912.02424)."""
LAST_OF_BODY = 32
"""Stride of C5."""
SLIM_SIZES = {4: (6, 10), 8: (15, 22), 16: (32, 46), 32: (64, 90), 64: (128, 180), 128: (256, 360)}
"""Stride → sizes of slim's anchors in pixels."""
SLIM_OCTAVES = 2
"""How many they are."""


@dataclass(frozen=True)
class Layout:
    """Anchors and image sizes as MMDetection has them; the defaults are Faster R-CNN's.

    Images are resized, keeping their proportions, to fit `fit`, and padded to multiples of
    `multiple`. The anchors are those of PlainAnchors. torchvision's AnchorGenerator rounds half
    widths and half heights to whole pixels (22.6 x 45.3 becomes 22 x 46), which moves m by 0.3 %.

    Attributes:
        strides: of the levels in pixels, powers of two.
        scales: sides of a square anchor in strides.
        ratios: height over width.
        offset: of the first centre, in strides; 0 as torchvision and MMDetection, 0.5 for FCOS.
        fit: longer and shorter side in pixels; None: images stay as they are.
        multiple: pixels.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = RATIOS
    offset: float = 0.0
    fit: tuple[int, int] | None = (1333, 800)
    multiple: int = 32


@dataclass(frozen=True)
class AnchorPlan:
    """The priors of a detector, checked by plan_anchors.

    Attributes:
        preset: one of PRESETS.
        points: whether they are points instead of anchors.
        strides: of the levels in pixels, each twice the one before.
        scale: side of a level's (smallest) anchor in strides; None: slim's own list.
        octaves: anchors of a ratio, from `scale` up to below twice of it.
        ratios: height over width.
    """

    preset: str
    points: bool
    strides: tuple[int, ...]
    scale: float | None
    octaves: int
    ratios: tuple[float, ...]

    @property
    def stages(self) -> list[int]:
        """The ResNet stages of the levels that are not made from others; 1: C2, of stride 4."""
        return [s.bit_length() - 2 for s in self.strides if s <= LAST_OF_BODY]

    @property
    def offset(self) -> float:
        """Of the first centre, in strides, where anchors are not torchvision's."""
        return 0.5 if self.points else 0.0

    def scales(self, first: float) -> tuple[float, ...]:
        """Sides of a level's anchors in strides, from the smallest one's."""
        return tuple(first * 2 ** (i / self.octaves) for i in range(self.octaves))


def plan_anchors(
    detector: str,
    preset: str,
    assigner: str | None = None,
    *,
    scale: float | None = None,
    ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
) -> AnchorPlan:
    """The anchors of a detector; arguments as of build_detector.

    Raises:
        ValueError: no such detector, or numbers out of range or of no use to it.
    """
    row = find_detector(detector)
    one = row.has_points or assigner == "rfla"
    if scale is not None and (row.has_points or not 0.25 <= scale < math.inf):
        wanted = f"none: {detector} has no anchors" if row.has_points else "at least 0.25"
        raise ValueError(f"anchor_scale: got {scale}, wanted {wanted}")
    if ratios is not None and one:
        who = detector if row.has_points else "rfla"
        raise ValueError(f"anchor_ratios: got {ratios}, wanted none with {who}")
    if ratios is not None and not (
        isinstance(ratios, Sequence) and ratios and all(0 < r < math.inf for r in ratios)
    ):
        raise ValueError(f"anchor_ratios: got {ratios}, wanted one or more numbers > 0")
    levels = row.strides[preset] if strides is None else _check_strides(detector, row, strides)
    scale = row.scale[preset] if scale is None else scale
    octaves = SLIM_OCTAVES if scale is None else row.octaves
    shapes = (1.0,) if one else tuple(ratios or RATIOS)
    return AnchorPlan(preset, row.has_points, levels, scale, 1 if one else octaves, shapes)


def _check_strides(detector: str, row: Detector, strides: Sequence[int]) -> tuple[int, ...]:
    """The strides chosen by the user, if the detector can have them."""
    found = tuple(strides) if isinstance(strides, Sequence) else (strides,)
    if not row.last_strides:
        raise ValueError(f"strides: got {found}, wanted none with {detector}: they are fixed")
    *others, last = row.last_strides
    doubled = all(type(s) is int for s in found) and all(b == 2 * a for a, b in pairwise(found))
    if len(found) < 2 or not doubled or found[0] not in (4, 8) or found[-1] not in (*others, last):
        raise ValueError(
            f"strides: got {found}, wanted two or more, each twice the one before, from 4 or 8 to "
            f"{', '.join(map(str, others))} or {last} with {detector}"
        )
    return found


def longer_side(size: int) -> int:
    """The most that the longer side may have where the shorter one is resized to `size`."""
    return round(size * 1333 / 800)


def paper_layout(
    detector: str,
    assigner: str | None = None,
    *,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    image_size: int | None = None,
) -> Layout:
    """The priors and image sizes of a detector of preset paper, without building it.

    Arguments as of build_detector. FCOS's priors are the squares that ATSS puts at its points.

    Raises:
        ValueError: as plan_anchors.
    """
    plan = plan_anchors(
        detector, "paper", assigner, scale=anchor_scale, ratios=anchor_ratios, strides=strides
    )
    assert plan.scale is not None
    size = image_size or 800
    first = float(ATSS_SCALE) if plan.points else plan.scale
    fit = (longer_side(size), size)
    return Layout(plan.strides, plan.scales(first), plan.ratios, plan.offset, fit)
