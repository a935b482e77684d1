"""What a call of the dense entrance is given, and how it becomes a batch.

A dense head's predictions stay where they lie: levels [B, A * C, H, W], or [B, A * C, P], whose
samples come in torchvision's order (level, position, anchor).

Letters: B images, L levels, P = H * W positions of a level, A anchors of a position, C columns, M
samples of an image (the sum of P * A over the levels), G objects of an image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import check, in_tensors, make_normalizer, wrong
from jolkernels.dense_checks import (
    BACKGROUND,
    IGNORED,
    INTEGERS,
    NORMALIZERS,
    OF_SAMPLES,
    Levels,
    check_dense_batch,
    check_levels,
    check_list,
    of_levels,
    read_levels,
)
from jolkernels.settings import Call, Settings

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "INTEGERS",
    "OF_SAMPLES",
    "DenseBatch",
    "DenseInputs",
    "Levels",
    "anchors",
    "divide_by_positives",
    "images_of_a_rank",
    "is_by_image",
    "make_dense_batch",
    "no_label",
    "of_images",
    "pad_objects",
    "positions",
    "scalars_shape",
]


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
    """The tensors of one call, in the order of DenseInputs; normalisers may be plain numbers."""

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
    classification_normalizer: Tensor | float | None  # 0-dim; None: Call says which it is
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
        return sum(positions(x) * anchors(x) for x in self.box_preds)

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


def is_by_image(call: Call) -> bool:
    """Whether a normaliser is each image's own."""
    return "image" in (call.classification_normalizer, call.regression_normalizer)


def scalars_shape(batch: DenseBatch, call: Call) -> tuple[int, ...]:
    """Of the scalars of a forward pass: those of each image where it has its own normaliser."""
    return (max(1, batch.images), 5) if is_by_image(call) else (5,)


def divide_by_positives(sums: Tensor, call: Call) -> Tensor:
    """Divide those of an image's sums by its positives that its own normaliser is for, in place.

    Args:
        sums: float64 [images, sums], in the order of jolkernels.cpu.sums.
        call: says which these are.

    Returns:
        The factors [images, 5] of the scalars that the divided sums of all images finish in.
    """
    positives = sums[:, 0].clamp(min=1)
    factors = sums.new_ones(len(sums), 5)
    if call.classification_normalizer == "image":
        sums[:, 3:5] /= positives[:, None]
        factors[:, 1], factors[:, 2] = positives, 1 / positives
    if call.regression_normalizer == "image":
        sums[:, 5] /= positives
        sums[:, 8:] /= positives[:, None]
        factors[:, 3] = 1 / positives
    return factors


def images_of_a_rank(batch: DenseBatch, call: Call) -> Tensor:
    """What the sum over the images is divided by, float64: max(1, those of all ranks) / ranks."""
    group = call.settings.sync_group
    own = torch.full((), float(batch.images), dtype=torch.float64, device=batch.labels.device)
    return process_groups.total(own, group).clamp(min=1) / process_groups.size(group)


def make_dense_batch(settings: Settings, *args: Any, **kwargs: Any) -> tuple[DenseBatch, Call]:
    """Check the arguments of a call, which are those of DenseInputs.

    Lists become tensors: objects [B, G] with G as in the image with most, `matched` [B, M].
    Raises what JointOptimizationLoss.dense does.
    """
    given = DenseInputs(*args, **kwargs)
    logits, boxes = read_levels("logits", given.logits), read_levels("box_preds", given.box_preds)
    check_levels(logits, boxes, settings)
    batch = DenseBatch(logits, boxes, *given[2:8], None, None, *given[10:])  # type: ignore[arg-type]
    batch = in_one(batch, settings)
    check_dense_batch(batch, settings)
    kind_cls, z_cls = make_normalizer(
        "classification_normalizer", given.classification_normalizer, None, logits[0], NORMALIZERS
    )
    kind_loc, z_loc = make_normalizer(
        "regression_normalizer", given.regression_normalizer, None, logits[0], NORMALIZERS
    )
    if z_cls is not None or z_loc is not None:
        batch = batch._replace(classification_normalizer=z_cls, regression_normalizer=z_loc)
        if torch.compiler.is_compiling():
            batch = in_tensors(batch)
    if batch.priors is not None and not settings.coding.uses_priors:
        batch = batch._replace(priors=None)
    return batch, Call(settings, kind_cls, kind_loc)


def in_one(batch: DenseBatch, settings: Settings) -> DenseBatch:
    """The batch with one tensor in place of each list; what is in none is checked later."""
    like = batch.logits[0]
    matched: Any = batch.matched
    priors: Any = batch.priors
    if is_list(matched):
        check_list("matched", matched, (batch.samples,), like, of_levels(batch.samples))
        matched = torch.stack(list(matched))
    if is_list(priors):
        check_list("priors", priors, (batch.samples, 4), like, of_levels(batch.samples))
        priors = of_images(priors) if settings.coding.uses_priors else priors[0]
    labels, targets = read_objects(batch, settings)
    return batch._replace(labels=labels, target_boxes=targets, matched=matched, priors=priors)


def read_objects(batch: DenseBatch, settings: Settings) -> tuple[Any, Any]:
    """labels and target_boxes, padded where they are lists: an index of padding finds neither."""
    labels: Any = batch.labels
    targets: Any = batch.target_boxes
    like = batch.logits[0]
    both = is_list(labels), is_list(targets)
    for name, of_objects in zip(("labels", "target_boxes"), both, strict=True):
        if of_objects and batch.matched is None:
            raise TypeError(f"{name}: got a list without matched, wanted a tensor")
    if not both[1]:
        if both[0] and not isinstance(targets, Tensor):
            raise wrong("target_boxes", targets, "a list of tensors [G_i, 4], as labels are one")
        if both[0]:
            raise TypeError("labels: got a list, wanted a tensor, as target_boxes are one")
        return labels, targets
    check_list("target_boxes", targets, ("G_i", 4), like)
    check("target_boxes[0]", targets[0], targets[0].shape, like)  # padding is NaN
    if both[0]:
        check_list("labels", labels, ("G_i",), like)
        for i, (y, boxes) in enumerate(zip(labels, targets, strict=True)):
            if len(y) != len(boxes):
                raise wrong(f"labels[{i}]", y, f"[{len(boxes)}], as target_boxes[{i}] says")
        return pad_objects(labels, targets, batch.samples, settings)
    return labels, padded(targets, max(map(len, targets)), torch.nan)


def pad_objects(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], samples: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Labels [B, G] and boxes [B, G, 4] of objects; G is not M, the samples.

    Labels [B, M] would be those of samples.
    """
    most = max(map(len, boxes))
    most += most == samples
    if labels[0].dtype is torch.uint8:  # which has no number that is no label
        labels = [y.short() for y in labels]
    return padded(labels, most, no_label(settings)), padded(boxes, most, torch.nan)


def of_images(priors: Sequence[Tensor]) -> Tensor:
    """A list of the images' priors as one tensor: [M, 4] if all are the same, else [B, M, 4]."""
    shared = all(x is priors[0] for x in priors)
    return priors[0] if shared else torch.stack(list(priors))


def no_label(settings: Settings) -> int:
    """A number that is no label, and not that of samples to ignore."""
    return -1 if settings.ignore_index != -1 else -2


def is_list(given: object) -> bool:
    """Whether this is a list, or another sequence, in place of a tensor."""
    return isinstance(given, Sequence) and not isinstance(given, str)


def padded(given: Sequence[Tensor], most: int, value: float) -> Tensor:
    """Tensors [G_i, ...] as [B, most, ...] with `value` beyond G_i; on a GPU in two launches."""
    padding = given[0].new_full((most, *given[0].shape[1:]), value)
    parts = [part for x in given for part in (x, padding[len(x) :])]
    return torch.cat(parts).unflatten(0, (len(given), most))
