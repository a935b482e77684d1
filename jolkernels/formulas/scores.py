"""Location scores: (boxes [P, 4], targets [P, 4], spec) -> [P] in [0, 1]; boxes have an extent."""

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.formulas.boxes import (
    center_offsets,
    extents,
    giou,
    iou,
    limited,
    root,
)
from jolkernels.registry import REFERENCE


def iou_score(boxes: Tensor, targets: Tensor, _: spec.IoU) -> Tensor:
    return iou(boxes, targets)


def giou_score(boxes: Tensor, targets: Tensor, _: spec.GIoU) -> Tensor:
    """(1 + GIoU) / 2."""
    return 0.5 + 0.5 * giou(boxes, targets)


def nwd_score(boxes: Tensor, targets: Tensor, spec: spec.NWD) -> Tensor:
    dx, dy = center_offsets(boxes, targets)
    (w, h), (target_w, target_h) = extents(boxes), extents(targets)
    wasserstein = root(dx**2 + dy**2 + ((w - target_w) ** 2 + (h - target_h) ** 2) / 4)
    return torch.exp(-wasserstein / spec.constant)


def simd_score(boxes: Tensor, targets: Tensor, spec: spec.SimD) -> Tensor:
    dx, dy = center_offsets(boxes, targets)
    (w, h), (target_w, target_h) = extents(boxes), extents(targets)
    per_w, per_h = spec.m / (w + target_w), spec.n / (h + target_h)
    location = root((dx * per_w) ** 2 + (dy * per_h) ** 2)
    shape = root(((w - target_w) * per_w) ** 2 + ((h - target_h) * per_h) ** 2)
    return limited(torch.exp(-(location + shape)), 1e-6, None)


def dotd_score(boxes: Tensor, targets: Tensor, spec: spec.DotD) -> Tensor:
    dx, dy = center_offsets(boxes, targets)
    return torch.exp(-root(dx**2 + dy**2) / spec.size)


REFERENCE["location_score"] |= {
    spec.IoU: iou_score,
    spec.GIoU: giou_score,
    spec.NWD: nwd_score,
    spec.SimD: simd_score,
    spec.DotD: dotd_score,
}
