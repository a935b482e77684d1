"""Optimal Localisation Recall Precision, the error the AI-TOD toolkit reports next to AP.

Oksuz, Cam, Akbas, Kalkan, "Localization Recall Precision (LRP): A New Performance Metric for
Object Detection", ECCV 2018, arXiv 1807.01696. Of the detections of a class above a score, those
that match an object at IoU ≥ τ are true (TP), the others false (FP), and objects left over are
missed (FN):

    LRP = (Σ_TP (1 − IoU)/(1 − τ) + FP + FN) / (TP + FP + FN)

oLRP is its minimum over the scores, 0 at best and 1 at worst. Its parts at that score: Loc, the
mean of 1 − IoU over the TP; FP, FP/(TP + FP); FN, FN/objects. As in the toolkit (aitodpycocotools'
cocoeval.py) τ = 0.5, detections are matched as for AP, and the score may be any detection's place
in the order, also among equal scores. Without a TP oLRP and FN are 1 and the other parts NaN.
"""

import math
from dataclasses import dataclass

import numpy as np

from detectors.evaluation.arrays import Detections, Objects
from detectors.evaluation.matching import match_objects

TAU = 0.5
OLRP: tuple[str, ...] = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")


@dataclass(frozen=True)
class Matches:
    """The d detections that count, by class, then falling score, as AP orders them.

    Attributes:
        label: int64 [d].
        iou: float64 [d], with the object matched; NaN for a false positive.
        objects: int64 [K], the objects of each class that count.
    """

    label: np.ndarray
    iou: np.ndarray
    objects: np.ndarray


def optimal_lrp(matches: Matches) -> dict[str, np.ndarray]:
    """The numbers of OLRP by name, [K] each; NaN for classes without objects."""
    rows = []
    for label, objects in enumerate(matches.objects.tolist()):
        start, end = np.searchsorted(matches.label, [label, label + 1])
        rows.append(_class_lrp(matches.iou[start:end], objects))
    columns = np.array(rows, dtype=np.float64).reshape(-1, len(OLRP)).T
    return dict(zip(OLRP, columns, strict=True))


def _class_lrp(iou: np.ndarray, objects: int) -> tuple[float, float, float, float]:
    """OLRP of one class from the IoUs of its detections by falling score, NaN: false."""
    if not objects:
        return math.nan, math.nan, math.nan, math.nan
    true = ~np.isnan(iou)
    if not true.any():
        return 1.0, math.nan, math.nan, 1.0
    tp, fp = np.cumsum(true), np.cumsum(~true)
    fn = objects - tp
    distance = np.cumsum(np.where(true, 1 - iou, 0.0))
    lrp = (distance / (1 - TAU) + fp + fn) / (tp + fp + fn)
    best = int(np.argmin(lrp))
    found = int(tp[best])
    location = float(distance[best]) / found if found else math.nan
    return float(lrp[best]), location, float(fp[best] / (found + fp[best])), fn[best] / objects


def match(
    objects: Objects,
    detections: Detections,
    classes: int,
    area_range: tuple[float, float],
    max_dets: int,
) -> Matches:
    """What counts of the matches at IoU ≥ TAU, see match_objects.

    A detection with a crowd or an object outside `area_range` does not count, nor does one outside
    it without an object.
    """
    ignored = objects.crowd | _outside(objects.area, area_range)
    order, target, iou = match_objects(objects, detections, classes, ignored, max_dets, TAU)
    # np.append: target -1 finds the last entry, also where there are no objects
    beyond = _outside(detections.area, area_range)[order]
    counts = ~np.where(target >= 0, np.append(ignored, True)[target], beyond)
    label, score = detections.label[order][counts], detections.score[order][counts]
    by_class = np.lexsort((-score, label))  # stable: equal scores stay in the order of the images
    return Matches(
        label=label[by_class],
        iou=iou[counts][by_class],
        objects=np.bincount(objects.label[~ignored], minlength=classes),
    )


def _outside(area: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (area < area_range[0]) | (area > area_range[1])
