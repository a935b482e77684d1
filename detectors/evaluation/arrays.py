"""Ground truth and detections as arrays, checked once: what the evaluation works on.

Images and classes are numbered 0, 1, ... by ascending id. So no id reaches an evaluator, and equal
scores in different images are ordered as pycocotools orders them: by image id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Objects:
    """The n annotated objects, in the order of the ground truth.

    Attributes:
        image: int64 [n], position of the image's id among the ascending ids.
        label: int64 [n], position of the category's id, likewise.
        box: float64 [n, 4] x y w h in pixels.
        area: float64 [n] in pixels², what decides the size bucket; not always w·h.
        crowd: bool [n], neither missed nor, when detected, wrong.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The m detections, in the order given; `image`, `label`, `box` as in Objects.

    Attributes:
        image: int64 [m].
        label: int64 [m].
        box: float64 [m, 4] x y w h in pixels, finite, w and h not negative.
        score: float64 [m], finite.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Float64 [m], w·h in pixels²."""
        return self.box[:, 2] * self.box[:, 3]


def read_objects(ground_truth: Mapping[str, Any]) -> Objects:
    """The annotations of a COCO dict; `area` is w·h where a record has none.

    Raises:
        KeyError: an annotation of an image or category that is not there.
    """
    images, categories = _positions(ground_truth)
    records = ground_truth["annotations"]
    box = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    area = [r.get("area", w * h) for r, (_, _, w, h) in zip(records, box.tolist(), strict=True)]
    return Objects(
        image=np.array([images[r["image_id"]] for r in records], dtype=np.int64),
        label=np.array([categories[r["category_id"]] for r in records], dtype=np.int64),
        box=box,
        area=np.array(area, dtype=np.float64),
        crowd=np.array([bool(r.get("iscrowd", 0)) for r in records], dtype=bool),
    )


def read_detections(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> Detections:
    """COCO results (image_id, category_id, bbox, score) of the images of a COCO dict.

    Raises:
        ValueError: names the first detection whose image or category is not in the ground truth,
            or whose box is not four finite numbers without negative sizes, or whose score is not
            finite.
    """
    images, categories = _positions(ground_truth)
    image = np.array([images.get(r["image_id"], -1) for r in detections], dtype=np.int64)
    label = np.array([categories.get(r["category_id"], -1) for r in detections], dtype=np.int64)
    for noun, key, column in (("image", "image_id", image), ("category", "category_id", label)):
        for index in np.flatnonzero(column < 0)[:1]:
            value = detections[index][key]
            raise ValueError(f"detections[{index}]: {noun} {value!r} is not in the ground truth")
    box, score = _numbers(detections)
    fine = np.isfinite(box).all(axis=1) & (box[:, 2:] >= 0).all(axis=1) & np.isfinite(score)
    for index in np.flatnonzero(~fine)[:1]:
        _bad_numbers(index, detections[index])
    return Detections(image, label, box, score)


def _positions(ground_truth: Mapping[str, Any]) -> tuple[dict[int, int], dict[int, int]]:
    """Of each image id and of each category id among the ascending ids."""
    images, categories = (
        {number: position for position, number in enumerate(sorted(r["id"] for r in records))}
        for records in (ground_truth["images"], ground_truth["categories"])
    )
    return images, categories


def _numbers(detections: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [m, 4] and scores [m]."""
    try:
        box = np.array([r["bbox"] for r in detections], dtype=np.float64)
        score = np.array([r["score"] for r in detections], dtype=np.float64)
        if box.size == 4 * len(detections) and score.ndim == 1:
            return box.reshape(-1, 4), score
    except (TypeError, ValueError):  # not numbers, or boxes of several lengths
        pass
    for index, record in enumerate(detections):
        try:
            shapes = (
                np.shape(np.array(record["bbox"], np.float64)),
                np.shape(float(record["score"])),
            )
        except (TypeError, ValueError):
            _bad_numbers(index, record)
        if shapes != ((4,), ()):
            _bad_numbers(index, record)
    raise AssertionError("each record alone is fine")


def _bad_numbers(index: int, record: Mapping[str, Any]) -> None:
    raise ValueError(
        f"detections[{index}]: bbox {record['bbox']} with score {record['score']}, wanted finite "
        f"numbers [x, y, w, h] with w and h not negative, and score"
    )
