"""The two operators of the loss, jolkernels::forward and jolkernels::backward.

CUDA and HIP tensors go to the Triton kernels, and so do CPU tensors where TRITON_INTERPRET=1 was
set before the import; everything else goes to jolkernels.cpu, and so does what has no kernel.

Operators are what torch.compile, torch.export and fake tensors see. Plain tensors in eager mode go
straight to the implementation: the operator boundary costs more than a small batch's kernels.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from jolkernels import cpu, reference, spec
from jolkernels.batch import (
    Batch,
    Forward,
    accumulator,
    check,
    check_call,
    check_labels,
    in_tensors,
)
from jolkernels.settings import Call, Settings

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

# The fields of a Batch by position, everything else by name; the call is encoded.
BATCH = ", ".join(
    f"Tensor{'' if kind is Tensor else '?'} {name}" for name, kind in get_type_hints(Batch).items()
)
RESULTS = ", ".join("Tensor" for _ in Forward._fields)
torch.library.define("jolkernels::forward", f"({BATCH}, *, str call) -> ({RESULTS})")
torch.library.define(
    "jolkernels::backward",
    f"({BATCH}, *, str call, Tensor rows, Tensor scalars, Tensor grad_classification, "
    "Tensor grad_regression, bool needs_logits, bool needs_boxes, bool needs_extra) -> "
    "(Tensor, Tensor, Tensor)",
)
Needs = tuple[bool, bool, bool]  # whether logits, box_preds and extra_regression need gradients
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of these


def forward(batch: Batch, call: Call) -> Forward:
    """The results, and what the backward pass needs."""
    if in_eager_mode(batch):
        return forward_pass(batch, call)
    return Forward(*torch.ops.jolkernels.forward(*in_tensors(batch), call=call.encode()))


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: Needs,
) -> Gradients:
    """Gradients for logits [N, C], box_preds [N, 4S] and extra_regression [N].

    Each is None or empty where `needs` is False. The batch holds no normaliser: they are in the
    scalars. An upstream gradient of None is 0.
    """
    upstream = grad_classification, grad_regression
    if in_eager_mode((*batch, rows, scalars, *upstream)):
        return backward_pass(batch, call, rows, scalars, *upstream, needs)
    grad_classification, grad_regression = filled(upstream, rows, call)
    call = call._replace(classification_normalizer="sum", regression_normalizer="sum")
    return torch.ops.jolkernels.backward(
        *batch,
        call=call.encode(),
        rows=rows,
        scalars=scalars,
        grad_classification=grad_classification,
        grad_regression=grad_regression,
        needs_logits=needs[0],
        needs_boxes=needs[1],
        needs_extra=needs[2],
    )


def filled(
    upstream: tuple[Tensor | None, Tensor | None], rows: Tensor, call: Call
) -> tuple[Tensor, Tensor]:
    """Upstream gradients with zeros for None."""
    g_cls, g_loc = upstream
    if g_cls is None or g_loc is None:
        zeros = rows.new_zeros(call.shape)
        return zeros if g_cls is None else g_cls, zeros if g_loc is None else g_loc
    return g_cls, g_loc


PLAIN = (Tensor, torch.nn.Parameter)


def in_eager_mode(fields: Iterable[Tensor | float | None]) -> bool:
    """Whether the tensors of these are plain ones, with no compiler or dispatch mode at work.

    One that is negated lazily is not: kernels and C, reading memory, would miss it. On its way to
    an operator PyTorch negates it.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for x in fields:  # faster than a generator
        if x is None or isinstance(x, float):
            continue
        if type(x) not in PLAIN or x.is_meta or x.is_neg():
            return False
    return True


def implementation(batch: Batch, settings: Settings) -> Any:
    """The package whose `forward` and `backward` compute this: kernels or cpu."""
    logits = batch.logits
    if HAS_TRITON and (logits.is_cuda or (INTERPRETED and logits.is_cpu)):
        from jolkernels import kernels

        if kernels.available(settings):
            return kernels
    return cpu


def forward_pass(batch: Batch, call: Call, in_operator: bool = False) -> Forward:
    """The forward pass on real tensors.

    Raises:
        ValueError: a label or group out of range, on the CPU or with JOLKERNELS_VALIDATE=1; with
            the latter also what check_values refuses.
    """
    validate = os.environ.get("JOLKERNELS_VALIDATE") == "1"
    chosen = implementation(batch, call.settings)
    if chosen is cpu:
        result = cpu.forward(batch, call)
    else:
        result = chosen.forward(batch, call, alone=in_operator)
    first = result.scalars if call.num_groups is None else result.scalars[0]
    may_wait = validate or batch.labels.is_cpu
    if may_wait and math.isnan(first.tolist()[4]):  # of all ranks: they raise together
        check_labels(batch, call)
        raise ValueError("labels: a label or group is out of range on another rank of sync_group")
    if validate:
        check_values(batch, call.settings)
    return result


def backward_pass(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: Needs,
) -> Gradients:
    """The backward pass on real tensors.

    Raises:
        ValueError: a label or group out of range by now, on the CPU.
    """
    upstream = grad_classification, grad_regression
    chosen = implementation(batch, call.settings)
    if chosen is cpu:
        upstream = filled(upstream, rows, call)
    return chosen.backward(batch, call, rows.contiguous(), scalars.contiguous(), *upstream, needs)


def run_forward(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """jolkernels::forward on real tensors."""
    check_call(batch, call)
    return tuple(forward_pass(batch, call, in_operator=True))


def run_backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs_logits: bool,
    needs_boxes: bool,
    needs_extra: bool,
) -> tuple[Tensor, ...]:
    """jolkernels::backward on real tensors."""
    check_call(batch, call)
    numbers = (accumulator(batch),)
    check("rows", rows, (call.settings.kept, len(batch.labels)), batch.logits, numbers)
    shape = call.shape
    check("scalars", scalars, (*shape, 5), batch.logits, (torch.float64,))
    check("grad_classification", grad_classification, shape, batch.logits)
    check("grad_regression", grad_regression, shape, batch.logits)
    if needs_extra and batch.extra_regression is None:
        raise ValueError("needs_extra: got True without extra_regression, wanted False")
    saved = rows, scalars, grad_classification, grad_regression
    gradients = backward_pass(batch, call, *saved, (needs_logits, needs_boxes, needs_extra))
    return tuple(batch.logits.new_empty(0) if g is None else g for g in gradients)


def fake_forward(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """Shapes and dtypes of jolkernels::forward."""

    def empty(*shape: int) -> Tensor:
        return batch.logits.new_empty(shape, dtype=accumulator(batch))

    shape = call.shape
    return tuple(
        Forward(
            classification=empty(*shape),
            regression=empty(*shape),
            negative_weight=empty(*shape),
            num_positives=batch.labels.new_empty(shape),
            extra_regression=empty(*shape),
            rows=empty(call.settings.kept, batch.labels.shape[0]),
            scalars=batch.logits.new_empty((*shape, 5), dtype=torch.float64),
        )
    )


def fake_backward(
    batch: Batch,
    call: Call,
    needs_logits: bool,
    needs_boxes: bool,
    needs_extra: bool,
    **_: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of jolkernels::backward."""
    logits, boxes, extra = batch.logits, batch.box_preds, batch.extra_regression
    nothing = logits.new_empty(0)
    return (
        logits.new_empty(logits.shape) if needs_logits else nothing,
        boxes.new_empty(boxes.shape) if needs_boxes else nothing.clone(),
        extra.new_empty(extra.shape) if needs_extra and extra is not None else nothing.clone(),
    )


def operator(body: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """`body` as an operator calls it: with a Batch's fields by position and the call as text."""

    def called(*fields: Tensor | None, call: str, **others: Any) -> tuple[Tensor, ...]:
        batch = Batch(*fields)  # type: ignore[arg-type]  # the schema says which may be None
        return body(batch, Call.decode(call), **others)

    return called


torch.library.impl("jolkernels::forward", "default", operator(run_forward))
torch.library.impl("jolkernels::backward", "default", operator(run_backward))
torch.library.register_fake("jolkernels::forward", operator(fake_forward))
torch.library.register_fake("jolkernels::backward", operator(fake_backward))


def check_values(batch: Batch, settings: Settings) -> None:
    """Raise for numbers that make no sense: class targets and boxes of positives, class weights.

    Raises:
        ValueError: with the first such index and its value.
    """
    labels = batch.labels
    background = settings.background_label(batch.logits.shape[1])
    positive = ((labels != settings.ignore_index) & (labels != background)).nonzero()[:, 0]
    if (targets := batch.class_targets) is not None:
        of_positives = targets[positive]
        wrong = ~((of_positives >= 0) & (of_positives <= 1))  # NaN too
        raise_first("class_targets", targets, positive[wrong], "0 to 1")
    if (weights := batch.class_weights) is not None:
        wrong = ~((weights >= 0) & weights.isfinite())
        raise_first("class_weights", weights, wrong.nonzero()[:, 0], "a finite number >= 0")
    if not all(term.on_codes for _, term in settings.terms):
        check_boxes(batch, positive, settings)


def raise_first(name: str, values: Tensor, wrong: Tensor, wanted: str) -> None:
    """Raise ValueError for the first index of `wrong`, if there is one."""
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{name}: got {float(values[i])} at index {i}, wanted {wanted}")


def check_boxes(batch: Batch, positive: Tensor, settings: Settings) -> None:
    """Raise for a positive's predicted box of negative extent.

    There GIoU has no lower bound, which training follows, and IoU no gradient.

    Raises:
        ValueError: with the first such index, its numbers and its size.
    """
    codes, boxes, *_ = reference.boxes_of(batch, positive, settings)
    sizes = boxes[:, 2:] - boxes[:, :2]
    bad = (sizes < 0).any(1).nonzero()[:, 0]
    if len(bad):
        i = int(bad[0])
        width, height = sizes[i].tolist()
        remedy = ": ReLU, exp or softplus makes distances of a head's raw outputs"
        # Targets that are coded too need not be in pixels, and their codes show the size.
        size = "" if settings.coded_targets else f", a box of {width:g} x {height:g} pixels"
        raise ValueError(
            f"box_preds: got {codes[i].tolist()} at index {int(positive[i])}{size}, wanted no "
            f"negative size for {settings.regression}"
            + (remedy if isinstance(settings.coding, spec.LTRB) else "")
        )
