"""The loss and its gradient in closed form, in tensor operations: where no Triton kernel runs.

Same interface as jolkernels.kernels: `forward` gives the results and what `backward` needs beside
the inputs, `backward` the two gradients. docs/mathematics.md has the derivation.

Every box function returns its value and a function that gives its gradient when it is asked for:
[P, 4] for losses and scores (with respect to x1 y1 x2 y2 or the codes), and for a decoder the
pullback from the box's gradient to that of its codes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import reference, spec
from jolkernels.spec import Batch, Forward, Settings, accumulator

Gradient = Callable[[], Tensor]
Pullback = Callable[[Tensor], Tensor]


def l1(x: Tensor, target: Tensor, _: spec.L1) -> tuple[Tensor, Gradient]:
    d = x - target
    return d.abs().sum(1), d.sign


def smooth_l1(x: Tensor, target: Tensor, spec: spec.SmoothL1) -> tuple[Tensor, Gradient]:
    loss = F.smooth_l1_loss(x, target, beta=spec.beta, reduction="none").sum(1)
    if spec.beta == 0:
        return loss, (x - target).sign
    return loss, lambda: ((x - target) / spec.beta).clamp(-1, 1)


class Overlap:
    """Intersection, union and hull of boxes x and targets t, [P], and their gradients, [P, 4]."""

    def __init__(self, x: Tensor, t: Tensor) -> None:
        self.x, self.t = x, t
        self.low, self.high = torch.max(x[:, :2], t[:, :2]), torch.min(x[:, 2:], t[:, 2:])
        sides = self.high - self.low
        self.sides = sides * (sides > 0).all(1, keepdim=True)
        self.intersection = self.sides.prod(1)
        self.size = x[:, 2:] - x[:, :2]
        self.union = self.size.prod(1) + (t[:, 2:] - t[:, :2]).prod(1) - self.intersection

    def hull_sides(self) -> Tensor:
        x, t = self.x, self.t
        return torch.max(x[:, 2:], t[:, 2:]) - torch.min(x[:, :2], t[:, :2])

    def inner(self) -> Tensor:
        """1 for each side of x that bounds the intersection, 1/2 at a tie; the hull 1 minus it."""
        d = self.x - self.t
        return torch.cat((d[:, :2], -d[:, 2:]), 1).sign_().add_(1).mul_(0.5)

    def intersection_and_union_grad(self) -> tuple[Tensor, Tensor]:
        inner = self.inner()
        d_intersection = product_grad(self.sides) * inner
        return d_intersection, product_grad(self.size) - d_intersection


def product_grad(sides: Tensor) -> Tensor:
    """Gradient of w * h with respect to x1 y1 x2 y2, for w = x2 - x1 and h = y2 - y1."""
    w, h = sides[:, :1], sides[:, 1:]
    return torch.cat((-h, -w, h, w), 1)


def iou(x: Tensor, target: Tensor) -> tuple[Tensor, Gradient]:
    o = Overlap(x, target)
    empty = o.union <= 0
    union = torch.where(empty, 1, o.union)
    value = torch.where(empty, 0, o.intersection / union)

    def gradient() -> Tensor:
        d_intersection, d_union = o.intersection_and_union_grad()
        g = (d_intersection - value[:, None] * d_union) / union[:, None]
        return torch.where(empty[:, None], 0, g)

    return value, gradient


def iou_score(x: Tensor, target: Tensor, _: spec.IoU) -> tuple[Tensor, Gradient]:
    return iou(x, target)


def iou_loss(x: Tensor, target: Tensor, _: spec.IoU) -> tuple[Tensor, Gradient]:
    value, gradient = iou(x, target)
    return 1 - value, lambda: gradient().neg_()


def giou_loss(
    x: Tensor, target: Tensor, _: spec.GIoU, eps: float = 1e-7
) -> tuple[Tensor, Gradient]:
    o = Overlap(x, target)
    union, hull_sides = o.union + eps, o.hull_sides()
    hull = hull_sides.prod(1)
    iou, gap = o.intersection / union, (hull - o.union) / (hull + eps)

    def gradient() -> Tensor:
        d_intersection, d_union = o.intersection_and_union_grad()
        d_hull = product_grad(hull_sides) * (1 - o.inner())
        d_iou = (d_intersection - iou[:, None] * d_union) / union[:, None]
        d_gap = (d_hull - d_union - gap[:, None] * d_hull) / (hull + eps)[:, None]
        return d_gap - d_iou

    return 1 - iou + gap, gradient


def decode_xyxy(codes: Tensor, _: Tensor, __: spec.XYXY) -> tuple[Tensor, Pullback]:
    return codes, lambda g: g


def decode_delta(codes: Tensor, priors: Tensor, spec: spec.Delta) -> tuple[Tensor, Pullback]:
    center, size = reference.center_and_size(priors)
    coder_weights = codes.new_tensor(spec.weights)
    codes = codes / coder_weights
    center = center + codes[:, :2] * size
    new_size = size * torch.exp(codes[:, 2:].clamp(max=spec.clip))

    def pullback(g: Tensor) -> Tensor:
        low, high = g[:, :2], g[:, 2:]
        d_size = torch.where(codes[:, 2:] <= spec.clip, 0.5 * (high - low) * new_size, 0)
        return torch.cat(((low + high) * size, d_size), 1) / coder_weights

    return torch.cat((center - 0.5 * new_size, center + 0.5 * new_size), 1), pullback


def decode_ltrb(codes: Tensor, priors: Tensor, spec: spec.LTRB) -> tuple[Tensor, Pullback]:
    size = priors[:, 2:] - priors[:, :2]
    scale = torch.cat((-size, size), 1)
    return reference.decode_ltrb(codes, priors, spec), lambda g: g * scale


REGRESSION: dict[type, Callable[..., tuple[Tensor, Gradient]]] = {
    spec.L1: l1,
    spec.SmoothL1: smooth_l1,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
}
SCORE: dict[type, Callable[..., tuple[Tensor, Gradient]]] = {spec.IoU: iou_score}
DECODE: dict[type, Callable[..., tuple[Tensor, Pullback]]] = {
    spec.XYXY: decode_xyxy,
    spec.Delta: decode_delta,
    spec.LTRB: decode_ltrb,
}


def cross_entropy(
    logits: Tensor, labels: Tensor, _: Tensor, __: spec.CrossEntropy
) -> tuple[Tensor, Gradient]:
    """Losses [N] of rows whose labels are columns, and their gradient [N, C]."""
    lse = logits.logsumexp(1)
    lse = torch.where(lse == torch.inf, torch.nan, lse)  # as F.cross_entropy with a logit of +inf

    def gradient() -> Tensor:
        g = logits.softmax(1)
        rows = torch.arange(len(labels), device=labels.device)
        g[rows, labels] -= 1
        return g

    return lse - logits.gather(1, labels[:, None])[:, 0], gradient


def focal(
    logits: Tensor, labels: Tensor, positive: Tensor, spec: spec.Focal
) -> tuple[Tensor, Gradient]:
    """Losses [N] of rows, and their gradient [N, C]; `positive` are the rows with a true class.

    With u = -z in the column of the true class and z in the others, the loss of a column is
    alpha_t sigmoid(u)^gamma softplus(u), without cancellation at either end.
    """
    cells = positive, labels[positive]

    def fill(true_class: float, others: float) -> Tensor:
        x = torch.full_like(logits, others)
        x[cells] = true_class
        return x

    u = logits.clone()
    u[cells] = u[cells].neg()
    alpha, p, ce = fill(spec.alpha, 1 - spec.alpha), u.sigmoid(), F.softplus(u)
    modulated = alpha * p**spec.gamma

    def gradient() -> Tensor:
        return modulated * (p + spec.gamma * ce * u.neg().sigmoid()) * fill(-1, 1)

    return (modulated * ce).sum(1), gradient


CLASSIFICATION: dict[type, Callable[..., tuple[Tensor, Gradient]]] = {
    spec.CrossEntropy: cross_entropy,
    spec.Focal: focal,
}


class Positives:
    """What the positive rows of a batch contribute: [P] values, [P, 4] gradients for the codes."""

    def __init__(self, batch: Batch, settings: Settings) -> None:
        dtype, columns = accumulator(batch), batch.logits.shape[1]
        self.valid = batch.labels != settings.ignore_index
        is_positive = self.valid & (batch.labels != settings.background_label(columns))
        self.negative = self.valid ^ is_positive
        self.rows = is_positive.nonzero()[:, 0]
        self.y = batch.labels[self.rows]
        self.slot = self.y if batch.box_preds.shape[1] > 4 else torch.zeros_like(self.y)

        slots = batch.box_preds.unflatten(1, (-1, 4))
        codes = slots[self.rows, self.slot].to(dtype)
        targets = batch.target_boxes[self.rows].to(dtype)
        priors = targets if batch.priors is None else batch.priors[self.rows].to(dtype)
        boxes, self.pullback = DECODE[type(settings.coding)](codes, priors, settings.coding)

        regression = REGRESSION[type(settings.regression)]
        if settings.regression.on_codes:
            encoded = reference.ENCODE[type(settings.coding)](targets, priors, settings.coding)
            self.l_loc, self.l_loc_grad = regression(codes, encoded, settings.regression)
        else:
            self.l_loc, l_loc_grad = regression(boxes, targets, settings.regression)
            self.l_loc_grad = lambda: self.pullback(l_loc_grad())

        if settings.location_score is None or not settings.weighted:
            self.s_loc = torch.ones_like(self.l_loc)
            self.s_loc_grad: Gradient = lambda: torch.zeros_like(codes)
        else:
            used = (boxes, targets, priors)[: 3 if settings.coding.uses_priors else 2]
            alive = ~torch.cat([b[:, 2:] <= b[:, :2] for b in used], 1).any(1)
            score = SCORE[type(settings.location_score)]
            s_loc, s_loc_grad = score(boxes, targets, settings.location_score)
            self.s_loc = torch.where(alive, s_loc, 0)
            self.s_loc_grad = lambda: self.pullback(torch.where(alive[:, None], s_loc_grad(), 0))

    def s_cls(self, logits: Tensor, settings: Settings) -> Tensor:
        """The predicted probability of the true class, [P]."""
        if settings.class_score is None or not settings.weighted:
            return torch.ones_like(self.s_loc)
        return reference.classification_scores(logits[self.rows], self.y, settings)


def forward(batch: Batch, settings: Settings) -> Forward:
    """Both losses, and for `backward` the rows' classification losses [N] and the scalars."""
    p = Positives(batch, settings)
    logits = batch.logits.to(accumulator(batch))
    labels = torch.where(p.valid, batch.labels, 0)
    l_cls = CLASSIFICATION[type(settings.classification)](
        logits, labels, p.rows, settings.classification
    )[0]

    samples, positives = int(p.valid.sum()), len(p.rows)
    if settings.weighted:
        w_pos = settings.lam - p.s_loc * p.s_cls(logits, settings)
        w_neg = w_pos.mean() if positives else l_cls.new_ones(())
    else:
        w_pos, w_neg = torch.ones_like(p.l_loc), l_cls.new_ones(())

    weighted_cls, weighted_loc = l_cls, w_pos * p.l_loc
    if batch.classification_weights is not None:
        weighted_cls = l_cls * batch.classification_weights
    if batch.regression_weights is not None:
        weighted_loc = weighted_loc * batch.regression_weights[p.rows]
    negatives = torch.where(p.negative, weighted_cls, 0).sum()

    inv_z_cls = inverse(batch.classification_normalizer, samples, positives, l_cls)
    inv_z_loc = inverse(batch.regression_normalizer, samples, positives, l_cls)
    classification = (w_pos * weighted_cls[p.rows]).sum() + w_neg * negatives
    return Forward(
        classification=classification * inv_z_cls,
        regression=weighted_loc.sum() * inv_z_loc,
        negative_weight=w_neg,
        num_positives=batch.labels.new_tensor(positives),
        rows=l_cls,
        scalars=torch.stack((w_neg, negatives / max(1, positives), inv_z_cls, inv_z_loc)),
    )


def inverse(choice: Tensor | str, samples: int, positives: int, like: Tensor) -> Tensor:
    """One over a normaliser, 0-dim."""
    if isinstance(choice, Tensor):
        return 1 / choice.to(like)
    named = {"samples": max(1, samples), "positives": max(1, positives), "sum": 1}
    return like.new_tensor(1 / named[choice])


def backward(
    batch: Batch,
    settings: Settings,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for logits [N, C] and box_preds [N, 4S], each where `needs` asks for it."""
    p = Positives(batch, settings)
    logits = batch.logits.to(accumulator(batch))
    w_neg, mean_neg, inv_z_cls, inv_z_loc = scalars.unbind()
    g_cls, g_loc = grad_classification * inv_z_cls, grad_regression * inv_z_loc

    alpha = torch.ones_like(rows)
    if batch.classification_weights is not None:
        alpha = batch.classification_weights.to(alpha)
    beta = torch.ones_like(p.l_loc)
    if batch.regression_weights is not None:
        beta = batch.regression_weights[p.rows].to(beta)

    s_cls = p.s_cls(logits, settings)
    w_pos = settings.lam - p.s_loc * s_cls if settings.weighted else torch.ones_like(p.s_loc)
    d_w = torch.zeros_like(w_pos)  # dL/dw_pos, [P]
    if settings.weights_have_gradient:
        d_w = g_cls * (alpha[p.rows] * rows[p.rows] + mean_neg) + g_loc * beta * p.l_loc

    grad_logits = grad_boxes = None
    if needs[0]:
        row_scale = torch.where(p.valid, g_cls * alpha * w_neg, 0)
        row_scale[p.rows] = g_cls * alpha[p.rows] * w_pos
        d_s = d_w * p.s_loc * s_cls if settings.class_score else torch.zeros_like(d_w)
        grad_logits = logits_gradient(logits, batch.labels, p, settings, row_scale, d_s, s_cls)
        grad_logits = grad_logits.to(batch.logits.dtype)
    if needs[1]:
        d_codes = (g_loc * beta * w_pos)[:, None] * p.l_loc_grad()
        if settings.weights_have_gradient:
            d_codes -= (d_w * s_cls)[:, None] * p.s_loc_grad()
        grad_boxes = torch.zeros_like(batch.box_preds, memory_format=torch.contiguous_format)
        slots = grad_boxes.unflatten(1, (-1, 4))
        slots[p.rows, p.slot] = d_codes.to(grad_boxes.dtype)
    return grad_logits, grad_boxes


def logits_gradient(
    logits: Tensor,
    labels: Tensor,
    p: Positives,
    settings: Settings,
    row_scale: Tensor,
    d_s: Tensor,
    s_cls: Tensor,
) -> Tensor:
    """The rows' loss gradients times `row_scale` [N], and the class scores' part of the weights.

    d_s [P] is dL/dw_pos * s_loc * s_cls. With softmax it folds into the row's scale; with sigmoid
    it falls on the true class alone.
    """
    if settings.classification.softmax:
        row_scale = row_scale.index_add(0, p.rows, d_s)
    g = CLASSIFICATION[type(settings.classification)](
        logits, torch.where(p.valid, labels, 0), p.rows, settings.classification
    )[1]()
    g *= row_scale[:, None]
    if not settings.classification.softmax:
        g[p.rows, p.y] -= d_s * (1 - s_cls)
    return g.masked_fill_(~p.valid[:, None], 0)  # an ignored row may hold NaN
