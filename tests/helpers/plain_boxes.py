"""Box losses, location scores and codings of a single row, in Python: see plain_loss.py.

Where torchvision's box losses add 1e-7, and in the same places of their relatives, so do these.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels import spec


class Box(NamedTuple):
    """Corners."""

    x0: Tensor
    y0: Tensor
    x1: Tensor
    y1: Tensor

    @property
    def w(self):
        return self.x1 - self.x0

    @property
    def h(self):
        return self.y1 - self.y0

    @property
    def center(self):
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


def overlap(a: Box, b: Box):
    """Areas of the intersection and of the union."""
    w = torch.minimum(a.x1, b.x1) - torch.maximum(a.x0, b.x0)
    h = torch.minimum(a.y1, b.y1) - torch.maximum(a.y0, b.y0)
    inter = w * h if w > 0 and h > 0 else 0 * w
    return inter, a.w * a.h + b.w * b.h - inter


def iou(a: Box, b: Box):
    inter, union = overlap(a, b)
    return inter / union if union > 0 else 0 * inter


def hull(a: Box, b: Box):
    """Width and height of the smallest box around both."""
    return (
        torch.maximum(a.x1, b.x1) - torch.minimum(a.x0, b.x0),
        torch.maximum(a.y1, b.y1) - torch.minimum(a.y0, b.y0),
    )


def giou(a: Box, b: Box):
    inter, union = overlap(a, b)
    w, h = hull(a, b)
    return inter / (union + 1e-7) - (w * h - union) / (w * h + 1e-7)


def squared_offset(a: Box, b: Box):
    (ax, ay), (bx, by) = a.center, b.center
    return (ax - bx) ** 2 + (ay - by) ** 2


def diou_loss(a: Box, b: Box):
    inter, union = overlap(a, b)
    w, h = hull(a, b)
    return 1 - inter / (union + 1e-7) + squared_offset(a, b) / (w**2 + h**2 + 1e-7)


def angle(box: Box):
    """Of the diagonal; a side that is nearly 0 counts as 1e-6 on its side of 0."""

    def side(s):
        if abs(s) >= 1e-6:
            return s
        return torch.full_like(s, -1e-6 if s < 0 else 1e-6)

    return torch.atan(side(box.w) / side(box.h))


def ciou_loss(a: Box, b: Box):
    inter, union = overlap(a, b)
    v = (2 / math.pi * (angle(b) - angle(a))) ** 2
    trade_off = v / (1 - inter / (union + 1e-7) + v + 1e-7)
    return diou_loss(a, b) + trade_off.detach() * v


def eiou_loss(a: Box, b: Box):
    w, h = hull(a, b)
    sides = (a.w - b.w) ** 2 / (w**2 + 1e-7) + (a.h - b.h) ** 2 / (h**2 + 1e-7)
    return diou_loss(a, b) + sides


def smooth(d, beta):
    size = abs(d)
    return size**2 / (2 * beta) if size < beta else size - beta / 2


def shape_cost(a: Box, b: Box, by_w=1.0, by_h=1.0):
    """How much widths and heights differ: SIoU's Omega, with theta = 4, and Shape-IoU's."""

    def part(s, t, factor):
        return (1 - torch.exp(-factor * abs(s - t) / torch.maximum(s, t).clamp(min=1e-6))) ** 4

    return part(a.w, b.w, by_w) + part(a.h, b.h, by_h)


def siou_loss(a: Box, b: Box):
    (ax, ay), (bx, by) = a.center, b.center
    dx, dy, (w, h), (inter, union) = ax - bx, ay - by, hull(a, b), overlap(a, b)
    # 1 - 2 sin^2(arcsin(sin alpha) - pi / 4); any number will do where the centres are one point
    together = dx == 0 and dy == 0
    alpha = 0 * dx if together else torch.atan2(abs(dy), abs(dx))
    gamma = 2 - (1 - 2 * torch.sin(alpha - math.pi / 4) ** 2)
    rho_x, rho_y = dx**2 / (w**2 + 1e-7), dy**2 / (h**2 + 1e-7)
    distance = (1 - torch.exp(-gamma * rho_x)) + (1 - torch.exp(-gamma * rho_y))
    return 1 - inter / (union + 1e-7) + (distance + shape_cost(a, b)) / 2


def shape_iou_loss(a: Box, b: Box, scale):
    (ax, ay), (bx, by) = a.center, b.center
    (w, h), (inter, union) = hull(a, b), overlap(a, b)
    b_w, b_h = (s.clamp(min=1e-6) ** scale for s in (b.w, b.h))
    ww, hh = 2 * b_w / (b_w + b_h), 2 * b_h / (b_w + b_h)
    distance = (hh * (ax - bx) ** 2 + ww * (ay - by) ** 2) / (w**2 + h**2 + 1e-7)
    return 1 - inter / (union + 1e-7) + distance + shape_cost(a, b, hh, ww) / 2


def wiou_loss(a: Box, b: Box):
    w, h = hull(a, b)
    return torch.exp(squared_offset(a, b) / (w**2 + h**2 + 1e-7).detach()) * (1 - iou(a, b))


def nwd(a: Box, b: Box, constant):
    square = squared_offset(a, b) + ((a.w - b.w) / 2) ** 2 + ((a.h - b.h) / 2) ** 2
    return torch.exp(-root(square) / constant)


def scaled(box: Box, ratio) -> Box:
    """With the same centre, its sides times `ratio`."""
    (x, y), w, h = box.center, ratio * box.w / 2, ratio * box.h / 2
    return Box(x - w, y - h, x + w, y + h)


def box_loss(choice, code, wanted, box: Box, target: Box):
    """Of one positive: numbers against numbers, or box against box."""

    def of(loss):
        return box_loss(loss, code, wanted, box, target)

    match choice:
        case spec.L1():
            return sum(abs(a - b) for a, b in zip(code, wanted, strict=True))
        case spec.L2():
            return sum((a - b) ** 2 for a, b in zip(code, wanted, strict=True))
        case spec.SmoothL1(beta):
            return sum(smooth(a - b, beta) for a, b in zip(code, wanted, strict=True))
        case spec.IoU("linear"):
            return 1 - iou(box, target)
        case spec.IoU("square"):
            return 1 - iou(box, target) ** 2
        case spec.IoU("log"):
            return -iou(box, target).clamp(min=1e-6).log()
        case spec.GIoU():
            return 1 - giou(box, target)
        case spec.DIoU():
            return diou_loss(box, target)
        case spec.CIoU():
            return ciou_loss(box, target)
        case spec.EIoU():
            return eiou_loss(box, target)
        case spec.SIoU():
            return siou_loss(box, target)
        case spec.ShapeIoU(scale):
            return shape_iou_loss(box, target, scale)
        case spec.WIoU():
            return wiou_loss(box, target)
        case spec.NWD(constant, mix):
            return mix * (1 - nwd(box, target, constant)) + (1 - mix) * (1 - iou(box, target))
        case spec.Inner(loss, ratio):
            inner = iou(scaled(box, ratio), scaled(target, ratio))
            return of(loss) + iou(box, target) - inner
        case spec.Focaler(loss, low, high):
            value = iou(box, target)
            return of(loss) + value - ((value - low) / (high - low)).clamp(0, 1)
        case spec.Sum(first, second):
            pairs = [first] if second is None else [first, second]
            return sum(weight * of(loss) for weight, loss in pairs)
    raise NotImplementedError(choice)


def root(square):
    """Square root; its slope at 0 is 0."""
    return square.sqrt() if square > 0 else 0 * square


def location_score(choice, box: Box, target: Box):
    """Of boxes of positive extent."""
    dw, dh = box.w - target.w, box.h - target.h
    (x, y), (target_x, target_y) = box.center, target.center
    dx, dy = x - target_x, y - target_y
    match choice:
        case spec.IoU():
            return iou(box, target)
        case spec.GIoU():
            return (1 + giou(box, target)) / 2
        case spec.NWD(constant):
            return nwd(box, target, constant)
        case spec.SimD(m, n):
            w, h = box.w + target.w, box.h + target.h
            location = root((m * dx / w) ** 2 + (n * dy / h) ** 2)
            shape = root((m * dw / w) ** 2 + (n * dh / h) ** 2)
            return torch.exp(-location - shape).clamp(min=1e-6)
        case spec.DotD(size):
            return torch.exp(-root(dx**2 + dy**2) / size)
    raise NotImplementedError(choice)


def decode(choice, code, prior: Box) -> Box:
    match choice:
        case spec.XYXY():
            return Box(*code)
        case spec.LTRB():
            x, y = prior.center
            left, top, right, bottom = code
            return Box(x - left * prior.w, y - top * prior.h,
                       x + right * prior.w, y + bottom * prior.h)  # fmt: skip
        case spec.CXCYWH(scale):
            (x, y, w, h), (per_x, per_y) = code, scale or (1024, 1024)
            return Box(per_x * (x - w / 2), per_y * (y - h / 2),
                       per_x * (x + w / 2), per_y * (y + h / 2))  # fmt: skip
        case spec.Delta(weights, clip, low):
            dx, dy, dw, dh = (c / w for c, w in zip(code, weights, strict=True))
            x, y = prior.center[0] + dx * prior.w, prior.center[1] + dy * prior.h
            w, h = (torch.exp(d.clamp(low, clip)) for d in (dw, dh))
            w, h = w * prior.w / 2, h * prior.h / 2
            return Box(x - w, y - h, x + w, y + h)
    raise NotImplementedError(choice)


def encode(choice, box: Box, prior: Box):
    w, h = prior.w.clamp(min=1e-6), prior.h.clamp(min=1e-6)
    (x, y), (box_x, box_y) = prior.center, box.center
    match choice:
        case spec.XYXY():
            return box
        case spec.LTRB():
            return (x - box.x0) / w, (y - box.y0) / h, (box.x1 - x) / w, (box.y1 - y) / h
        case spec.Delta(weights):
            box_w, box_h = box.w.clamp(min=1e-6), box.h.clamp(min=1e-6)
            code = (box_x - x) / w, (box_y - y) / h, torch.log(box_w / w), torch.log(box_h / h)
            return [c * weight for c, weight in zip(code, weights, strict=True)]
    raise NotImplementedError(choice)
