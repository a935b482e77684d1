"""The reference detectors, built from torchvision's parts with the joint loss in their heads.

Outside, labels are 0-based, K classes, and everything else is torchvision's detection interface:
in training model(images, targets) returns a dict of losses, in eval model(images) returns dicts
of boxes, labels and scores.

Two presets. `torchvision`: its stock settings. `slim`: small enough to train on a CPU from random
weights, for objects of 4 to 64 pixels.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from jolkernels import JointOptimizationLoss
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRoIHeads,
    fcos_criterion,
    roi_criterion,
)

DETECTORS = ("faster_rcnn", "fcos")
PLANNED = ("retinanet", "cascade_rcnn", "detectors")
PRESETS = ("torchvision", "slim")
LOSSES = ("base", "jol")
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
DEFAULTS: dict[str, dict[str, str]] = {
    "torchvision": {"backbone": "resnet50", "backbone_weights": "imagenet"},
    "slim": {"backbone": "resnet18", "backbone_weights": "none"},
}
LOSS_NAMES: dict[str, tuple[str, ...]] = {
    "cls": ("loss_classifier", "classification"),
    "box": ("loss_box_reg", "bbox_regression"),
    "w⁻": ("negative_weight",),
}
"""Short name → what torchvision's heads call this part of the joint head's loss."""
FROZEN_WITH_WEIGHTS = ("conv1", "bn1", "layer1")
"""What torchvision freezes of a pretrained backbone (trainable_backbone_layers=3)."""


def build_detector(
    name: str,
    num_classes: int,
    loss: str = "base",
    *,
    preset: str = "torchvision",
    lam: float = 2.0,
    location_score: str | None = "iou",
    class_score: str | None = "probability",
    detach_weights: bool = False,
    backbone: str | None = None,
    backbone_weights: str | Path | None = None,
    image_size: int | None = None,
    load_weights: bool = True,
) -> nn.Module:
    """A detector ready to train.

    Args:
        name: one of DETECTORS.
        num_classes: K, without the background.
        loss: "base" (torchvision's own loss, by our kernels) or "jol".
        preset: one of PRESETS.
        lam: λ of Eq. 3.
        location_score: S_loc as JointOptimizationLoss takes it.
        class_score: S_cls as JointOptimizationLoss takes it.
        detach_weights: stop the gradient through the weights.
        backbone: one of BACKBONES; None: the preset's.
        backbone_weights: "imagenet" (downloaded by torchvision), "none" or a file with a
            torchvision ResNet's state dict; None: the preset's.
        image_size: the shorter side images are resized to, in pixels; None: the preset's
            (800 with the longer side at most 1333; slim: no resizing).
        load_weights: False: build the layers for `backbone_weights` but leave them random,
            because a checkpoint is loaded next.

    Raises:
        ValueError: an unknown name, or backbone weights that the preset cannot take.
        NotImplementedError: a detector that is planned.
    """
    if name in PLANNED:
        raise NotImplementedError(f"detector {name!r} is not implemented yet")
    backbone = backbone or DEFAULTS.get(preset, {}).get("backbone")
    for what, value, known in (
        ("detector", name, DETECTORS),
        ("preset", preset, PRESETS),
        ("loss", loss, LOSSES),
        ("backbone", backbone, BACKBONES),
    ):
        if value not in known:
            raise ValueError(f"{what}: got {value!r}, wanted one of {', '.join(known)}")
    assert backbone is not None
    criterion = _CRITERIA[name](
        lam=lam,
        location_score=location_score,
        class_score=class_score,
        weighting="joint" if loss == "jol" else "none",
        detach_weights=detach_weights,
    )
    weights = str(backbone_weights or DEFAULTS[preset]["backbone_weights"])
    body = _resnet(backbone, weights, slim=preset == "slim", load=load_weights)
    model = _BUILDERS[name, preset](body, num_classes, criterion)
    model.transform = _transform(image_size or (800 if preset == "torchvision" else None))
    return model


def joint_head(model: nn.Module) -> JointRoIHeads | JointFCOSHead:
    """The part of a detector that holds the criterion and, after a step, `negative_weight`."""
    head = model.roi_heads if isinstance(model, FasterRCNN) else model.head
    assert isinstance(head, JointRoIHeads | JointFCOSHead)
    return head


class _Native(GeneralizedRCNNTransform):
    """torchvision's transform without resizing; its own `_skip_resize` acts in training only."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _transform(size: int | None) -> GeneralizedRCNNTransform:
    """Normalisation, and resizing in torchvision's 800 to 1333 proportion; None: no resizing."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if size is None:
        return _Native(0, 0, mean, std)
    return GeneralizedRCNNTransform(size, round(size * 1333 / 800), mean, std)


class _FasterRCNN(FasterRCNN):
    """FasterRCNN with 0-based labels; inside, 0 is the background as everywhere in torchvision."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        shifted = None if targets is None else _shift_labels(targets, 1)
        result = super().forward(images, shifted)
        return result if self.training else _shift_labels(result, -1)


def _shift_labels(items: list[dict[str, Tensor]], by: int) -> list[dict[str, Tensor]]:
    return [{**item, "labels": item["labels"] + by} for item in items]


def _faster_rcnn(body: ResNet, num_classes: int, criterion: JointOptimizationLoss) -> nn.Module:
    fpn = _fpn(body, [1, 2, 3, 4], 256, LastLevelMaxPool())
    model = _FasterRCNN(fpn, num_classes + 1)
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, criterion)
    return model


def _fcos(body: ResNet, num_classes: int, criterion: JointOptimizationLoss) -> nn.Module:
    fpn = _fpn(body, [2, 3, 4], 256, LastLevelP6P7(256, 256))
    head = JointFCOSHead(fpn.out_channels, 1, num_classes, criterion=criterion)
    return FCOS(fpn, num_classes, head=head)


def _slim_faster_rcnn(
    body: ResNet, num_classes: int, criterion: JointOptimizationLoss
) -> nn.Module:
    fpn = _fpn(body, [1, 2, 3], 64, LastLevelMaxPool())
    sizes = ((6, 10), (15, 22), (32, 46), (64, 90))
    model = _FasterRCNN(
        fpn,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=1000,
        # An object of 64 pixels is pooled from C4, of 32 to 64 from C3, smaller ones from C2.
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 5, 1, canonical_scale=64),
        box_head=TwoMLPHead(64 * 5 * 5, 256),
        box_predictor=FastRCNNPredictor(256, num_classes + 1),
        box_batch_size_per_image=128,
        box_detections_per_img=1500,
    )
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, criterion)
    return model


def _slim_fcos(body: ResNet, num_classes: int, criterion: JointOptimizationLoss) -> nn.Module:
    fpn = _fpn(body, [1, 2, 3], 64, None)
    head = JointFCOSHead(fpn.out_channels, 1, num_classes, num_convs=2, criterion=criterion)
    # torchvision takes a level's range of distances (4 and 8 sizes) and the radius of centre
    # sampling from the anchor's size. Half the strides as sizes: ranges 0 to 16, 16 to 32 and
    # above 32 pixels; a radius of 3 sizes is then the usual 1.5 strides.
    anchors = AnchorGenerator(((2,), (4,), (8,)), ((1.0,),) * 3)
    # The box branch ends in a ReLU: from random weights half of it starts dead at bias 0.
    nn.init.constant_(head.regression_head.bbox_reg.bias, 3.0)
    return FCOS(
        fpn,
        num_classes,
        anchor_generator=anchors,
        head=head,
        center_sampling_radius=3.0,
        score_thresh=0.05,
        detections_per_img=1500,
    )


_CRITERIA: dict[str, Callable[..., JointOptimizationLoss]] = {
    "faster_rcnn": roi_criterion,
    "fcos": fcos_criterion,
}
_BUILDERS: dict[tuple[str, str], Callable[[ResNet, int, JointOptimizationLoss], nn.Module]] = {
    ("faster_rcnn", "torchvision"): _faster_rcnn,
    ("fcos", "torchvision"): _fcos,
    ("faster_rcnn", "slim"): _slim_faster_rcnn,
    ("fcos", "slim"): _slim_fcos,
}


def _fpn(
    body: ResNet, stages: list[int], channels: int, extra: ExtraFPNBlock | None
) -> BackboneWithFPN:
    """A pyramid on the named stages (1: C2, stride 4) of a ResNet."""
    widths = [body.inplanes // 2 ** (4 - stage) for stage in stages]
    layers = {f"layer{stage}": str(i) for i, stage in enumerate(stages)}
    fpn = BackboneWithFPN(body, layers, widths, channels, extra)
    if extra is None:
        fpn.fpn.extra_blocks = None  # the constructor would have put a max-pool level
    return fpn


def _resnet(name: str, weights: str, *, slim: bool, load: bool) -> ResNet:
    """A ResNet with the preset's normalisation and, where `load` says so, weights."""
    norm: Callable[..., nn.Module] = nn.BatchNorm2d
    if slim:
        norm = partial(nn.GroupNorm, 32)
    elif weights != "none":
        norm = FrozenBatchNorm2d
    body: ResNet = get_model(name, weights=None, norm_layer=norm)
    if weights == "none":
        return body
    if slim and weights == "imagenet":
        raise ValueError(
            "backbone_weights: ImageNet's batch norm does not fit preset slim's GroupNorm"
        )
    if load:
        _load_backbone(body, name, weights)
    for key, parameter in body.named_parameters():
        if not slim and key.startswith(FROZEN_WITH_WEIGHTS):
            parameter.requires_grad_(False)
    return body


def _load_backbone(body: ResNet, name: str, weights: str) -> None:
    """Load torchvision's ImageNet weights or a file into `body`, but for the classifier."""
    if weights == "imagenet":
        state = get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=True)
    else:
        if not Path(weights).is_file():
            raise ValueError(f"backbone_weights: no such file: {weights}")
        state = torch.load(weights, map_location="cpu", weights_only=True)
    own = {k: v for k, v in state.items() if not k.startswith("fc.")}
    missing, unexpected = body.load_state_dict(own, strict=False)
    wrong = [k for k in (*missing, *unexpected) if not k.startswith("fc.")]
    if wrong:
        raise ValueError(
            f"backbone_weights: {weights} does not fit {name}: "
            f"{len(wrong)} parameters missing or unknown, first {wrong[0]}"
        )
