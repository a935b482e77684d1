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
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detectors.assigned import AssignedFCOS, AssignedRetinaNet, AssignedRPN
from detectors.assigners.make import ASSIGNERS, make_assigner
from detectors.assigners.priors import Assigner
from detectors.backbones import BACKBONES, BOTTLENECKS, NORMS, pyramid, resnet, stage_width
from detectors.cascade import CascadeRoIHeads
from detectors.layouts import DETECTORS, TWO_STAGE, AnchorPlan, plan_anchors
from detectors.pooling import AlignedRoIAlign, with_strides
from detectors.precision import PreciseP6P7, PreciseRPNHead
from detectors.recursive import RecursivePyramid
from detectors.resizing import make_transform
from detectors.sampling import sample_by_image
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    JointRoIHeads,
    fcos_criterion,
    retinanet_criterion,
    roi_criterion,
)

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
    image_size: int | Sequence[int] | None = None,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    centreness_weights: bool | None = None,
    score_threshold: float | None = None,
    load_weights: bool = True,
    sync_group: dist.ProcessGroup | None = None,
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
            (800 with the longer side at most 1333; slim: no resizing). Of several one is drawn for
            each training image; the largest counts in evaluation.
        anchor_scale: side of a level's (smallest) anchor in strides; None: 8, RetinaNet 4, slim
            its own list. Tiny objects want 2 to 4.
        anchor_ratios: height over width of the anchors of a location; None: 0.5, 1 and 2.
        strides: of the pyramid's levels in pixels, each twice the one before, from 4 or 8; None:
            the preset's. RetinaNet and FCOS look for tiny objects better from 4 on.
        centreness_weights: FCOS: weigh each box loss by its point's centreness, as MMDetection, or
            all alike, as torchvision; None: as MMDetection with preset paper alone.
        score_threshold: least score of a detection; None: 0.05, torchvision's FCOS 0.2.
        load_weights: False: build the layers for `backbone_weights` but leave them random,
            because a checkpoint is loaded next.
        sync_group: the processes that each train on a part of the batch. The mean over them of
            each loss and of its gradients is then that of the whole batch.

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
    anchors = plan_anchors(
        name, preset, assigner, scale=anchor_scale, ratios=anchor_ratios, strides=strides
    )
    if centreness_weights is not None and name != "fcos":
        raise ValueError(f"centreness_weights: got {centreness_weights}, wanted none but with fcos")
    sizes = image_size if isinstance(image_size, Sequence) else (image_size,)
    for what, number, least, below in (
        ("num_classes", num_classes, 1, math.inf),
        *(("image_size", size, 1, math.inf) for size in sizes),
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
        anchors,
        preset == "paper" if centreness_weights is None else centreness_weights,
        score_threshold,
        {
            "lam": lam,
            "location_score": location_score,
            "class_score": class_score,
            "weighting": "joint" if loss == "jol" else "none",
            "detach_weights": detach_weights,
            "sync_group": sync_group,
        },
    )
    if name == "detectors" and backbone not in BOTTLENECKS:
        raise ValueError(
            f"backbone: got {backbone!r} with detectors, wanted one of {', '.join(BOTTLENECKS)}: "
            "its switchable convolutions are in Bottleneck blocks"
        )
    weights = str(backbone_weights or WEIGHTS[preset])
    bodies = [
        resnet(backbone, weights, preset, load=load_weights)
        for _ in range(2 if name == "detectors" else 1)
    ]
    build = {"retinanet": _retinanet, "fcos": _fcos}.get(name)
    model = _two_stage(name, bodies, plan) if build is None else build(bodies[0], plan)
    if image_size is None:
        sizes = () if preset == "slim" else (800,)
    model.transform = make_transform(
        sorted(filter(None, sizes)), least=96 if name == "detectors" else 0
    )
    sample_by_image(model)
    model.register_forward_pre_hook(partial(_check_labels, num_classes), with_kwargs=True)
    return model


def _check_labels(
    num_classes: int, model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Labels are 0-based here; torchvision's two-stage ones, off by one, would be background.

    Raises:
        ValueError: a label that is no class.
    """
    targets = given[1] if len(given) > 1 else named.get("targets")
    if not model.training or targets is None:
        return
    for i, target in enumerate(targets):
        labels = target["labels"]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            wrong = labels[(labels < 0) | (labels >= num_classes)][0]
            raise ValueError(
                f"targets[{i}]['labels']: got {int(wrong)}, wanted 0 to {num_classes - 1}"
            )


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
    anchors: AnchorPlan
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
    strides = plan.anchors.strides[:-1]  # the last, a max-pool of the one before, is for the RPN
    maps = [str(i) for i in range(len(strides))]
    if name == "detectors":
        fpn: RecursivePyramid | BackboneWithFPN = RecursivePyramid(*bodies)
    else:
        fpn = pyramid(
            bodies[0], plan.anchors.stages[: len(strides)], 64 if slim else 256, LastLevelMaxPool()
        )
    size, width = (5, 256) if slim else (7, 1024)
    anchors = plan.anchors.generator()
    settings: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "box_score_thresh": plan.score_threshold,
    }
    if slim:
        # An object of 64 pixels is pooled from C4, of 32 to 64 from C3, smaller ones from C2.
        pool = MultiScaleRoIAlign(maps, size, 1, canonical_scale=64)
        proposals = {"train": 500, "test": 1000}
        settings |= {"box_batch_size_per_image": 128, "box_detections_per_img": 1500}
    elif paper:
        pool = AlignedRoIAlign(maps, size, 0)
        proposals = {"train": 3000, "test": 3000}
        settings |= {"box_detections_per_img": 3000}
    else:
        pool = MultiScaleRoIAlign(maps, size, 2)
        proposals = {}
    for mode, number in proposals.items():
        settings |= {f"rpn_{when}_nms_top_n_{mode}": number for when in ("pre", "post")}
    classes = plan.num_classes + 1
    model = _TwoStage(
        fpn,
        box_roi_pool=pool,
        box_head=TwoMLPHead(fpn.out_channels * size**2, width),
        box_predictor=FastRCNNPredictor(width, classes),
        rpn_head=PreciseRPNHead(fpn.out_channels, anchors.num_anchors_per_location()[0]),
        **settings,
    )
    with_strides(pool, strides)
    if name == "faster_rcnn":
        criterion = roi_criterion(regression="l1" if paper else None, **plan.choices)
        model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, criterion)
    else:
        model.roi_heads = CascadeRoIHeads(
            pool,
            fpn.out_channels,
            width,
            classes,
            samples=model.roi_heads.fg_bg_sampler.batch_size_per_image,
            detections=model.roi_heads.detections_per_img,
            score_threshold=plan.score_threshold,
            **plan.choices,
        )
    model.rpn = AssignedRPN.from_rpn(model.rpn, plan.assign, plan.choices["sync_group"])
    return model


def _one_stage_pyramid(body: ResNet, plan: _Plan, *, p6_of_c5: bool = False) -> nn.Module:
    """A pyramid with the plan's strides; P6 is made of P5 or of C5."""
    channels = 64 if plan.preset == "slim" else 256
    stages = plan.anchors.stages
    extra = None
    if len(plan.anchors.strides) > len(stages):
        extra = PreciseP6P7(stage_width(body, 4) if p6_of_c5 else channels, channels)
    return pyramid(body, stages, channels, extra)


def _detections(plan: _Plan) -> dict[str, Any]:
    """How many detections a one-stage detector keeps of an image, where not torchvision's."""
    if plan.preset == "torchvision":
        return {}
    most = 3000 if plan.preset == "paper" else 1500
    return {"detections_per_img": most, "topk_candidates": most}


def _retinanet(body: ResNet, plan: _Plan) -> nn.Module:
    paper = plan.preset == "paper"
    # MMDetection makes P6 of C5, torchvision of P5.
    fpn = _one_stage_pyramid(body, plan, p6_of_c5=paper)
    anchors = plan.anchors.generator()
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
    fpn = _one_stage_pyramid(body, plan)
    anchors = plan.anchors.generator()
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
        # The box branch ends in a ReLU: from random weights half of it starts dead at bias 0.
        nn.init.constant_(head.regression_head.bbox_reg.bias, 3.0)
        # In anchors' sizes, which plan_anchors halves: the usual 1.5 strides.
        settings |= {"center_sampling_radius": 3.0}
    settings |= {"score_thresh": plan.score_threshold}
    if plan.preset == "paper":
        settings |= {"nms_thresh": 0.5}
    arguments: Any = (fpn, plan.num_classes)
    if plan.assign is None:
        return FCOS(*arguments, anchor_generator=anchors, head=head, **settings)
    return AssignedFCOS(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )
