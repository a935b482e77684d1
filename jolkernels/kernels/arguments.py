"""From a batch and its settings to what the kernels take: device functions, tiles, strides."""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jolkernels.batch import Batch, accumulator
from jolkernels.kernels import classification, coding, regression, scores  # noqa: F401  fill in KERNEL
from jolkernels.registry import KERNEL, MOST_TERMS, Regression, params
from jolkernels.settings import Call, Settings

TILE = 1280
"""Numbers of a narrow tile, at most: 40 a thread, all of them in registers."""
MOST_NARROW = 256
"""Columns; wider rows are tiles of their own."""


def available(settings: Settings) -> bool:
    """Whether there are device functions for all choices."""
    score = settings.location_score
    return (
        type(settings.classification) in KERNEL["classification"]
        and all(type(term) in KERNEL["regression"] for _, term in settings.terms)
        and type(settings.coding) in KERNEL["coding"]
        and (score is None or type(score) in KERNEL["location_score"])
    )


@lru_cache
def choices(settings: Settings) -> dict[str, Any]:
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


@lru_cache
def tiles(columns: int, softmax: bool) -> dict[str, Any]:
    """Rows of a tile and columns of a block (jolkernels.kernels.tiles): by shape alone.

    No autotuner: ranks would pick different winners and add in different orders.
    """
    if columns > MOST_NARROW:
        return {"ROWS": 1, "BLOCK": 512, "KIND": "wide", "num_warps": 1}
    blocks = [b for b in (16, 8) if b < 2 * columns] or [triton.next_power_of_2(columns)]
    block = min(blocks, key=lambda b: triton.cdiv(columns, b) * b)  # fewest idle lanes
    padded = triton.cdiv(columns, block) * block
    # Softmax takes few registers besides, unless columns are masked.
    most = 2 * TILE if softmax and padded == columns else TILE
    rows = min(32, 2 ** int(math.log2(most / padded)))
    return {"ROWS": rows, "BLOCK": block, "KIND": "narrow", "num_warps": 1}


def constants(batch: Batch, call: Call, dense: bool) -> dict[str, Any]:
    """The constexpr arguments and options that both row kernels take."""
    settings, columns = call.settings, batch.logits.shape[1]
    return {
        **choices(settings),
        **tiles(columns, settings.classification.softmax),
        "COLUMNS": columns,
        "WIDTH": batch.box_preds.shape[1],
        "BACKGROUND": settings.background_label(columns),
        "LAST": settings.last_label(columns),
        "SOFT": settings.classification.soft and batch.class_targets is None,
        "DENSE": dense,
        "ACC": tl.float64 if accumulator(batch) == torch.float64 else tl.float32,
        "enable_fp_fusion": True,  # its default differs between Triton's versions
    }


def inputs(batch: Batch, settings: Settings, dense: bool) -> tuple[Any, ...]:
    """What both row kernels take first: the samples' tensors, each with its strides.

    dense: no strides, since all are contiguous, and nobody reads them.
    """
    logits, boxes, labels, targets, priors, alphas, betas, _, _, goals, extras, factors, groups = (
        batch
    )
    priors = priors if settings.coding.uses_priors else None
    if dense:
        return (
            logits, 0, 0, boxes, 0, 0, labels, 0, targets, 0, 0, priors, 0, 0, alphas, 0, betas, 0,
            goals, 0, extras, 0, factors, 0, groups, 0,
        )  # fmt: skip
    return (
        *with_strides(logits, 2), *with_strides(boxes, 2), *with_strides(labels, 1),
        *with_strides(targets, 2), *with_strides(priors, 2), *with_strides(alphas, 1),
        *with_strides(betas, 1), *with_strides(goals, 1), *with_strides(extras, 1),
        *with_strides(factors, 1), *with_strides(groups, 1),
    )  # fmt: skip


def with_strides(tensor: Tensor | None, ndim: int) -> tuple[Any, ...]:
    """A tensor and its strides, as the kernels take them; None with strides of 0."""
    return (None, *[0] * ndim) if tensor is None else (tensor, *tensor.stride())


def by_group(number: Tensor | float | None) -> tuple[Any, ...]:
    """A tensor with a number for each group, or one for all of them, and its stride."""
    if not isinstance(number, Tensor):
        return None, 0
    return (number, 0) if number.ndim == 0 else (number, number.stride(0))


def normalizer_kind(name: str, number: Tensor | float | None) -> str:
    """How the kernels name a normaliser; the number itself may be a tensor's."""
    return "tensor" if isinstance(number, Tensor) else name
