"""What the two-stage detectors share: torchvision's Faster R-CNN with other parts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from detectors.models.anchors import make_anchors
from detectors.models.plan import Plan
from detectors.models.roi_pooling import AlignedRoIAlign, with_strides
from detectors.models.rpn import AssignedRPN, PreciseRPNHead


class TwoStage(FasterRCNN):
    """FasterRCNN with 0-based labels outside; inside, 0 is the background as in torchvision."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As FasterRCNN's."""
        shifted = None if targets is None else _shift_labels(targets, 1)
        result = super().forward(images, shifted)
        return result if self.training else _shift_labels(result, -1)


def _shift_labels(items: list[dict[str, Tensor]], by: int) -> list[dict[str, Tensor]]:
    return [{**item, "labels": item["labels"] + by} for item in items]


def two_stage(fpn: nn.Module, plan: Plan, make_heads: Callable[[RoIHeads], nn.Module]) -> nn.Module:
    """A two-stage detector.

    Args:
        fpn: backbone and pyramid with the plan's strides and an attribute `out_channels`.
        plan: from build_detector.
        make_heads: torchvision's second stage → the second stage to use.
    """
    slim, paper = plan.preset == "slim", plan.preset == "paper"
    strides = plan.anchors.strides[:-1]  # the last, a max-pool of the one before, is for the RPN
    maps = [str(i) for i in range(len(strides))]
    size, width = (5, 256) if slim else (7, 1024)
    anchors = make_anchors(plan.anchors)
    settings: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "box_score_thresh": plan.score_threshold,
        "box_detections_per_img": plan.detections,
    }
    if slim:
        # An object of 64 pixels is pooled from C4, of 32 to 64 from C3, smaller ones from C2.
        pool = MultiScaleRoIAlign(maps, size, 1, canonical_scale=64)
        proposals = {"train": 500, "test": 1000}
        settings |= {"box_batch_size_per_image": 128}
    elif paper:
        pool = AlignedRoIAlign(maps, size, 0)
        proposals = {"train": 3000, "test": 3000}
    else:
        pool = MultiScaleRoIAlign(maps, size, 2)
        proposals = {"train": 2000, "test": 1000}
    proposals["test"] = max(proposals["test"], plan.candidates)
    for mode, number in proposals.items():
        settings |= {f"rpn_{when}_nms_top_n_{mode}": number for when in ("pre", "post")}
    channels: Any = fpn.out_channels
    model = TwoStage(
        fpn,
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * size**2, width),
        box_predictor=FastRCNNPredictor(width, plan.num_classes + 1),
        rpn_head=PreciseRPNHead(channels, anchors.num_anchors_per_location()[0]),
        **settings,
    )
    with_strides(pool, strides)
    model.roi_heads = make_heads(model.roi_heads)
    model.rpn = AssignedRPN.from_rpn(model.rpn, plan.assign, plan.choices["sync_group"])
    return model
