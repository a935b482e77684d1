"""The sums of a forward pass on the CPU, and the results that they finish in."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Batch, Forward
from jolkernels.settings import Call


class Sums(NamedTuple):
    """What a forward pass adds up; docs/mathematics.md names them P N W A+ A- R."""

    positives: float
    samples: float
    weights: float
    a_pos: float
    a_neg: float
    r: float
    bad: float  # labels out of range


def finish(local: Sums, rows: Tensor, batch: Batch, call: Call) -> Forward:
    """The results of this process, whose sums are `local`, with the totals of its sync_group.

    `rows` [kept, N] is what the backward pass needs of each row.
    """
    settings = call.settings
    total, ranks = local, process_groups.size(settings.sync_group)
    if settings.sync_group is not None:
        sums = torch.tensor(local, dtype=torch.float64, device=rows.device)
        process_groups.all_reduce(sums, settings.sync_group)
        total = Sums(*sums.tolist())

    w_neg = total.weights / total.positives if settings.weighted and total.positives else 1.0
    z_cls, z_loc = (
        normalizer(kind, number, total) / ranks
        for kind, number in (
            (call.classification_normalizer, batch.classification_normalizer),
            (call.regression_normalizer, batch.regression_normalizer),
        )
    )
    mean_neg = total.a_neg / max(1, total.positives)
    poison = math.nan if total.bad else 0.0
    classification = quotient(local.a_pos + w_neg * local.a_neg, z_cls) + poison
    return Forward(
        classification=scalar(classification, rows),
        regression=scalar(quotient(local.r, z_loc) + poison, rows),
        negative_weight=scalar(w_neg, rows),
        num_positives=batch.labels.new_full((), int(total.positives)),
        rows=rows,
        scalars=rows.new_tensor(
            (w_neg, mean_neg, quotient(1, z_cls), quotient(1, z_loc), poison), dtype=torch.float64
        ),
    )


def normalizer(kind: str, number: Tensor | None, total: Sums) -> float:
    """What a sum is divided by."""
    if number is not None:
        return float(number)
    return {"samples": max(1, total.samples), "positives": max(1, total.positives), "sum": 1}[kind]


def quotient(x: float, z: float) -> float:
    """x / z; infinite or NaN for z = 0, as tensors have it and Python does not."""
    return x / z if z else x * math.copysign(math.inf, z)


def scalar(x: float, like: Tensor) -> Tensor:
    """A 0-dim tensor, infinite beyond the dtype's range: new_full raises there."""
    if abs(x) > torch.finfo(like.dtype).max:
        x = math.copysign(math.inf, x)
    return like.new_full((), x)
