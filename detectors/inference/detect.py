"""A trained detector run on images, and on those of a data set."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection, Detection, Sample
from detectors.data.loading import read_in_time

COLUMNS = 7
"""Columns of a row of detections: index of the image, label, x, y, w, h, score."""


def as_inputs(images: Sequence[Tensor], device: str) -> list[Tensor]:
    """Images uint8 [3, H, W] as a detector takes them: on `device`, float32 in 0..1."""
    return [image.to(device).float() / 255 for image in images]


def read_image(dataset: CocoDetection, index: int) -> Sample:
    """`dataset[index]`, for which a disk that does not answer is not waited for ever.

    Raises:
        DataError: it cannot be decoded. LoadingError: it is not read in time.
    """
    what = f"{dataset.source}: image {dataset.image_ids[index]}"
    return read_in_time(partial(dataset.__getitem__, index), what)


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[Tensor], device: str) -> list[dict[str, Tensor]]:
    """Boxes, scores and labels, on the CPU, of images uint8 [3, H, W]."""
    found = model.eval()(as_inputs(images, device))
    return [{key: value.cpu() for key, value in result.items()} for result in found]


def find(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    indices: Sequence[int],
    *,
    on_image: Callable[[int], object] | None = None,
) -> Tensor:
    """Detections on the images at `indices`, float64 [D, COLUMNS], pixels of the image as stored.

    `on_image` is called with the number of images done; if it returns something true, find stops.

    Raises:
        DataError: an image that cannot be decoded. LoadingError: one that is not read in time.
    """
    found = [torch.zeros(0, COLUMNS, dtype=torch.float64)]
    for done, index in enumerate(indices, start=1):
        image, _ = read_image(dataset, index)
        (result,) = detect(model, [image], device)
        boxes = result["boxes"]
        boxes[:, 2:] -= boxes[:, :2]
        columns = [torch.full_like(result["scores"], index), result["labels"], *boxes.unbind(1)]
        found.append(torch.stack([c.double() for c in [*columns, result["scores"]]], dim=1))
        if on_image is not None and on_image(done):
            break
    return torch.cat(found)


def as_results(rows: Tensor, dataset: CocoDetection) -> list[Detection]:
    """The rows of `find` as COCO results."""
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
