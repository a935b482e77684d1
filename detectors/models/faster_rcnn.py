"""Faster R-CNN with the joint loss in its second stage."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detectors.models.cascade_rcnn import CascadeRoIHeads
from detectors.models.presets import Plan
from detectors.models.pyramids import pyramid
from detectors.models.recursive_pyramid import RecursivePyramid
from detectors.models.roi_pooling import AlignedRoIAlign, with_strides
from detectors.models.rpn import AssignedRPN, PreciseRPNHead
from jolkernels.integrations.torchvision import (
    JointRoIHeads,
    roi_criterion,
)


class _TwoStage(FasterRCNN):
    """FasterRCNN with 0-based labels; inside, 0 is the background as everywhere in torchvision."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        shifted = None if targets is None else _shift_labels(targets, 1)
        result = super().forward(images, shifted)
        return result if self.training else _shift_labels(result, -1)


def _shift_labels(items: list[dict[str, Tensor]], by: int) -> list[dict[str, Tensor]]:
    return [{**item, "labels": item["labels"] + by} for item in items]


def two_stage(name: str, bodies: list[ResNet], plan: Plan) -> nn.Module:
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
