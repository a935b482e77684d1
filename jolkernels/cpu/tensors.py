"""The loss and its gradient in tensor operations: where neither Triton nor C runs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, Forward, accumulator, check_labels
from jolkernels.cpu import gradients
from jolkernels.cpu.closed_form import Gradient, Rowwise
from jolkernels.cpu.sums import Sums, finish
from jolkernels.registry import REFERENCE
from jolkernels.settings import Call, Settings

CHUNK = 4096  # numbers of a sum that are added first: ATen adds so few in one thread


class Positives:
    """What the positive rows of a batch contribute: [P] values, [P, 4] gradients for the codes."""

    def __init__(self, batch: Batch, call: Call) -> None:
        settings, dtype, columns = call.settings, accumulator(batch), batch.logits.shape[1]
        background = settings.background_label(columns)
        last = settings.last_label(columns)
        counted = batch.labels != settings.ignore_index
        self.valid = counted & (batch.labels >= 0) & (batch.labels <= last)
        if batch.groups is not None and call.num_groups is not None:
            self.valid &= (batch.groups >= 0) & (batch.groups < call.num_groups)
        self.bad = int(counted.sum()) - int(self.valid.sum())
        self.labels = torch.where(self.valid, batch.labels, background)
        is_positive = self.labels != background
        self.negative = self.valid ^ is_positive
        self.rows = is_positive.nonzero()[:, 0]
        self.y = batch.labels[self.rows]
        self.slot = self.y if batch.box_preds.shape[1] > 4 else torch.zeros_like(self.y)
        self.class_targets = batch.class_targets
        self.class_weights = batch.class_weights
        if batch.class_weights is not None:
            self.class_weights = batch.class_weights.to(dtype)

        slots = batch.box_preds.unflatten(1, (-1, 4))
        codes = slots[self.rows, self.slot].to(dtype)
        given = batch.target_boxes[self.rows].to(dtype)
        priors = given if batch.priors is None else batch.priors[self.rows].to(dtype)
        boxes, self.pullback = gradients.decode(codes, priors, settings.coding)
        decode, encode = REFERENCE["coding"][type(settings.coding)]
        targets = encoded = given
        if settings.coded_targets:
            targets = decode(given, priors, settings.coding)
        elif any(term.on_codes for _, term in settings.terms):
            encoded = encode(given, priors, settings.coding)
        self.boxes, self.targets = boxes, targets

        self.l_loc, self.l_loc_parts = torch.zeros_like(codes[:, 0]), []
        for factor, term in settings.terms:
            x, target = (codes, encoded) if term.on_codes else (boxes, targets)
            loss, gradient = gradients.regression(x, target, term)
            self.l_loc = self.l_loc + factor * loss
            self.l_loc_parts.append((factor, term.on_codes, gradient))
        self.extra = None
        if batch.extra_regression is not None:
            self.extra = batch.extra_regression[self.rows].to(dtype)
            self.l_loc = self.l_loc + self.extra

        used = (boxes, targets, priors)[: 3 if settings.coding.uses_priors else 2]
        self.alive = ~torch.cat([b[:, 2:] <= b[:, :2] for b in used], 1).any(1)
        self.s_loc, self.s_loc_grad = torch.ones_like(self.l_loc), lambda: torch.zeros_like(codes)
        if settings.location_score is not None and settings.weighted:
            self.s_loc, gradient = self.score(settings.location_score)
            self.s_loc_grad = lambda: self.pullback(gradient())

    def l_loc_grad(self) -> Tensor:
        """The box losses' gradient for the codes, [P, 4]."""
        parts = []
        for factor, on_codes, gradient in self.l_loc_parts:
            g = gradient() if on_codes else self.pullback(gradient())
            parts.append(g if factor == 1 else factor * g)
        return sum(parts[1:], parts[0])

    def score(self, choice: spec.Score) -> tuple[Tensor, Gradient]:
        """A location score [P] and its gradient for the boxes, 0 where one has no extent."""
        return gradients.score(self.boxes, self.targets, self.alive, choice)

    def classification(self, logits: Tensor, settings: Settings) -> Rowwise:
        """Losses of all rows [N] and their gradient; ignored rows count as background.

        Class weights are in them with the sigmoid losses; see `factors` for cross entropy.
        """
        goal = logits.new_zeros(len(logits))
        if self.class_targets is not None:
            goal[self.rows] = self.class_targets[self.rows].to(goal.dtype)
        elif settings.classification.soft:
            goal[self.rows] = self.score(spec.IoU())[0]
        elif not settings.classification.softmax:
            goal[self.rows] = 1
        return gradients.classification(
            logits,
            self.labels,
            goal,
            settings.classification,
            None if settings.classification.softmax else self.class_weights,
        )

    def factors(self, alphas: Tensor | None, settings: Settings) -> Tensor | None:
        """What the rows' classification losses are multiplied by, [N]; None: by 1."""
        if self.class_weights is None or not settings.classification.softmax:
            return alphas
        of_labels = self.class_weights[self.labels]
        return of_labels if alphas is None else of_labels * alphas

    def s_cls(self, logits: Tensor, l_cls: Tensor, settings: Settings) -> Tensor:
        """The predicted probability of the true class, [P]; l_cls [N] are the rows' losses."""
        if settings.class_score is None or not settings.weighted:
            return torch.ones_like(self.s_loc)
        if settings.classification.softmax:
            return torch.exp(-l_cls[self.rows])
        return logits[self.rows, self.y].sigmoid()


def forward(batch: Batch, call: Call) -> Forward:
    """The results, and for `backward` the rows' classification losses and the scalars."""
    settings = call.settings
    p = Positives(batch, call)
    logits = batch.logits.to(accumulator(batch))
    l_cls = p.classification(logits, settings)[0]()
    w_pos = torch.ones_like(p.l_loc)
    if settings.weighted:
        w_pos = settings.lam - p.s_loc * p.s_cls(logits, l_cls, settings)

    alphas = p.factors(batch.classification_weights, settings)
    weighted_cls = l_cls if alphas is None else l_cls * alphas
    weighted_loc, weighted_extra = w_pos * p.l_loc, None if p.extra is None else w_pos * p.extra
    if batch.regression_weights is not None:
        betas = batch.regression_weights[p.rows]
        weighted_loc = weighted_loc * betas
        weighted_extra = None if weighted_extra is None else weighted_extra * betas
    counts = p.factors(None, settings)

    def sums(positive: Tensor | None, valid: Tensor) -> Sums:
        """Of the rows of a group: those of the positives [P] (None: all), of the valid ones [N]."""

        def of_positives(values: Tensor) -> float:
            return total(values if positive is None else torch.where(positive, values, 0))

        samples = int(valid.sum())
        return Sums(
            positives=len(w_pos) if positive is None else int(positive.sum()),
            samples=samples,
            weights=of_positives(w_pos),
            a_pos=of_positives(w_pos * weighted_cls[p.rows]),
            a_neg=total(torch.where(p.negative & valid, weighted_cls, 0)),
            r=of_positives(weighted_loc),
            bad=p.bad,
            counts=samples if counts is None else total(torch.where(valid, counts, 0)),
            extra=0 if weighted_extra is None else of_positives(weighted_extra),
        )

    if batch.groups is None or call.num_groups is None:
        local = [sums(None, p.valid)]
    else:
        members = [batch.groups == g for g in range(call.num_groups)]
        local = [sums(m[p.rows], m & p.valid) for m in members]
    return finish(local, l_cls.repeat(settings.kept, 1), batch, call)


def total(values: Tensor) -> float:
    """The sum of [N] numbers, in an order that the number of threads does not change."""
    while len(values) > 1:
        values = F.pad(values, (0, -len(values) % CHUNK)).view(-1, CHUNK).sum(1)
    return float(values.sum())


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for logits, box_preds and extra_regression, each None where `needs` is False."""
    settings = call.settings
    p = Positives(batch, call)
    if p.bad and batch.labels.device.type == "cpu":
        check_labels(batch, call)
    logits = batch.logits.to(accumulator(batch))
    upstream = torch.stack((grad_classification, grad_regression), -1)
    upstream = torch.where(upstream == 0, 0, upstream * scalars[..., 2:4])  # not 0 * inf
    terms = torch.cat((scalars[..., :2], upstream), -1).to(logits.dtype)  # [4] or [G, 4]
    if batch.groups is not None:
        terms = terms[torch.where(p.valid, batch.groups, 0)]  # [N, 4]
    w_neg, _, g_cls, _ = terms.unbind(-1)
    _, mean_neg, g_cls_pos, g_loc = (terms if terms.ndim == 1 else terms[p.rows]).unbind(-1)

    l_cls = rows[0]
    alpha = torch.ones_like(l_cls)
    if (alphas := p.factors(batch.classification_weights, settings)) is not None:
        alpha = alphas.to(alpha)
    beta = torch.ones_like(p.l_loc)
    if batch.regression_weights is not None:
        beta = batch.regression_weights[p.rows].to(beta)

    s_cls = p.s_cls(logits, l_cls, settings)
    w_pos = settings.lam - p.s_loc * s_cls if settings.weighted else torch.ones_like(p.s_loc)
    d_w = torch.zeros_like(w_pos)  # dL/dw_pos, [P]
    if settings.weights_have_gradient:
        d_w = g_cls_pos * (alpha[p.rows] * l_cls[p.rows] + mean_neg) + g_loc * beta * p.l_loc

    grad_logits = grad_boxes = grad_extra = None
    if needs[0]:
        row_scale = torch.where(p.valid, g_cls * alpha * w_neg, 0)
        row_scale[p.rows] = g_cls_pos * alpha[p.rows] * w_pos
        d_s = d_w * p.s_loc * s_cls if settings.class_score else torch.zeros_like(d_w)
        grad_logits = logits_gradient(logits, p, settings, row_scale, d_s, s_cls)
        grad_logits = grad_logits.to(batch.logits.dtype)
    if needs[1]:
        d_codes = (g_loc * beta * w_pos)[:, None] * p.l_loc_grad()
        if settings.weights_have_gradient:
            d_codes -= (d_w * s_cls)[:, None] * p.s_loc_grad()
        grad_boxes = torch.zeros_like(batch.box_preds, memory_format=torch.contiguous_format)
        slots = grad_boxes.unflatten(1, (-1, 4))
        slots[p.rows, p.slot] = d_codes.to(grad_boxes.dtype)
    if needs[2] and batch.extra_regression is not None:
        grad_extra = torch.zeros_like(batch.extra_regression, memory_format=torch.contiguous_format)
        grad_extra[p.rows] = (g_loc * beta * w_pos).to(grad_extra.dtype)
    if p.bad or scalars.view(-1)[4].isnan():  # not on a CPU, where this is an error
        for g in (grad_logits, grad_boxes, grad_extra):
            if g is not None:
                g.fill_(torch.nan)
    return grad_logits, grad_boxes, grad_extra


def logits_gradient(
    logits: Tensor,
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
    g = p.classification(logits, settings)[1]()
    g *= row_scale[:, None]
    if not settings.classification.softmax:
        g[p.rows, p.y] -= d_s * (1 - s_cls)
    if not p.valid.all():
        g.masked_fill_(~p.valid[:, None], 0)  # an ignored row may hold NaN
    return g
