"""The heads whose kernels are counted, and their launches."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.compiled.variants import DTYPES
from bench.loss.cases import CASES as TIMED
from bench.loss.cases import RETINANET, Case
from bench.loss.inputs import Inputs, make_criterion, make_inputs
from jolkernels.batch import make_batch
from jolkernels.kernels import launch
from jolkernels.kernels.finish import TEAM
from jolkernels.kernels.launch import Launch

CASES = {
    "retinanet-80": TIMED["retinanet-80"],
    "retinanet-8": TIMED["retinanet-8"],
    # As many rows as there are, in the other family of kernels.
    "large-80": replace(TIMED["large-80"], head=replace(RETINANET, classification="cross_entropy")),
    "vocabulary": TIMED["vocabulary-13205"],
    "rcnn-9": TIMED["rcnn-9"],
    "rcnn-81": TIMED["rcnn-81"],
    "fcos-8": TIMED["fcos-8"],
}
SAMPLE = 2**20
"""Elements of the logits that stand for all of a case, at least."""


def sample(case: Case, dtype: str, rows: int, whole: Sequence[Launch]) -> list[Launch]:
    """The launches of a case with fewer rows, and as many fewer programs than `whole`."""
    x = make_inputs(replace(case, rows=rows), DTYPES[dtype], "cpu")
    return [
        part._replace(programs=round(full.programs * rows / case.rows))
        for full, part in zip(whole, launches(case, x), strict=True)
    ]


def sizes(case: Case, programs: int) -> list[int]:
    """Rows of samples: all, or those of a team of a launch's programs, and of some teams.

    What a program does for its tiles and a team's for each other grows with the rows; what the
    last one does for all is the same in both.
    """
    step = case.rows * TEAM.value // programs
    large = step * (1 + -(-SAMPLE // (step * case.columns)))
    return [case.rows] if large >= case.rows else [step, large]


def unfilled(case: Case, dtype: str) -> Inputs:
    """All rows of a case, in memory that nobody has touched."""
    n, slots = case.rows, case.columns if case.head.class_specific else 1
    logits, boxes = (torch.empty(n, w, dtype=DTYPES[dtype]) for w in (case.columns, 4 * slots))
    labels = torch.empty(n, dtype=torch.int64)
    return Inputs(logits, boxes, labels, *(torch.empty(n, 4) for _ in range(3)))


def launches(case: Case, x: Inputs) -> list[Launch]:
    """The launches of a forward and those of a backward, with memory for what they write."""
    norm = case.head.normalizer
    batch, call = make_batch(
        make_criterion(case.head, "joint").settings,
        x.logits.detach(),
        x.boxes.detach(),
        x.labels,
        x.targets,
        x.priors,
        classification_normalizer=norm,
        regression_normalizer=norm,
    )
    result, forward, _ = launch.plan_forward(batch, call)
    upstream: Tensor = torch.ones(())
    saved = result.rows, result.scalars, upstream, upstream
    _, backward = launch.plan_backward(batch, call, *saved, (True, True, False))
    return [*forward, *backward]
