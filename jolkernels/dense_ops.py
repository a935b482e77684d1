"""The operators of the dense entrance, jolkernels::dense_forward and jolkernels::dense_backward.

As in jolkernels.ops; the passes run on kernels, in C, or flatten first.
"""

import math
import os
from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from jolkernels import flattened, ops
from jolkernels.batch import Forward, accumulator, check, in_tensors
from jolkernels.cpu import dense_rows
from jolkernels.dense import DenseBatch, Levels, scalars_shape
from jolkernels.dense_checks import check_dense_call, check_dense_labels
from jolkernels.settings import Call

TYPES = {Levels: "Tensor[]", Tensor: "Tensor"}
BATCH = ", ".join(
    f"{TYPES.get(kind, 'Tensor?')} {name}" for name, kind in get_type_hints(DenseBatch).items()
)
torch.library.define("jolkernels::dense_forward", f"({BATCH}, *, str call) -> ({ops.RESULTS})")
torch.library.define(
    "jolkernels::dense_backward",
    f"({BATCH}, *, str call, Tensor rows, Tensor scalars, Tensor grad_classification, "
    "Tensor grad_regression, bool needs_logits, bool needs_boxes, bool needs_extra) -> Tensor[]",
)
Gradients = tuple[Levels | tuple[None, ...], Levels | tuple[None, ...], Tensor | None]


def forward(batch: DenseBatch, call: Call) -> Forward:
    """The results, and what the backward pass needs: `rows` are [kept, B * M]."""
    if ops.in_eager_mode((*batch.logits, *batch.box_preds, *batch[2:])):
        return forward_pass(batch, call)
    return Forward(*torch.ops.jolkernels.dense_forward(*in_tensors(batch), call=call.encode()))


def backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: ops.Needs,
) -> Gradients:
    """Gradients for the levels of logits and box_preds, and for extra_regression [B, M].

    None where `needs` is False; of a level in its own memory format, as torch.empty_like has it.
    The batch holds no normaliser: they are in the scalars. An upstream gradient of None is 0.
    """
    # The scalars have all of a normaliser but which samples an image's own is for.
    z_cls, z_loc = ("image" if kind == "image" else "sum" for kind in call[1:3])
    call = call._replace(classification_normalizer=z_cls, regression_normalizer=z_loc)
    upstream = grad_classification, grad_regression
    tensors = *batch.logits, *batch.box_preds, *batch[2:], rows, scalars, *upstream
    if ops.in_eager_mode(tensors):
        return backward_pass(batch, call, rows, scalars, *upstream, needs)
    grad_classification, grad_regression = ops.filled(upstream, rows, call)
    found = torch.ops.jolkernels.dense_backward(
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
    levels, given = range(len(batch.logits)), iter(found)
    logits, boxes = (tuple(next(given) if needed else None for _ in levels) for needed in needs[:2])
    return logits, boxes, next(given) if needs[2] else None


def implementation(batch: DenseBatch, call: Call) -> Any:
    """The module whose `forward` and `backward` compute this."""
    logits = batch.logits[0]
    if ops.HAS_TRITON and (logits.is_cuda or (ops.INTERPRETED and logits.is_cpu)):
        from jolkernels.kernels import dense_launch

        if dense_launch.available(batch, call.settings):
            return dense_launch
    elif dense_rows.available(batch, call.settings):
        return dense_rows
    return flattened


def forward_pass(batch: DenseBatch, call: Call, in_operator: bool = False) -> Forward:
    """The forward pass on real tensors.

    Raises:
        ValueError: a label or `matched` out of range, on the CPU or with JOLKERNELS_VALIDATE=1;
            with the latter also what jolkernels.ops.check_values refuses.
    """
    validate = os.environ.get("JOLKERNELS_VALIDATE") == "1"
    chosen = implementation(batch, call)
    if chosen is dense_rows:
        result = dense_rows.forward(batch, call)
    else:
        result = chosen.forward(batch, call, alone=in_operator)
    may_wait = validate or batch.labels.is_cpu
    if may_wait and math.isnan(result.scalars.view(-1)[4].item()):  # of all ranks: all raise
        check_dense_labels(batch, call)
        raise ValueError("labels: a label or index is out of range on another rank of sync_group")
    if validate:
        ops.check_values(flattened.flatten_samples(batch, call)[0], call.settings)
    return result


def backward_pass(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: ops.Needs,
) -> Gradients:
    """The backward pass on real tensors."""
    saved = rows.contiguous(), scalars.contiguous(), grad_classification, grad_regression
    return implementation(batch, call).backward(batch, call, *saved, needs)


def run_forward(batch: DenseBatch, call: Call) -> tuple[Tensor, ...]:
    """jolkernels::dense_forward on real tensors."""
    check_dense_call(batch, call)
    return tuple(forward_pass(batch, call, in_operator=True))


def run_backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs_logits: bool,
    needs_boxes: bool,
    needs_extra: bool,
) -> list[Tensor]:
    """jolkernels::dense_backward on real tensors."""
    check_dense_call(batch, call)
    like, size = batch.logits[0], batch.images * batch.samples
    check("rows", rows, (call.settings.kept, size), like, (accumulator(batch),))
    check("scalars", scalars, scalars_shape(batch, call), like, (torch.float64,))
    check("grad_classification", grad_classification, (), like)
    check("grad_regression", grad_regression, (), like)
    if needs_extra and batch.extra_regression is None:
        raise ValueError("needs_extra: got True without extra_regression, wanted False")
    saved = rows, scalars, grad_classification, grad_regression
    needs = needs_logits, needs_boxes, needs_extra
    logits, boxes, extra = backward_pass(batch, call, *saved, needs)
    return [g for g in (*logits, *boxes, extra) if g is not None]


def fake_forward(batch: DenseBatch, call: Call) -> tuple[Tensor, ...]:
    """Shapes and dtypes of jolkernels::dense_forward."""
    like = batch.logits[0]

    def empty(*shape: int) -> Tensor:
        return like.new_empty(shape, dtype=accumulator(batch))

    return tuple(
        Forward(
            classification=empty(),
            regression=empty(),
            negative_weight=empty(),
            num_positives=like.new_empty((), dtype=torch.int64),
            extra_regression=empty(),
            rows=empty(call.settings.kept, batch.images * batch.samples),
            scalars=like.new_empty(scalars_shape(batch, call), dtype=torch.float64),
        )
    )


def fake_backward(
    batch: DenseBatch,
    call: Call,
    needs_logits: bool,
    needs_boxes: bool,
    needs_extra: bool,
    **_: Tensor,
) -> list[Tensor]:
    """Shapes, dtypes and memory formats of jolkernels::dense_backward."""
    like = [*(batch.logits if needs_logits else ()), *(batch.box_preds if needs_boxes else ())]
    found = [torch.empty_like(x) for x in like]
    extra = batch.extra_regression
    if needs_extra and extra is not None:
        found.append(extra.new_empty(extra.shape))
    return found


def operator(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body` as an operator calls it: with a DenseBatch's fields by position, the call as text."""

    def called(
        logits: list[Tensor], boxes: list[Tensor], *fields: Any, call: str, **others: Any
    ) -> Any:
        batch = DenseBatch(tuple(logits), tuple(boxes), *fields)
        return body(batch, Call.decode(call), **others)

    return called


torch.library.impl("jolkernels::dense_forward", "default", operator(run_forward))
torch.library.impl("jolkernels::dense_backward", "default", operator(run_backward))
torch.library.register_fake("jolkernels::dense_forward", operator(fake_forward))
torch.library.register_fake("jolkernels::dense_backward", operator(fake_backward))
