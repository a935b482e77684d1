"""A detector run on a data set and evaluated, by one process or several."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from detectors.data.dataset import CocoDetection
from detectors.errors import DataError, LoadingError
from detectors.evaluation.average_precision import Evaluation, evaluate
from detectors.inference.detect import as_results, find
from detectors.utils.distributed import ALONE, World
from detectors.utils.progress import Progress
from detectors.utils.signals import Interrupted


def evaluate_model(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    evaluator: str = "faster",
    protocol: str = "aitod",
    *,
    counted: int | None = None,
    world: World = ALONE,
    leaving: Callable[[], object] = lambda: False,
    at_once: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Evaluation | None:
    """Detect on every image of `dataset` and compare with its ground truth as `evaluate` does.

    Of several processes each takes every size-th image, so that no image counts twice, and rank 0
    evaluates; the result is None elsewhere. All use rank 0's buffers, which a checkpoint holds: in
    training batch norm's running statistics are each rank's own.

    Raises:
        DataError: on all of them, an image that cannot be read, or not in time.
        Interrupted: on all of them, as soon as `leaving`, asked after each image, says so on one,
            or a context of `at_once`, within which each works alone, raises it there.
    """
    world.follow(model.buffers())
    indices = range(world.rank, len(dataset), world.size)
    with Progress("evaluate", 0, len(indices), quiet=True, leads=world.leads) as progress:

        def done(images: int) -> object:
            progress.step(images)
            return leaving()

        problem, left = "", False
        try:
            with at_once():
                mine = find(model, dataset, device, indices, on_image=done)
        except (DataError, LoadingError) as error:
            problem = str(error)
        except Interrupted:
            left = True
    problems = list(filter(None, world.tell(problem)))
    if problems:
        raise DataError("; ".join(problems))
    _leave_together(left or bool(leaving()), world)
    every = world.gather(mine)
    evaluation = None
    if world.leads:
        try:
            with at_once():
                rows = torch.cat(every)
                rows = rows[rows[:, 0].argsort(stable=True)]  # the order of one process
                results = dataset.assemble(as_results(rows, dataset))
                evaluation = evaluate(
                    dataset.ground_truth,
                    results,
                    protocol=protocol,
                    evaluator=evaluator,
                    counted=counted,
                )
        except Interrupted:
            left = True
    _leave_together(left, world)
    return evaluation


def _leave_together(left: bool, world: World) -> None:
    """Raise Interrupted on every rank if one has `left`."""
    if world.sum(torch.tensor([float(left)])):
        raise Interrupted
