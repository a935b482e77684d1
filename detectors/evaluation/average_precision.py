"""Average precision by object size, on faster-coco-eval or pycocotools, and oLRP.

Both libraries fill the same arrays, precision [T, R, K, A, M] over IoU thresholds, recall points,
classes, area ranges and detection limits, with -1 where a class has no objects. Every number is
read from them: the libraries' `summarize()` prints AP at 100 detections whatever was set.

Both sort by score stably, within an image and over all images (faster-coco-eval's C++ by
std::stable_sort), so of equal scores the one in the image with the lower id, then the one given
first, comes first. An image's detections beyond the limit change nothing for those before them;
the limits at which the benchmarks report recall alone are skipped.

The libraries get a few classes at a time: both hold something for every image and class of a call,
and faster-coco-eval hears no signal within one.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np

from detectors.evaluation.arrays import Detections, Objects, read_detections, read_objects
from detectors.evaluation.olrp import OLRP, match, optimal_lrp
from detectors.evaluation.protocols import EVALUATORS, PROTOCOLS, Protocol

AT_ONCE = 50_000
"""Objects, detections and pairs of image and class that a library gets in one call, unless they are
of one class alone."""
Records = TypeVar("Records", Objects, Detections)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; T IoU thresholds, R recall points, K classes.

    Attributes:
        metrics: name → value in 0..1: AP, AP50, AP75, AP of each size bucket and OLRP (see olrp;
            there 0 is best). NaN where no class has objects of that size; the mean over those
            that have.
        per_class: class name → metrics.
        precision: [T, R, K] for objects of all sizes at the protocol's detection limit; NaN for
            classes without objects.
        recall_points: [R], 0 to 1.
        iou_thresholds: [T], 0.5 to 0.95.
        objects: class name → how many objects the other numbers are of; empty where a file of an
            earlier version does not say.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: np.ndarray
    recall_points: np.ndarray
    iou_thresholds: np.ndarray
    objects: Mapping[str, int] = field(default_factory=dict)


def evaluate(
    ground_truth: dict[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    protocol: str = "aitod",
    evaluator: str = "faster",
    counted: int | None = None,
) -> Evaluation:
    """Compare detections with a ground truth.

    Args:
        ground_truth: COCO dict with images, annotations and categories, as
            `CocoDetection.ground_truth`; not modified. Annotations with `iscrowd` are neither
            missed nor, when detected, wrong. The size of an object is its `area`, else w·h.
        detections: COCO results, dicts with image_id, category_id, bbox [x, y, w, h] and score.
        protocol: "aitod" gives METRICS and OLRP (at 1500 detections a class and image); "coco"
            gives AP_s, AP_m, AP_l in place of the size buckets (at 100); "sodad" AP_eS, AP_rS,
            AP_gS, AP_N (at 100, and AP of objects up to 1024 pixels² alone).
        evaluator: "faster" (faster-coco-eval) or "pycocotools": the same numbers, ten times
            slower.
        counted: detections of a class and image that count, those of highest score; None: as many
            as the protocol says.

    Raises:
        ValueError: an unknown protocol or evaluator; a detection whose image or category is not
            in the ground truth, or whose box or score is not finite, or whose width or height is
            negative.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, wanted one of {sorted(PROTOCOLS)}")
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator is {evaluator!r}, wanted 'faster' or 'pycocotools'")
    rules = PROTOCOLS[protocol]
    rules = replace(rules, max_dets=counted or rules.max_dets)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    objects = read_objects(ground_truth)
    found = read_detections(ground_truth, detections)
    # pycocotools prints its progress and has no switch for it
    with contextlib.redirect_stdout(io.StringIO()):
        parts = [
            _precision(_of(some, objects), _of(some, found), some, rules, evaluator)
            for some in _shares(objects, found, len(names), len(ground_truth["images"]))
        ]
    precision = np.concatenate([part for part, _, _ in parts], axis=2)
    precision = np.where(precision < 0, np.nan, precision)  # [T, R, K, A]
    _, ious, recalls = parts[0]
    matches = match(objects, found, len(names), rules.whole, rules.max_dets)
    olrp = optimal_lrp(matches)
    return Evaluation(
        metrics=_metrics(precision, olrp, ious, rules),
        per_class={
            name: _metrics(precision[:, :, [k]], {n: v[[k]] for n, v in olrp.items()}, ious, rules)
            for k, name in enumerate(names)
        },
        precision=precision[..., 0],
        recall_points=recalls,
        iou_thresholds=ious,
        objects=dict(zip(names, matches.objects.tolist(), strict=True)),
    )


def _shares(objects: Objects, detections: Detections, classes: int, images: int) -> Iterator[range]:
    """The classes in shares of AT_ONCE, or of one class."""
    counts = np.bincount(np.concatenate([objects.label, detections.label]), minlength=classes)
    start, held = 0, 0
    for label, count in enumerate((counts + images).tolist()):
        if held + count > AT_ONCE and label > start:
            yield range(start, label)
            start, held = label, 0
        held += count
    yield range(start, classes)


def _of(labels: range, records: Records) -> Records:
    """Those of the classes `labels`."""
    here = (records.label >= labels.start) & (records.label < labels.stop)
    return type(records)(*(getattr(records, each.name)[here] for each in fields(records)))


def _dataset(
    records: Objects | Detections, images: Sequence[int], labels: Sequence[int]
) -> dict[str, Any]:
    """A COCO dict for the libraries, which write into it.

    Ids of annotations count from 1: the libraries mark a match by its id and take 0 as none.
    """
    if isinstance(records, Detections):
        name, values = "score", records.score
    else:
        name, values = "iscrowd", records.crowd.astype(int)
    keys = ("id", "image_id", "category_id", "bbox", "area", name)
    columns = (records.image, records.label, records.box, records.area, values)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "images": [{"id": image} for image in images],
        "categories": [{"id": label} for label in labels],
        "annotations": [
            dict(zip(keys, (number, *row), strict=True)) for number, row in enumerate(rows, 1)
        ],
    }


def _precision(
    objects: Objects,
    detections: Detections,
    labels: range,
    rules: Protocol,
    evaluator: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision [T, R, K, A] of the K classes `labels`; thresholds; recalls.

    A: whole, then the buckets; -1: no objects.
    """
    if evaluator == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    # Not loadRes: pycocotools' fails on an empty list.
    truth, found = COCO(), COCO()
    images = np.union1d(objects.image, detections.image).tolist() or [0]
    truth.dataset, found.dataset = (
        _dataset(records, images, labels) for records in (objects, detections)
    )
    truth.createIndex()
    found.createIndex()
    run = COCOeval(truth, found, iouType="bbox")
    run.params.maxDets = [rules.max_dets]
    run.params.areaRng = [list(rules.whole), *map(list, rules.areas.values())]
    run.params.areaRngLbl = ["all", *rules.areas]
    run.evaluate()
    run.accumulate()
    precision = np.asarray(run.eval["precision"])[..., -1]
    return precision, np.asarray(run.params.iouThrs), np.asarray(run.params.recThrs)


def _metrics(
    precision: np.ndarray, olrp: dict[str, np.ndarray], ious: np.ndarray, rules: Protocol
) -> dict[str, float]:
    """The named numbers of precision [T, R, K, A] and olrp [K]: means over what is there."""
    # isclose: the thresholds come from linspace, and 0.75 need not be among them exactly
    at50, at75 = (np.isclose(ious, value) for value in (0.50, 0.75))
    values = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[at50, ..., 0]),
        "AP75": _mean(precision[at75, ..., 0]),
    }
    for column, name in enumerate(rules.areas, 1):
        values[f"AP_{name}"] = _mean(precision[..., column])
    return values | {name: _mean(olrp[name]) for name in OLRP}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
