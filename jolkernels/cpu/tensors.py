"""The loss and its gradient in tensor operations: where neither Triton nor C runs."""

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, Forward, accumulator
from jolkernels.cpu import gradients
from jolkernels.cpu.closed_form import Gradient, Rowwise
from jolkernels.cpu.sums import Sums, finish
from jolkernels.registry import REFERENCE
from jolkernels.settings import Call, Settings


class Positives:
    """What the positive rows of a batch contribute: [P] values, [P, 4] gradients for the codes."""

    def __init__(self, batch: Batch, settings: Settings) -> None:
        dtype, columns = accumulator(batch), batch.logits.shape[1]
        background = settings.background_label(columns)
        last = settings.last_label(columns)
        counted = batch.labels != settings.ignore_index
        self.valid = counted & (batch.labels >= 0) & (batch.labels <= last)
        self.bad = int(counted.sum()) - int(self.valid.sum())
        self.labels = torch.where(self.valid, batch.labels, background)
        is_positive = self.labels != background
        self.negative = self.valid ^ is_positive
        self.rows = is_positive.nonzero()[:, 0]
        self.y = batch.labels[self.rows]
        self.slot = self.y if batch.box_preds.shape[1] > 4 else torch.zeros_like(self.y)

        slots = batch.box_preds.unflatten(1, (-1, 4))
        codes = slots[self.rows, self.slot].to(dtype)
        targets = batch.target_boxes[self.rows].to(dtype)
        priors = targets if batch.priors is None else batch.priors[self.rows].to(dtype)
        boxes, self.pullback = gradients.decode(codes, priors, settings.coding)

        if settings.regression.on_codes:
            _, encode = REFERENCE["coding"][type(settings.coding)]
            encoded = encode(targets, priors, settings.coding)
            self.l_loc, self.l_loc_grad = gradients.regression(codes, encoded, settings.regression)
        else:
            self.l_loc, l_loc_grad = gradients.regression(boxes, targets, settings.regression)
            self.l_loc_grad = lambda: self.pullback(l_loc_grad())

        used = (boxes, targets, priors)[: 3 if settings.coding.uses_priors else 2]
        self.boxes, self.targets = boxes, targets
        self.alive = ~torch.cat([b[:, 2:] <= b[:, :2] for b in used], 1).any(1)
        self.s_loc, self.s_loc_grad = torch.ones_like(self.l_loc), lambda: torch.zeros_like(codes)
        if settings.location_score is not None and settings.weighted:
            self.s_loc, gradient = self.score(settings.location_score)
            self.s_loc_grad = lambda: self.pullback(gradient())

    def score(self, choice: spec.Score) -> tuple[Tensor, Gradient]:
        """A location score [P] and its gradient for the boxes, 0 where one has no extent."""
        return gradients.score(self.boxes, self.targets, self.alive, choice)

    def classification(self, logits: Tensor, settings: Settings) -> Rowwise:
        """Losses of all rows [N] and their gradient; ignored rows count as background."""
        quality = logits.new_zeros(0)
        if settings.classification.soft:
            quality = logits.new_zeros(len(logits))
            quality[self.rows] = self.score(spec.IoU())[0]
        return gradients.classification(logits, self.labels, quality, settings.classification)

    def s_cls(self, logits: Tensor, l_cls: Tensor, settings: Settings) -> Tensor:
        """The predicted probability of the true class, [P]; l_cls [N] are the rows' losses."""
        if settings.class_score is None or not settings.weighted:
            return torch.ones_like(self.s_loc)
        if settings.classification.softmax:
            return torch.exp(-l_cls[self.rows])
        return logits[self.rows, self.y].sigmoid()


def forward(batch: Batch, call: Call) -> Forward:
    """Both losses, and for `backward` the rows' classification losses and five scalars."""
    settings = call.settings
    p = Positives(batch, settings)
    logits = batch.logits.to(accumulator(batch))
    l_cls = p.classification(logits, settings)[0]()
    w_pos = torch.ones_like(p.l_loc)
    if settings.weighted:
        w_pos = settings.lam - p.s_loc * p.s_cls(logits, l_cls, settings)

    weighted_cls, weighted_loc = l_cls, w_pos * p.l_loc
    if batch.classification_weights is not None:
        weighted_cls = l_cls * batch.classification_weights
    if batch.regression_weights is not None:
        weighted_loc = weighted_loc * batch.regression_weights[p.rows]
    local = Sums(
        positives=len(p.rows),
        samples=int(p.valid.sum()),
        weights=float(w_pos.sum()),
        a_pos=float((w_pos * weighted_cls[p.rows]).sum()),
        a_neg=float(torch.where(p.negative, weighted_cls, 0).sum()),
        r=float(weighted_loc.sum()),
        bad=p.bad,
    )
    return finish(local, l_cls.repeat(settings.kept, 1), batch, call)


def backward(
    batch: Batch,
    settings: Settings,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for logits [N, C] and box_preds [N, 4S], each None where `needs` is False."""
    p = Positives(batch, settings)
    logits = batch.logits.to(accumulator(batch))
    upstream = torch.stack((grad_classification, grad_regression))
    upstream = torch.where(upstream == 0, 0, upstream * scalars[2:4])  # not 0 * inf
    w_neg, mean_neg, g_cls, g_loc = torch.cat((scalars[:2], upstream)).to(logits.dtype).unbind()

    l_cls = rows[0]
    alpha = torch.ones_like(l_cls)
    if batch.classification_weights is not None:
        alpha = batch.classification_weights.to(alpha)
    beta = torch.ones_like(p.l_loc)
    if batch.regression_weights is not None:
        beta = batch.regression_weights[p.rows].to(beta)

    s_cls = p.s_cls(logits, l_cls, settings)
    w_pos = settings.lam - p.s_loc * s_cls if settings.weighted else torch.ones_like(p.s_loc)
    d_w = torch.zeros_like(w_pos)  # dL/dw_pos, [P]
    if settings.weights_have_gradient:
        d_w = g_cls * (alpha[p.rows] * l_cls[p.rows] + mean_neg) + g_loc * beta * p.l_loc

    grad_logits = grad_boxes = None
    if needs[0]:
        row_scale = torch.where(p.valid, g_cls * alpha * w_neg, 0)
        row_scale[p.rows] = g_cls * alpha[p.rows] * w_pos
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
    return grad_logits, grad_boxes


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
