"""The paper's equations in plain PyTorch, differentiated by autograd: what every test trusts.

    w_pos_i = lam - s_loc_i * s_cls_i                                        (Eq. 3)
    w_neg   = mean of w_pos_i over the positives                             (Eq. 4)
    L       = sum_pos w_pos_i (l_loc_i + l_cls_i) + w_neg sum_neg l_cls_i    (Eq. 2)

S_loc is the IoU of the predicted and the target box, S_cls the predicted probability of the true
class. Slow and readable; users get the same numbers from jolkernels.loss.

Shapes: N rows (samples), C class columns, P positives; boxes are [P, 4] as x1 y1 x2 y2 in pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.spec import Batch, Settings, accumulator

MIN_EXTENT = 1e-6
"""Boxes are taken to be at least this wide and high, in pixels, when they are encoded."""

# Classification losses of rows: (logits [n, C], labels [n], spec) -> [n]


def cross_entropy(logits: Tensor, labels: Tensor, _: spec.CrossEntropy) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, spec: spec.Focal) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, summed over the columns; label C is the background."""
    one_hot = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    toward = torch.where(one_hot == 1, -logits, logits)  # the larger, the more wrong
    alpha = spec.alpha * one_hot + (1 - spec.alpha) * (1 - one_hot)
    return (alpha * torch.sigmoid(toward) ** spec.gamma * F.softplus(toward)).sum(1)


# Box losses: (x [P, 4], target [P, 4], spec) -> [P]; codes or corner boxes, as spec.on_codes says


def l1(x: Tensor, target: Tensor, _: spec.L1) -> Tensor:
    return (x - target).abs().sum(1)


def smooth_l1(x: Tensor, target: Tensor, spec: spec.SmoothL1) -> Tensor:
    return F.smooth_l1_loss(x, target, beta=spec.beta, reduction="none").sum(1)


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


def giou_loss(x: Tensor, target: Tensor, _: spec.GIoU, eps: float = 1e-7) -> Tensor:
    """torchvision.ops.generalized_box_iou_loss."""
    intersection, union = intersection_and_union(x, target)
    hull_w = torch.max(x[:, 2], target[:, 2]) - torch.min(x[:, 0], target[:, 0])
    hull_h = torch.max(x[:, 3], target[:, 3]) - torch.min(x[:, 1], target[:, 1])
    hull = hull_w * hull_h
    return 1 - (intersection / (union + eps) - (hull - union) / (hull + eps))


# Location scores: (boxes [P, 4], targets [P, 4], spec) -> [P] in [0, 1]


def iou_score(boxes: Tensor, targets: Tensor, _: spec.IoU) -> Tensor:
    return iou(boxes, targets)


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
    size = size * torch.exp(codes[:, 2:].clamp(max=spec.clip))
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


# One row a choice. Nothing else in the package names these functions.
CLASSIFICATION: dict[type, Callable[..., Tensor]] = {
    spec.CrossEntropy: cross_entropy,
    spec.Focal: focal,
}
REGRESSION: dict[type, Callable[..., Tensor]] = {
    spec.L1: l1,
    spec.SmoothL1: smooth_l1,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
}
SCORE: dict[type, Callable[..., Tensor]] = {spec.IoU: iou_score}
DECODE: dict[type, Callable[..., Tensor]] = {
    spec.XYXY: decode_xyxy,
    spec.Delta: decode_delta,
    spec.LTRB: decode_ltrb,
}
ENCODE: dict[type, Callable[..., Tensor]] = {
    spec.XYXY: encode_xyxy,
    spec.Delta: encode_delta,
    spec.LTRB: encode_ltrb,
}


def classification_scores(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """S_cls: the predicted probability of the true class, [P]."""
    if settings.class_score is None:
        return logits.new_ones(len(logits))
    p = logits.softmax(1) if settings.classification.softmax else logits.sigmoid()
    return p.gather(1, labels[:, None])[:, 0]


def location_scores(boxes: Tensor, targets: Tensor, priors: Tensor, settings: Settings) -> Tensor:
    """S_loc of predicted and target boxes, [P]; 0 where a box has no extent."""
    if settings.location_score is None:
        return boxes.new_ones(len(boxes))
    used = (boxes, targets, priors) if settings.coding.uses_priors else (boxes, targets)
    degenerate = torch.stack([(e <= 0) for b in used for e in extents(b)]).any(0)
    score = SCORE[type(settings.location_score)](boxes, targets, settings.location_score)
    return torch.where(degenerate, 0, score)


class Rows(NamedTuple):
    """The terms of Eq. 2 for a batch."""

    positive: Tensor  # [P] row indices
    negative: Tensor  # [N - P - ignored] row indices
    l_cls: Tensor  # [N], 0 in ignored rows
    l_loc: Tensor  # [P]
    s_cls: Tensor  # [P]
    s_loc: Tensor  # [P]


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

    boxes = DECODE[type(settings.coding)](codes, priors, settings.coding)
    if settings.regression.on_codes:
        compared = codes, ENCODE[type(settings.coding)](targets, priors, settings.coding)
    else:
        compared = boxes, targets
    l_cls = CLASSIFICATION[type(settings.classification)](
        logits[valid], labels[valid], settings.classification
    )
    return Rows(
        positive=positive,
        negative=negative,
        l_cls=l_cls.new_zeros(len(labels)).index_put((valid,), l_cls),
        l_loc=REGRESSION[type(settings.regression)](*compared, settings.regression),
        s_cls=classification_scores(logits[positive], y, settings),
        s_loc=location_scores(boxes, targets, priors, settings),
    )


def normalizer(choice: Tensor | str, samples: int, positives: int) -> Tensor | int:
    """What a sum is divided by."""
    if isinstance(choice, Tensor):
        return choice.detach()
    return {"samples": max(1, samples), "positives": max(1, positives), "sum": 1}[choice]


def weights(r: Rows, settings: Settings) -> tuple[Tensor, Tensor]:
    """w_pos [P] of Eq. 3 and w_neg [] of Eq. 4 (1 without positives)."""
    if not settings.weighted:
        return torch.ones_like(r.l_loc), r.l_loc.new_ones(())
    w_pos = settings.lam - r.s_loc * r.s_cls
    if settings.detach_weights:
        w_pos = w_pos.detach()
    w_neg = w_pos.mean() if len(w_pos) else w_pos.new_ones(())
    return w_pos, w_neg


def joint_optimization_loss(
    batch: Batch, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2, its two parts divided by their normalisers.

    Returns:
        classification, regression, w_neg (detached) and the number of positives, 0-dim each.
    """
    r = rows(batch, settings)
    w_pos, w_neg = weights(r, settings)

    l_cls, l_loc = r.l_cls, r.l_loc
    if batch.classification_weights is not None:
        l_cls = batch.classification_weights.detach() * l_cls
    if batch.regression_weights is not None:
        l_loc = batch.regression_weights.detach()[r.positive] * l_loc
    classification = (w_pos * l_cls[r.positive]).sum() + w_neg * l_cls[r.negative].sum()
    regression = (w_pos * l_loc).sum()

    positives, samples = len(r.positive), len(r.positive) + len(r.negative)
    classification = classification / normalizer(
        batch.classification_normalizer, samples, positives
    )
    regression = regression / normalizer(batch.regression_normalizer, samples, positives)
    return classification, regression, w_neg.detach(), batch.labels.new_tensor(positives)
