"""What a detector costs: parameters and multiply-accumulates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detectors.models.build import build_detector, detector_of

CLASSES = 8
OBJECTS = 100
PROPOSALS = 1000


def deform_conv2d_flops(
    x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Of the convolution alone, as if its samples lay on the grid."""
    n, _channels, height, width = out_shape
    return 2 * n * height * width * weight[0] * weight[1] * weight[2] * weight[3]


def parameters(model: nn.Module) -> float:
    """Millions of parameters, with the frozen ones and batch norm's statistics left out."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def gigamacs(model: nn.Module, size: int) -> float:
    """Billions of multiply-accumulates of one image in eval mode."""
    model.eval()
    if not detector_of(model).one_stage:
        rpn: Any = model.rpn
        rpn._post_nms_top_n = {"training": PROPOSALS, "testing": PROPOSALS}
    known = {torch.ops.torchvision.deform_conv2d: deform_conv2d_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        model([torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))])
    return counter.get_total_flops() / 2e9


def batch(images: int, size: int, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with OBJECTS boxes of 8 to 32 pixels an image."""
    g = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        sides = 8 + 24 * torch.rand(OBJECTS, 2, generator=g)
        corner = torch.rand(OBJECTS, 2, generator=g) * (size - sides)
        labels = torch.randint(CLASSES, (OBJECTS,), generator=g)
        boxes = torch.cat([corner, corner + sides], 1)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device)})
    return [torch.rand(3, size, size, generator=g).to(device) for _ in range(images)], targets


def build(name: str, loss: str, size: int) -> nn.Module:
    """The paper's detector from random weights; rows and steps differ in the loss alone."""
    torch.manual_seed(0)
    return build_detector(
        name, CLASSES, loss, preset="paper", backbone_weights="none", image_size=size
    )
