"""Detections matched to objects, as pycocotools does at one IoU threshold."""

import numpy as np
from pycocotools import mask

from detectors.evaluation.arrays import Detections, Objects


def match_objects(
    objects: Objects,
    detections: Detections,
    classes: int,
    ignored: np.ndarray,
    max_dets: int,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each detection an object of its image and class at IoU ≥ `least`, or none.

    In an image and class, by falling score, each detection takes the free object that it overlaps
    most; of equals, the later one. Only if there is none, an ignored one. A crowd is never used up,
    and IoU with it is the share of the detection's area inside it.

    Args:
        objects: n of them.
        detections: of several images and classes.
        classes: their number.
        ignored: bool [n], objects that are taken last; crowds are among them.
        max_dets: how many detections of an image and class take part, those of highest score.
        least: IoU that a match needs.

    Returns:
        order: int64 [d], the detections that take part, by image, class and falling score.
        target: int64 [d], the object of each, -1: none.
        iou: float64 [d], with that object; NaN: none.
    """
    order = _by_group(detections.image * classes + detections.label, detections.score, max_dets)
    pairs = _overlaps(objects, detections, order, classes, least)
    return order, *_assign(*pairs, objects, ignored, order)


def _by_group(group: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """Indices by group, then falling score, then as given; of each group the first `limit`."""
    order = np.lexsort((-score, group))
    ordered = group[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank < limit]


def _overlaps(
    objects: Objects, detections: Detections, order: np.ndarray, classes: int, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The p pairs with IoU ≥ `least`: place in `order`, object, IoU, [p] each."""
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
        row, column = np.nonzero(ious >= least)
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
