"""From a batch and its settings to kernel launches: tables of device functions, tiles, strides."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jolkernels import spec
from jolkernels.kernels import classification, coding, regression, scores
from jolkernels.kernels.backward import gradients_kernel
from jolkernels.kernels.forward import SUMS, finish_kernel, rows_kernel
from jolkernels.spec import Batch, Forward, Settings, accumulator

# One row a choice; CrossEntropy is the kernels' own (SOFTMAX).
CLASSIFY = {spec.CrossEntropy: None, spec.Focal: classification.focal}
REGRESS = {
    spec.L1: regression.l1,
    spec.SmoothL1: regression.smooth_l1,
    spec.IoU: regression.iou_loss,
    spec.GIoU: regression.giou_loss,
}
SCORE: dict[type, Any] = {spec.IoU: scores.iou_score}
CODING = {
    spec.XYXY: (coding.decode_xyxy, coding.encode_xyxy, coding.pull_xyxy),
    spec.Delta: (coding.decode_delta, coding.encode_delta, coding.pull_delta),
    spec.LTRB: (coding.decode_ltrb, coding.encode_ltrb, coding.pull_ltrb),
}

FINISH_BLOCK = 256


def params(choice: Any) -> tuple:
    """The fields of a spec, as the kernels' constexpr tuple."""
    return tuple(getattr(choice, f.name) for f in dataclasses.fields(choice))


@lru_cache
def constants(settings: Settings) -> dict[str, Any]:
    """The constexpr arguments that both row kernels take from the settings."""
    score = settings.location_score if settings.weighted else None
    decode, encode, pull = CODING[type(settings.coding)]
    return {
        "SOFTMAX": settings.classification.softmax,
        "CLASSIFY": CLASSIFY[type(settings.classification)],
        "CLASSIFY_PARAMS": params(settings.classification),
        "REGRESS": REGRESS[type(settings.regression)],
        "REGRESS_PARAMS": params(settings.regression),
        "ON_CODES": settings.regression.on_codes,
        "SCORE": None if score is None else SCORE[type(score)],
        "SCORE_PARAMS": () if score is None else params(score),
        "DECODE": decode,
        "ENCODE": encode,
        "PULL": pull,
        "CODING_PARAMS": params(settings.coding),
        "JOINT": settings.weighted,
        "CLASS_SCORE": settings.class_score is not None,
        "LAM": settings.lam,
    }


def tiles(columns: int) -> dict[str, int]:
    """Rows and columns a program holds at a time, and its warps: by shape alone.

    No autotuner: ranks would pick different winners, and the order of the sums with them.
    """
    block_cols = min(triton.next_power_of_2(columns), 1024)
    block_rows = max(1, min(64, 512 // block_cols))
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "num_warps": 4}


def with_strides(tensor: Tensor | None, ndim: int) -> tuple[Any, ...]:
    """A tensor and its strides, as the kernels take them; None with strides of 0."""
    return (None, *[0] * ndim) if tensor is None else (tensor, *tensor.stride())


def arguments(batch: Batch, settings: Settings) -> tuple[tuple, tuple, dict[str, Any]]:
    """What both row kernels take: the inputs with strides, the sizes, the constants."""
    n, columns = batch.logits.shape
    inputs = (
        *with_strides(batch.logits, 2),
        *with_strides(batch.box_preds, 2),
        *with_strides(batch.labels, 1),
        *with_strides(batch.target_boxes, 2),
        *with_strides(batch.priors, 2),
        *with_strides(batch.classification_weights, 1),
        *with_strides(batch.regression_weights, 1),
    )
    sizes = (
        n,
        columns,
        settings.background_label(columns),
        settings.last_label(columns),
        settings.ignore_index,
    )
    compile_time = constants(settings) | tiles(columns)
    compile_time["CLASS_SPECIFIC"] = batch.box_preds.shape[1] > 4
    compile_time["ACC"] = tl.float64 if accumulator(batch) == torch.float64 else tl.float32
    compile_time["enable_fp_fusion"] = True  # its default differs between Triton's versions
    return inputs, sizes, compile_time


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device; make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def forward(batch: Batch, settings: Settings) -> Forward:
    """Both losses, and for `backward` lse or loss of the rows [N] and five scalars."""
    inputs, sizes, compile_time = arguments(batch, settings)
    n, dtype = len(batch.labels), accumulator(batch)
    programs = triton.cdiv(n, compile_time["BLOCK_ROWS"])

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=batch.logits.device)

    result = Forward(
        classification=empty(),
        regression=empty(),
        negative_weight=empty(),
        num_positives=empty(dtype=torch.int64),
        rows=empty(n),
        scalars=empty(5),
    )
    partial_sums = empty(SUMS.value * programs)
    z_cls, z_loc = batch.classification_normalizer, batch.regression_normalizer
    with on_device(batch.logits):
        if programs:
            rows_kernel[(programs,)](*inputs, result.rows, partial_sums, *sizes, **compile_time)
        finish_kernel[(1,)](
            partial_sums,
            programs,
            z_cls if isinstance(z_cls, Tensor) else None,
            z_loc if isinstance(z_loc, Tensor) else None,
            *result[:4],
            result.scalars,
            Z_CLS=z_cls if isinstance(z_cls, str) else "number",
            Z_LOC=z_loc if isinstance(z_loc, str) else "number",
            JOINT=settings.weighted,
            BLOCK=FINISH_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return result


def backward(
    batch: Batch,
    settings: Settings,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for logits [N, C] and box_preds [N, 4S], each where `needs` asks for it."""
    inputs, sizes, compile_time = arguments(batch, settings)
    programs = triton.cdiv(len(batch.labels), compile_time["BLOCK_ROWS"])
    grad_logits, grad_boxes = (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else None
        for x, needed in zip((batch.logits, batch.box_preds), needs, strict=True)
    )
    if programs:
        with on_device(batch.logits):
            gradients_kernel[(programs,)](
                *inputs,
                rows,
                scalars,
                grad_classification,
                grad_regression,
                grad_logits,
                grad_boxes,
                batch.box_preds.shape[1],
                *sizes,
                **compile_time,
                CONSTANT=not settings.weights_have_gradient,
            )
    return grad_logits, grad_boxes
