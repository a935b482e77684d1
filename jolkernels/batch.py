"""What one call of the loss is given, how it is checked, and what a forward pass returns."""

import sys
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels.checks import one_of
from jolkernels.settings import Call, Settings

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32)
NORMALIZERS = ("samples", "positives", "sum")


class Batch(NamedTuple):
    """The tensors of one call; shapes as in JointOptimizationLoss.forward."""

    logits: Tensor
    box_preds: Tensor
    labels: Tensor
    target_boxes: Tensor
    priors: Tensor | None
    classification_weights: Tensor | None
    regression_weights: Tensor | None
    classification_normalizer: Tensor | None  # 0-dim; None: Call says which it is
    regression_normalizer: Tensor | None


class Forward(NamedTuple):
    """What a forward pass returns: four 0-dim results, and what its backward needs."""

    classification: Tensor
    regression: Tensor
    negative_weight: Tensor
    num_positives: Tensor
    rows: Tensor  # [kept, N]: what the same implementation's backward needs of each row
    scalars: Tensor  # float64: w_neg, A_neg / P, 1 / Z_cls, 1 / Z_loc; 0, or NaN if a label is bad


def accumulator(batch: Batch) -> torch.dtype:
    """The dtype of the arithmetic and the losses: float64 if logits or boxes are, else float32."""
    double = torch.float64 in (batch.logits.dtype, batch.box_preds.dtype)
    return torch.float64 if double else torch.float32


def check_batch(batch: Batch, settings: Settings) -> None:
    """Raise unless every tensor has the shape, dtype and device that JointOptimizationLoss takes.

    Labels are another matter: to look at them means to wait for a GPU.
    """
    logits, box_preds, labels, target_boxes, priors, alphas, betas, z_cls, z_loc = batch
    least = 2 if settings.classification.softmax else 1
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < least:
        raise wrong("logits", logits, f"a tensor of shape [N, C] with C >= {least}")
    n, c = logits.shape
    slots = [1, c - 1, c] if least == 2 and settings.background == "last" else [1, c]
    widths = [4 * s for s in slots]
    if (
        not isinstance(box_preds, Tensor)
        or box_preds.ndim != 2
        or len(box_preds) != n
        or box_preds.shape[1] not in widths
    ):
        shapes = " or ".join(f"[{n}, {w}]" for w in widths)
        raise wrong("box_preds", box_preds, f"a tensor of shape {shapes}, as logits are [{n}, {c}]")
    check("labels", labels, (n,), logits, (torch.int64,))
    check("target_boxes", target_boxes, (n, 4), logits)
    if priors is not None:
        check("priors", priors, (n, 4), logits)
    elif settings.coding.uses_priors:
        raise ValueError(f"priors: got None, wanted a [{n}, 4] tensor for {settings.coding}")
    if alphas is not None:
        check("classification_weights", alphas, (n,), logits)
    if betas is not None:
        check("regression_weights", betas, (n,), logits)
    check("logits", logits, (n, c), logits)
    check("box_preds", box_preds, tuple(box_preds.shape), logits)
    if z_cls is not None:
        check("classification_normalizer", z_cls, (), logits, NUMBERS)
    if z_loc is not None:
        check("regression_normalizer", z_loc, (), logits, NUMBERS)


def check_call(batch: Batch, call: Call) -> None:
    """check_batch, and that the batch holds the numbers that the call announces, and no others."""
    check_batch(batch, call.settings)
    for name in ("classification_normalizer", "regression_normalizer"):
        kind, number = getattr(call, name), getattr(batch, name)
        one_of(name, kind, (*NORMALIZERS, "number"))
        if (number is None) == (kind == "number"):
            got = "None" if number is None else "a tensor"
            raise ValueError(f"{name}: got {got} in the batch and {kind!r} in the call")


def make_batch(
    settings: Settings,
    logits: Tensor,
    box_preds: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    priors: Tensor | None = None,
    classification_weights: Tensor | None = None,
    regression_weights: Tensor | None = None,
    classification_normalizer: float | Tensor | str = "samples",
    regression_normalizer: float | Tensor | str = "samples",
) -> tuple[Batch, Call]:
    """Check the arguments of a call; raises what JointOptimizationLoss.forward does."""
    tensors = (
        logits,
        box_preds,
        labels,
        target_boxes,
        priors,
        classification_weights,
        regression_weights,
    )
    check_batch(Batch(*tensors, None, None), settings)
    kind_cls, z_cls = make_normalizer(
        "classification_normalizer", classification_normalizer, logits
    )
    kind_loc, z_loc = make_normalizer("regression_normalizer", regression_normalizer, logits)
    batch = Batch(
        logits,
        box_preds,
        labels,
        target_boxes,
        priors if settings.coding.uses_priors else None,
        classification_weights,
        regression_weights,
        z_cls,
        z_loc,
    )
    return batch, Call(settings, kind_cls, kind_loc)


def make_normalizer(
    name: str, choice: float | Tensor | str, logits: Tensor
) -> tuple[str, Tensor | None]:
    """How Call describes a normaliser, and its value as a 0-dim tensor if it is a number."""
    if isinstance(choice, str):
        return one_of(name, choice, NORMALIZERS), None
    if isinstance(choice, Tensor):
        check(name, choice, (), logits, NUMBERS)
        return "number", choice.detach()
    if isinstance(choice, bool) or not isinstance(choice, int | float | Real):
        wanted = f"a number, a 0-dim tensor or one of {', '.join(NORMALIZERS)}"
        raise TypeError(f"{name}: got {choice!r}, wanted {wanted}")
    if isinstance(choice, int) and abs(choice) > sys.float_info.max:
        raise ValueError(f"{name}: got an integer beyond the range of float64")
    # By arithmetic: torch.full would make every number a constant of a compiled graph.
    return "number", torch.ones((), dtype=torch.float64, device=logits.device) * float(choice)


def check(
    name: str,
    tensor: object,
    shape: tuple[int, ...],
    logits: Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> None:
    """Raise unless `tensor` has this shape, one of the dtypes, and the device of logits."""
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        raise wrong(name, tensor, f"a tensor of shape {list(shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: got {tensor.dtype}, wanted {' or '.join(map(str, dtypes))}")
    if tensor.device != logits.device:
        raise ValueError(f"{name}: got device {tensor.device}, wanted logits' {logits.device}")


def check_labels(batch: Batch, settings: Settings) -> None:
    """Raise for a label out of range.

    Every implementation then makes both losses and all gradients NaN. On a GPU, where looking means
    waiting, that is all that happens unless JOLKERNELS_VALIDATE=1.

    Raises:
        ValueError: with the first bad index and its value.
    """
    labels, last = batch.labels, settings.last_label(batch.logits.shape[1])
    bad = ((labels < 0) | (labels > last)) & (labels != settings.ignore_index)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"labels: got {int(labels[i])} at index {i}, wanted 0 to {last} for logits with "
            f"{batch.logits.shape[1]} columns, or ignore_index {settings.ignore_index}"
        )


def wrong(name: str, got: object, wanted: str) -> Exception:
    """The error for something that is not a tensor, or has the wrong shape."""
    if isinstance(got, Tensor):
        return ValueError(f"{name}: got shape {list(got.shape)}, wanted {wanted}")
    return TypeError(f"{name}: got {type(got).__name__}, wanted {wanted}")
