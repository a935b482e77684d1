"""Similarities of objects and priors: boxes [G, 4] x priors [A, 4] → [G, A].

Boxes are x1 y1 x2 y2 in pixels. Below, the centres of object g and prior a are dx, dy apart, and
their sizes are wg, hg and wa, ha. IoU is torchvision.ops.box_iou.

Sources: SimD arXiv 2407.02394, NWD arXiv 2110.13389, DotD CVPR Workshops 2021, RFLA arXiv
2208.08738.
"""

import torch
from torch import Tensor


def simd_similarity(boxes: Tensor, priors: Tensor, m: float, n: float) -> Tensor:
    """SimD [G, A] in 1e-6..1; m and n weigh the axes, see prior_coverage.simd_constants."""
    dx, dy = _offsets(boxes, priors)
    (wg, hg), (wa, ha) = _sizes(boxes[:, None]), _sizes(priors)
    location = torch.hypot(m * dx / (wg + wa), n * dy / (hg + ha))
    shape = torch.hypot(m * (wg - wa) / (wg + wa), n * (hg - ha) / (hg + ha))
    return torch.exp(-(location + shape)).clamp(min=1e-6)


def nwd_similarity(boxes: Tensor, priors: Tensor, constant: float) -> Tensor:
    """NWD [G, A] in 0..1; constant: C in pixels, the mean size of the data set's objects."""
    dx, dy = _offsets(boxes, priors)
    (wg, hg), (wa, ha) = _sizes(boxes[:, None]), _sizes(priors)
    squared = dx**2 + dy**2 + ((wg - wa) ** 2 + (hg - ha) ** 2) / 4
    return torch.exp(-squared.sqrt() / constant)


def dotd_similarity(boxes: Tensor, priors: Tensor, size: float) -> Tensor:
    """DotD [G, A] in 0..1; size: the mean size of the data set's objects in pixels."""
    return torch.exp(-torch.hypot(*_offsets(boxes, priors)) / size)


def rfla_similarity(boxes: Tensor, fields: Tensor) -> Tensor:
    """1 / (1 + KL) [G, A] of the receptive field's Gaussian from the object's."""
    dx, dy = _offsets(boxes, fields)
    (wg, hg), (wa, ha) = _sizes(boxes[:, None]), _sizes(fields)
    x = ((wa / wg) ** 2 + (2 * dx / wg) ** 2 - 1) / 2 + torch.log(wg / wa)
    y = ((ha / hg) ** 2 + (2 * dy / hg) ** 2 - 1) / 2 + torch.log(hg / ha)
    return 1 / (1 + x + y)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes `a` [..., 4] with the boxes of the same index in `b`."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return shared / (areas - shared)


def centres(boxes: Tensor) -> Tensor:
    """Centres x, y [..., 2] of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _offsets(boxes: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances dx, dy [G, A] between centres."""
    offset = centres(boxes)[:, None] - centres(priors)
    return offset[..., 0], offset[..., 1]
