"""Detectors by name: their parts put together, their labels checked, their graphs compiled."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torchvision.models.detection import FasterRCNN

from detectors.models.anchor_plans import DETECTORS, plan_anchors
from detectors.models.assigner_choice import choose_assigner
from detectors.models.backbones import BACKBONES, BOTTLENECKS, resnet
from detectors.models.cascade_rcnn import CascadeRoIHeads
from detectors.models.faster_rcnn import two_stage
from detectors.models.fcos import fcos
from detectors.models.presets import LOSSES, PRESETS, WEIGHTS, Plan, default_backbone
from detectors.models.retinanet import retinanet
from detectors.models.samplers import sample_by_image
from detectors.models.transform import make_transform
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    JointRoIHeads,
)

LOSS_NAMES: dict[str, tuple[str, ...]] = {
    "cls": ("loss_classifier", "classification"),
    "box": ("loss_box_reg", "bbox_regression"),
    "w⁻": ("negative_weight",),
}
"""Short name → what torchvision's heads call this part of the joint head's loss."""


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
    plan = Plan(
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
    build = {"retinanet": retinanet, "fcos": fcos}.get(name)
    model = two_stage(name, bodies, plan) if build is None else build(bodies[0], plan)
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


def compile_model(model: nn.Module, **options: Any) -> nn.Module:
    """Compile the backbone with its pyramid, and the convolutions over its maps, in place.

    These are whole graphs. What depends on the data stays as it is: torchvision's transform,
    proposals, non-maximum suppression and assignment, the heads of single boxes, whose number
    changes, and the loss, which is one kernel already. Keys of the state dict stay the same.

    Args:
        model: from build_detector.
        options: what torch.compile takes, such as backend.

    Returns:
        model.
    """
    head = model.rpn.head if isinstance(model, FasterRCNN) else model.head
    for part in (model.backbone, head):
        part.compile(fullgraph=True, **options)  # type: ignore[union-attr]
    return model
