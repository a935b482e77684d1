"""Tiles of large images: where they lie, what a box becomes on one, and the way back.

SODA-D's images, some 3,400 x 2,400 pixels, are looked at in tiles of 800 x 800 that overlap by 150.

Source: arXiv 2207.14096, and github.com/shaunyuan22/SODA-mmdetection,
tools/img_split/split_configs: 800, 150, 0.40.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchvision.ops import batched_nms

SIZE = 800


OVERLAP = 150


AREA_LEFT = 0.40
"""A clipped box is an object on a tile if more than this share of its area is left there."""


NMS = 0.5


Box = tuple[float, float, float, float]
"""x, y, w, h in pixels."""


Position = tuple[int, int, int]
"""The whole image's id, and x and y of the tile's corner in it."""


def starts(length: int, size: int = SIZE, overlap: int = OVERLAP) -> list[int]:
    """Where the tiles begin along a side of `length` pixels; the last one ends with the image.

    An image smaller than a tile is one tile, of its own size.
    """
    last = max(length - size, 0)
    return [*range(0, last, size - overlap), last]


def clip(box: Box, left: int, top: int, width: int, height: int) -> tuple[Box, float] | None:
    """The part of `box` on the tile with this corner and size, in the tile's pixels.

    Returns:
        That part and its share of the box's area; None where the tile has none of it.
    """
    x1, y1 = max(box[0] - left, 0), max(box[1] - top, 0)
    x2, y2 = min(box[0] + box[2] - left, width), min(box[1] + box[3] - top, height)
    if x2 <= x1 or y2 <= y1:
        return None
    if (x1, y1, x2, y2) == (box[0] - left, box[1] - top, x1 + box[2], y1 + box[3]):
        return (x1, y1, box[2], box[3]), 1.0
    return (x1, y1, x2 - x1, y2 - y1), (x2 - x1) * (y2 - y1) / (box[2] * box[3])


def merge(detections: Iterable[dict[str, Any]], positions: Mapping[int, Position]) -> list[dict]:
    """Detections on tiles as detections on the whole images.

    They are moved by their tile's corner; of those of one class that overlap by an IoU over 0.5
    the best one stays (non-maximum suppression).

    Args:
        detections: COCO results whose image_id is a tile's.
        positions: tile's id → where it lies.

    Returns:
        COCO results, image after image, each from the best score down.
    """
    of_image: dict[int, list[dict[str, Any]]] = {}
    for found in detections:
        image_id, left, top = positions[found["image_id"]]
        x, y, w, h = found["bbox"]
        moved = {**found, "image_id": image_id, "bbox": [x + left, y + top, w, h]}
        of_image.setdefault(image_id, []).append(moved)
    return [kept for results in of_image.values() for kept in _suppress(results)]


def _suppress(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    boxes = torch.tensor([result["bbox"] for result in results], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.tensor([result["score"] for result in results], dtype=torch.float64)
    classes = torch.tensor([result["category_id"] for result in results])
    return [results[i] for i in batched_nms(boxes, scores, classes, NMS).tolist()]
