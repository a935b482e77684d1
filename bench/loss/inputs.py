"""Tensors of a case, as its detector would hand them to the loss.

N rows (samples), C columns of the logits. A share of the rows is positive, their boxes a few
pixels off targets of 8 to 32 pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from bench.loss.cases import Case, Head
from jolkernels import JointOptimizationLoss
from jolkernels.spec import Delta

IMAGE = 800.0


def make_criterion(head: Head, weighting: str) -> JointOptimizationLoss:
    """Our loss for this head; weighting "joint" or "none"."""
    return JointOptimizationLoss(
        head.classification,
        head.regression,
        Delta(weights=head.weights) if head.coding == "delta" else head.coding,
        background=head.background,
        weighting=weighting,
    )


class Coder:
    """torchvision's coders behind one pair of names."""

    def __init__(self, head: Head) -> None:
        self.linear = head.coding == "ltrb"
        self.coder: Any = BoxLinearCoder(True) if self.linear else BoxCoder(head.weights)

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """[N, 4] as the head predicts them."""
        if self.linear:
            return self.coder.encode(priors, boxes)
        return self.coder.encode_single(boxes, priors)

    def decode(self, codes: Tensor, priors: Tensor) -> Tensor:
        """[N, 4] x1 y1 x2 y2."""
        return self.coder.decode(codes, priors) if self.linear else self.coder.decode_single(
            codes, priors
        )  # fmt: skip


class Inputs(NamedTuple):
    """Tensors of a case: logits [N, C] and boxes [N, 4 S] are leaves that require grad.

    labels [N]; targets and priors [N, 4] x1 y1 x2 y2 in pixels; encoded [N, 4]: the targets as the
    head's coding has them, for base losses, which detectors hand over encoded.
    """

    logits: Tensor
    boxes: Tensor
    labels: Tensor
    targets: Tensor
    priors: Tensor
    encoded: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are for."""
        return self.logits, self.boxes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return tuple(self)

    def with_leaves(self, leaves: Sequence[Tensor]) -> "Inputs":
        """The same with these leaves."""
        logits, boxes = leaves
        return self._replace(logits=logits, boxes=boxes)

    def double(self) -> "Inputs":
        """The same numbers in float64, with leaves of their own."""
        floats = [t.detach().double() if t.is_floating_point() else t for t in self]
        made = Inputs(*floats)
        for leaf in made.leaves:
            leaf.requires_grad_()
        return made


def make_inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Random inputs; logits and boxes of `dtype`, the other boxes float32, or float64 with them."""
    random = torch.Generator().manual_seed(seed)
    n, head = case.rows, case.head
    background = head.background_label(case.columns)
    first = 1 if head.background == "first" else 0
    last = case.columns if head.classification == "focal" or first else case.columns - 1
    labels = torch.randint(first, last, (n,), generator=random)
    labels[torch.rand(n, generator=random) >= head.positives] = background
    labels[0] = first  # a batch of few rows has a positive, too

    sides = 8 + 24 * torch.rand(n, 2, generator=random)
    corner = (IMAGE - sides) * torch.rand(n, 2, generator=random)
    targets = torch.cat([corner, corner + sides], 1)
    if head.coding == "ltrb":
        # A point within the box, as the square of stride 8 that torchvision's FCOS has there.
        centre = corner + sides * (0.2 + 0.6 * torch.rand(n, 2, generator=random))
        priors = torch.cat([centre - 4, centre + 4], 1)
    else:
        priors = targets + torch.empty(n, 4).uniform_(-3, 3, generator=random)
    if dtype == torch.float64:
        targets, priors = targets.double(), priors.double()
    encoded = Coder(head).encode(targets, priors)

    logits = torch.randn(n, case.columns, generator=random)
    slots = case.columns if head.class_specific else 1
    # Off by enough that float32's rounding of coordinates decides nothing.
    noise = 0.2 * torch.randn(n, 4 * slots, generator=random)
    boxes = encoded.repeat(1, slots) + noise.abs() + 0.02
    boxes = _off_ties(head, boxes.to(dtype), targets, priors)
    leaves = [t.to(device, dtype).requires_grad_() for t in (logits, boxes)]
    return Inputs(*leaves, *(t.to(device) for t in (labels, targets, priors, encoded)))


def _off_ties(head: Head, boxes: Tensor, targets: Tensor, priors: Tensor) -> Tensor:
    """Codes [N, 4 S] whose boxes have no edge within a thousandth of a pixel of their target's.

    There the IoU has a kink, and float32's rounding of coordinates would decide on its gradient.
    """
    slots = boxes.shape[1] // 4
    rows = boxes.reshape(-1, 4)
    wide = [t.double().repeat_interleave(slots, 0) for t in (targets, priors)]
    while True:
        decoded = Coder(head).decode(rows.double(), wide[1])
        near = ((decoded - wide[0]).abs() < 1e-3).any(1)
        if not near.any():
            return rows.reshape(len(boxes), -1)
        rows[near] += 0.04
