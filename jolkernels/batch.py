"""What one call of the loss is given, how it is checked, and what a forward pass returns."""

import sys
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jolkernels.checks import one_of
from jolkernels.settings import Call, Settings

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32)
NORMALIZERS = ("samples", "positives", "sum")
MOST_GROUPS = 2**16  # each has sums of its own in every program, or chunk of rows
OF_ROWS = ("classification_weights", "regression_weights", "class_targets", "extra_regression")


class Inputs(NamedTuple):
    """The arguments of a call, which JointOptimizationLoss.forward documents."""

    logits: Tensor
    box_preds: Tensor
    labels: Tensor
    target_boxes: Tensor
    priors: Tensor | None = None
    classification_weights: Tensor | None = None
    regression_weights: Tensor | None = None
    classification_normalizer: float | Tensor | str = "samples"
    regression_normalizer: float | Tensor | str = "samples"
    class_targets: Tensor | None = None
    extra_regression: Tensor | None = None
    class_weights: Tensor | None = None
    groups: Tensor | None = None
    num_groups: int | None = None


class Batch(NamedTuple):
    """The tensors of one call, in the order of Inputs; normalisers may be plain numbers."""

    logits: Tensor
    box_preds: Tensor
    labels: Tensor
    target_boxes: Tensor
    priors: Tensor | None
    classification_weights: Tensor | None
    regression_weights: Tensor | None
    classification_normalizer: Tensor | float | None  # 0-dim or [G]; None: Call says which it is
    regression_normalizer: Tensor | float | None
    class_targets: Tensor | None = None
    extra_regression: Tensor | None = None
    class_weights: Tensor | None = None
    groups: Tensor | None = None


class Forward(NamedTuple):
    """What a forward pass returns: results, 0-dim or [G], and what its backward needs."""

    classification: Tensor
    regression: Tensor
    negative_weight: Tensor
    num_positives: Tensor
    extra_regression: Tensor
    rows: Tensor  # [kept, N]: what the same implementation's backward needs of each row
    scalars: Tensor  # float64 [5] or [G, 5]: w_neg, A_neg / P, 1 / Z_cls, 1 / Z_loc; 0, or NaN if
    # a label or group is bad


def accumulator(batch: Any) -> torch.dtype:
    """The dtype of the arithmetic and the losses: float64 if logits or boxes are, else float32.

    Of a Batch, or of a DenseBatch, whose levels are of one dtype.
    """
    logits, boxes = batch[:2]
    if not isinstance(logits, Tensor):
        logits, boxes = logits[0], boxes[0]
    double = torch.float64 in (logits.dtype, boxes.dtype)
    return torch.float64 if double else torch.float32


def number_of_sums(batch: Any, settings: Settings) -> int:
    """How many of the nine sums of jolkernels.cpu.sums a forward pass needs, in their order."""
    counted = settings.classification.softmax and batch.class_weights is not None
    return 9 if counted or batch.extra_regression is not None else 7


def empty_gradients(
    batch: Batch, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Where the gradients for logits, box_preds and extra_regression go, those that are needed."""
    logits, boxes, extra = (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if x is not None and needed
        else None
        for x, needed in zip(
            (batch.logits, batch.box_preds, batch.extra_regression), needs, strict=True
        )
    )
    return logits, boxes, extra


def check_batch(batch: Batch, settings: Settings) -> None:
    """Raise unless every tensor has the shape, dtype and device that JointOptimizationLoss takes.

    Labels and groups are another matter: to look at them means to wait for a GPU.
    """
    logits, box_preds = batch.logits, batch.box_preds
    least = 2 if settings.classification.softmax else 1
    if not is_matrix(logits) or logits.shape[1] < least:
        raise wrong("logits", logits, f"a tensor of shape [N, C] with C >= {least}")
    n, c = logits.shape
    widths = [4, 4 * c - 4, 4 * c] if least == 2 and settings.background == "last" else [4, 4 * c]
    rows, width = box_preds.shape if is_matrix(box_preds) else (None, None)
    if rows != n or width not in widths:
        shapes = " or ".join(f"[{n}, {w}]" for w in widths)
        raise wrong("box_preds", box_preds, f"a tensor of shape {shapes}, as logits are [{n}, {c}]")
    check("labels", batch.labels, (n,), logits, (torch.int64,))
    check("target_boxes", batch.target_boxes, (n, 4), logits)
    if batch.priors is None and settings.coding.uses_priors:
        raise ValueError(f"priors: got None, wanted a [{n}, 4] tensor for {settings.coding}")
    if batch.class_targets is not None and not settings.takes_targets:
        raise ValueError(
            f"class_targets: got a tensor, wanted None for {settings.classification}, whose "
            "targets are labels"
        )
    if batch.priors is not None:
        check("priors", batch.priors, (n, 4), logits)
    for name in OF_ROWS:
        if (tensor := getattr(batch, name)) is not None:
            check(name, tensor, (n,), logits)
    if batch.class_weights is not None:
        check("class_weights", batch.class_weights, (c,), logits)
    if batch.groups is not None:
        check("groups", batch.groups, (n,), logits, (torch.int64,))
    check("logits", logits, (n, c), logits)
    check("box_preds", box_preds, (n, width), logits)


def is_matrix(x: object) -> bool:
    """Whether x is a tensor of two dimensions."""
    return isinstance(x, Tensor) and x.ndim == 2


def check_call(batch: Batch, call: Call) -> None:
    """check_batch, and that the batch holds what the call announces, and nothing else."""
    check_batch(batch, call.settings)
    check_groups(batch.groups, call.num_groups)
    for name in ("classification_normalizer", "regression_normalizer"):
        kind, number = getattr(call, name), getattr(batch, name)
        one_of(name, kind, (*NORMALIZERS, "number"))
        if (number is None) == (kind == "number"):
            got = "None" if number is None else "a tensor"
            raise ValueError(f"{name}: got {got} in the batch and {kind!r} in the call")
        if number is not None:
            check_normalizer(name, number, call.num_groups, batch.logits)


def check_groups(groups: Tensor | None, num_groups: object) -> None:
    """Raise unless there are groups and their number, or neither."""
    if groups is None and num_groups is not None:
        raise ValueError(f"num_groups: got {num_groups!r} without groups, wanted None")
    if groups is None:
        return
    if isinstance(num_groups, bool) or not isinstance(num_groups, int):
        raise TypeError(f"num_groups: got {num_groups!r}, wanted the number of groups, an int")
    if not 1 <= num_groups <= MOST_GROUPS:
        raise ValueError(f"num_groups: got {num_groups}, wanted 1 to {MOST_GROUPS:,}")


def make_batch(settings: Settings, *args: Any, **kwargs: Any) -> tuple[Batch, Call]:
    """Check the arguments of a call, which are those of Inputs.

    Raises what JointOptimizationLoss.forward does.
    """
    given = Inputs(*args, **kwargs)
    logits, groups = given.logits, given.num_groups
    batch = Batch(*given[:7], None, None, *given[9:13])
    check_batch(batch, settings)
    check_groups(given.groups, groups)
    kind_cls, z_cls = make_normalizer(
        "classification_normalizer", given.classification_normalizer, groups, logits
    )
    kind_loc, z_loc = make_normalizer(
        "regression_normalizer", given.regression_normalizer, groups, logits
    )
    if z_cls is not None or z_loc is not None:
        batch = batch._replace(classification_normalizer=z_cls, regression_normalizer=z_loc)
        if torch.compiler.is_compiling():
            batch = in_tensors(batch)
    if batch.priors is not None and not settings.coding.uses_priors:
        batch = batch._replace(priors=None)
    return batch, Call(settings, kind_cls, kind_loc, groups)


def make_normalizer(
    name: str,
    choice: float | Tensor | str,
    num_groups: int | None,
    logits: Tensor,
    names: tuple[str, ...] = NORMALIZERS,
) -> tuple[str, Tensor | float | None]:
    """How Call describes a normaliser, and its value if it is a number."""
    if isinstance(choice, str):
        return one_of(name, choice, names), None
    if isinstance(choice, Tensor):
        check_normalizer(name, choice, num_groups, logits)
        return "number", choice.detach()
    if isinstance(choice, bool) or not isinstance(choice, int | float | Real):
        shape = "[]" if num_groups is None else f"[] or [{num_groups}]"
        wanted = f"a number, a tensor of shape {shape} or one of {', '.join(names)}"
        raise TypeError(f"{name}: got {choice!r}, wanted {wanted}")
    if isinstance(choice, int) and abs(choice) > sys.float_info.max:
        raise ValueError(f"{name}: got an integer beyond the range of float64")
    return "number", float(choice)


def in_tensors(batch: Any) -> Any:
    """The batch, flat or dense, with tensors in place of plain numbers."""

    def tensor(number: float) -> Tensor:
        # By arithmetic: torch.full would make every number a constant of a compiled graph.
        return torch.ones((), dtype=torch.float64, device=batch.labels.device) * number

    return batch._make(
        [x if x is None or isinstance(x, Tensor | tuple) else tensor(x) for x in batch]
    )


def check_normalizer(name: str, number: Tensor, num_groups: int | None, logits: Tensor) -> None:
    """Raise unless `number` is a 0-dim tensor or, with groups, has one number for each."""
    each = num_groups is not None and number.ndim > 0
    check(name, number, (num_groups,) if each else (), logits, NUMBERS)  # type: ignore[arg-type]


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


def check_labels(batch: Batch, call: Call) -> None:
    """Raise for a label, or the group of a row that counts, out of range.

    Every implementation then makes both losses and all gradients NaN. On a GPU, where looking means
    waiting, that is all that happens unless JOLKERNELS_VALIDATE=1.

    Raises:
        ValueError: with the first bad index and its value.
    """
    settings, labels, columns = call.settings, batch.labels, batch.logits.shape[1]
    last, counted = settings.last_label(columns), labels != settings.ignore_index
    bad = ((labels < 0) | (labels > last)) & counted
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"labels: got {int(labels[i])} at index {i}, wanted 0 to {last} for logits with "
            f"{columns} columns, or ignore_index {settings.ignore_index}"
        )
    if (groups := batch.groups) is None or call.num_groups is None:
        return
    bad = ((groups < 0) | (groups >= call.num_groups)) & counted
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"groups: got {int(groups[i])} at index {i}, wanted 0 to {call.num_groups - 1}"
        )


def wrong(name: str, got: object, wanted: str) -> Exception:
    """The error for something that is not a tensor, or has the wrong shape."""
    if isinstance(got, Tensor):
        return ValueError(f"{name}: got shape {list(got.shape)}, wanted {wanted}")
    return TypeError(f"{name}: got {type(got).__name__}, wanted {wanted}")
