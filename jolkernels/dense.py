"""What a call of the dense entrance is given, and how it is checked.

A dense head's predictions stay where they lie: levels [B, A * C, H, W], or [B, A * C, P], whose
samples come in torchvision's order (level, position, anchor).

Letters: B images, L levels, P = H * W positions of a level, A anchors of a position, C columns, M
samples of an image (the sum of P * A over the levels), G objects of an image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jolkernels.batch import (
    make_normalizer,
)
from jolkernels.settings import Call, Settings

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
BACKGROUND, IGNORED = -1, -2
"""What `matched` says of samples that have no object."""
OF_SAMPLES = ("classification_weights", "regression_weights", "class_targets", "extra_regression")
Levels = tuple[Tensor, ...]


class DenseInputs(NamedTuple):
    """The arguments of a call, which JointOptimizationLoss.dense documents."""

    logits: Sequence[Tensor]
    box_preds: Sequence[Tensor]
    labels: Tensor | Sequence[Tensor]
    target_boxes: Tensor | Sequence[Tensor]
    priors: Tensor | Sequence[Tensor] | None = None
    matched: Tensor | Sequence[Tensor] | None = None
    classification_weights: Tensor | None = None
    regression_weights: Tensor | None = None
    classification_normalizer: float | Tensor | str = "samples"
    regression_normalizer: float | Tensor | str = "samples"
    class_targets: Tensor | None = None
    extra_regression: Tensor | None = None
    class_weights: Tensor | None = None


class DenseBatch(NamedTuple):
    """The tensors of one call, in the order of DenseInputs."""

    logits: Levels
    box_preds: Levels
    labels: Tensor
    """[B, M], or [B, G] of objects."""
    target_boxes: Tensor
    """[B, M, 4] or, with `matched`, [B, G, 4]."""
    priors: Tensor | None
    """[M, 4] of all images, or [B, M, 4]."""
    matched: Tensor | None
    classification_weights: Tensor | None
    regression_weights: Tensor | None
    classification_normalizer: Tensor | float | None
    regression_normalizer: Tensor | float | None
    class_targets: Tensor | None = None
    extra_regression: Tensor | None = None
    class_weights: Tensor | None = None

    @property
    def columns(self) -> int:
        """C."""
        return 4 * self.logits[0].shape[1] // self.box_preds[0].shape[1]

    @property
    def images(self) -> int:
        """B."""
        return self.logits[0].shape[0]

    @property
    def samples(self) -> int:
        """M."""
        return sum(positions(x) * x.shape[1] // 4 for x in self.box_preds)

    @property
    def labels_of_objects(self) -> bool:
        """Whether `labels` are the objects', and `matched` says which object a sample has."""
        return self.matched is not None and self.labels.shape != self.matched.shape


def positions(level: Tensor) -> int:
    """P of a level."""
    return level.shape[2:].numel()


def anchors(boxes: Tensor) -> int:
    """A of a level of box_preds."""
    return boxes.shape[1] // 4


def make_dense_batch(settings: Settings, *args: Any, **kwargs: Any) -> tuple[DenseBatch, Call]:
    """Check the arguments of a call, which are those of DenseInputs.

    Lists become tensors: objects [B, G] with G as in the image with most, `matched` [B, M].
    Raises what JointOptimizationLoss.dense does.
    """
    given = DenseInputs(*args, **kwargs)
    logits, boxes = levels("logits", given.logits), levels("box_preds", given.box_preds)
    check_levels(logits, boxes, settings)
    labels, targets, matched = given.labels, given.target_boxes, given.matched
    if matched is not None and not isinstance(matched, Tensor):
        matched = stacked("matched", matched)
    if not isinstance(labels, Tensor):
        if matched is None:
            raise TypeError("labels: got a list without matched, wanted a tensor [B, M]")
        labels = padded("labels", labels, -1 if settings.ignore_index != -1 else -2)
    if not isinstance(targets, Tensor):
        if matched is None:
            raise TypeError("target_boxes: got a list without matched, wanted a tensor [B, M, 4]")
        targets = padded("target_boxes", targets, torch.nan)
    priors = given.priors
    if priors is not None and not isinstance(priors, Tensor):
        first = priors[0]
        priors = first if all(p is first for p in priors) else stacked("priors", priors)
    batch = DenseBatch(
        logits, boxes, labels, targets, priors, matched, *given[6:8], None, None, *given[10:]
    )
    check_dense_batch(batch, settings)
    kinds = []
    numbers = []
    for name in ("classification_normalizer", "regression_normalizer"):
        choice = getattr(given, name)
        if choice == "image":
            kind, number = "image", None
        else:
            kind, number = make_normalizer(name, choice, None, logits[0])
        kinds.append(kind)
        numbers.append(number)
    batch = batch._replace(classification_normalizer=numbers[0], regression_normalizer=numbers[1])
    if batch.priors is not None and not settings.coding.uses_priors:
        batch = batch._replace(priors=None)
    return batch, Call(settings, *kinds)


def levels(name: str, given: Sequence[Tensor]) -> Levels:
    """The levels of an argument."""
    if isinstance(given, Tensor) or not isinstance(given, Sequence) or not given:
        raise TypeError(f"{name}: got {type(given).__name__}, wanted a list of levels")
    return tuple(given)


def stacked(name: str, given: Sequence[Tensor]) -> Tensor:
    """A list of tensors of one shape as one."""
    return torch.stack(list(given))


def padded(name: str, given: Sequence[Tensor], value: float) -> Tensor:
    """A list of tensors [G_i, ...] as [B, G, ...] with `value` where an image has no more."""
    return pad_sequence(list(given), batch_first=True, padding_value=value)


def check_levels(logits: Levels, boxes: Levels, settings: Settings) -> None:
    """Raise unless the levels of logits and boxes belong together."""


def check_dense_batch(batch: DenseBatch, settings: Settings) -> None:
    """Raise unless every tensor has the shape, dtype and device that the dense entrance takes."""
