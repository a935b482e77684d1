"""The passes of the dense entrance: by kernels, in C, or flattened first."""

from typing import Any

from torch import Tensor

from jolkernels import ops
from jolkernels.batch import Forward
from jolkernels.dense import DenseBatch, Levels
from jolkernels.flattened import flatten, in_levels
from jolkernels.settings import Call

Gradients = tuple[Levels | tuple[None, ...], Levels | tuple[None, ...], Tensor | None]


def implementation(batch: DenseBatch, call: Call) -> Any:
    """The module whose `forward` and `backward` compute this without flattening; None: none."""
    return None


def forward(batch: DenseBatch, call: Call) -> Forward:
    """The results, and what the backward pass needs: `rows` are [kept, B * M]."""
    chosen = implementation(batch, call)
    if chosen is None:
        return ops.forward(*flatten(batch, call))
    return chosen.forward(batch, call)


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

    None where `needs` is False. The batch holds no normaliser: they are in the scalars.
    """
    upstream = grad_classification, grad_regression
    chosen = implementation(batch, call)
    if chosen is not None:
        return chosen.backward(batch, call, rows, scalars, *upstream, needs)
    flat, flat_call = flatten(batch, call)
    flat = flat._replace(classification_normalizer=None, regression_normalizer=None)
    logits, boxes, extra = ops.backward(flat, flat_call, rows, scalars, *upstream, needs)
    nothing = (None,) * len(batch.logits)
    shape = batch.images, batch.samples
    return (
        nothing if logits is None else in_levels(logits, batch.logits),
        nothing if boxes is None else in_levels(boxes, batch.box_preds),
        None if extra is None else extra.view(shape),
    )
