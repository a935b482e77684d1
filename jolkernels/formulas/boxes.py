"""What box losses, scores and codings share: geometry of corner boxes [P, 4], x1 y1 x2 y2."""

import torch
from torch import Tensor

MIN_EXTENT = 1e-6
"""In encodings and aspect ratios boxes are at least this wide and high, in pixels; in aspect ratios
an extent may also be at most minus this."""
EPS = 1e-7
"""torchvision's, in the places where its box losses have it."""


def extents(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def area(boxes: Tensor) -> Tensor:
    w, h = extents(boxes)
    return w * h


def intersection_and_union(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    w = torch.min(x[:, 2], target[:, 2]) - torch.max(x[:, 0], target[:, 0])
    h = torch.min(x[:, 3], target[:, 3]) - torch.max(x[:, 1], target[:, 1])
    intersection = torch.where((w > 0) & (h > 0), w * h, 0)
    return intersection, area(x) + area(target) - intersection


def iou(x: Tensor, target: Tensor) -> Tensor:
    """No eps; 0 where the union is not positive."""
    intersection, union = intersection_and_union(x, target)
    empty = union <= 0  # not `~(union > 0)`: NaN stays NaN
    return torch.where(empty, 0, intersection / torch.where(empty, 1, union))


def iou_with_eps(x: Tensor, target: Tensor) -> Tensor:
    """IoU as torchvision's box losses have it."""
    intersection, union = intersection_and_union(x, target)
    return intersection / (union + EPS)


def hull_extents(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    w = torch.max(x[:, 2], target[:, 2]) - torch.min(x[:, 0], target[:, 0])
    h = torch.max(x[:, 3], target[:, 3]) - torch.min(x[:, 1], target[:, 1])
    return w, h


def giou(x: Tensor, target: Tensor) -> Tensor:
    """Generalized IoU, from -1 to 1, eps as in torchvision.ops.generalized_box_iou_loss."""
    intersection, union = intersection_and_union(x, target)
    hull_w, hull_h = hull_extents(x, target)
    hull = hull_w * hull_h
    return intersection / (union + EPS) - (hull - union) / (hull + EPS)


def center_offsets(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    d = 0.5 * ((x[:, :2] - target[:, :2]) + (x[:, 2:] - target[:, 2:]))  # 0 for equal boxes
    return d[:, 0], d[:, 1]


def center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * size, size


def from_center_and_size(center: Tensor, size: Tensor) -> Tensor:
    return torch.cat((center - 0.5 * size, center + 0.5 * size), 1)


def off_zero(extent: Tensor) -> Tensor:
    """An extent, positive or negative, moved to at least MIN_EXTENT from 0."""
    return torch.where(extent < 0, extent.clamp(max=-MIN_EXTENT), extent.clamp(min=MIN_EXTENT))


def aspect_angle(boxes: Tensor) -> Tensor:
    """atan(w / h)."""
    w, h = extents(boxes)
    return torch.atan(off_zero(w) / off_zero(h))


def limited(x: Tensor, least: float | None, most: float | None) -> Tensor:
    """x from `least` to `most`, None being no limit; at a limit the gradient passes.

    What torch.clamp passes there depends on its version, and on whether limits are tensors.
    """
    if least is not None:
        low = x.new_tensor(least)  # a bare number beyond the dtype's range is an error
        x = torch.where(x < low, low, x)
    if most is not None:
        high = x.new_tensor(most)
        x = torch.where(x > high, high, x)
    return x


def root(squares: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0 * squares)
