"""Builds a detector by name, checks the labels it is trained on, compiles it."""

import importlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from detectors.models.anchor_plans import plan_anchors, shorter_sides
from detectors.models.assigner_choice import choose_assigner
from detectors.models.backbones import resnet
from detectors.models.compatibility import misfits, refuse
from detectors.models.plan import Plan
from detectors.models.presets import (
    BACKBONES,
    LOSSES,
    PRESETS,
    WEIGHTS,
    Detector,
    find_detector,
)
from detectors.models.samplers import sample_by_image
from detectors.models.transform import make_transform


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
    classification: str | None = None,
    regression: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    centreness_weights: bool | None = None,
    score_threshold: float | None = None,
    ignore_regions: bool = True,
    detections: int | None = None,
    load_weights: bool = True,
    sync_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """A detector ready to train.

    Args:
        name: one of DETECTORS.
        num_classes: K, without the background.
        loss: "base" (the detector's own loss, computed by our kernels) or "jol".
        assigner: a key of detectors.assigners.ASSIGNERS, for the RPN of a two-stage detector (its
            heads keep IoU) or for RetinaNet; FCOS takes "atss" or "rfla". None: the detector's own.
            With "rfla" each location has one square anchor.
        assigner_settings: settings of the assigner by name, such as m and n of "simd".
        preset: one of PRESETS.
        lam: λ of Eq. 3.
        location_score: S_loc as JointOptimizationLoss takes it.
        class_score: S_cls as JointOptimizationLoss takes it.
        detach_weights: stop the gradient through the weights.
        classification: the head's class loss as JointOptimizationLoss takes it, cross entropy for a
            two-stage detector, a sigmoid loss for the others; None: the detector's own.
        regression: the head's box loss; None: the detector's own.
        backbone: one of BACKBONES; None: resnet50, with slim resnet18 ("detectors": resnet14).
            "detectors" needs Bottleneck blocks: resnet14, 50 or 101.
        backbone_weights: "imagenet" (downloaded by torchvision), "none" or a file with a
            torchvision ResNet's state dict; None: the preset's.
        image_size: shorter side in pixels that images are resized to; None: the preset's
            (800 with the longer side at most 1333; slim: no resizing). Of several sizes one is
            drawn for each training image; evaluation uses the largest.
        anchor_scale: side of a level's smallest anchor in strides; None: 8, RetinaNet 4, slim
            its own list. Tiny objects need 2 to 4.
        anchor_ratios: height over width of the anchors of a location; None: 0.5, 1 and 2.
        strides: strides of the pyramid's levels in pixels, each twice the one before, from 4 or 8;
            None: the preset's. For tiny objects, RetinaNet and FCOS do better from 4.
        centreness_weights: FCOS only: whether each box loss is weighted by its point's centreness,
            as in MMDetection, or not, as in torchvision; None: with preset paper.
        score_threshold: least score of a detection; None: 0.05, FCOS with preset torchvision 0.2.
        ignore_regions: whether anchors, proposals and points in targets' regions to ignore
            ("ignored", float [n, 4], pixels; may be absent) that match no object are not learned
            as background: boxes of which one region covers more than half, points inside one.
        detections: most detections of an image, chosen from at least as many proposals or boxes of
            a level; None: the preset's: torchvision's 100 (RetinaNet 300) of 1000, slim 1500 (of
            1000 proposals), paper 3000. `jol train` gives what its protocol counts.
        load_weights: False: build the layers for `backbone_weights` but leave them random,
            because a checkpoint is loaded next.
        sync_group: the processes that share the batch. The mean over them of each loss and its
            gradients is then that of the whole batch.

    Raises:
        ValueError: an unknown name, a number out of range, an assigner, backbone or other setting
            that the detector does not take, or weights that do not fit.
    """
    row = find_detector(name)
    _check_known("preset", preset, PRESETS)
    _check_known("loss", loss, LOSSES)
    backbone = backbone or row.backbone[preset]
    _check_known("backbone", backbone, BACKBONES)
    weights = WEIGHTS[preset] if backbone_weights is None else str(backbone_weights)
    chosen = {"classification": classification, "regression": regression}
    refuse(
        misfits(
            name,
            preset,
            classification=classification,
            assigner=assigner,
            assigner_settings=assigner_settings,
            backbone=backbone,
            backbone_weights=weights,
            anchor_scale=anchor_scale,
            anchor_ratios=anchor_ratios,
            strides=strides,
            centreness_weights=centreness_weights,
        )
    )
    anchors = plan_anchors(
        name, preset, assigner, scale=anchor_scale, ratios=anchor_ratios, strides=strides
    )
    sizes = shorter_sides(preset, image_size)
    _check_range("num_classes", num_classes, 1)
    for size in sizes:
        _check_range("image_size", size, 1)
    _check_range("score_threshold", score_threshold, 0, 1)
    _check_range("detections", detections, 1)
    centreness = centreness_weights
    if centreness is None:
        centreness = row.centreness_weights is not None and row.centreness_weights[preset]
    plan = Plan(
        preset,
        num_classes,
        choose_assigner(name, assigner, dict(assigner_settings or {}), preset),
        anchors,
        centreness,
        row.score_threshold[preset] if score_threshold is None else score_threshold,
        detections or row.detections[preset],
        detections or 0,
        {
            "lam": lam,
            "location_score": location_score,
            "class_score": class_score,
            "weighting": "joint" if loss == "jol" else "none",
            "detach_weights": detach_weights,
            **row.losses(preset),
            **{name: loss for name, loss in chosen.items() if loss is not None},
            "sync_group": sync_group,
        },
    )
    bodies = [resnet(backbone, weights, preset, load=load_weights) for _ in range(row.bodies)]
    model: nn.Module = importlib.import_module(row.module).build(bodies, plan)
    model.transform = make_transform(sorted(sizes), row.least_side, ignore_regions)
    model.detector = row  # type: ignore[assignment]  # no parameter, no module
    model.detections = plan.detections  # type: ignore[assignment]
    sample_by_image(model)
    model.register_forward_pre_hook(partial(_check_labels, num_classes), with_kwargs=True)
    return model


def _check_known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what}: got {value!r}, wanted one of {', '.join(known)}")


def _check_range(what: str, number: float | None, least: float, below: float = math.inf) -> None:
    if number is not None and not least <= number < below:
        wanted = f"at least {least}" + ("" if below == math.inf else f" and below {below}")
        raise ValueError(f"{what}: got {number}, wanted {wanted}")


def _check_labels(
    num_classes: int, model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Refuse labels out of range, such as torchvision's 1-based ones: ours are 0-based.

    Raises:
        ValueError: a label out of range.
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


LOSS_NAMES: dict[str, tuple[str, ...]] = {
    "cls": ("loss_classifier", "classification"),
    "box": ("loss_box_reg", "bbox_regression"),
    "w⁻": ("negative_weight",),
}
"""Short name of a loss of the joint head → its names in torchvision's heads."""


def detector_of(model: nn.Module) -> Detector:
    """The row of DETECTORS that build_detector made this model from."""
    return model.detector  # type: ignore[return-value]


def detections_of(model: nn.Module) -> int:
    """The most detections of an image that this model, from build_detector, reports."""
    return model.detections  # type: ignore[return-value]


def joint_head(model: nn.Module) -> Any:
    """The module with the joint loss: its `criterion` and, after a step, `negative_weight`."""
    return model.get_submodule(detector_of(model).joint_head)


def compile_model(model: nn.Module, **options: Any) -> nn.Module:
    """Compile, in place, the backbone with its pyramid and the convolutions over its maps.

    Each becomes one graph. Parts whose shapes depend on the data are not compiled: torchvision's
    transform, proposals, non-maximum suppression, assignment and the heads of single boxes. Nor is
    the loss, which is one kernel already. The keys of the state dict do not change.

    Args:
        model: from build_detector.
        options: arguments of torch.compile, such as backend.

    Returns:
        model.
    """
    for part in ("backbone", detector_of(model).dense_head):
        model.get_submodule(part).compile(fullgraph=True, **options)
    return model
