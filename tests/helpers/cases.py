"""Random batches for the tests of the loss, and the choices they run over."""

import itertools
import os

import pytest
import torch
from torch import Tensor

from jolkernels.spec import CHOICES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = os.environ.get("JOLKERNELS_TEST_COMPILED") == "1"  # tests/loss/conftest.py
ON_KERNELS = INTERPRETED or COMPILED
DEVICE = os.environ.get("JOLKERNELS_TEST_DEVICE", "cpu")

CLASSIFICATIONS, REGRESSIONS, CODINGS, SCORES = (
    list(CHOICES[kind]) for kind in ("classification", "regression", "coding", "location_score")
)
HEADS = [  # classification and background that go together
    (name, background)
    for name, background in itertools.product(CLASSIFICATIONS, ("last", "first"))
    if background == "last" or CHOICES["classification"][name].softmax
]


def go_together(regression: str, coding: str) -> bool:
    """NWD is in pixels, and cxcywh without a scale is not: the loss refuses the two by name."""
    return (regression, coding) != ("nwd", "cxcywh")


def sampled(cases: list, every: int, usually: int = 1) -> list:
    """All cases, of which only every so many are not slow: on interpreted or compiled kernels,
    each a hundred times slower, one in 2 * `every`, else every `usually`th."""
    step, slow = 2 * every if ON_KERNELS else usually, pytest.mark.slow
    return [
        case if i % step == 0 else pytest.param(*case, marks=slow) for i, case in enumerate(cases)
    ]


slow_on_kernels = pytest.mark.slow if ON_KERNELS else lambda test: test


def boxes(n: int, g: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes of 2 to 14 pixels within 30 pixels, so that most pairs overlap and some do not."""
    low = torch.rand(n, 2, generator=g, dtype=torch.float64) * 16
    size = 2 + torch.rand(n, 2, generator=g, dtype=torch.float64) * 12
    return torch.cat((low, low + size), 1).to(dtype)


def centered(corners: Tensor) -> Tensor:
    """Centre and size of boxes, as shares of an image of 32 x 32 pixels."""
    low, high = corners[:, :2] / 32, corners[:, 2:] / 32
    return torch.cat(((low + high) / 2, high - low), 1)


def random_batch(
    head: tuple[str, str] = ("cross_entropy", "last"),
    coding: str = "xyxy",
    *,
    n: int = 23,
    classes: int = 5,
    class_specific: bool = False,
    slots: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of a loss: positives, negatives and ignored rows; leaves that require grad.

    Rows that no loss may read (boxes of negatives) hold NaN.
    """
    g = torch.Generator().manual_seed(seed)
    softmax = CHOICES["classification"][head[0]].softmax
    columns = classes + 1 if softmax else classes
    background = 0 if head[1] == "first" else classes
    labels = torch.randint(0, classes + 1, (n,), generator=g)
    labels[torch.rand(n, generator=g) < 0.3] = background
    labels[torch.rand(n, generator=g) < 0.15] = -100
    slots = slots or (columns if class_specific else 1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    priors, targets = boxes(n, g), boxes(n, g)
    codes = {
        "xyxy": lambda: boxes(n * slots, g).reshape(n, 4 * slots),
        "delta": lambda: 0.4 * noise(n, 4 * slots),
        "ltrb": lambda: 0.2 + 0.5 * noise(n, 4 * slots).abs(),
        "cxcywh": lambda: centered(boxes(n * slots, g)).reshape(n, 4 * slots),
    }[coding]()
    if coding == "cxcywh":
        targets = centered(targets)
    unread = (labels == background) | (labels == -100)
    for t in (codes, priors, targets):
        t[unread] = torch.nan
    logits = 2 * noise(n, columns)
    return {
        "logits": logits.to(DEVICE, dtype).requires_grad_(),
        "box_preds": codes.to(DEVICE, dtype).requires_grad_(),
        "labels": labels.to(DEVICE),
        "target_boxes": targets.to(DEVICE, dtype),
        "priors": priors.to(DEVICE, dtype),
        "classification_weights": (0.5 + noise(n).abs()).to(DEVICE, dtype),
        "regression_weights": (0.5 + noise(n).abs()).to(DEVICE, dtype),
    }


def in_dtype(batch: dict, dtype: torch.dtype) -> dict:
    """The same numbers as tensors, and leaves, of their own."""
    return {
        k: v.detach().to(dtype).requires_grad_(v.requires_grad)
        if isinstance(v, Tensor) and v.is_floating_point()
        else v
        for k, v in batch.items()
    }


def gradients(loss, batch: dict[str, Tensor], up=(1.3, 0.7)) -> tuple[Tensor, Tensor]:
    """Gradients for logits and box_preds with different upstream gradients of the two parts."""
    total = up[0] * loss[0] + up[1] * loss[1]
    return torch.autograd.grad(total, (batch["logits"], batch["box_preds"]))
