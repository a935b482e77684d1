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
    inv_z_cls = ranks * inverse(
        call.classification_normalizer, batch.classification_normalizer, total
    )
    inv_z_loc = ranks * inverse(call.regression_normalizer, batch.regression_normalizer, total)
    mean_neg = total.a_neg / max(1, total.positives)
    poison = math.nan if total.bad else 0.0
    return Forward(
        classification=rows.new_full((), (local.a_pos + w_neg * local.a_neg) * inv_z_cls + poison),
        regression=rows.new_full((), local.r * inv_z_loc + poison),
        negative_weight=rows.new_full((), w_neg),
        num_positives=batch.labels.new_full((), int(total.positives)),
        rows=rows,
        scalars=rows.new_tensor((w_neg, mean_neg, inv_z_cls, inv_z_loc, poison)),
    )


def inverse(kind: str, number: Tensor | None, total: Sums) -> float:
    """One over a normaliser."""
    if number is not None:
        return float(1 / number.double())
    named = {"samples": max(1, total.samples), "positives": max(1, total.positives), "sum": 1}
    return 1 / named[kind]
