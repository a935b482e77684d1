"""The dense entrance in C: the passes of rows.c over levels that stay where they lie.

Those of bfloat16 are read and written as they are. What else has half precision is copied as
float32: a float16 is not half a float's bits, and takes instructions that not every processor has.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from jolkernels.batch import Forward, accumulator
from jolkernels.cpu import native
from jolkernels.cpu.dense_call import describe, in_rows, lay_out, readable
from jolkernels.cpu.rows_call import template
from jolkernels.cpu.sums import Sums, finish
from jolkernels.dense import (
    OF_SAMPLES,
    DenseBatch,
    divide_by_positives,
    images_of_a_rank,
    is_by_image,
)
from jolkernels.dense_checks import check_dense_labels
from jolkernels.layout import as_levels, empty_level, kind_of_level
from jolkernels.settings import Call, Settings

Gradients = tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...], Tensor | None]


HALF = torch.float16, torch.bfloat16


def available(batch: DenseBatch, settings: Settings) -> bool:
    """Whether the passes compute this: the choices, float64 throughout, or float32 and less."""
    others = (batch.target_boxes, batch.priors, batch.class_weights)
    tensors = (*batch.logits, *batch.box_preds, *others, *(getattr(batch, n) for n in OF_SAMPLES))
    if not batch.logits[0].is_cpu:
        return False
    dtypes = {t.dtype for t in tensors if t is not None}
    if not (dtypes == {torch.float64} or dtypes <= {torch.float32, *HALF}):
        return False
    if template(settings, batch.columns, 4) is None:
        return False
    if native.library() is None and sum(x.numel() for x in batch.logits) >= native.LARGE:
        native.warn_once()
    return native.library() is not None


def widened(batch: DenseBatch) -> DenseBatch:
    """The batch with float32 copies of what the passes do not read."""

    def level(x: Tensor) -> Tensor:
        return x.float() if x.dtype is torch.float16 else x

    def other(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype in HALF else x

    logits, boxes, *others = batch
    return DenseBatch(tuple(map(level, logits)), tuple(map(level, boxes)), *map(other, others))


def forward(batch: DenseBatch, call: Call) -> Forward:
    """As jolkernels.dense_ops.forward; scalars are [B, 5] where a normaliser is "image"."""
    batch = widened(batch)
    nothing, each = (None,) * len(batch.logits), len(Sums._fields)
    layout = lay_out(batch, *readable(batch), nothing, nothing)
    shape = call.settings.kept, batch.images * batch.samples
    rows = batch.logits[0].new_empty(shape, dtype=accumulator(batch))
    chunks = len(layout.images_of_chunks)
    sums = torch.zeros(chunks, each, dtype=torch.float64)
    c = describe(batch, call, rows, layout)
    c.sums, c.alive = sums.data_ptr(), (batch, rows, layout, sums)
    native.run("forward", c, chunks, rows.dtype)
    if not is_by_image(call):
        return finish([Sums._make(sums.sum(0).tolist())], rows, batch, call)
    of_images = sums.new_zeros(max(1, batch.images), each)
    of_images.index_add_(0, torch.tensor(layout.images_of_chunks, dtype=torch.int64), sums)
    return finish_by_image(of_images, rows, batch, call)


def finish_by_image(of_images: Tensor, rows: Tensor, batch: DenseBatch, call: Call) -> Forward:
    """The results where each image's sums are divided by its positives, then by the images.

    That is a number's normaliser, after sums of samples that have weights of 1 / positives.
    """
    images = float(images_of_a_rank(batch, call))
    factors = divide_by_positives(of_images, call)
    if call.classification_normalizer == "image":
        batch = batch._replace(classification_normalizer=images)
    if call.regression_normalizer == "image":
        batch = batch._replace(regression_normalizer=images)
    result = finish([Sums._make(of_images.sum(0).tolist())], rows, batch, call)
    return result._replace(scalars=result.scalars * factors)


def backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """As jolkernels.dense_ops.backward.

    Raises:
        ValueError: a label or index of `matched` that is out of range by now; or as describe.
    """
    nothing, given, batch = (None,) * len(batch.logits), batch, widened(batch)
    logits, boxes = readable(batch)
    grad_logits: tuple[Any, ...] = nothing
    grad_boxes: tuple[Any, ...] = nothing
    if needs[0]:
        grad_logits = tuple(empty_level(x, "rows" if in_rows(x) else "planes") for x in logits)
    if needs[1]:
        grad_boxes = tuple(empty_level(x, kind_of_level(x)) for x in boxes)
    layout = lay_out(batch, logits, boxes, grad_logits, grad_boxes)
    c = describe(batch, call, rows, layout)
    of_images = upstream(scalars, grad_classification, grad_regression)
    c.by_image, c.scalars = scalars.ndim == 2, ctypes.addressof(of_images)
    extra, of_samples = None, given.extra_regression
    if needs[2] and of_samples is not None:
        extra = rows.new_empty(batch.images, batch.samples)
        c.grad_extra = extra.data_ptr()
    c.alive = batch, rows, layout, of_images, grad_logits, grad_boxes, extra
    native.run("backward", c, len(layout.images_of_chunks), rows.dtype)
    if c.bad:
        check_dense_labels(batch, call)
    return (
        as_levels(grad_logits, given.logits) if needs[0] else nothing,
        as_levels(grad_boxes, given.box_preds) if needs[1] else nothing,
        None if extra is None or of_samples is None else extra.to(of_samples.dtype),
    )


def upstream(
    scalars: Tensor, grad_classification: Tensor | None, grad_regression: Tensor | None
) -> ctypes.Array[ctypes.c_double]:
    """native.upstream, of each image or of all."""
    zero, each = scalars.new_zeros(()), scalars.reshape(-1, 5)
    up = [
        (zero if g is None else g).expand(len(each)) for g in (grad_classification, grad_regression)
    ]
    return native.upstream(each, *up)
