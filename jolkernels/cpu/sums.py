"""The sums of a forward pass on the CPU, and the results that they finish in."""

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Forward, number_of_sums
from jolkernels.settings import Call


class Sums(NamedTuple):
    """What a forward pass adds up of a group; docs/mathematics.md names them P N W A+ A- R.

    The order is that of samples.h.
    """

    positives: float
    samples: float
    weights: float
    a_pos: float
    a_neg: float
    r: float
    bad: float  # labels and groups out of range, of all groups
    counts: float  # samples, or the sum of their class weights
    extra: float  # of r the part of extra_regression


class Results(NamedTuple):
    """What the sums of a group finish in."""

    classification: float
    regression: float
    w_neg: float
    positives: int
    extra: float
    scalars: tuple[float, float, float, float, float]


def finish(local: list[Sums], rows: Tensor, batch: Any, call: Call) -> Forward:
    """The results of this process, whose sums are `local`, with the totals of its sync_group.

    One Sums a group, or one alone without groups. `rows` [kept, N] is what the backward pass needs
    of each row; the batch is a Batch or a DenseBatch.
    """
    total, sync_group = local, call.settings.sync_group
    if sync_group is not None:
        count = number_of_sums(batch, call.settings)
        sums = torch.tensor([s[:count] for s in local], dtype=torch.float64, device=rows.device)
        process_groups.all_reduce(sums, sync_group)
        total = [Sums(*row, *(row[1], 0.0)[: 9 - count]) for row in sums.tolist()]
    ranks = process_groups.size(sync_group)
    z_cls, z_loc = batch.classification_normalizer, batch.regression_normalizer
    groups = [
        one_group(local[g], total[g], ranks, call, number(z_cls, g), number(z_loc, g))
        for g in range(len(local))
    ]
    shape = call.shape
    classification, regression, w_neg, positives, extra, scalars = zip(*groups, strict=True)
    numbers = torch.frombuffer(array("d", chain(*scalars)), dtype=torch.float64)
    if shape:
        numbers = numbers.view(*shape, 5)
    return Forward(
        classification=filled(classification, rows, shape),
        regression=filled(regression, rows, shape),
        negative_weight=filled(w_neg, rows, shape),
        num_positives=filled(positives, rows, shape, torch.int64),
        extra_regression=filled(extra, rows, shape),
        rows=rows,
        scalars=numbers if rows.is_cpu else numbers.to(rows.device),
    )


def one_group(
    local: Sums,
    total: Sums,
    ranks: int,
    call: Call,
    z_cls: float | None,
    z_loc: float | None,
) -> Results:
    """The results of a group; z_cls and z_loc are its normalisers where these are numbers.

    Numbers are taken as they are. Those by name are the totals' over the number of ranks, so that
    the mean over the ranks is the loss of the joined batch.
    """
    if z_cls is None:
        z_cls = divisor(call.classification_normalizer, total, total.counts) / ranks
    if z_loc is None:
        z_loc = divisor(call.regression_normalizer, total, total.samples) / ranks
    w_neg = 1.0
    if call.settings.weighted and total.positives:
        w_neg = total.weights / total.positives
    poison = math.nan if total.bad else 0.0
    mean_neg = total.a_neg / max(1, total.positives)
    return Results(
        quotient(local.a_pos + w_neg * local.a_neg, z_cls) + poison,
        quotient(local.r, z_loc) + poison,
        w_neg,
        int(total.positives),
        quotient(local.extra, z_loc) + poison,
        (w_neg, mean_neg, quotient(1, z_cls), quotient(1, z_loc), poison),
    )


def divisor(kind: str, total: Sums, samples: float) -> float:
    """What a sum is divided by; `samples`, which class weights make a real number, 1 if it is 0."""
    if kind == "samples":
        return samples if samples > 0 else 1
    return max(1, total.positives) if kind == "positives" else 1


def number(normalizer: Tensor | float | None, group: int) -> float | None:
    """A normaliser of this group, if it was given as a number."""
    if not isinstance(normalizer, Tensor):
        return normalizer
    return float(normalizer if normalizer.ndim == 0 else normalizer[group])


def quotient(x: float, z: float) -> float:
    """x / z; infinite or NaN for z = 0, as tensors have it and Python does not."""
    return x / z if z else x * math.copysign(math.inf, z)


def filled(
    numbers: Sequence[float],
    like: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A 0-dim tensor of one number, or [G]; infinite beyond its range, where new_full raises."""
    dtype = dtype or like.dtype
    largest = LARGEST.get(dtype, math.inf)
    within = [math.copysign(math.inf, x) if abs(x) > largest else x for x in numbers]
    if shape:
        return like.new_tensor(within, dtype=dtype)
    return like.new_full((), within[0], dtype=dtype)


LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}
