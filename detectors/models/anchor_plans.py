"""Where the priors of a detector lie: strides, scales and ratios, by preset.

Detectors make their anchor generators from these numbers (anchors.py), and `jol data stats` counts
priors with the same numbers without building a detector. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectors.models.compatibility import misfits_of_anchors, refuse
from detectors.models.presets import find_detector

RATIOS = (0.5, 1.0, 2.0)
ATSS_SCALE = 8
"""Side of the square that an assigner sees at a point, in strides (ATSS, arXiv 1912.02424)."""
LAST_OF_BODY = 32
"""Stride of C5."""
SLIM_SIZES = {4: (6, 10), 8: (15, 22), 16: (32, 46), 32: (64, 90), 64: (128, 180), 128: (256, 360)}
"""Stride → sizes of slim's anchors in pixels."""
SLIM_OCTAVES = 2
"""Number of sizes at each stride."""


@dataclass(frozen=True)
class Layout:
    """Anchors and image sizes as MMDetection has them; the defaults are Faster R-CNN's.

    Images are resized, keeping their proportions, to fit `fit`, and padded to multiples of
    `multiple`. The anchors are those of PlainAnchors. torchvision's AnchorGenerator rounds half
    widths and half heights to whole pixels (22.6 x 45.3 becomes 22 x 46), which moves m by 0.3 %.

    Attributes:
        strides: strides of the levels in pixels, powers of two.
        scales: sides of a square anchor in strides; empty: the sizes say.
        ratios: height over width.
        offset: position of the first centre in strides: 0 for anchors, 0.5 for points.
        fit: longer and shorter side in pixels; None: images are not resized.
        multiple: in pixels.
        sizes: sides of a square anchor of each level in pixels; empty: the scales say exactly.
        whole: whether anchors are rounded to whole pixels, as in torchvision.
        crop: side of the crops that are resized instead of images; None: there are none.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = RATIOS
    offset: float = 0.0
    fit: tuple[int, int] | None = (1333, 800)
    multiple: int = 32
    sizes: tuple[tuple[float, ...], ...] = ()
    whole: bool = False
    crop: int | None = None

    @property
    def level_sizes(self) -> tuple[tuple[float, ...], ...]:
        """Sides of a square anchor of each level in pixels."""
        return self.sizes or tuple(
            tuple(scale * stride for scale in self.scales) for stride in self.strides
        )

    def scale(self, height: int, width: int) -> float:
        """The factor that an image of this size is resized by, or a crop of it."""
        if self.fit is None:
            return 1.0
        if self.crop is not None:
            height = width = self.crop
        return min(max(self.fit) / max(height, width), min(self.fit) / min(height, width))


@dataclass(frozen=True)
class AnchorPlan:
    """The priors of a detector, checked by plan_anchors.

    Attributes:
        preset: one of PRESETS.
        points: whether they are points instead of anchors.
        strides: strides of the levels in pixels, each twice the one before.
        scale: side of a level's smallest anchor in strides; None: SLIM_SIZES.
        octaves: anchors of each ratio, from `scale` up to below twice `scale`.
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
        """The ResNet stages behind the levels that are not made from others; 1 is C2, stride 4."""
        return [s.bit_length() - 2 for s in self.strides if s <= LAST_OF_BODY]

    @property
    def offset(self) -> float:
        """Position of the first centre in strides, with preset paper."""
        return 0.5 if self.points else 0.0

    def scales(self, first: float) -> tuple[float, ...]:
        """Sides of a level's anchors in strides; `first` is the smallest."""
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
    """The priors of a detector. Arguments are those of build_detector.

    Raises:
        ValueError: no such detector, numbers out of range, or settings that it does not have.
    """
    row = find_detector(detector)
    refuse(misfits_of_anchors(detector, assigner, scale, ratios, strides))
    one = row.has_points or assigner == "rfla"
    levels = row.strides[preset] if strides is None else tuple(strides)
    scale = row.scale[preset] if scale is None else scale
    octaves = SLIM_OCTAVES if scale is None else row.octaves
    shapes = (1.0,) if one else tuple(ratios or RATIOS)
    return AnchorPlan(preset, row.has_points, levels, scale, 1 if one else octaves, shapes)


def longer_side(size: int) -> int:
    """The largest longer side, in pixels, of an image whose shorter side is resized to `size`."""
    return round(size * 1333 / 800)


def shorter_sides(preset: str, image_size: int | Sequence[int] | None) -> tuple[int, ...]:
    """What the shorter side of images is resized to; of several one is drawn; none: as they are."""
    if image_size is None:
        return () if preset == "slim" else (800,)
    return tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)


def image_fit(
    preset: str, image_size: int | Sequence[int] | None, *, largest: bool = False
) -> tuple[int, int] | None:
    """Longer and shorter side that images are resized to fit in; None: they are not.

    Of several image sizes the smallest or, as in evaluation, the largest.
    """
    sizes = shorter_sides(preset, image_size)
    if not sizes:
        return None
    size = max(sizes) if largest else min(sizes)
    return longer_side(size), size


def plan_layout(
    detector: str,
    preset: str,
    assigner: str | None = None,
    *,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
    crop: int | None = None,
) -> Layout:
    """The priors and image sizes that a detector is trained with, without building it.

    Arguments are those of build_detector and TrainSettings. The priors of a detector with points
    are the squares that assigners see there. Of several image sizes it has the smallest, at which
    objects are smallest.

    Raises:
        ValueError: as plan_anchors.
    """
    plan = plan_anchors(
        detector, preset, assigner, scale=anchor_scale, ratios=anchor_ratios, strides=strides
    )
    fit = image_fit(preset, image_size)
    shared: dict[str, Any] = {"ratios": plan.ratios, "fit": fit, "crop": crop}
    if plan.scale is None:
        sizes = tuple(tuple(map(float, SLIM_SIZES[s][: plan.octaves])) for s in plan.strides)
        return Layout(plan.strides, (), sizes=sizes, whole=True, **shared)
    scales = plan.scales(float(ATSS_SCALE) if plan.points else plan.scale)
    if preset == "paper":
        return Layout(plan.strides, scales, offset=plan.offset, **shared)
    sizes = tuple(tuple(float(int(scale * s)) for scale in scales) for s in plan.strides)
    return Layout(plan.strides, scales, sizes=sizes, whole=True, **shared)
