"""The paper's equations in plain PyTorch, differentiated by autograd: the oracle of every test.

    w_pos_i = lam - s_loc_i * s_cls_i                                        (Eq. 3)
    w_neg   = mean of w_pos_i over the positives                             (Eq. 4)
    L       = sum_pos w_pos_i (l_loc_i + l_cls_i) + w_neg sum_neg l_cls_i    (Eq. 2)

S_loc is the IoU of the predicted and the target box, S_cls the predicted probability of the true
class. Slow and readable; users get the same numbers from jolkernels.loss. The formulas of single
losses, scores and codings are in jolkernels.formulas.

Shapes: N rows (samples), C class columns, P positives; boxes are [P, 4] as x1 y1 x2 y2 in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, accumulator
from jolkernels.formulas import coding, regression, scores  # noqa: F401  fill in REFERENCE
from jolkernels.formulas.boxes import extents
from jolkernels.formulas.classification import sum_of_columns
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
    extra: Tensor  # [P], of l_loc the part that the caller gives
    counts: Tensor  # [N], what a row counts among the samples: 1, its class weight, or 0


def joint_optimization_loss(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """Eq. 2, its two parts divided by their normalisers; with groups as many losses, stacked.

    Returns:
        classification, regression, w_neg (detached), the number of positives and the part of
        extra_regression (detached), 0-dim each or [G].
    """
    if batch.groups is None:
        return one_loss(batch, call)
    losses = [one_loss(part, call) for _, part in by_group(batch, call)]
    return tuple(torch.stack(column) for column in zip(*losses, strict=True))


def one_loss(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """As joint_optimization_loss, without groups."""
    r = rows(batch, call.settings)
    w_pos, w_neg = weights(r, call.settings)

    l_cls, l_loc, extra = r.l_cls, r.l_loc, r.extra
    if batch.classification_weights is not None:
        l_cls = batch.classification_weights.detach() * l_cls
    if batch.regression_weights is not None:
        betas = batch.regression_weights.detach()[r.positive]
        l_loc, extra = betas * l_loc, betas * extra
    of_classes = (w_pos * l_cls[r.positive]).sum() + w_neg * l_cls[r.negative].sum()
    of_boxes = (w_pos * l_loc).sum()

    kind = call.classification_normalizer
    z_cls = normalizer(kind, batch.classification_normalizer, r, r.counts)
    z_loc = normalizer(call.regression_normalizer, batch.regression_normalizer, r)
    positives = batch.labels.new_tensor(len(r.positive))
    dtype = r.l_cls.dtype  # a normaliser or a weight may be wider
    parts = (of_classes / z_cls).to(dtype), (of_boxes / z_loc).to(dtype)
    of_extra = torch.zeros_like(parts[1])
    if batch.extra_regression is not None:
        of_extra = ((w_pos * extra).sum() / z_loc).to(dtype)
    return *parts, w_neg.detach(), positives, of_extra.detach()


def weights(r: Rows, settings: Settings) -> tuple[Tensor, Tensor]:
    """w_pos [P] of Eq. 3 and w_neg [] of Eq. 4 (1 without positives)."""
    if not settings.weighted:
        return torch.ones_like(r.l_loc), r.l_loc.new_ones(())
    w_pos = settings.lam - r.s_loc * r.s_cls
    if settings.detach_weights:
        w_pos = w_pos.detach()
    w_neg = w_pos.mean() if len(w_pos) else w_pos.new_ones(())
    return w_pos, w_neg


def normalizer(
    kind: str, number: Tensor | float | None, r: Rows, counts: Tensor | None = None
) -> Tensor | float:
    """What a sum is divided by; `counts` [N] is what the rows count among the samples, if not 1."""
    if isinstance(number, Tensor):
        return number.detach()
    if number is not None:
        return torch.tensor(number, dtype=torch.float64)
    positives, samples = len(r.positive), len(r.positive) + len(r.negative)
    if kind == "samples" and counts is not None:
        total = counts.sum()
        return torch.where(total > 0, total, 1)
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

    codes, boxes, encoded, targets, priors = boxes_of(batch, positive, settings)
    l_loc = codes.new_zeros(len(positive))
    for factor, term in settings.terms:
        compared = (codes, encoded) if term.on_codes else (boxes, targets)
        l_loc = l_loc + factor * REFERENCE["regression"][type(term)](*compared, term)
    extra = torch.zeros_like(l_loc)
    if batch.extra_regression is not None:
        extra = batch.extra_regression[positive].to(dtype)

    if batch.class_targets is not None:
        goal = batch.class_targets.detach()[positive].to(dtype)
    elif settings.classification.soft:
        goal = location_scores(boxes, targets, priors, spec.IoU(), settings).detach()
    else:
        goal = boxes.new_ones(len(positive))
    goals = logits.new_zeros(len(labels)).index_put((positive,), goal)
    classify = REFERENCE["classification"][type(settings.classification)]
    l_cls = classify(logits[valid], labels[valid], goals[valid], settings.classification)
    factors = None if batch.class_weights is None else batch.class_weights.detach().to(dtype)
    if settings.classification.softmax and factors is not None:
        counts = factors[labels[valid]]
        l_cls = counts * l_cls
    else:
        l_cls = sum_of_columns(l_cls, factors, settings.classification)
        counts = torch.ones_like(l_cls)

    def of_valid(values: Tensor) -> Tensor:
        return values.new_zeros(len(labels)).index_put((valid,), values)

    return Rows(
        positive=positive,
        negative=negative,
        l_cls=of_valid(l_cls),
        l_loc=l_loc + extra,
        s_cls=classification_scores(logits[positive], labels[positive], settings),
        s_loc=location_scores(boxes, targets, priors, settings.location_score, settings),
        extra=extra,
        counts=of_valid(counts),
    )


def boxes_of(
    batch: Batch, positive: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes, the boxes they decode to, encoded targets, target boxes and priors of positives.

    [P, 4] each.
    """
    dtype, y = accumulator(batch), batch.labels[positive]
    decode, encode = REFERENCE["coding"][type(settings.coding)]
    slots = batch.box_preds.to(dtype)[positive].unflatten(1, (-1, 4))  # [P, S, 4]
    codes = slots[torch.arange(len(y), device=y.device), y if slots.shape[1] > 1 else 0]
    given = batch.target_boxes[positive].to(dtype)
    priors = given if batch.priors is None else batch.priors[positive].to(dtype)
    boxes = decode(codes, priors, settings.coding)
    if settings.coded_targets:
        return codes, boxes, given, decode(given, priors, settings.coding), priors
    needed = any(term.on_codes for _, term in settings.terms)
    encoded = encode(given, priors, settings.coding) if needed else given
    return codes, boxes, encoded, given, priors


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


def by_group(batch: Batch, call: Call) -> list[tuple[Tensor, Batch]]:
    """Of each group its rows, as indices, and its part of the batch."""
    assert batch.groups is not None and call.num_groups is not None
    parts = []
    for g in range(call.num_groups):
        at = (batch.groups == g).nonzero()[:, 0]
        fields: dict[str, Tensor | float | None] = {}
        for name, tensor in batch._asdict().items():
            whole = not isinstance(tensor, Tensor) or tensor.ndim == 0
            if whole or name == "class_weights":
                fields[name] = tensor
            else:  # a normaliser of each group, or rows
                fields[name] = tensor[g if name.endswith("_normalizer") else at]
        parts.append((at, Batch(**fields | {"groups": None})))  # type: ignore[arg-type]
    return parts


def per_sample(batch: Batch, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """location_score, class_score, weight, classification and regression of each row, [N]."""
    if batch.groups is not None:
        parts = by_group(batch, call)
        numbers = [torch.stack(per_sample(part, call)) for _, part in parts]
        of_rows = numbers[0].new_zeros(5, len(batch.labels))
        for (at, _), values in zip(parts, numbers, strict=True):
            of_rows[:, at] = values
        return of_rows.unbind()  # type: ignore[return-value]
    r = rows(batch, call.settings)
    w_pos, w_neg = weights(r, call.settings)

    def of_positives(values: Tensor) -> Tensor:
        return torch.zeros_like(r.l_cls).index_put_((r.positive,), values)

    weight = of_positives(w_pos).index_put_((r.negative,), w_neg)
    return of_positives(r.s_loc), of_positives(r.s_cls), weight, r.l_cls, of_positives(r.l_loc)
