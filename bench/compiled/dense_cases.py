"""The launches of dense heads, as bench.compiled.cases has those of flat ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.compiled.variants import DTYPES
from bench.dense.cases import CASES as HEADS
from bench.dense.cases import FORMATS, Case
from bench.dense.inputs import Outputs, make_inputs
from bench.loss.inputs import make_criterion
from jolkernels.dense import DenseBatch, Levels, make_dense_batch
from jolkernels.kernels import dense_launch
from jolkernels.kernels.launch import Launch
from jolkernels.settings import Call

CASES = {
    f"{name}-{memory_format}": HEADS[name].laid_out(memory_format)
    for name in ("retinanet-80", "retinanet-8")
    for memory_format in FORMATS
}
STEP = 512
"""Positions that are whole tiles whatever their rows: levels smaller by so many cost as much less.
"""


def batch_of(case: Case, x: Outputs) -> tuple[DenseBatch, Call]:
    """A call of the dense entrance."""
    return make_dense_batch(
        make_criterion(case.head, "joint").settings,
        [level.detach() for level in x.logits],
        [level.detach() for level in x.boxes],
        x.labels,
        x.targets,
        priors=x.priors,
        matched=x.matched,
        classification_normalizer=case.normalizer,
        regression_normalizer=case.normalizer,
    )


def launches(case: Case, x: Outputs) -> list[Launch]:
    """The launches of a forward and those of a backward, with memory for what they write."""
    batch, call = batch_of(case, x)
    result, forward, _ = dense_launch.plan_forward(batch, call)
    upstream: Tensor = torch.ones(())
    saved = result.rows, result.scalars, upstream, upstream
    _, backward, _ = dense_launch.plan_backward(batch, call, *saved, (True, True, False))
    return [*forward, *backward]


def unfilled(case: Case, dtype: str) -> Outputs:
    """The whole of a case, in memory that nobody has touched."""

    def levels(width: int) -> Levels:
        kind = getattr(torch, FORMATS[case.memory_format])
        return tuple(
            torch.empty(
                (case.images, case.anchors * width, *size), dtype=DTYPES[dtype], memory_format=kind
            )
            for size in case.sizes
        )

    matched = torch.empty((case.images, case.samples), dtype=torch.int64)
    labels = (torch.zeros(1, dtype=torch.int64),) * case.images
    targets = (torch.zeros(1, 4),) * case.images
    priors = torch.empty(case.samples, 4)
    return Outputs(levels(case.columns), levels(4), matched, labels, targets, priors)


def sizes(case: Case, programs: int) -> list[int]:
    """Rows of samples: levels without their whole steps, and with one of these."""
    few = smaller(case, 0)
    return [few.rows, smaller(case, STEP).rows] if few.rows < case.rows else [case.rows]


def smaller(case: Case, more: int) -> Case:
    """The case whose levels have as many positions as are no whole steps, the first some more."""
    first, *others = (h * w % STEP for h, w in case.sizes)
    return replace(case, sizes=tuple((1, p) for p in (first + more, *others)))


def sample(case: Case, dtype: str, rows: int, whole: Sequence[Launch]) -> list[Launch]:
    """The launches of a case with fewer rows, and as many fewer programs than `whole`."""
    more = (rows - smaller(case, 0).rows) // (case.images * case.anchors)
    part = smaller(case, more) if rows < case.rows else case
    made = launches(part, make_inputs(part, DTYPES[dtype], "cpu"))
    share = tiles(part, dtype) / tiles(case, dtype)
    return [
        few._replace(programs=case.images * round(full.programs / case.images * share))
        for full, few in zip(whole, made, strict=True)
    ]


def tiles(case: Case, dtype: str) -> int:
    """Of an image."""
    batch, call = batch_of(case, unfilled(case, dtype))
    softmax = call.settings.classification.softmax
    return dense_launch.layout_of(batch, softmax).tiles_of_image
