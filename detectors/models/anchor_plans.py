"""Where the priors of a detector lie: strides, scales and ratios, by preset.

The one place for these numbers: models.py builds anchor generators of them, `jol data stats` counts
with the same ones without building a detector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from detectors.models.anchors import LevelledAnchors, PlainAnchors

ONE_STAGE = ("retinanet", "fcos")
TWO_STAGE = ("faster_rcnn", "cascade_rcnn", "detectors")
DETECTORS = ONE_STAGE + TWO_STAGE
RATIOS = (0.5, 1.0, 2.0)
TWO_STAGE_SCALE, RETINANET_SCALE = 8.0, 4.0
"""Side of a level's (smallest) anchor in strides."""
RETINANET_OCTAVES = 3
ATSS_SCALE = 8
"""Side of ATSS's anchor at an FCOS point, in strides (arXiv 1912.02424, Sec. 4)."""
LAST_OF_BODY = 32
"""Stride of C5."""
SLIM_SIZES = {4: (6, 10), 8: (15, 22), 16: (32, 46), 32: (64, 90), 64: (128, 180), 128: (256, 360)}
"""Stride → sizes of slim's anchors in pixels."""


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
    scales: tuple[float, ...] = (TWO_STAGE_SCALE,)
    ratios: tuple[float, ...] = RATIOS
    offset: float = 0.0
    fit: tuple[int, int] | None = (1333, 800)
    multiple: int = 32


@dataclass(frozen=True)
class AnchorPlan:
    """The anchors of a detector, as plan_anchors found them to make sense.

    Attributes:
        strides: of the levels in pixels, each twice the one before.
        scale: side of a level's (smallest) anchor in strides; None: slim's own list.
        octaves: anchors of a ratio, from `scale` up to below twice of it.
        ratios: height over width.
    """

    detector: str
    preset: str
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
        return 0.5 if self.detector == "fcos" else 0.0

    def scales(self, first: float) -> tuple[float, ...]:
        """Sides of a level's anchors in strides, from the smallest one's."""
        return tuple(first * 2 ** (i / self.octaves) for i in range(self.octaves))

    def generator(self) -> LevelledAnchors:
        """What the detector takes as its anchor generator."""
        if self.scale is None:
            sizes = [SLIM_SIZES[s][: self.octaves] for s in self.strides]
            return LevelledAnchors(self.strides, sizes, self.ratios)
        scales = self.scales(self.scale)
        if self.preset == "paper":
            return PlainAnchors(self.strides, scales, self.ratios, self.offset)
        # Whole pixels, as torchvision's RetinaNet has them.
        whole = [[int(scale * stride) for scale in scales] for stride in self.strides]
        return LevelledAnchors(self.strides, whole, self.ratios)


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
    if detector not in DETECTORS:
        raise ValueError(f"detector: got {detector!r}, wanted one of {', '.join(DETECTORS)}")
    one = assigner == "rfla"
    if scale is not None and (detector == "fcos" or not 0.25 <= scale < math.inf):
        wanted = "none: fcos has no anchors" if detector == "fcos" else "a number of at least 0.25"
        raise ValueError(f"anchor_scale: got {scale}, wanted {wanted}")
    if ratios is not None and (detector == "fcos" or one):
        raise ValueError(f"anchor_ratios: got {ratios}, wanted none with fcos and with rfla")
    if ratios is not None and not (
        isinstance(ratios, Sequence) and ratios and all(0 < r < math.inf for r in ratios)
    ):
        raise ValueError(f"anchor_ratios: got {ratios}, wanted one or more numbers > 0")
    levels = _strides(detector, preset, strides)
    if detector == "fcos":
        # torchvision takes a level's range of distances (4 and 8 sizes) and the radius of centre
        # sampling from the anchor's size. Slim halves it: ranges 0 to 16, 16 to 32 and above 32
        # pixels at strides 4, 8 and 16.
        return AnchorPlan(detector, preset, levels, 0.5 if preset == "slim" else 1.0, 1, (1.0,))
    octaves = RETINANET_OCTAVES if detector == "retinanet" else 1
    if scale is None and preset == "slim":
        octaves = 2
    elif scale is None:
        scale = RETINANET_SCALE if detector == "retinanet" else TWO_STAGE_SCALE
    shapes = (1.0,) if one else tuple(ratios or RATIOS)
    return AnchorPlan(detector, preset, levels, scale, 1 if one else octaves, shapes)


def _strides(detector: str, preset: str, strides: Sequence[int] | None) -> tuple[int, ...]:
    """The given strides if the detector can have them, or its own."""
    slim = preset == "slim" and detector != "detectors"
    if strides is None:
        if detector in ONE_STAGE:
            return (4, 8, 16) if slim else (8, 16, 32, 64, 128)
        return (4, 8, 16, 32) if slim else (4, 8, 16, 32, 64)
    found = tuple(strides) if isinstance(strides, Sequence) else (strides,)
    if detector == "detectors":
        raise ValueError(
            f"strides: got {found}, wanted none with detectors: its pyramid is the recursive one"
        )
    # The last levels are made from others: P6 and P7 of RetinaNet and FCOS, and the RPN's last.
    lasts = (16, 32, 128) if detector in ONE_STAGE else (32, 64)
    doubled = all(type(s) is int for s in found) and all(b == 2 * a for a, b in pairwise(found))
    if len(found) < 2 or not doubled or found[0] not in (4, 8) or found[-1] not in lasts:
        raise ValueError(
            f"strides: got {found}, wanted two or more, each twice the one before, from 4 or 8 to "
            f"{', '.join(map(str, lasts[:-1]))} or {lasts[-1]} with {detector}"
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
    first = float(ATSS_SCALE) if detector == "fcos" else plan.scale
    fit = (longer_side(size), size)
    return Layout(plan.strides, plan.scales(first), plan.ratios, plan.offset, fit)
