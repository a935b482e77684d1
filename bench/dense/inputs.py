"""What a dense head and its matcher hand over in training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.dense.cases import FORMATS, Case
from bench.loss import cases
from bench.loss.inputs import make_inputs as make_flat
from jolkernels.dense import BACKGROUND, IGNORED, Levels
from jolkernels.flattened import in_levels


@dataclass(frozen=True)
class Outputs:
    """A head's outputs and its matcher's results.

    Attributes:
        logits, boxes: levels [B, A * C, H, W] and [B, A * 4, H, W], leaves that require grad.
        matched: int64 [B, M], the object of a sample, -1 background, -2 ignored.
        labels, targets: of each image's objects, int64 [G] and [G, 4] x1 y1 x2 y2 in pixels.
        priors: [M, 4] of all images.
    """

    logits: Levels
    boxes: Levels
    matched: Tensor
    labels: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    priors: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are for."""
        return (*self.logits, *self.boxes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.leaves, self.matched, *self.labels, *self.targets, self.priors)

    def with_leaves(self, leaves: Sequence[Tensor]) -> "Outputs":
        """The same with these leaves."""
        count = len(self.logits)
        return replace(self, logits=tuple(leaves[:count]), boxes=tuple(leaves[count:]))

    def double(self) -> "Outputs":
        """The same numbers in float64, with leaves of their own."""
        made = self.with_leaves([x.detach().double().requires_grad_() for x in self.leaves])
        targets = tuple(t.double() for t in self.targets)
        return replace(made, targets=targets, priors=self.priors.double())


def make_inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> Outputs:
    """Random outputs of `dtype`; each positive has an object of its own.

    The images have the same objects, all but the first a quarter fewer positives.
    """
    random = torch.Generator().manual_seed(seed)
    flat = make_flat(
        cases.Case(case.name, case.head, case.samples, case.columns), dtype, "cpu", seed
    )
    positive = flat.labels != case.head.background_label(case.columns)
    at = positive.nonzero()[:, 0]
    matched = torch.full((case.images, case.samples), BACKGROUND)
    matched[torch.rand(matched.shape, generator=random) < case.ignored] = IGNORED
    objects = torch.arange(len(at))
    matched[:, at] = torch.where(objects % 4 < 3, objects, BACKGROUND)
    matched[0, at] = objects

    def levels(rows: Tensor) -> Levels:
        width = case.anchors * rows.shape[1]
        kind = getattr(torch, FORMATS[case.memory_format])
        like = tuple(
            torch.empty((case.images, width, *size), dtype=dtype, memory_format=kind)
            for size in case.sizes
        )
        return tuple(x.to(device).requires_grad_() for x in in_levels(rows, like))

    logits = levels(torch.randn(case.rows, case.columns, generator=random).to(dtype))
    boxes = levels(flat.boxes.detach().repeat(case.images, 1))
    given = [(flat.labels[at].to(device), flat.targets[at].to(device))] * case.images
    labels, targets = zip(*given, strict=True)
    return Outputs(logits, boxes, matched.to(device), labels, targets, flat.priors.to(device))
