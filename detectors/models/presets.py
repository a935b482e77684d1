"""The detectors and their presets: everything that differs from one detector to another.

To add a detector, write its module and add a row to DETECTORS. Nothing here imports torch: the
command line lists detectors and presets before it needs a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

PRESETS = ("torchvision", "paper", "slim")
LOSSES = ("base", "jol")
WEIGHTS = {"torchvision": "imagenet", "paper": "imagenet", "slim": "none"}
"""Preset → backbone weights."""
BACKBONES = ("resnet14", "resnet18", "resnet34", "resnet50", "resnet101")
"""torchvision's, and resnet14: one bottleneck block a stage, for DetectoRS on a CPU."""
BOTTLENECKS = ("resnet14", "resnet50", "resnet101")
"""Backbones of Bottleneck blocks, which have three convolutions."""


def by_preset(usual: T, **others: T) -> Mapping[str, T]:
    """Preset → value: `usual` except for the presets named."""
    return dict.fromkeys(PRESETS, usual) | others


@dataclass(frozen=True)
class Detector:
    """A row of DETECTORS. The defaults are Faster R-CNN's; mappings are from preset to value.

    Attributes:
        module: module with a function build(bodies, plan), which makes the model of `bodies`
            ResNets and a detectors.models.plan.Plan.
        one_stage: whether it detects without proposals.
        strides: strides of the pyramid's levels in pixels.
        last_strides: where strides chosen by the user may end (the levels above are made from
            others); empty: the strides are fixed.
        scale: side of a level's smallest anchor in strides; None: slim's own list of sizes. For
            points, the size that torchvision's FCOS derives ranges and radius from.
        octaves: anchors of each ratio, from `scale` up to below twice `scale`.
        has_points: whether its priors are points, which have no size, instead of anchors.
        assigner: assigner used unless another is named; None: torchvision's own rule.
        assigner_settings: assigner → its settings where they differ from those of an RPN.
        backbone: backbone used unless another is named.
        bottlenecks: whether it needs a backbone of BOTTLENECKS.
        bodies: ResNets it is made of.
        least_side: pixels a side that batches are padded to at least.
        classification: its head's class loss, as jolkernels.spec names it; None: what its module
            takes, a sigmoid loss if it is one-stage and else cross entropy.
        regression: its head's box loss; None: what its module takes.
        learning_rate: of SGD for the preset's batch size.
        score_threshold: least score of a detection.
        detections: most detections of an image unless another number is given.
        centreness_weights: whether box losses are weighted by centreness; None: it has none.
    """

    module: str
    one_stage: bool = False
    strides: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: by_preset((4, 8, 16, 32, 64), slim=(4, 8, 16, 32))
    )
    last_strides: tuple[int, ...] = (32, 64)
    scale: Mapping[str, float | None] = field(default_factory=lambda: by_preset(8.0, slim=None))
    octaves: int = 1
    has_points: bool = False
    assigner: Mapping[str, str | None] = field(default_factory=lambda: by_preset(None, paper="iou"))
    assigner_settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    backbone: Mapping[str, str] = field(
        default_factory=lambda: by_preset("resnet50", slim="resnet18")
    )
    bottlenecks: bool = False
    bodies: int = 1
    least_side: int = 0
    classification: Mapping[str, str] | None = None
    regression: Mapping[str, str] | None = None
    learning_rate: Mapping[str, float] = field(default_factory=lambda: by_preset(0.005, slim=0.02))
    score_threshold: Mapping[str, float] = field(default_factory=lambda: by_preset(0.05))
    detections: Mapping[str, int] = field(
        default_factory=lambda: by_preset(100, paper=3000, slim=1500)
    )
    centreness_weights: Mapping[str, bool] | None = None

    def losses(self, preset: str) -> dict[str, str]:
        """The class and box loss of a preset, by the names of settings, where the row has them."""
        given = {"classification": self.classification, "regression": self.regression}
        return {name: losses[preset] for name, losses in given.items() if losses}

    @property
    def dense_head(self) -> str:
        """Name of the submodule that convolves every level of the pyramid."""
        return "head" if self.one_stage else "rpn.head"

    @property
    def joint_head(self) -> str:
        """Name of the submodule that is trained with the joint loss."""
        return "head" if self.one_stage else "roi_heads"


# P6 and P7 are made from P5 or C5, so these end at stride 16, 32 or 128.
_ONE_STAGE_STRIDES = by_preset((8, 16, 32, 64, 128), slim=(4, 8, 16))
_ONE_STAGE_LAST = (16, 32, 128)

DETECTORS: dict[str, Detector] = {
    "retinanet": Detector(
        "detectors.models.retinanet",
        one_stage=True,
        strides=_ONE_STAGE_STRIDES,
        last_strides=_ONE_STAGE_LAST,
        scale=by_preset(4.0, slim=None),
        octaves=3,
        assigner=by_preset(None),
        assigner_settings={
            **{
                name: {"high": 0.5, "low": 0.4, "min_low_quality": 0.0}
                for name in ("iou", "simd", "nwd", "dotd")
            },
            "nwd-rka": {"k": 3},
        },
        detections=by_preset(300, paper=3000, slim=1500),
        classification=by_preset("focal"),
        regression=by_preset("l1"),
        learning_rate=by_preset(0.001, slim=0.02),
    ),
    "fcos": Detector(
        "detectors.models.fcos",
        one_stage=True,
        strides=_ONE_STAGE_STRIDES,
        last_strides=_ONE_STAGE_LAST,
        # A level's range of distances is 4 to 8 of these sizes: with slim, 0 to 16, 16 to 32 and
        # above 32 pixels at strides 4, 8 and 16.
        scale=by_preset(1.0, slim=0.5),
        has_points=True,
        assigner=by_preset(None),
        classification=by_preset("focal"),
        # MMDetection's FCOS has -log IoU unless another loss is configured, torchvision's GIoU.
        regression=by_preset("giou", paper="iou:mode=log"),
        learning_rate=by_preset(0.001, slim=0.02),
        score_threshold=by_preset(0.05, torchvision=0.2),
        centreness_weights=by_preset(False, paper=True),
    ),
    "faster_rcnn": Detector(
        "detectors.models.faster_rcnn",
        classification=by_preset("cross_entropy"),
        regression=by_preset("smooth_l1", paper="l1"),
    ),
    "cascade_rcnn": Detector(
        "detectors.models.cascade_rcnn",
        classification=by_preset("cross_entropy"),
        regression=by_preset("smooth_l1:beta=1"),
    ),
    "detectors": Detector(
        "detectors.models.detecto_rs",
        strides=by_preset((4, 8, 16, 32, 64)),
        last_strides=(),
        backbone=by_preset("resnet50", slim="resnet14"),
        bottlenecks=True,
        bodies=2,
        least_side=96,
        classification=by_preset("cross_entropy"),
        regression=by_preset("smooth_l1:beta=1"),
    ),
}
"""Name → detector."""
ONE_STAGE = tuple(name for name, row in DETECTORS.items() if row.one_stage)
TWO_STAGE = tuple(name for name, row in DETECTORS.items() if not row.one_stage)


def find_detector(name: str) -> Detector:
    """The row of this name.

    Raises:
        ValueError: no such detector.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector: got {name!r}, wanted one of {', '.join(DETECTORS)}")
    return DETECTORS[name]


def default_backbone(name: str, preset: str) -> str:
    """The backbone of a detector unless another is named.

    Raises:
        ValueError: no such detector.
    """
    return find_detector(name).backbone[preset]
