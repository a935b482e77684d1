"""What a trained detector finds on the images of a data set, and how good that is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection, Detection

COLUMNS = 7
"""Of a row of detections: index of the image, label, x, y, w, h, score."""


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
