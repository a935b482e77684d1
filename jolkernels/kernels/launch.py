"""From a batch and its settings to kernel launches: device functions, tiles, strides."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Batch, Forward, accumulator, number_of_sums
from jolkernels.kernels import classification, coding, regression, scores  # noqa: F401  fill in KERNEL
from jolkernels.kernels.backward import gradients_kernel
from jolkernels.kernels.forward import finish_kernel, rows_kernel
from jolkernels.registry import KERNEL, MOST_TERMS, Regression, params
from jolkernels.settings import Call, Settings

FINISH_BLOCK = 256


def available(batch: Batch, settings: Settings) -> bool:
    """Whether there are device functions for all choices."""
    score = settings.location_score
    return (
        type(settings.classification) in KERNEL["classification"]
        and all(type(term) in KERNEL["regression"] for _, term in settings.terms)
        and type(settings.coding) in KERNEL["coding"]
        and (score is None or type(score) in KERNEL["location_score"])
    )


@lru_cache
def constants(settings: Settings) -> dict[str, Any]:
    """The constexpr arguments that both row kernels take from the settings."""
    score = settings.location_score if settings.weighted else None
    decode, encode, pull = KERNEL["coding"][type(settings.coding)]
    encodes = any(term.on_codes for _, term in settings.terms) and not settings.coded_targets
    return {
        "SOFTMAX": settings.classification.softmax,
        "CLASSIFY": KERNEL["classification"][type(settings.classification)],
        "CLASSIFY_PARAMS": params(settings.classification),
        **box_losses(settings.terms),
        "SCORE": None if score is None else KERNEL["location_score"][type(score)],
        "SCORE_PARAMS": () if score is None else params(score),
        "DECODE": decode,
        "ENCODE": encode if encodes else None,
        "PULL": pull,
        "CODING_PARAMS": params(settings.coding),
        "CODED_TARGETS": settings.coded_targets,
        "JOINT": settings.weighted,
        "CLASS_SCORE": settings.class_score is not None,
        "LAM": settings.lam,
    }


def box_losses(terms: tuple[tuple[float, Regression], ...]) -> dict[str, Any]:
    """The constexpr arguments of the box loss, a sum of at most MOST_TERMS others.

    One argument for each: the keys of Triton's caches know functions, but not those in a tuple.
    """
    given: dict[str, Any] = {
        "FACTORS": tuple(factor for factor, _ in terms),
        "ON_CODES": tuple(term.on_codes for _, term in terms),
    }
    for i in range(MOST_TERMS):
        term = terms[i][1] if i < len(terms) else None
        given[f"REGRESS_{i}"] = None if term is None else KERNEL["regression"][type(term)]
        given[f"PARAMS_{i}"] = () if term is None else params(term)
    return given


def tiles(columns: int) -> dict[str, int]:
    """Rows and columns a program holds at a time, and its warps: by shape alone.

    No autotuner: ranks would pick different winners and add in different orders.
    """
    block_cols = min(triton.next_power_of_2(columns), 1024)
    block_rows = max(1, min(64, 512 // block_cols))
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "num_warps": 4}


def with_strides(tensor: Tensor | None, ndim: int) -> tuple[Any, ...]:
    """A tensor and its strides, as the kernels take them; None with strides of 0."""
    return (None, *[0] * ndim) if tensor is None else (tensor, *tensor.stride())


def by_group(tensor: Tensor | None) -> tuple[Any, ...]:
    """A number for each group, or one for all of them, with its stride."""
    return (tensor, 0) if tensor is None or tensor.ndim == 0 else (tensor, tensor.stride(0))


def arguments(batch: Batch, call: Call) -> tuple[tuple, tuple, dict[str, Any]]:
    """What both row kernels take: the inputs with strides, the sizes, the constants."""
    settings = call.settings
    n, columns = batch.logits.shape
    inputs = (
        *with_strides(batch.logits, 2),
        *with_strides(batch.box_preds, 2),
        *with_strides(batch.labels, 1),
        *with_strides(batch.target_boxes, 2),
        *with_strides(batch.priors if settings.coding.uses_priors else None, 2),
        *with_strides(batch.classification_weights, 1),
        *with_strides(batch.regression_weights, 1),
        *with_strides(batch.class_targets, 1),
        *with_strides(batch.extra_regression, 1),
        *with_strides(batch.class_weights, 1),
        *with_strides(batch.groups, 1),
    )
    sizes = (
        n,
        columns,
        settings.background_label(columns),
        settings.last_label(columns),
        settings.ignore_index,
        call.num_groups,
    )
    compile_time = constants(settings) | tiles(columns)
    compile_time["SOFT"] = settings.classification.soft and batch.class_targets is None
    compile_time["CLASS_SPECIFIC"] = batch.box_preds.shape[1] > 4
    compile_time["ACC"] = tl.float64 if accumulator(batch) == torch.float64 else tl.float32
    compile_time["enable_fp_fusion"] = True  # its default differs between Triton's versions
    return inputs, sizes, compile_time


class Launch(NamedTuple):
    """A kernel with all its arguments; bench.compiled compiles it without calling it."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    compile_time: dict[str, Any]

    def __call__(self) -> None:
        """Launch the kernel on the current device."""
        if self.programs:
            self.kernel[(self.programs,)](*self.arguments, **self.compile_time)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device; make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def plan_forward(
    batch: Batch, call: Call
) -> tuple[Forward, list[Launch], tuple[Tensor, Tensor | None]]:
    """The results, allocated; the launches that fill them; and what to sync between the launches.

    The last item is the programs' sums [sums, programs] or [sums, G, programs] and, with a
    sync_group, a buffer for those of all programs and ranks, float64 [sums] or [sums, G].
    """
    settings = call.settings
    inputs, sizes, compile_time = arguments(batch, call)
    n, dtype = len(batch.labels), accumulator(batch)
    programs = triton.cdiv(n, compile_time["BLOCK_ROWS"])

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=batch.logits.device)

    shape = call.shape
    result = Forward(
        classification=empty(*shape),
        regression=empty(*shape),
        negative_weight=empty(*shape),
        num_positives=empty(*shape, dtype=torch.int64),
        extra_regression=empty(*shape),
        rows=empty(settings.kept, n),
        scalars=empty(*shape, 5, dtype=torch.float64),
    )
    compile_time["SUMS"] = sums = number_of_sums(batch, settings)
    partial_sums = empty(sums, *shape, programs)
    totals = empty(sums, *shape, dtype=torch.float64) if settings.sync_group else None
    finish = {
        "Z_CLS": call.classification_normalizer,
        "Z_LOC": call.regression_normalizer,
        "JOINT": settings.weighted,
        "SUMS": sums,
        "KINDS": triton.next_power_of_2(sums),
        "BLOCK": FINISH_BLOCK,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    finish_arguments = (
        partial_sums,
        programs,
        totals,
        process_groups.size(settings.sync_group),
        *by_group(batch.classification_normalizer),
        *by_group(batch.regression_normalizer),
        *result[:5],
        result.scalars,
    )
    rows_arguments = (*inputs, result.rows, partial_sums, *sizes)
    launches = [
        Launch(rows_kernel, programs, rows_arguments, compile_time),
        Launch(finish_kernel, call.num_groups or 1, finish_arguments, finish),
    ]
    return result, launches, (partial_sums, totals)


def plan_backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], list[Launch]]:
    """The gradients, allocated, and the launch that fills them."""
    settings = call.settings
    inputs, sizes, compile_time = arguments(batch, call)
    programs = triton.cdiv(len(batch.labels), compile_time["BLOCK_ROWS"])
    leaves = batch.logits, batch.box_preds, batch.extra_regression
    gradients = tuple(
        None
        if x is None or not needed
        else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, needed in zip(leaves, needs, strict=True)
    )
    launch_arguments = (
        *inputs,
        rows,
        scalars,
        *by_group(grad_classification),
        *by_group(grad_regression),
        *gradients,
        batch.box_preds.shape[1],
        *sizes,
    )
    compile_time["CONSTANT"] = not settings.weights_have_gradient
    launches = [Launch(gradients_kernel, programs, launch_arguments, compile_time)]
    return gradients, launches  # type: ignore[return-value]  # three of them


def forward(batch: Batch, call: Call) -> Forward:
    """Both losses, and for `backward` the rows' terms [kept, N] and five scalars."""
    settings = call.settings
    result, (rows, finish), (partial_sums, totals) = plan_forward(batch, call)
    with on_device(batch.logits):
        rows()
        if totals is not None and settings.sync_group is not None:
            torch.sum(partial_sums, -1, dtype=torch.float64, out=totals)
            process_groups.all_reduce(totals, settings.sync_group)
        finish()
    return result


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As jolkernels.cpu.backward."""
    gradients, launches = plan_backward(
        batch, call, rows, scalars, grad_classification, grad_regression, needs
    )
    with on_device(batch.logits):
        for launch in launches:
            launch()
    return gradients
