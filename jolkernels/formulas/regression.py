"""Box losses: (x [P, 4], target [P, 4], spec) -> [P]; of codes if spec.on_codes, else corners."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.formulas.boxes import (
    EPS,
    MIN_EXTENT,
    aspect_angle,
    center_and_size,
    center_offsets,
    extents,
    from_center_and_size,
    giou,
    hull_extents,
    iou,
    iou_with_eps,
    limited,
)
from jolkernels.formulas.scores import nwd_score
from jolkernels.registry import REFERENCE


def l1(x: Tensor, target: Tensor, _: spec.L1) -> Tensor:
    return (x - target).abs().sum(1)


def smooth_l1(x: Tensor, target: Tensor, spec: spec.SmoothL1) -> Tensor:
    return F.smooth_l1_loss(x, target, beta=spec.beta, reduction="none").sum(1)


def l2(x: Tensor, target: Tensor, _: spec.L2) -> Tensor:
    return (x - target).square().sum(1)


LEAST_IOU = 1e-6
"""IoU(mode="log") takes the logarithm of an IoU of at least this, as mmdet's IoULoss does."""


def iou_loss(x: Tensor, target: Tensor, spec: spec.IoU) -> Tensor:
    value = iou(x, target)
    if spec.mode == "log":
        return -limited(value, LEAST_IOU, None).log()
    return 1 - (value**2 if spec.mode == "square" else value)


def giou_loss(x: Tensor, target: Tensor, _: spec.GIoU) -> Tensor:
    """torchvision.ops.generalized_box_iou_loss."""
    return 1 - giou(x, target)


def diou_loss(x: Tensor, target: Tensor, _: spec.DIoU) -> Tensor:
    """torchvision.ops.distance_box_iou_loss."""
    hull_w, hull_h = hull_extents(x, target)
    dx, dy = center_offsets(x, target)
    distance = (dx**2 + dy**2) / (hull_w**2 + hull_h**2 + EPS)
    return 1 - iou_with_eps(x, target) + distance


def ciou_loss(x: Tensor, target: Tensor, _: spec.CIoU) -> Tensor:
    """torchvision.ops.complete_box_iou_loss; the trade-off factor alpha is a constant."""
    v = 4 / math.pi**2 * (aspect_angle(target) - aspect_angle(x)) ** 2
    alpha = (v / (1 - iou_with_eps(x, target) + v + EPS)).detach()
    return diou_loss(x, target, spec.DIoU()) + alpha * v


def eiou_loss(x: Tensor, target: Tensor, _: spec.EIoU) -> Tensor:
    """DIoU and the differences of width and height against the hull's, eps as in DIoU."""
    (w, h), (target_w, target_h) = extents(x), extents(target)
    hull_w, hull_h = hull_extents(x, target)
    sides = (w - target_w) ** 2 / (hull_w**2 + EPS) + (h - target_h) ** 2 / (hull_h**2 + EPS)
    return diou_loss(x, target, spec.DIoU()) + sides


def size_cost(size: Tensor, target: Tensor, factor: Tensor | float = 1) -> Tensor:
    """(1 - exp(-factor |w - w_t| / max(w, w_t)))^4 of widths or heights [P]."""
    larger = torch.max(size, target).clamp(min=MIN_EXTENT)
    return (1 - torch.exp(-factor * (size - target).abs() / larger)) ** 4


def siou_loss(x: Tensor, target: Tensor, _: spec.SIoU) -> Tensor:
    """1 - IoU + (distance + shape) / 2; the distance costs less along an axis than off both.

    With alpha the angle of the line between the centres, sin(2 alpha) = 2 |dx dy| / (dx^2 + dy^2)
    is the paper's 1 - 2 sin^2(arcsin(sin alpha) - pi / 4).
    """
    (w, h), (target_w, target_h) = extents(x), extents(target)
    hull_w, hull_h = hull_extents(x, target)
    dx, dy = center_offsets(x, target)
    squares = dx**2 + dy**2
    angle = 2 * (dx * dy).abs() / torch.where(squares > 0, squares, 1)
    rate = angle - 2  # minus the paper's gamma
    rho_x, rho_y = dx**2 / (hull_w**2 + EPS), dy**2 / (hull_h**2 + EPS)
    distance = 2 - torch.exp(rate * rho_x) - torch.exp(rate * rho_y)
    shape = size_cost(w, target_w) + size_cost(h, target_h)
    return 1 - iou_with_eps(x, target) + (distance + shape) / 2


def shape_iou_loss(x: Tensor, target: Tensor, spec: spec.ShapeIoU) -> Tensor:
    """1 - IoU + distance + shape / 2, both weighed by the target's own shape."""
    (w, h), (target_w, target_h) = extents(x), extents(target)
    hull_w, hull_h = hull_extents(x, target)
    dx, dy = center_offsets(x, target)
    ratio = target_w.clamp(min=MIN_EXTENT) / target_h.clamp(min=MIN_EXTENT)
    by_w, by_h = 2 / (1 + ratio**-spec.scale), 2 / (1 + ratio**spec.scale)
    distance = (by_h * dx**2 + by_w * dy**2) / (hull_w**2 + hull_h**2 + EPS)
    shape = size_cost(w, target_w, by_h) + size_cost(h, target_h, by_w)
    return 1 - iou_with_eps(x, target) + distance + shape / 2


def wiou_loss(x: Tensor, target: Tensor, _: spec.WIoU) -> Tensor:
    """exp(centres' distance over the hull's diagonal, which is a constant) (1 - IoU)."""
    hull_w, hull_h = hull_extents(x, target)
    dx, dy = center_offsets(x, target)
    diagonal = (hull_w**2 + hull_h**2 + EPS).detach()
    return torch.exp((dx**2 + dy**2) / diagonal) * (1 - iou(x, target))


def nwd_loss(x: Tensor, target: Tensor, spec: spec.NWD) -> Tensor:
    loss = 1 - nwd_score(x, target, spec)
    if spec.mix == 1:
        return loss
    return spec.mix * loss + (1 - spec.mix) * (1 - iou(x, target))


def inner_gap(x: Tensor, target: Tensor, spec: spec.InnerGap) -> Tensor:
    """IoU minus the IoU of both boxes with their sides scaled by `ratio`."""

    def scaled(boxes: Tensor) -> Tensor:
        center, size = center_and_size(boxes)
        return from_center_and_size(center, spec.ratio * size)

    return iou(x, target) - iou(scaled(x), scaled(target))


def focaler_gap(x: Tensor, target: Tensor, spec: spec.FocalerGap) -> Tensor:
    """IoU minus the IoU mapped from low..high to 0..1."""
    value = iou(x, target)
    return value - limited((value - spec.low) / (spec.high - spec.low), 0, 1)


REFERENCE["regression"] |= {
    spec.L1: l1,
    spec.SmoothL1: smooth_l1,
    spec.L2: l2,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
    spec.DIoU: diou_loss,
    spec.CIoU: ciou_loss,
    spec.EIoU: eiou_loss,
    spec.SIoU: siou_loss,
    spec.ShapeIoU: shape_iou_loss,
    spec.WIoU: wiou_loss,
    spec.NWD: nwd_loss,
    spec.InnerGap: inner_gap,
    spec.FocalerGap: focaler_gap,
}
