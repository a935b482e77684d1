"""Random scenes, and detectors small enough for them."""

import pytest
import torch
from torch import Tensor, nn

from detectors.models import DETECTORS, TWO_STAGE, build_detector

K = 3
Targets = list[dict[str, Tensor]]
QUICK = [pytest.param(d, marks=pytest.mark.slow) if d == "detectors" else d for d in DETECTORS]
"""DetectoRS, two ResNet-50 with deformable convolutions, takes seconds a step."""


def scene(
    objects: list[int], size: tuple[int, int] = (96, 128), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Targets]:
    """Random images [3, *size], one for each number of objects, with boxes of 6 to 30 pixels."""
    random = torch.Generator().manual_seed(7)
    height, width = size
    images, targets = [], []
    for n in objects:
        images.append(torch.rand(3, height, width, generator=random, dtype=dtype))
        sides = 6 + 24 * torch.rand(n, 2, generator=random, dtype=dtype)
        corner = torch.rand(n, 2, generator=random, dtype=dtype)
        corner = corner * (torch.tensor([width, height]) - sides)
        labels = torch.randint(K, (n,), generator=random)
        targets.append({"boxes": torch.cat([corner, corner + sides], 1), "labels": labels})
    return images, targets


def losses_and_gradients(
    model: nn.Module, images: list[Tensor], targets: Targets
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    torch.manual_seed(3)  # the samplers draw from the global generator
    losses = model(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def tiny(name: str, preset: str = "slim", loss: str = "jol") -> nn.Module:
    """A detector for tiny images, with few proposals: CPUs compute float16 slowly."""
    torch.manual_seed(0)
    backbone = "resnet14" if name == "detectors" else "resnet18"
    model = build_detector(
        name,
        K,
        loss,
        preset=preset,
        backbone=backbone,
        backbone_weights="none",
        image_size=None if preset == "slim" else 64,
        score_threshold=0.0,
    )
    if name in TWO_STAGE:
        model.rpn._pre_nms_top_n = model.rpn._post_nms_top_n = {"training": 40, "testing": 40}
        stages = [model.roi_heads] if name == "faster_rcnn" else model.roi_heads.stages
        for stage in stages:
            stage.fg_bg_sampler.batch_size_per_image = 16
    return model
