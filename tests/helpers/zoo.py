"""torchvision's detectors of every kind, small and in float64, and batches for them."""

from functools import partial
from typing import Any

import torch
from scenes import K, Targets, scene
from stock import Pyramid, stock
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign

R_CNNS = ("faster_rcnn", "faster_rcnn-v2", "mask_rcnn", "keypoint_rcnn")
ONE_STAGE = ("retinanet", "retinanet-v2", "fcos")
SSDS = ("ssd", "ssdlite")
ZOO = (*R_CNNS, *ONE_STAGE, *SSDS)
POINTS = 4


def make(kind: str) -> nn.Module:
    """torchvision's model for images of 64 pixels, in training, with scores that differ."""
    if kind in ONE_STAGE:
        return stock(kind)
    torch.manual_seed(0)
    model = (ssd(kind == "ssdlite") if kind in SSDS else r_cnn(kind)).double().train()
    for name, parameter in model.named_parameters():
        if ("cls_score" in name or "classification_head" in name) and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


def r_cnn(kind: str) -> nn.Module:
    """A Faster, Mask or Keypoint R-CNN that samples all its positives."""
    sizes = tuple((8.0 * 2**i,) for i in range(5))
    head = TwoMLPHead(64 * 49, 32)
    if kind == "faster_rcnn-v2":
        head = FastRCNNConvFCHead((64, 7, 7), [16], [32], norm_layer=nn.BatchNorm2d)
    settings: dict[str, Any] = {
        "min_size": 64,
        "max_size": 128,
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        "rpn_pre_nms_top_n_train": 40,
        "box_roi_pool": pool(7),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(32, K + 1),
        "box_score_thresh": 0.0,
        "box_batch_size_per_image": 64,
    }
    if kind == "mask_rcnn":
        heads = MaskRCNNHeads(64, (16,), 1), MaskRCNNPredictor(16, 16, K + 1)
        return MaskRCNN(
            Pyramid(),
            mask_roi_pool=pool(7),
            mask_head=heads[0],
            mask_predictor=heads[1],
            **settings,
        )
    if kind == "keypoint_rcnn":
        heads = KeypointRCNNHeads(64, (16,)), KeypointRCNNPredictor(16, POINTS)
        return KeypointRCNN(
            Pyramid(), keypoint_roi_pool=pool(7), keypoint_head=heads[0],
            keypoint_predictor=heads[1], num_keypoints=None, **settings,
        )  # fmt: skip
    return FasterRCNN(Pyramid(), **settings)


def pool(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(list("0123"), size, 2)


def ssd(lite: bool) -> nn.Module:
    boxes = DefaultBoxGenerator([[2, 3]] * 5, min_ratio=0.15)
    counts = boxes.num_anchors_per_location()
    norm = partial(nn.BatchNorm2d, eps=0.001)
    shapes = [64] * 5, counts, K + 1
    head = SSDLiteHead(*shapes, norm) if lite else SSDHead(*shapes)
    return SSD(Pyramid(), boxes, (64, 64), K + 1, head=head, score_thresh=0.0)


def batch(kind: str, objects: list[int]) -> tuple[list[Tensor], Targets]:
    """Images of 64 pixels, one for each number of objects, and all that `kind` needs of these."""
    images, targets = scene(objects, (64, 64), torch.float64)
    for target in targets:
        boxes = target["boxes"]
        if kind not in ONE_STAGE:
            target["labels"] += 1  # 0 is the background
        if kind == "mask_rcnn":
            at = torch.arange(64)
            inside = (at >= boxes[:, 0::2, None][:, :1]) & (at < boxes[:, 2::2, None][:, :1])
            rows = (at >= boxes[:, 1::2, None][:, :1]) & (at < boxes[:, 3::2, None][:, :1])
            target["masks"] = (rows.mT & inside).to(torch.uint8)
        if kind == "keypoint_rcnn":
            share = torch.linspace(0.2, 0.8, POINTS, dtype=boxes.dtype)[None, :, None]
            points = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
            seen = torch.ones_like(points[..., :1])
            target["keypoints"] = torch.cat([points, seen], -1).float()
    return images, targets


def joint_part(model: nn.Module) -> Any:
    """What use_joint_loss changes."""
    if isinstance(model, SSD):
        return model
    return model.roi_heads if hasattr(model, "roi_heads") else model.head
