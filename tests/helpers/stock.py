"""torchvision's RetinaNet and FCOS, small, and the same with our heads."""

import copy
from functools import partial

import torch
from scenes import K
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    fcos_criterion,
    retinanet_criterion,
)

KINDS = ("retinanet", "retinanet-v2", "fcos")


class Pyramid(nn.Module):
    """Five maps of 64 channels, down to 1 x 1."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 64, 64, 3, 8 if i == 0 else 2, 1) for i in range(5)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            maps[str(i)] = x
        return maps


def stock(kind: str) -> nn.Module:
    """torchvision's model for images of 64 pixels, in float64, with scores that differ."""
    torch.manual_seed(0)
    sizes = [(4.0 * 2**i,) if kind == "fcos" else (8.0 * 2**i, 11.0 * 2**i) for i in range(5)]
    ratios = ((1.0,) if kind == "fcos" else (0.5, 1.0, 2.0),) * 5
    settings = {"min_size": 64, "max_size": 128, "score_thresh": 0.0}
    settings["anchor_generator"] = AnchorGenerator(sizes, ratios)
    if kind == "fcos":
        model = FCOS(Pyramid(), K, **settings)
    else:
        norm = partial(nn.GroupNorm, 8) if kind == "retinanet-v2" else None
        head = RetinaNetHead(64, 6, K, norm_layer=norm)
        if kind == "retinanet-v2":
            head.regression_head._loss_type = "giou"
        model = RetinaNet(Pyramid(), K, head=head, **settings)
    for name, parameter in model.head.named_parameters():
        if name.endswith("weight") and parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.05)
    if kind == "fcos":  # the boxes end in a ReLU
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 2.0)
    return model.double().train()


def joined(model: nn.Module, kind: str, settings: dict, **choices) -> nn.Module:
    """A copy with our head in its place, and a criterion with these settings."""
    model = copy.deepcopy(model)
    if kind == "fcos":
        head = JointFCOSHead.from_head(model.head, fcos_criterion(**settings), **choices)
    else:
        regression = "giou" if kind == "retinanet-v2" else "l1"
        criterion = retinanet_criterion(regression, **settings)
        head = JointRetinaNetHead.from_head(model.head, criterion, **choices)
    model.head = head
    return model
