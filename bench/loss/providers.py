"""What people would use: our loss, the paper's equations in PyTorch, and the losses it replaces.

A provider is made for a case and then maps its Inputs to a 0-dim loss. All of them see the same
tensors and do their arithmetic in float32, as autocast has these losses do it. Base losses are
handed the encoded targets; the others, which need boxes too, encode in passing.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from bench.loss.cases import Case, Head, Name
from bench.loss.inputs import Coder, Inputs, make_criterion
from jolkernels import reference
from jolkernels.batch import make_batch

Loss = Callable[[Any], Tensor]
"""Of Inputs, or of another batch of bench.loss.measure."""
LAM = 2.0
ALPHA, GAMMA, BETA = 0.25, 2.0, 1 / 9


def classification(head: Head, logits: Tensor, labels: Tensor, one_hot: Tensor | None) -> Tensor:
    """A row's classification loss, [N]; one_hot [N, C] for focal heads."""
    if head.classification == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none")
    return sigmoid_focal_loss(logits, one_hot, ALPHA, GAMMA).sum(1)


def hot(head: Head, logits: Tensor, at: Tensor, y: Tensor) -> Tensor | None:
    """1 where rows `at` have their classes y, as torchvision's heads write it."""
    if head.classification == "cross_entropy":
        return None
    one_hot = torch.zeros_like(logits)
    one_hot[at, y] = 1.0
    return one_hot


def probability(head: Head, z: Tensor, y: Tensor, l_cls: Tensor) -> Tensor:
    """S_cls, [P]: of cross entropy exp(-loss), which spares a second softmax."""
    if head.classification == "cross_entropy":
        return torch.exp(-l_cls)
    return z.gather(1, y[:, None])[:, 0].sigmoid()


def regression(head: Head, codes: Tensor, decoded: Tensor, wanted: Tensor, boxes: Tensor) -> Tensor:
    """A row's box loss, [P]: of codes against `wanted`, or of decoded boxes against `boxes`."""
    if head.regression == "giou":
        return generalized_box_iou_loss(decoded, boxes)
    if head.regression == "l1":
        return F.l1_loss(codes, wanted, reduction="none").sum(1)
    return F.smooth_l1_loss(codes, wanted, reduction="none", beta=BETA).sum(1)


def iou(a: Tensor, b: Tensor, *, clamped: bool = True) -> Tensor:
    """IoU of pairs, [P]; not clamped, two boxes apart in both axes overlap."""
    sides = torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])
    overlap = (sides.clamp(min=0) if clamped else sides).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (areas - overlap)


def slot(head: Head, boxes: Tensor, labels: Tensor) -> Tensor:
    """The true class's box, [P, 4]."""
    if not head.class_specific:
        return boxes
    return boxes.unflatten(1, (-1, 4))[torch.arange(len(labels), device=labels.device), labels]


def widened(x: Inputs) -> tuple[Tensor, Tensor]:
    """Logits and boxes in the arithmetic's dtype."""
    dtype = torch.promote_types(x.logits.dtype, torch.float32)
    return x.logits.to(dtype), x.boxes.to(dtype)


def divisor(head: Head, rows: int, positives: Any) -> Any:
    """What both sums are divided by."""
    return rows if head.normalizer == "samples" else positives


def stated(weighting: str, case: Case) -> Loss:
    """jolkernels.reference, slow and plain: what the providers have to agree with."""
    settings = make_criterion(case.head, weighting).settings
    sums = (case.head.normalizer, case.head.normalizer)

    def loss(x: Inputs) -> Tensor:
        batch, call = make_batch(
            settings, x.logits, x.boxes, x.labels, x.targets, x.priors, None, None, *sums
        )
        classification, regression, *_ = reference.joint_optimization_loss(batch, call)
        return classification + regression

    return loss


def fused(weighting: str, case: Case) -> Loss:
    """The library, with JOL or, weighting "none", the base loss."""
    head = case.head
    criterion = make_criterion(head, weighting)
    sums = (head.normalizer, head.normalizer)

    def loss(x: Inputs) -> Tensor:
        return criterion(x.logits, x.boxes, x.labels, x.targets, x.priors, None, None, *sums).total

    return loss


class Positives(NamedTuple):
    """What weights are made of: rows [P] of the positives, and their classification loss."""

    logits: Tensor
    boxes: Tensor
    y: Tensor
    target: Tensor
    prior: Tensor
    decoded: Tensor
    l_cls: Tensor


def indexed(case: Case, weights: Callable[[Positives], tuple[Tensor, Any]]) -> Loss:
    """Eq. 2 with the indices of positives and negatives; weights: positives → w_pos [P], w_neg."""
    head, background = case.head, case.head.background_label(case.columns)
    coding = Coder(head)

    def loss(x: Inputs) -> Tensor:
        logits, boxes = widened(x)
        at = (x.labels != background).nonzero()[:, 0]
        rest = (x.labels == background).nonzero()[:, 0]
        y, target, prior = x.labels[at], x.targets[at].to(logits), x.priors[at].to(logits)
        mine = boxes[at]
        codes = slot(head, mine, y)
        box = coding.decode(codes, prior)
        l_cls = classification(head, logits, x.labels, hot(head, logits, at, y))
        l_loc = regression(head, codes, box, coding.encode(target, prior), target)
        positives = Positives(logits[at], mine, y, target, prior, box, l_cls[at])
        w_pos, w_neg = weights(positives)
        total = (w_pos * (positives.l_cls + l_loc)).sum() + w_neg * l_cls[rest].sum()
        return total / divisor(head, len(logits), len(at))

    return loss


def eager(case: Case) -> Loss:
    """Eq. 2 to 4 as one would write them."""

    def weights(p: Positives) -> tuple[Tensor, Tensor]:
        w_pos = LAM - iou(p.decoded, p.target) * probability(case.head, p.logits, p.y, p.l_cls)
        return w_pos, w_pos.mean()

    return indexed(case, weights)


def masked(case: Case) -> Loss:
    """Eq. 2 to 4 over all rows with masks: what a compiler takes in without a graph break."""
    head, background = case.head, case.head.background_label(case.columns)
    first = 1 if head.background == "first" else 0
    coding = Coder(head)

    def loss(x: Inputs) -> Tensor:
        logits, boxes = widened(x)
        is_positive = x.labels != background
        y = torch.where(is_positive, x.labels, first)
        target, prior = x.targets.to(logits), x.priors.to(logits)
        codes = slot(head, boxes, y)
        box = coding.decode(codes, prior)
        one_hot = F.one_hot(x.labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
        l_cls = classification(head, logits, x.labels, one_hot)
        l_loc = regression(head, codes, box, coding.encode(target, prior), target)
        w_pos = LAM - iou(box, target) * probability(head, logits, y, l_cls)
        positives = is_positive.sum()
        w_neg = torch.where(is_positive, w_pos, 0).sum() / positives
        total = (torch.where(is_positive, w_pos, w_neg) * l_cls).sum()
        total = total + torch.where(is_positive, w_pos * l_loc, 0).sum()
        return total / divisor(head, len(logits), positives)

    return loss


def compiled(mode: str, case: Case) -> Loss:
    """torch.compile of the masked statement."""
    made: Loss = torch.compile(masked(case), mode=mode, fullgraph=True, dynamic=False)
    return made


def compiled_eager(case: Case) -> Loss:
    """torch.compile of the eager statement, whose indices break the graph."""
    made: Loss = torch.compile(eager(case))
    return made


def released(case: Case) -> Loss:
    """The weights as the authors' released heads compute them, which is not what the paper says.

    S_cls = 1 - NLL_y / sum of NLL over the columns; lambda 1 in the R-CNN head and 2 in dense ones;
    negatives get the mean weight in the R-CNN head alone; the intersection is not clamped by axis;
    a class-specific head's box is that of the first class.
    """
    head, coding = case.head, Coder(case.head)
    softmax = head.classification == "cross_entropy"
    first = 4 if head.class_specific and head.background == "first" else 0
    lam = 1.0 if softmax else 2.0

    def weights(p: Positives) -> tuple[Tensor, Any]:
        scored = coding.decode(p.boxes[:, first : first + 4], p.prior)
        nll = -(p.logits.log_softmax(1) if softmax else F.logsigmoid(p.logits))
        s_cls = 1 - nll.gather(1, p.y[:, None])[:, 0] / nll.sum(1)
        w_pos = lam - iou(scored, p.target, clamped=False) * s_cls
        return w_pos, w_pos.mean() if softmax else 1.0

    return indexed(case, weights)


def base_torch(case: Case) -> Loss:
    """Eq. 1 in torch.nn.functional alone."""
    head, background = case.head, case.head.background_label(case.columns)
    coding = Coder(head)

    def focal(logits: Tensor, one_hot: Tensor) -> Tensor:
        p = logits.sigmoid()
        miss = one_hot + p - 2 * one_hot * p  # 1 - p of the right answer
        alpha = 1 - ALPHA + (2 * ALPHA - 1) * one_hot
        weight = alpha * miss**GAMMA
        bce = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
        return (weight * bce).sum()

    def giou(a: Tensor, b: Tensor) -> Tensor:
        hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).prod(1)
        sides = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
        overlap = sides.prod(1)
        union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - overlap
        return 1 - overlap / union + (hull - union) / hull

    def loss(x: Inputs) -> Tensor:
        logits, boxes = widened(x)
        at = (x.labels != background).nonzero()[:, 0]
        y = x.labels[at]
        codes = slot(head, boxes[at], y)
        wanted = x.encoded[at].to(codes)
        if head.regression == "giou":
            l_loc = giou(coding.decode(codes, x.priors[at].to(codes)), x.targets[at].to(codes))
        elif head.regression == "l1":
            l_loc = F.l1_loss(codes, wanted, reduction="sum")
        else:
            l_loc = F.smooth_l1_loss(codes, wanted, reduction="sum", beta=BETA)
        one_hot = hot(head, logits, at, y)
        if one_hot is not None:
            l_cls = focal(logits, one_hot)
        else:
            l_cls = F.cross_entropy(logits, x.labels, reduction="sum")
        return (l_cls + l_loc.sum()) / divisor(head, len(logits), len(at))

    return loss


def base_torchvision(case: Case) -> Loss | None:
    """Eq. 1 as torchvision's heads write it; none for heads that torchvision has not."""
    head, background = case.head, case.head.background_label(case.columns)
    coding = Coder(head)
    if head.class_specific:

        def rcnn(x: Inputs) -> Tensor:
            logits, boxes = widened(x)
            parts = fastrcnn_loss(logits, boxes, [x.labels], [x.encoded.to(boxes)])
            return parts[0] + parts[1]

        return rcnn
    if head.classification != "focal":
        return None

    def dense(x: Inputs) -> Tensor:
        logits, boxes = widened(x)
        at = torch.where(x.labels != background)[0]
        one_hot = hot(head, logits, at, x.labels[at])
        l_cls = sigmoid_focal_loss(logits, one_hot, ALPHA, GAMMA, reduction="sum")
        codes = boxes[at]
        if head.regression == "giou":
            box = coding.decode(codes, x.priors[at].to(codes))
            l_loc = generalized_box_iou_loss(box, x.targets[at].to(codes), reduction="sum")
        else:
            l_loc = F.l1_loss(codes, x.encoded[at].to(codes), reduction="sum")
        return (l_cls + l_loc) / max(1, at.numel())

    return dense


def liger(case: Case) -> Loss | None:
    """Liger-Kernel's cross entropy, the classification part alone, where it is installed.

    It writes its gradient over the logits, so it gets a copy of its own, and after the first call
    works on what it left there, which takes as long.
    """
    if case.head.classification != "cross_entropy" or not importlib.util.find_spec("liger_kernel"):
        return None
    from liger_kernel.transformers import LigerCrossEntropyLoss

    criterion = LigerCrossEntropyLoss()
    copies: dict[int, Tensor] = {}

    def loss(x: Inputs) -> Tensor:
        if id(x.logits) not in copies:
            copies[id(x.logits)] = x.logits.detach().clone()
        return criterion(_Through.apply(x.logits, copies[id(x.logits)]), x.labels)

    return loss


class _Through(torch.autograd.Function):
    """The copy in the forward, the gradient to the original in the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def cross_entropy(case: Case) -> Loss:
    """The classification part alone, in torch."""

    def loss(x: Inputs) -> Tensor:
        return F.cross_entropy(widened(x)[0], x.labels)

    return loss


@dataclass(frozen=True)
class Provider:
    """A way to get a loss.

    Attributes:
        name: a Name.
        make: for a case; None where it has nothing for it.
        oracle: what it has to agree with, computed in float64.
        gpu_only: skipped on a CPU.
        asked: measured only if asked for by name.
        consumes: whether it overwrites its input, and only its first call can be checked.
    """

    name: str
    make: Callable[[Any], Loss | None]
    oracle: Callable[[Any], Loss]
    gpu_only: bool = False
    asked: bool = False
    consumes: bool = False


JOINT, BASE = partial(stated, "joint"), partial(stated, "none")
PROVIDERS = {
    p.name: p
    for p in (
        Provider(Name.OURS, partial(fused, "joint"), JOINT),
        Provider(Name.EAGER, eager, JOINT),
        Provider(Name.COMPILE, partial(compiled, "default"), JOINT),
        Provider(
            Name.COMPILE_AUTOTUNE, partial(compiled, "max-autotune-no-cudagraphs"), JOINT, True
        ),
        Provider(Name.COMPILE_EAGER, compiled_eager, JOINT, asked=True),
        Provider(Name.RELEASED, released, released),
        Provider(Name.BASE_OURS, partial(fused, "none"), BASE),
        Provider(Name.BASE_TORCH, base_torch, BASE),
        Provider(Name.BASE_TORCHVISION, base_torchvision, BASE),
        Provider(Name.LIGER, liger, cross_entropy, True, consumes=True),
    )
}
