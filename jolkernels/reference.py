"""The paper's equations in plain PyTorch, differentiated by autograd: the oracle of every test.

    w_pos_i = lam - s_loc_i * s_cls_i                                        (Eq. 3)
    w_neg   = mean of w_pos_i over the positives                             (Eq. 4)
    L       = sum_pos w_pos_i (l_loc_i + l_cls_i) + w_neg sum_neg l_cls_i    (Eq. 2)

S_loc is the IoU of the predicted and the target box, S_cls the predicted probability of the true
class. Slow and readable; users get the same numbers from jolkernels.loss. First the equations, then
the rows' losses, scores and codings.

Shapes: N rows (samples), C class columns, P positives; boxes are [P, 4] as x1 y1 x2 y2 in pixels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, accumulator
from jolkernels.registry import REFERENCE
from jolkernels.settings import Call, Settings


class Rows(NamedTuple):
    """The terms of Eq. 2 for a batch."""

    positive: Tensor  # [P] row indices
    negative: Tensor  # [N - P - ignored] row indices
    l_cls: Tensor  # [N], 0 in ignored rows
    l_loc: Tensor  # [P]
    s_cls: Tensor  # [P]
    s_loc: Tensor  # [P]


def joint_optimization_loss(batch: Batch, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2, its two parts divided by their normalisers.

    Returns:
        classification, regression, w_neg (detached) and the number of positives, 0-dim each.
    """
    r = rows(batch, call.settings)
    w_pos, w_neg = weights(r, call.settings)

    l_cls, l_loc = r.l_cls, r.l_loc
    if batch.classification_weights is not None:
        l_cls = batch.classification_weights.detach() * l_cls
    if batch.regression_weights is not None:
        l_loc = batch.regression_weights.detach()[r.positive] * l_loc
    classification = (w_pos * l_cls[r.positive]).sum() + w_neg * l_cls[r.negative].sum()
    regression = (w_pos * l_loc).sum()

    z_cls = normalizer(call.classification_normalizer, batch.classification_normalizer, r)
    z_loc = normalizer(call.regression_normalizer, batch.regression_normalizer, r)
    positives = batch.labels.new_tensor(len(r.positive))
    dtype = r.l_cls.dtype  # a normaliser or a weight may be wider
    parts = (classification / z_cls).to(dtype), (regression / z_loc).to(dtype)
    return *parts, w_neg.detach(), positives


def weights(r: Rows, settings: Settings) -> tuple[Tensor, Tensor]:
    """w_pos [P] of Eq. 3 and w_neg [] of Eq. 4 (1 without positives)."""
    if not settings.weighted:
        return torch.ones_like(r.l_loc), r.l_loc.new_ones(())
    w_pos = settings.lam - r.s_loc * r.s_cls
    if settings.detach_weights:
        w_pos = w_pos.detach()
    w_neg = w_pos.mean() if len(w_pos) else w_pos.new_ones(())
    return w_pos, w_neg


def normalizer(kind: str, number: Tensor | None, r: Rows) -> Tensor | int:
    """What a sum is divided by."""
    if number is not None:
        return number.detach()
    positives, samples = len(r.positive), len(r.positive) + len(r.negative)
    return {"samples": max(1, samples), "positives": max(1, positives), "sum": 1}[kind]


def rows(batch: Batch, settings: Settings) -> Rows:
    """The losses and scores of single samples, in float64 if the inputs are, else in float32."""
    dtype = accumulator(batch)
    logits, labels, columns = batch.logits.to(dtype), batch.labels, batch.logits.shape[1]

    is_valid = labels != settings.ignore_index
    is_background = labels == settings.background_label(columns)
    valid, positive, negative = (
        mask.nonzero()[:, 0]
        for mask in (is_valid, is_valid & ~is_background, is_valid & is_background)
    )

    y = labels[positive]
    slots = batch.box_preds.to(dtype)[positive].unflatten(1, (-1, 4))  # [P, S, 4]
    codes = slots[torch.arange(len(y), device=y.device), y if slots.shape[1] > 1 else 0]
    targets = batch.target_boxes[positive].to(dtype)
    priors = targets if batch.priors is None else batch.priors[positive].to(dtype)

    decode, encode = REFERENCE["coding"][type(settings.coding)]
    boxes = decode(codes, priors, settings.coding)
    if settings.regression.on_codes:
        compared = codes, encode(targets, priors, settings.coding)
    else:
        compared = boxes, targets
    iou_now = location_scores(boxes, targets, priors, spec.IoU(), settings).detach()
    quality = logits.new_zeros(len(labels)).index_put((positive,), iou_now)
    classify = REFERENCE["classification"][type(settings.classification)]
    l_cls = classify(logits[valid], labels[valid], quality[valid], settings.classification)
    regress = REFERENCE["regression"][type(settings.regression)]
    return Rows(
        positive=positive,
        negative=negative,
        l_cls=l_cls.new_zeros(len(labels)).index_put((valid,), l_cls),
        l_loc=regress(*compared, settings.regression),
        s_cls=classification_scores(logits[positive], y, settings),
        s_loc=location_scores(boxes, targets, priors, settings.location_score, settings),
    )


def classification_scores(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """S_cls: the predicted probability of the true class, [P]."""
    if settings.class_score is None:
        return logits.new_ones(len(logits))
    p = logits.softmax(1) if settings.classification.softmax else logits.sigmoid()
    return p.gather(1, labels[:, None])[:, 0]


def location_scores(
    boxes: Tensor, targets: Tensor, priors: Tensor, score: spec.Score | None, settings: Settings
) -> Tensor:
    """S_loc of predicted and target boxes, [P]; 0 where a box has no extent, 1 for no score."""
    if score is None:
        return boxes.new_ones(len(boxes))
    used = (boxes, targets, priors) if settings.coding.uses_priors else (boxes, targets)
    degenerate = torch.stack([(e <= 0) for b in used for e in extents(b)]).any(0)
    # Boxes of one pixel stand in for degenerate ones, whose scores could be NaN or infinite.
    unit = boxes.new_tensor([0, 0, 1, 1])
    boxes, targets = (torch.where(degenerate[:, None], unit, b) for b in (boxes, targets))
    value = REFERENCE["location_score"][type(score)](boxes, targets, score)
    return torch.where(degenerate, 0, value)


MIN_EXTENT = 1e-6
"""In encodings and aspect ratios boxes are at least this wide and high, in pixels."""
EPS = 1e-7
"""torchvision's, in the places where its box losses have it."""


# Classification losses of rows: (logits [n, C], labels [n], quality [n], spec) -> [n]. Label C of
# a sigmoid loss is the background; quality is the IoU of a positive's box, a constant.


def cross_entropy(logits: Tensor, labels: Tensor, _: Tensor, __: spec.CrossEntropy) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); F.softplus is linear beyond 20, 2e-9 off there."""
    return -F.logsigmoid(-x)


def one_hot_columns(logits: Tensor, labels: Tensor) -> Tensor:
    """1 in the column of a row's true class, 0 elsewhere and for the background."""
    return F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)


def bce(logits: Tensor, labels: Tensor, _: Tensor, __: spec.BCE) -> Tensor:
    target = one_hot_columns(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


def focal(logits: Tensor, labels: Tensor, _: Tensor, spec: spec.Focal) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, summed over the columns."""
    one_hot = one_hot_columns(logits, labels)
    toward = torch.where(one_hot == 1, -logits, logits)  # the larger, the more wrong
    alpha = spec.alpha * one_hot + (1 - spec.alpha) * (1 - one_hot)
    return (alpha * torch.sigmoid(toward) ** spec.gamma * softplus(toward)).sum(1)


def quality_focal(
    logits: Tensor, labels: Tensor, quality: Tensor, spec: spec.QualityFocal
) -> Tensor:
    """Generalized Focal Loss, Eq. 3: |y - sigma|^beta BCE(sigma, y), y the quality or 0."""
    target = one_hot_columns(logits, labels) * quality[:, None]
    modulation = (target - logits.sigmoid()).abs() ** spec.beta
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (modulation * bce).sum(1)


def varifocal(logits: Tensor, labels: Tensor, quality: Tensor, spec: spec.Varifocal) -> Tensor:
    """VarifocalNet, Eq. 2: q BCE(p, q) where the quality q > 0, else alpha p^gamma BCE(p, 0)."""
    target = one_hot_columns(logits, labels) * quality[:, None]
    negative = spec.alpha * logits.sigmoid() ** spec.gamma
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (torch.where(target > 0, target, negative) * bce).sum(1)


# Box losses: (x [P, 4], target [P, 4], spec) -> [P]; codes or corner boxes, as spec.on_codes says


def l1(x: Tensor, target: Tensor, _: spec.L1) -> Tensor:
    return (x - target).abs().sum(1)


def smooth_l1(x: Tensor, target: Tensor, spec: spec.SmoothL1) -> Tensor:
    return F.smooth_l1_loss(x, target, beta=spec.beta, reduction="none").sum(1)


def l2(x: Tensor, target: Tensor, _: spec.L2) -> Tensor:
    return (x - target).square().sum(1)


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
    intersection, union = intersection_and_union(x, target)
    empty = union <= 0  # not `~(union > 0)`: NaN stays NaN
    return torch.where(empty, 0, intersection / torch.where(empty, 1, union))


def iou_loss(x: Tensor, target: Tensor, _: spec.IoU) -> Tensor:
    return 1 - iou(x, target)


def hull_extents(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    w = torch.max(x[:, 2], target[:, 2]) - torch.min(x[:, 0], target[:, 0])
    h = torch.max(x[:, 3], target[:, 3]) - torch.min(x[:, 1], target[:, 1])
    return w, h


def giou_loss(x: Tensor, target: Tensor, _: spec.GIoU) -> Tensor:
    """torchvision.ops.generalized_box_iou_loss."""
    intersection, union = intersection_and_union(x, target)
    hull_w, hull_h = hull_extents(x, target)
    hull = hull_w * hull_h
    return 1 - (intersection / (union + EPS) - (hull - union) / (hull + EPS))


def center_offsets(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    d = 0.5 * ((x[:, :2] - target[:, :2]) + (x[:, 2:] - target[:, 2:]))  # 0 for equal boxes
    return d[:, 0], d[:, 1]


def diou_loss(x: Tensor, target: Tensor, _: spec.DIoU) -> Tensor:
    """torchvision.ops.distance_box_iou_loss."""
    intersection, union = intersection_and_union(x, target)
    hull_w, hull_h = hull_extents(x, target)
    dx, dy = center_offsets(x, target)
    distance = (dx**2 + dy**2) / (hull_w**2 + hull_h**2 + EPS)
    return 1 - intersection / (union + EPS) + distance


def aspect_angle(boxes: Tensor) -> Tensor:
    """atan(w / h), extents at least MIN_EXTENT."""
    w, h = extents(boxes)
    return torch.atan(w.clamp(min=MIN_EXTENT) / h.clamp(min=MIN_EXTENT))


def ciou_loss(x: Tensor, target: Tensor, _: spec.CIoU) -> Tensor:
    """torchvision.ops.complete_box_iou_loss; the trade-off factor alpha is a constant."""
    intersection, union = intersection_and_union(x, target)
    v = 4 / math.pi**2 * (aspect_angle(target) - aspect_angle(x)) ** 2
    alpha = (v / (1 - intersection / (union + EPS) + v + EPS)).detach()
    return diou_loss(x, target, spec.DIoU()) + alpha * v


def eiou_loss(x: Tensor, target: Tensor, _: spec.EIoU) -> Tensor:
    """DIoU and the differences of width and height against the hull's, eps as in DIoU."""
    (w, h), (target_w, target_h) = extents(x), extents(target)
    hull_w, hull_h = hull_extents(x, target)
    sides = (w - target_w) ** 2 / (hull_w**2 + EPS) + (h - target_h) ** 2 / (hull_h**2 + EPS)
    return diou_loss(x, target, spec.DIoU()) + sides


# Location scores: (boxes [P, 4], targets [P, 4], spec) -> [P] in [0, 1], for boxes with an extent


def iou_score(boxes: Tensor, targets: Tensor, _: spec.IoU) -> Tensor:
    return iou(boxes, targets)


def giou_score(boxes: Tensor, targets: Tensor, spec: spec.GIoU) -> Tensor:
    return 1 - giou_loss(boxes, targets, spec) / 2  # (1 + GIoU) / 2


def root(squares: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0 * squares)


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
    return torch.exp(-(location + shape)).clamp(min=1e-6)


def dotd_score(boxes: Tensor, targets: Tensor, spec: spec.DotD) -> Tensor:
    dx, dy = center_offsets(boxes, targets)
    return torch.exp(-root(dx**2 + dy**2) / spec.size)


# Codings, [P, 4] all: decode (codes, priors, spec) -> boxes; encode (boxes, priors, spec) -> codes


def decode_xyxy(codes: Tensor, _: Tensor, __: spec.XYXY) -> Tensor:
    return codes


def encode_xyxy(boxes: Tensor, _: Tensor, __: spec.XYXY) -> Tensor:
    return boxes


def center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * size, size


def decode_delta(codes: Tensor, priors: Tensor, spec: spec.Delta) -> Tensor:
    """torchvision's BoxCoder.decode_single."""
    center, size = center_and_size(priors)
    codes = codes / codes.new_tensor(spec.weights)
    center = center + codes[:, :2] * size
    size = size * torch.exp(codes[:, 2:].clamp(max=codes.new_tensor(spec.clip)))
    return torch.cat((center - 0.5 * size, center + 0.5 * size), 1)


def encode_delta(boxes: Tensor, priors: Tensor, spec: spec.Delta) -> Tensor:
    """torchvision's BoxCoder.encode_single."""
    prior_center, prior_size = center_and_size(priors)
    center, size = center_and_size(boxes)
    prior_size, size = prior_size.clamp(min=MIN_EXTENT), size.clamp(min=MIN_EXTENT)
    codes = torch.cat(((center - prior_center) / prior_size, torch.log(size / prior_size)), 1)
    return codes * codes.new_tensor(spec.weights)


def decode_ltrb(codes: Tensor, priors: Tensor, _: spec.LTRB) -> Tensor:
    """torchvision's BoxLinearCoder.decode with normalize_by_size."""
    center, size = 0.5 * (priors[:, :2] + priors[:, 2:]), priors[:, 2:] - priors[:, :2]
    return torch.cat((center - codes[:, :2] * size, center + codes[:, 2:] * size), 1)


def encode_ltrb(boxes: Tensor, priors: Tensor, _: spec.LTRB) -> Tensor:
    """torchvision's BoxLinearCoder.encode with normalize_by_size."""
    center = 0.5 * (priors[:, :2] + priors[:, 2:])
    size = (priors[:, 2:] - priors[:, :2]).clamp(min=MIN_EXTENT)
    return torch.cat(((center - boxes[:, :2]) / size, (boxes[:, 2:] - center) / size), 1)


REFERENCE["classification"] |= {
    spec.CrossEntropy: cross_entropy,
    spec.BCE: bce,
    spec.Focal: focal,
    spec.QualityFocal: quality_focal,
    spec.Varifocal: varifocal,
}
REFERENCE["regression"] |= {
    spec.L1: l1,
    spec.SmoothL1: smooth_l1,
    spec.L2: l2,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
    spec.DIoU: diou_loss,
    spec.CIoU: ciou_loss,
    spec.EIoU: eiou_loss,
}
REFERENCE["location_score"] |= {
    spec.IoU: iou_score,
    spec.GIoU: giou_score,
    spec.NWD: nwd_score,
    spec.SimD: simd_score,
    spec.DotD: dotd_score,
}
REFERENCE["coding"] |= {
    spec.XYXY: (decode_xyxy, encode_xyxy),
    spec.Delta: (decode_delta, encode_delta),
    spec.LTRB: (decode_ltrb, encode_ltrb),
}
