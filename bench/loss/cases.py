"""The loss's inputs at the sizes that detectors give it.

N rows (samples), C columns of the logits. The rows of a case look like a detector's: a share of
them positive, their boxes a few pixels off targets of 8 to 32 pixels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from jolkernels import JointOptimizationLoss
from jolkernels.spec import Delta

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
IMAGE = 800.0


@dataclass(frozen=True)
class Head:
    """A head as its detector has it: the arguments of its JointOptimizationLoss, and its inputs.

    Attributes:
        normalizer: what both sums are divided by.
        positives: share of the rows.
        class_specific: boxes [N, 4 C] instead of [N, 4].
        weights: of the delta coder.
    """

    classification: str
    regression: str
    coding: str
    normalizer: str
    positives: float
    background: str = "last"
    class_specific: bool = False
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def criterion(self, weighting: str) -> JointOptimizationLoss:
        """Our loss for this head; weighting "joint" or "none"."""
        coding = Delta(weights=self.weights) if self.coding == "delta" else self.coding
        return JointOptimizationLoss(
            self.classification,
            self.regression,
            coding,
            background=self.background,
            weighting=weighting,
        )

    def background_label(self, columns: int) -> int:
        """The label of a negative row."""
        if self.classification == "focal":
            return columns
        return 0 if self.background == "first" else columns - 1


RCNN = Head(
    "cross_entropy", "smooth_l1", "delta", "samples", 0.25, "first", True, (10.0, 10.0, 5.0, 5.0)
)
RETINANET = Head("focal", "l1", "delta", "positives", 0.003)
FCOS = Head("focal", "giou", "ltrb", "positives", 0.02)
AGNOSTIC = Head("cross_entropy", "l1", "delta", "samples", 0.25)
"""A class-agnostic head with a column for each word of a large vocabulary."""


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


@dataclass(frozen=True)
class Case:
    """A head at a size."""

    name: str
    head: Head
    rows: int
    columns: int


CASES = {
    case.name: case
    for case in (
        *(Case(f"rcnn-{c}", RCNN, 1_024, c) for c in (9, 11, 81, 91, 1204)),
        *(Case(f"retinanet-{c}", RETINANET, 2 * 120_087, c) for c in (8, 80)),
        Case("fcos-8", FCOS, 2 * 13_343, 8),
        Case("large-80", RETINANET, 2**20, 80),
        Case("vocabulary-13205", AGNOSTIC, 4_096, 13_205),
        # For the plot of time against N.
        *(Case(f"sweep-{2**k}", RCNN, 2**k, 9) for k in range(8, 19, 2)),
    )
}
SWEEP = tuple(name for name in CASES if name.startswith("sweep"))


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
    def leaves(self) -> tuple[Tensor, Tensor]:
        """What gradients are for."""
        return self.logits, self.boxes

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
