"""What a trained detector finds on the images of a data set, and how good that is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection, Detection
from detectors.errors import DataError, RunError
from detectors.evaluation import Evaluation, evaluate
from detectors.models.build import build_detector
from detectors.settings import TrainSettings
from detectors.utils.distributed import ALONE, World
from detectors.utils.progress import Progress

COLUMNS = 7
"""Of a row of detections: index of the image, label, x, y, w, h, score."""


class Interrupted(RuntimeError):
    """An evaluation was given up."""


@torch.no_grad()
def find(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    indices: Sequence[int],
    *,
    on_image: Callable[[int], object] | None = None,
) -> Tensor:
    """Detections on the images at `indices`, float64 [D, COLUMNS], pixels of the image as stored.

    `on_image` is told how many images are done; where it returns something true, they are enough.
    """
    model.eval()
    found = [torch.zeros(0, COLUMNS, dtype=torch.float64)]
    for done, index in enumerate(indices, start=1):
        image, _ = dataset[index]
        result = {k: v.cpu() for k, v in model([image.to(device).float() / 255])[0].items()}
        boxes = result["boxes"]
        boxes[:, 2:] -= boxes[:, :2]
        columns = [torch.full_like(result["scores"], index), result["labels"], *boxes.unbind(1)]
        found.append(torch.stack([c.double() for c in [*columns, result["scores"]]], dim=1))
        if on_image is not None and on_image(done):
            break
    return torch.cat(found)


def as_results(rows: Tensor, dataset: CocoDetection) -> list[Detection]:
    """Rows of `find` as COCO results."""
    return [
        {
            "image_id": dataset.image_ids[int(index)],
            "category_id": dataset.category_ids[int(label)],
            "bbox": box,
            "score": score,
        }
        for index, label, *box, score in rows.tolist()
    ]


def predict(model: nn.Module, dataset: CocoDetection, device: str) -> list[Detection]:
    """Detections of every image as COCO results, in pixels of the image as stored."""
    return as_results(find(model, dataset, device, range(len(dataset))), dataset)


def evaluate_model(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    evaluator: str = "faster",
    protocol: str = "aitod",
    *,
    world: World = ALONE,
    leaving: Callable[[], object] = lambda: False,
) -> Evaluation | None:
    """Detect on every image of `dataset` and compare with its ground truth.

    Of several processes each takes every size-th image, so that no image counts twice, and rank 0
    evaluates; the result is None elsewhere. All use rank 0's buffers, which a checkpoint holds: in
    training batch norm's running statistics are each rank's own.

    Raises:
        DataError: on all of them, an image that cannot be read.
        Interrupted: on all of them, as soon as `leaving`, asked after each image, says so on one.
    """
    world.follow(model.buffers())
    indices = range(world.rank, len(dataset), world.size)
    with Progress("evaluate", 0, len(indices), quiet=True, leads=world.leads) as progress:

        def done(images: int) -> object:
            progress.step(images)
            return leaving()

        problem = ""
        try:
            mine = find(model, dataset, device, indices, on_image=done)
        except DataError as error:
            problem = str(error)
    problems = list(filter(None, world.tell(problem)))
    if problems:
        raise DataError("; ".join(problems))
    if world.sum(torch.tensor([float(bool(leaving()))])):
        raise Interrupted
    every = world.gather(mine)
    if not world.leads:
        return None
    rows = torch.cat(every)
    rows = rows[rows[:, 0].argsort(stable=True)]  # the order of one process
    results = dataset.assemble(as_results(rows, dataset))
    return evaluate(dataset.ground_truth, results, protocol=protocol, evaluator=evaluator)


def load_detector(checkpoint: dict[str, Any]) -> nn.Module:
    """The detector of a checkpoint, with its weights, on the CPU.

    Raises:
        RunError: the weights do not fit the settings beside them.
    """
    try:
        settings = TrainSettings(**checkpoint["settings"])
        model = build_detector(
            settings.detector,
            len(checkpoint["class_names"]),
            settings.loss,
            **settings.model_arguments(),
            load_weights=False,
        )
        model.load_state_dict(checkpoint["model"])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the checkpoint does not fit this version: {reason}") from error
    return model.to(memory_format=torch.channels_last)
