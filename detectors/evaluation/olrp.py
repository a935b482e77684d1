"""Optimal Localisation Recall Precision, the error the AI-TOD toolkit reports beside AP.

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
from pycocotools import mask

from detectors.evaluation.arrays import Detections, Objects

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
    """Match as pycocotools does at IoU ≥ TAU.

    In an image and class, by falling score, each detection takes the free object that it overlaps
    most; of equals, the later one. Only if there is none, a crowd (which is never used up) or an
    object outside `area_range`: then it does not count, nor does a detection outside it without
    an object. Only the first `max_dets` of an image and class take part.
    """
    order = _by_group(detections.image * classes + detections.label, detections.score, max_dets)
    ignored = objects.crowd | _outside(objects.area, area_range)
    target, iou = _assign(*_overlaps(objects, detections, order, classes), objects, ignored, order)
    # np.append: target -1 finds the last entry, also where there are no objects
    outside = _outside(detections.area, area_range)[order]
    counts = ~np.where(target >= 0, np.append(ignored, True)[target], outside)
    label, score = detections.label[order][counts], detections.score[order][counts]
    by_class = np.lexsort((-score, label))  # stable: equal scores stay in the order of the images
    return Matches(
        label=label[by_class],
        iou=iou[counts][by_class],
        objects=np.bincount(objects.label[~ignored], minlength=classes),
    )


def _outside(area: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (area < area_range[0]) | (area > area_range[1])


def _by_group(group: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """Indices by group, then falling score, then as given; of each group the first `limit`."""
    order = np.lexsort((-score, group))
    ordered = group[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank < limit]


def _overlaps(
    objects: Objects, detections: Detections, order: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The p pairs with IoU ≥ TAU: place in `order`, object, IoU, [p] each."""
    group = (detections.image * classes + detections.label)[order]
    box = detections.box[order]
    theirs = objects.image * classes + objects.label
    index = np.argsort(theirs, kind="stable")
    theirs = theirs[index]
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    shared = np.intersect1d(group, theirs)
    ends = [np.searchsorted(g, shared, s) for g in (group, theirs) for s in ("left", "right")]
    for a, b, c, d in zip(*(end.tolist() for end in ends), strict=True):
        here = index[c:d]
        ious = mask.iou(box[a:b], objects.box[here], objects.crowd[here].tolist())  # [b - a, d - c]
        row, column = np.nonzero(ious >= TAU)
        pairs.append((a + row, here[column], ious[row, column]))
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    places, matched, ious = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return places, matched, ious


def _assign(
    place: np.ndarray,
    target: np.ndarray,
    iou: np.ndarray,
    objects: Objects,
    ignored: np.ndarray,
    order: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The object of each detection in `order`, -1: none, and their IoU, NaN: none.

    All detections ask for the object they like best; of those that ask for the same, the first in
    the order gets it and the others ask for their next, until nobody has lost. As all objects
    prefer the same order, that is what serving the detections one by one gives (Gale, Shapley).
    """
    wish = np.lexsort((-target, -iou, ignored[target], place))
    place, target, iou = place[wish], target[wish], iou[wish]
    asking, asked = np.unique(place, return_index=True)  # the pair that a detection is at
    last = np.append(asked[1:], len(place))
    while len(asked):
        first = np.full(len(objects.crowd), len(order))
        np.minimum.at(first, target[asked], asking)
        lost = (first[target[asked]] != asking) & ~objects.crowd[target[asked]]
        if not lost.any():
            break
        asked = asked + lost
        left = asked < last
        asking, asked, last = asking[left], asked[left], last[left]
    found, overlap = np.full(len(order), -1), np.full(len(order), np.nan)
    found[asking], overlap[asking] = target[asked], iou[asked]
    return found, overlap
