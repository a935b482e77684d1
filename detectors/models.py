"""The reference detectors, built from torchvision's parts with the joint loss in their heads.

Outside, labels are 0-based, K classes, and everything else is torchvision's detection interface:
in training model(images, targets) returns a dict of losses, in eval model(images) returns dicts
of boxes, labels and scores.

Three presets. `torchvision`: its stock settings. `paper`: section 4.2 of the paper, with the
conventions of MMDetection. `slim`: small enough to train on a CPU from random weights, for objects
of 4 to 64 pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detectors.anchors import LevelledAnchors, PlainAnchors
from detectors.assigned import ATSS_SCALE, AssignedFCOS, AssignedRetinaNet, AssignedRPN
from detectors.assigners import ASSIGNERS, Assigner, make_assigner
from detectors.backbones import BACKBONES, NORMS, pyramid, resnet, stage_width
from detectors.cascade import CascadeRoIHeads
from detectors.pooling import AlignedRoIAlign, with_strides
from detectors.recursive import RecursivePyramid
from detectors.statistics import Layout
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    JointRoIHeads,
    fcos_criterion,
    retinanet_criterion,
    roi_criterion,
)

DETECTORS = ("retinanet", "fcos", "faster_rcnn", "cascade_rcnn", "detectors")
TWO_STAGE = ("faster_rcnn", "cascade_rcnn", "detectors")
PRESETS = ("torchvision", "paper", "slim")
LOSSES = ("base", "jol")
WEIGHTS = {"torchvision": "imagenet", "paper": "imagenet", "slim": "none"}
"""Preset → backbone weights."""
LOSS_NAMES: dict[str, tuple[str, ...]] = {
    "cls": ("loss_classifier", "classification"),
    "box": ("loss_box_reg", "bbox_regression"),
    "w⁻": ("negative_weight",),
}
"""Short name → what torchvision's heads call this part of the joint head's loss."""
FOR_FCOS = ("atss", "rfla")
FOR_RETINANET: dict[str, dict[str, float]] = {
    **{
        name: {"high": 0.5, "low": 0.4, "min_low_quality": 0.0}
        for name in ("iou", "simd", "nwd", "dotd")
    },
    "nwd-rka": {"k": 3},
}
"""Assigner → its settings in RetinaNet where they are not an RPN's."""
STRIDES = {"two-stage": (4, 8, 16, 32, 64), "one-stage": (8, 16, 32, 64, 128)}
RATIOS = (0.5, 1.0, 2.0)
TWO_STAGE_SCALE = 8.0
RETINANET_SCALE, RETINANET_OCTAVES = 4.0, 3
SLIM_SIZES = ((6, 10), (15, 22), (32, 46), (64, 90), (128, 180))


def default_backbone(name: str, preset: str) -> str:
    """The backbone of a detector where none is named."""
    if preset == "slim":
        return "resnet14" if name == "detectors" else "resnet18"
    return "resnet50"


def build_detector(
    name: str,
    num_classes: int,
    loss: str = "base",
    assigner: str | None = None,
    *,
    assigner_settings: Mapping[str, float] | None = None,
    preset: str = "torchvision",
    lam: float = 2.0,
    location_score: str | None = "iou",
    class_score: str | None = "probability",
    detach_weights: bool = False,
    backbone: str | None = None,
    backbone_weights: str | Path | None = None,
    image_size: int | None = None,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    centreness_weights: bool | None = None,
    score_threshold: float | None = None,
    load_weights: bool = True,
) -> nn.Module:
    """A detector ready to train.

    Args:
        name: one of DETECTORS.
        num_classes: K, without the background.
        loss: "base" (the detector's own loss, by our kernels) or "jol".
        assigner: a key of detectors.assigners.ASSIGNERS, for the RPN of a two-stage detector (its
            heads keep IoU) or for RetinaNet; FCOS takes "atss" or "rfla". None: the detector's own.
            With "rfla" there is one square anchor a location.
        assigner_settings: settings of the assigner by name, such as m and n of "simd".
        preset: one of PRESETS.
        lam: λ of Eq. 3.
        location_score: S_loc as JointOptimizationLoss takes it.
        class_score: S_cls as JointOptimizationLoss takes it.
        detach_weights: stop the gradient through the weights.
        backbone: one of BACKBONES; None: resnet50, with slim resnet18 ("detectors": resnet14).
            "detectors" needs blocks that are bottlenecks, as of resnet14, 50 and 101.
        backbone_weights: "imagenet" (downloaded by torchvision), "none" or a file with a
            torchvision ResNet's state dict; None: the preset's.
        image_size: the shorter side images are resized to, in pixels; None: the preset's
            (800 with the longer side at most 1333; slim: no resizing).
        anchor_scale: side of a level's (smallest) anchor in strides; None: 8, RetinaNet 4, slim
            its own list. Tiny objects want 2 to 4.
        anchor_ratios: height over width of the anchors of a location; None: 0.5, 1 and 2.
        centreness_weights: FCOS: weigh each box loss by its point's centreness, as MMDetection, or
            all alike, as torchvision; None: as MMDetection with preset paper alone.
        score_threshold: least score of a detection; None: 0.05, torchvision's FCOS 0.2.
        load_weights: False: build the layers for `backbone_weights` but leave them random,
            because a checkpoint is loaded next.

    Raises:
        ValueError: an unknown name, a number out of range, an assigner or backbone that the
            detector cannot take, or weights that do not fit.
    """
    backbone = backbone or default_backbone(name, preset)
    for what, value, known in (
        ("detector", name, DETECTORS),
        ("preset", preset, PRESETS),
        ("loss", loss, LOSSES),
        ("backbone", backbone, BACKBONES),
    ):
        if value not in known:
            raise ValueError(f"{what}: got {value!r}, wanted one of {', '.join(known)}")
    _check_scale(name, anchor_scale)
    _check_anchors(name, anchor_ratios, assigner, centreness_weights)
    for what, number, least, below in (
        ("num_classes", num_classes, 1, math.inf),
        ("image_size", image_size, 1, math.inf),
        ("score_threshold", score_threshold, 0, 1),
    ):
        if number is not None and not least <= number < below:
            wanted = f"at least {least}" + ("" if below == math.inf else f" and below {below}")
            raise ValueError(f"{what}: got {number}, wanted {wanted}")
    if score_threshold is None:
        score_threshold = 0.2 if (name, preset) == ("fcos", "torchvision") else 0.05
    plan = _Plan(
        preset,
        num_classes,
        choose_assigner(name, assigner, dict(assigner_settings or {}), preset),
        anchor_scale,
        (1.0,) if assigner == "rfla" else tuple(anchor_ratios or RATIOS),
        assigner == "rfla",
        preset == "paper" if centreness_weights is None else centreness_weights,
        score_threshold,
        {
            "lam": lam,
            "location_score": location_score,
            "class_score": class_score,
            "weighting": "joint" if loss == "jol" else "none",
            "detach_weights": detach_weights,
        },
    )
    weights = str(backbone_weights or WEIGHTS[preset])
    bodies = [
        resnet(backbone, weights, preset, load=load_weights)
        for _ in range(2 if name == "detectors" else 1)
    ]
    build = {"retinanet": _retinanet, "fcos": _fcos}.get(name)
    model = _two_stage(name, bodies, plan) if build is None else build(bodies[0], plan)
    size = image_size or (None if preset == "slim" else 800)
    model.transform = _transform(size, least=96 if name == "detectors" else 0)
    return model


def joint_head(
    model: nn.Module,
) -> JointRoIHeads | CascadeRoIHeads | JointRetinaNetHead | JointFCOSHead:
    """The part of a detector that holds the criterion and, after a step, `negative_weight`."""
    head = model.roi_heads if isinstance(model, FasterRCNN) else model.head
    assert isinstance(head, JointRoIHeads | CascadeRoIHeads | JointRetinaNetHead | JointFCOSHead)
    return head


@dataclass(frozen=True)
class _Plan:
    """What the builders are told."""

    preset: str
    num_classes: int
    assign: Assigner | None
    anchor_scale: float | None
    ratios: tuple[float, ...]
    one_anchor: bool
    centreness_weights: bool
    score_threshold: float
    choices: dict[str, Any]


def choose_assigner(
    detector: str, name: str | None, settings: dict[str, float], preset: str
) -> Assigner | None:
    """The assigner that a detector trains with; None: torchvision's own.

    Raises:
        ValueError: an unknown name or setting, or an assigner that the detector cannot take.
    """
    if name is None:
        if settings:
            raise ValueError(f"assigner_settings: got {settings}, wanted none without an assigner")
        return make_assigner("iou") if preset == "paper" and detector in TWO_STAGE else None
    if name not in ASSIGNERS:
        raise ValueError(f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}")
    if detector == "fcos" and name not in FOR_FCOS:
        raise ValueError(
            f"assigner: got {name!r} with fcos, wanted one of {', '.join(FOR_FCOS)} or none: its "
            "points have no boxes to compare"
        )
    if detector == "retinanet":
        settings = FOR_RETINANET.get(name, {}) | settings
    return make_assigner(name, **settings)


class _Transform(GeneralizedRCNNTransform):
    """torchvision's transform, with batches of at least `least` pixels a side."""

    least = 0

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        batch: Tensor = super().batch_images(images, size_divisible)
        height, width = batch.shape[-2:]
        return F.pad(batch, (0, max(0, self.least - width), 0, max(0, self.least - height)))


class _Native(_Transform):
    """The same without resizing; torchvision's own `_skip_resize` acts in training only."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _transform(size: int | None, least: int) -> GeneralizedRCNNTransform:
    """Normalisation, and resizing in torchvision's 800 to 1333 proportion; None: no resizing."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if size is None:
        transform: _Transform = _Native(0, 0, mean, std)
    else:
        transform = _Transform(size, _longer(size), mean, std)
    transform.least = least
    return transform


def _longer(size: int) -> int:
    """The most that the longer side may have where the shorter one is resized to `size`."""
    return round(size * 1333 / 800)


def paper_layout(
    name: str,
    assigner: str | None = None,
    *,
    anchor_scale: float | None = None,
    image_size: int | None = None,
) -> Layout:
    """The priors and image sizes of a detector of preset paper, without building it.

    Arguments as of build_detector. FCOS's priors are the squares at its points (AssignedFCOS).

    Raises:
        ValueError: no such detector, or an anchor scale for fcos.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector: got {name!r}, wanted one of {', '.join(DETECTORS)}")
    _check_scale(name, anchor_scale)
    size, one = image_size or 800, assigner == "rfla"
    fit, ratios = (_longer(size), size), (1.0,) if one else RATIOS
    if name == "fcos":
        scales: tuple[float, ...] = (float(ATSS_SCALE),)
        return Layout(STRIDES["one-stage"], scales, (1.0,), 0.5, fit)
    if name == "retinanet":
        scales = _scales(anchor_scale or RETINANET_SCALE, 1 if one else RETINANET_OCTAVES)
        return Layout(STRIDES["one-stage"], scales, ratios, fit=fit)
    return Layout(STRIDES["two-stage"], (anchor_scale or TWO_STAGE_SCALE,), ratios, fit=fit)


def _check_scale(name: str, anchor_scale: float | None) -> None:
    if anchor_scale is not None and (name == "fcos" or not 0.25 <= anchor_scale < math.inf):
        wanted = "none: fcos has no anchors" if name == "fcos" else "a number of at least 0.25"
        raise ValueError(f"anchor_scale: got {anchor_scale}, wanted {wanted}")


def _check_anchors(
    name: str,
    ratios: Sequence[float] | None,
    assigner: str | None,
    centreness_weights: bool | None,
) -> None:
    if ratios is not None and (name == "fcos" or assigner == "rfla"):
        raise ValueError(f"anchor_ratios: got {ratios}, wanted none with fcos and with rfla")
    if ratios is not None and not (ratios and all(0 < r < math.inf for r in ratios)):
        raise ValueError(f"anchor_ratios: got {ratios}, wanted one or more numbers > 0")
    if centreness_weights is not None and name != "fcos":
        raise ValueError(f"centreness_weights: got {centreness_weights}, wanted none but with fcos")


def _scales(scale: float, octaves: int) -> tuple[float, ...]:
    return tuple(scale * 2 ** (i / octaves) for i in range(octaves))


def _anchors(
    plan: _Plan, strides: tuple[int, ...], scale: float, octaves: int = 1
) -> LevelledAnchors:
    """Anchors of `scale` strides, and of the octaves between one level and the next."""
    scales = _scales(plan.anchor_scale or scale, 1 if plan.one_anchor else octaves)
    if plan.preset == "paper":
        return PlainAnchors(strides, scales, plan.ratios)
    if plan.preset == "slim" and plan.anchor_scale is None:
        first = 1 if plan.one_anchor else 2
        return LevelledAnchors(
            strides, [s[:first] for s in SLIM_SIZES[: len(strides)]], plan.ratios
        )
    # Whole pixels, as torchvision's RetinaNet has them.
    whole = [[int(scale * stride) for scale in scales] for stride in strides]
    return LevelledAnchors(strides, whole, plan.ratios)


class _TwoStage(FasterRCNN):
    """FasterRCNN with 0-based labels; inside, 0 is the background as everywhere in torchvision."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        shifted = None if targets is None else _shift_labels(targets, 1)
        result = super().forward(images, shifted)
        return result if self.training else _shift_labels(result, -1)


def _shift_labels(items: list[dict[str, Tensor]], by: int) -> list[dict[str, Tensor]]:
    return [{**item, "labels": item["labels"] + by} for item in items]


def _two_stage(name: str, bodies: list[ResNet], plan: _Plan) -> nn.Module:
    """Faster R-CNN, Cascade R-CNN, or DetectoRS: Cascade R-CNN on a recursive pyramid."""
    slim, paper = plan.preset == "slim", plan.preset == "paper"
    if name == "detectors":
        fpn: nn.Module = RecursivePyramid(*bodies)
    elif slim:
        fpn = pyramid(bodies[0], [1, 2, 3], 64, LastLevelMaxPool())
    else:
        fpn = pyramid(bodies[0], [1, 2, 3, 4], 256, LastLevelMaxPool())
    channels = 64 if slim and name != "detectors" else 256
    size, width = (5, 256) if slim else (7, 1024)
    strides = STRIDES["two-stage"][: 4 if slim and name != "detectors" else 5]
    settings: dict[str, Any] = {
        "rpn_anchor_generator": _anchors(plan, strides, TWO_STAGE_SCALE),
        "box_score_thresh": plan.score_threshold,
    }
    if slim:
        # An object of 64 pixels is pooled from C4, of 32 to 64 from C3, smaller ones from C2.
        pool = MultiScaleRoIAlign(["0", "1", "2"], size, 1, canonical_scale=64)
        proposals = {"train": 500, "test": 1000}
        settings |= {"box_batch_size_per_image": 128, "box_detections_per_img": 1500}
    elif paper:
        pool = AlignedRoIAlign(["0", "1", "2", "3"], size, 0)
        proposals = {"train": 3000, "test": 3000}
        settings |= {"box_detections_per_img": 3000}
    else:
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
        proposals = {}
    for mode, number in proposals.items():
        settings |= {f"rpn_{when}_nms_top_n_{mode}": number for when in ("pre", "post")}
    classes = plan.num_classes + 1
    model = _TwoStage(
        fpn,
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * size**2, width),
        box_predictor=FastRCNNPredictor(width, classes),
        **settings,
    )
    with_strides(pool, strides[: len(pool.featmap_names)])
    if name == "faster_rcnn":
        criterion = roi_criterion(regression="l1" if paper else None, **plan.choices)
        model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, criterion)
    else:
        model.roi_heads = CascadeRoIHeads(
            pool,
            channels,
            width,
            classes,
            samples=model.roi_heads.fg_bg_sampler.batch_size_per_image,
            detections=model.roi_heads.detections_per_img,
            score_threshold=plan.score_threshold,
            **plan.choices,
        )
    if plan.assign is not None:
        model.rpn = AssignedRPN.from_rpn(model.rpn, plan.assign)
    return model


def _one_stage_pyramid(body: ResNet, plan: _Plan, inputs: int = 256) -> tuple[nn.Module, Any]:
    """A pyramid and its strides; `inputs`: channels that P6 is made of, 256: those of P5."""
    if plan.preset == "slim":
        return pyramid(body, [1, 2, 3], 64, None), (4, 8, 16)
    return pyramid(body, [2, 3, 4], 256, LastLevelP6P7(inputs, 256)), STRIDES["one-stage"]


def _detections(plan: _Plan) -> dict[str, Any]:
    """How many detections a one-stage detector keeps of an image, where not torchvision's."""
    if plan.preset == "torchvision":
        return {}
    most = 3000 if plan.preset == "paper" else 1500
    return {"detections_per_img": most, "topk_candidates": most}


def _retinanet(body: ResNet, plan: _Plan) -> nn.Module:
    paper = plan.preset == "paper"
    # MMDetection makes P6 of C5, torchvision of P5.
    fpn, strides = _one_stage_pyramid(body, plan, stage_width(body, 4) if paper else 256)
    anchors = _anchors(plan, strides, RETINANET_SCALE, RETINANET_OCTAVES)
    head = JointRetinaNetHead(
        fpn.out_channels,
        anchors.num_anchors_per_location()[0],
        plan.num_classes,
        # From random weights plain towers of std 0.01 pass on almost nothing for hundreds of steps.
        norm_layer=NORMS["slim"] if plan.preset == "slim" else None,
        criterion=retinanet_criterion(**plan.choices),
        normalizer="batch" if paper else "image",
    )
    settings = _detections(plan) | {"score_thresh": plan.score_threshold}
    arguments: Any = (fpn, plan.num_classes)
    if plan.assign is None:
        return RetinaNet(*arguments, anchor_generator=anchors, head=head, **settings)
    return AssignedRetinaNet(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )


def _fcos(body: ResNet, plan: _Plan) -> nn.Module:
    fpn, strides = _one_stage_pyramid(body, plan)
    slim = plan.preset == "slim"
    head = JointFCOSHead(
        fpn.out_channels,
        1,
        plan.num_classes,
        num_convs=2 if slim else 4,
        criterion=fcos_criterion(**plan.choices),
        weigh_boxes=plan.centreness_weights,
    )
    settings = _detections(plan)
    if slim:
        # torchvision takes a level's range of distances (4 and 8 sizes) and the radius of centre
        # sampling from the anchor's size. Half the strides as sizes: ranges 0 to 16, 16 to 32 and
        # above 32 pixels; a radius of 3 sizes is then the usual 1.5 strides.
        anchors = LevelledAnchors(strides, ((2,), (4,), (8,)), (1.0,))
        # The box branch ends in a ReLU: from random weights half of it starts dead at bias 0.
        nn.init.constant_(head.regression_head.bbox_reg.bias, 3.0)
        settings |= {"center_sampling_radius": 3.0}
    elif plan.preset == "paper":
        anchors = PlainAnchors(strides, (1.0,), (1.0,), offset=0.5)
    else:
        anchors = LevelledAnchors(strides, [(s,) for s in strides], (1.0,))
    settings |= {"score_thresh": plan.score_threshold}
    if plan.preset == "paper":
        settings |= {"nms_thresh": 0.5}
    arguments: Any = (fpn, plan.num_classes)
    if plan.assign is None:
        return FCOS(*arguments, anchor_generator=anchors, head=head, **settings)
    return AssignedFCOS(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )
