"""Average precision by object size, on faster-coco-eval or pycocotools.

Both libraries fill the same arrays, precision [T, R, K, A, M] over IoU thresholds, recall points,
classes, area ranges and detection limits, with -1 where a class has no objects. Every number is
read from them: the libraries' `summarize()` prints AP at 100 detections whatever was set.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Protocol:
    """A benchmark's rules: area ranges (pixels², both ends belong) and detections an image."""

    areas: dict[str, tuple[float, float]]
    max_dets: tuple[int, ...]  # per class and image; AP is taken at the last


PROTOCOLS = {
    "aitod": Protocol(
        {"vt": (0, 64), "t": (64, 256), "s": (256, 1024), "m": (1024, 1e10)}, (100, 300, 1500)
    ),
    "coco": Protocol({"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}, (1, 10, 100)),
}

METRICS: tuple[str, ...] = ("AP", "AP50", "AP75", "AP_vt", "AP_t", "AP_s", "AP_m")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; T IoU thresholds, R recall points, K classes.

    Attributes:
        metrics: name → value in 0..1; NaN where no class has objects of that size.
        per_class: class name → metrics.
        precision: [T, R, K] for objects of all sizes at the protocol's last detection limit; NaN
            for classes without objects.
        recall_points: [R], 0 to 1.
        iou_thresholds: [T], 0.5 to 0.95.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: np.ndarray
    recall_points: np.ndarray
    iou_thresholds: np.ndarray


def evaluate(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    *,
    protocol: str = "aitod",
    evaluator: str = "faster",
) -> Evaluation:
    """Compare detections with a ground truth.

    Args:
        ground_truth: COCO dict with images, annotations and categories, as
            `CocoDetection.ground_truth`; not modified. Annotations with `iscrowd` are neither
            missed nor, when detected, wrong. The size of an object is its `area`, else w·h.
        detections: COCO results, dicts with image_id, category_id, bbox [x, y, w, h] and score.
        protocol: "aitod" gives METRICS (AP at 1500 detections a class and image); "coco" gives
            AP_s, AP_m, AP_l in place of the size buckets (at 100).
        evaluator: "faster" (faster-coco-eval) or "pycocotools": the same numbers, ten times
            slower.

    Raises:
        ValueError: an unknown protocol or evaluator; a detection whose image or category is not
            in the ground truth, or whose box or score is not finite.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, wanted one of {sorted(PROTOCOLS)}")
    if evaluator not in ("faster", "pycocotools"):
        raise ValueError(f"evaluator is {evaluator!r}, wanted 'faster' or 'pycocotools'")
    rules = PROTOCOLS[protocol]
    objects = _objects(ground_truth)
    results = _results(ground_truth, detections)
    # pycocotools prints its progress and has no switch for it
    with contextlib.redirect_stdout(io.StringIO()):
        precision, ious, recalls = _precision(objects, results, rules, evaluator)
    precision = np.where(precision < 0, np.nan, precision)  # [T, R, K, A]
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    return Evaluation(
        metrics=_metrics(precision, ious, rules),
        per_class={
            name: _metrics(precision[:, :, [k]], ious, rules) for k, name in enumerate(names)
        },
        precision=precision[..., 0],
        recall_points=recalls,
        iou_thresholds=ious,
    )


def _objects(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy for the libraries, which write into it.

    Annotation ids are numbered from 1: the libraries mark a match by its id and take 0 as none.
    """
    annotations = []
    for number, record in enumerate(ground_truth["annotations"], 1):
        box = record["bbox"]
        annotations.append(
            {
                "id": number,
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "bbox": list(box),
                "area": record.get("area", box[2] * box[3]),
                "iscrowd": int(record.get("iscrowd", 0)),
            }
        )
    return _dataset(ground_truth, annotations)


def _results(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The detections as a COCO dict; each is checked."""
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    annotations = []
    for index, record in enumerate(detections):
        image_id, category_id = int(record["image_id"]), int(record["category_id"])
        if image_id not in images:
            raise ValueError(f"detections[{index}]: image {image_id} is not in the ground truth")
        if category_id not in categories:
            raise ValueError(
                f"detections[{index}]: category {category_id} is not in the ground truth"
            )
        box, score = [float(value) for value in record["bbox"]], float(record["score"])
        if len(box) != 4 or not all(map(math.isfinite, [*box, score])):
            raise ValueError(
                f"detections[{index}]: bbox {box} with score {score}, wanted finite numbers "
                f"[x, y, w, h] and score"
            )
        annotations.append(
            {
                "id": index + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
        )
    return _dataset(ground_truth, annotations)


def _dataset(ground_truth: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
        "annotations": annotations,
    }


def _precision(
    objects: dict[str, Any], results: dict[str, Any], rules: Protocol, evaluator: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision [T, R, K, A] at the last detection limit, -1: no objects; thresholds; recalls."""
    if evaluator == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    # Not loadRes: pycocotools' fails on an empty list.
    truth, found = COCO(), COCO()
    truth.dataset, found.dataset = objects, results
    truth.createIndex()
    found.createIndex()
    run = COCOeval(truth, found, iouType="bbox")
    run.params.maxDets = list(rules.max_dets)
    run.params.areaRng = [[0, 1e10], *map(list, rules.areas.values())]
    run.params.areaRngLbl = ["all", *rules.areas]
    run.evaluate()
    run.accumulate()
    precision = np.asarray(run.eval["precision"])[..., -1]
    return precision, np.asarray(run.params.iouThrs), np.asarray(run.params.recThrs)


def _metrics(precision: np.ndarray, ious: np.ndarray, rules: Protocol) -> dict[str, float]:
    """The named numbers of precision [T, R, K, A]: means over what is there."""
    # isclose: the thresholds come from linspace, and 0.75 need not be among them exactly
    at50, at75 = (np.isclose(ious, value) for value in (0.50, 0.75))
    values = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[at50, ..., 0]),
        "AP75": _mean(precision[at75, ..., 0]),
    }
    for column, name in enumerate(rules.areas, 1):
        values[f"AP_{name}"] = _mean(precision[..., column])
    return values


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
