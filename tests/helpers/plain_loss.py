"""The loss once more, row by row, in Python and float64: what the fuzz test holds every path to.

Written from the paper's Eq. 2 to 4 and the definitions of the losses in docs/mathematics.md and the
sources that jolkernels.spec names, and not from jolkernels.reference: a fault of one is not a fault
of the other. Numbers are 0-dim float64 tensors, so that autograd differentiates the statement.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


def box_loss(choice, code, wanted, box: Box, target: Box):
    """Of one positive: numbers against numbers, or box against box."""
    match choice:
        case spec.L1():
            return sum(abs(a - b) for a, b in zip(code, wanted, strict=True))
        case spec.L2():
            return sum((a - b) ** 2 for a, b in zip(code, wanted, strict=True))
        case spec.SmoothL1(beta):
            return sum(smooth(a - b, beta) for a, b in zip(code, wanted, strict=True))
        case spec.IoU():
            return 1 - iou(box, target)
        case spec.GIoU():
            return 1 - giou(box, target)
        case spec.DIoU():
            return diou_loss(box, target)
        case spec.CIoU():
            return ciou_loss(box, target)
        case spec.EIoU():
            return eiou_loss(box, target)
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
            return torch.exp(-root(dx**2 + dy**2 + (dw**2 + dh**2) / 4) / constant)
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
        case spec.Delta(weights, clip):
            dx, dy, dw, dh = (c / w for c, w in zip(code, weights, strict=True))
            x, y = prior.center[0] + dx * prior.w, prior.center[1] + dy * prior.h
            w, h = (torch.exp(d.clamp(max=clip)) for d in (dw, dh))
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
        case spec.Delta(weights, _):
            box_w, box_h = box.w.clamp(min=1e-6), box.h.clamp(min=1e-6)
            code = (box_x - x) / w, (box_y - y) / h, torch.log(box_w / w), torch.log(box_h / h)
            return [c * weight for c, weight in zip(code, weights, strict=True)]
    raise NotImplementedError(choice)


def classification_loss(choice, z, label, quality):
    """Of one row; `quality` is the box's IoU, a number. Label C of a sigmoid loss: background."""
    if isinstance(choice, spec.CrossEntropy):
        return -z.log_softmax(0)[label]
    loss = z.new_zeros(())
    for k, logit in enumerate(z):
        true = k == label
        p, log_p, log_not = logit.sigmoid(), F.logsigmoid(logit), F.logsigmoid(-logit)
        match choice:
            case spec.BCE():
                loss = loss - (log_p if true else log_not)
            case spec.Focal(alpha, gamma) if true:
                loss = loss - alpha * (-logit).sigmoid() ** gamma * log_p
            case spec.Focal(alpha, gamma):
                loss = loss - (1 - alpha) * p**gamma * log_not
            case spec.QualityFocal(beta):
                y = quality if true else 0
                loss = loss - abs(y - p) ** beta * (y * log_p + (1 - y) * log_not)
            case spec.Varifocal(alpha, gamma):
                q = quality if true else 0
                if q > 0:
                    loss = loss - q * (q * log_p + (1 - q) * log_not)
                else:
                    loss = loss - alpha * p**gamma * log_not
            case _:
                raise NotImplementedError(choice)
    return loss


def divisor(choice, samples, positives):
    if isinstance(choice, str):
        return {"samples": max(1, samples), "positives": max(1, positives), "sum": 1}[choice]
    return float(choice)


def plain_loss(s, batch):
    """classification, regression, w_neg and the number of positives, for Settings `s`.

    `batch` is what the loss takes, by name; its floating tensors are float64 here.
    """
    logits, softmax = batch["logits"], isinstance(s.classification, spec.CrossEntropy)
    columns = logits.shape[1]
    background = columns if not softmax else 0 if s.background == "first" else columns - 1
    rows = [(i, y) for i, y in enumerate(batch["labels"].tolist()) if y != s.ignore_index]
    positives = sum(y != background for _, y in rows)

    weights, of_positives, of_negatives = [], [], []
    zero = 0 * logits[:0].sum() + 0 * batch["box_preds"][:0].sum()
    regression = zero
    for i, y in rows:
        alpha = 1 if batch["classification_weights"] is None else batch["classification_weights"][i]
        beta = 1 if batch["regression_weights"] is None else batch["regression_weights"][i]
        if y == background:
            l_cls = classification_loss(s.classification, logits[i], y, 0)
            of_negatives.append(alpha * l_cls)
            continue
        slot = 4 * y if batch["box_preds"].shape[1] > 4 else 0
        code = batch["box_preds"][i, slot : slot + 4].unbind()
        target, used = Box(*batch["target_boxes"][i].unbind()), []
        prior = target
        if s.coding.uses_priors:
            prior = Box(*batch["priors"][i].unbind())
            used = [prior]
        box = decode(s.coding, code, prior)
        degenerate = any(b.w <= 0 or b.h <= 0 for b in (box, target, *used))
        quality = 0 if degenerate else iou(box, target).item()
        l_cls = classification_loss(s.classification, logits[i], y, quality)
        wanted = None if s.regression.on_codes is False else encode(s.coding, target, prior)
        l_loc = box_loss(s.regression, code, wanted, box, target)

        s_cls, s_loc = logits.new_ones(()), logits.new_ones(())
        if s.class_score is not None:
            s_cls = (logits[i].softmax(0) if softmax else logits[i].sigmoid())[y]
        if s.location_score is not None:
            s_loc = 0 * zero if degenerate else location_score(s.location_score, box, target)
        w = s.lam - s_loc * s_cls if s.weighting == "joint" else logits.new_ones(())  # Eq. 3
        w = w.detach() if s.detach_weights else w
        weights.append(w)
        of_positives.append(w * alpha * l_cls)
        regression = regression + w * beta * l_loc

    w_neg = sum(weights) / positives if positives else logits.new_ones(())  # Eq. 4
    classification = zero + sum(of_positives) + w_neg * (zero + sum(of_negatives))  # Eq. 2
    z_cls = divisor(batch["classification_normalizer"], len(rows), positives)
    z_loc = divisor(batch["regression_normalizer"], len(rows), positives)
    return classification / z_cls, regression / z_loc, w_neg, positives
