"""oLRP by hand, and against loops over pycocotools' matches."""

import contextlib
import io
import math

import numpy as np
import pytest
from evaluation_cases import (
    annotations,
    case,
    guesses,
    hits,
    ids,
    official,
    perfect,
    random_case,
    result,
    truth,
)
from hypothesis import given, settings

from detectors.evaluation import PROTOCOLS, evaluate
from detectors.evaluation.olrp import OLRP

OBJECT = (0, 0, 10, 10, 100, 100)
OTHER = (0, 0, 300, 300, 100, 100)


def hit(iou: float, score: float, box: tuple = OBJECT) -> dict:
    """A detection of `box` at the IoU given."""
    image, label, x, y, w, h = box
    return result(image, label, [x, y, w, h * iou], score)


def wrong(score: float) -> dict:
    return result(0, 0, [600, 600, 100, 100], score)


def olrp(boxes: list, detections: list[dict], **options) -> list[float]:
    classes = options.pop("classes", 1)
    metrics = evaluate(truth(boxes, classes=classes), detections, **options).metrics
    return [metrics[name] for name in OLRP]


def nearly(*values: float) -> object:
    return pytest.approx(values, abs=1e-12, nan_ok=True)


def test_one_object_found_inexactly():
    # (1 - 0.8) / (1 - 0.5) over one true positive
    assert olrp([OBJECT], [hit(0.8, 0.9)]) == nearly(0.4, 0.2, 0, 0)
    assert olrp([OBJECT], [hit(1, 0.9)]) == nearly(0, 0, 0, 0)
    assert olrp([OBJECT], [hit(0.5, 0.9)]) == nearly(1, 0.5, 0, 0)


def test_the_best_score_is_found():
    # by falling score: TP 1.0, FP, TP; LRP 1/2, 2/3, then (2 (1 - IoU) + 1) / 3
    detections = [hit(1, 0.9), wrong(0.8)]
    boxes = [OBJECT, OTHER]
    assert olrp(boxes, [*detections, hit(0.6, 0.7, OTHER)]) == nearly(0.5, 0, 0, 0.5)
    assert olrp(boxes, [*detections, hit(0.9, 0.7, OTHER)]) == nearly(0.4, 0.05, 1 / 3, 0)
    assert olrp(boxes, [hit(0.9, 0.7, OTHER), *detections]) == nearly(0.4, 0.05, 1 / 3, 0)


def test_a_second_detection_of_an_object_is_false():
    # LRP 1/2 after the first; (0.4 + 0) / 2 after both; the duplicate between costs 1 of 3
    detections = [hit(1, 0.9), hit(0.9, 0.85), hit(0.8, 0.8, OTHER)]
    assert olrp([OBJECT, OTHER], detections) == nearly(1.4 / 3, 0.1, 1 / 3, 0)


def test_nothing_found_and_nothing_there():
    nan = math.nan
    assert olrp([OBJECT], []) == nearly(1, nan, nan, 1)
    assert olrp([OBJECT], [wrong(0.9), hit(0.49, 0.8)]) == nearly(1, nan, nan, 1)
    assert olrp([], []) == nearly(nan, nan, nan, nan)
    assert olrp([], [wrong(0.9)]) == nearly(nan, nan, nan, nan)


def test_all_at_the_threshold_after_an_error():
    # LRP is 1 at every score; the first wins, where there is no true positive yet
    assert olrp([OBJECT], [wrong(0.9), hit(0.5, 0.8)]) == nearly(1, math.nan, 1, 1)


def test_the_mean_is_over_classes_that_have_a_value():
    """Class 0 is found at IoU 0.8, class 1 is not found, class 2 has no objects."""
    boxes = [OBJECT, (0, 1, *OTHER[2:])]
    assert olrp(boxes, [hit(0.8, 0.9)], classes=3) == nearly(0.7, 0.2, 0, 0.5)
    found = evaluate(truth(boxes, classes=3), [hit(0.8, 0.9)]).per_class
    assert [found["class 1"][name] for name in OLRP] == nearly(1, math.nan, math.nan, 1)
    assert all(math.isnan(found["class 2"][name]) for name in OLRP)


def test_crowds_do_not_count():
    crowd = (0, 0, 600, 600, 100, 100, True)
    assert olrp([OBJECT, crowd], [hit(0.8, 0.5)]) == nearly(0.4, 0.2, 0, 0)
    inside = [wrong(0.9), wrong(0.8), hit(0.8, 0.5)]
    assert olrp([OBJECT, crowd], inside) == nearly(0.4, 0.2, 0, 0)
    assert olrp([OBJECT], inside)[0] > 0.7


def test_of_two_objects_overlapped_equally_the_later_one_is_taken():
    """As pycocotools does. The second detection fits `right` alone and may find it taken."""
    left, right = (0, 0, 0, 0, 100, 100), (0, 0, 20, 0, 100, 100)
    between = [result(0, 0, [10, 0, 100, 100], 0.9), result(0, 0, [50, 0, 100, 100], 0.8)]
    first, second = 2 / 11, 6 / 13  # 1 - IoU
    taken = olrp([left, right], between)
    assert taken == nearly((first / 0.5 + 1) / 2, first, 0, 0.5)
    assert olrp([right, left], between) == nearly(first + second, (first + second) / 2, 0, 0)


def test_the_limit_of_detections():
    """At 100 detections the right one, 101st, is not seen."""
    detections = [wrong(1 - i / 1000) for i in range(100)] + [hit(1, 0.5)]
    assert olrp([OBJECT], detections, protocol="coco")[0] == 1
    assert olrp([OBJECT], detections) == nearly(100 / 101, 0, 100 / 101, 0)


def loops(ground_truth: dict, detections: list[dict], protocol: str) -> list[list[list[float]]]:
    """For each class the OLRP of its best prefixes, each on its own; matched by pycocotools."""
    rules = PROTOCOLS[protocol]
    with contextlib.redirect_stdout(io.StringIO()):
        run = official(ground_truth, detections)
        run.params.areaRng, run.params.maxDets = [list(rules.whole)], [rules.max_dets]
        run.params.iouThrs = np.array([0.5])
        run.evaluate()
    rows = []
    for category in sorted(c["id"] for c in ground_truth["categories"]):
        entries = [e for e in run.evalImgs if e is not None and e["category_id"] == category]
        objects = sum(int((e["gtIgnore"] == 0).sum()) for e in entries)
        kept = []  # (score, 1 - IoU or None)
        for e in entries:
            for d, number in enumerate(e["dtIds"]):
                if e["dtIgnore"][0, d]:
                    continue
                target = int(e["dtMatches"][0, d])
                distance = (
                    1 - iou(run.cocoDt.anns[number]["bbox"], run.cocoGt.anns[target]["bbox"])
                    if target
                    else None
                )
                kept.append((e["dtScores"][d], distance))
        kept.sort(key=lambda pair: -pair[0])
        rows.append(best_prefix(kept, objects))
    return rows


def iou(a: list[float], b: list[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def best_prefix(kept: list[tuple[float, float | None]], objects: int) -> list[list[float]]:
    if objects == 0:
        return [[math.nan] * 4]
    if all(distance is None for _, distance in kept):
        return [[1, math.nan, math.nan, 1]]
    rows = []
    for length in range(1, len(kept) + 1):
        distances = [d for _, d in kept[:length] if d is not None]
        tp, fp, fn = len(distances), length - len(distances), objects - len(distances)
        lrp = (sum(distances) / 0.5 + fp + fn) / (tp + fp + fn)
        rows.append([lrp, sum(distances) / tp if tp else math.nan, fp / length, fn / objects])
    return [row for row in rows if row[0] < min(rows)[0] + 1e-9]


def check(ground_truth: dict, detections: list[dict], protocol: str) -> list[list[float]]:
    """Each class against loops, all against the means; returns the classes' rows."""
    found = evaluate(ground_truth, detections, protocol=protocol)
    rows = [[metrics[name] for name in OLRP] for metrics in found.per_class.values()]
    for row, best in zip(rows, loops(ground_truth, detections, protocol), strict=True):
        assert any(row == pytest.approx(one, abs=1e-9, nan_ok=True) for one in best), (row, best)
    for name, column in zip(OLRP, np.transpose(rows), strict=True):
        known = column[~np.isnan(column)]
        wanted = known.mean() if len(known) else math.nan
        assert found.metrics[name] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    return rows


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_random_cases_against_loops(protocol):
    seen = [row for seed in range(40) for row in check(*random_case(seed), protocol)]
    assert np.nanstd(seen, axis=0).min() > 0.02 and np.isnan(seen).any()


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@settings(max_examples=60, deadline=None)
@given(annotations, guesses, hits, ids, ids)
def test_small_cases_full_of_ties(protocol, objects, misses, hits, image_ids, category_ids):
    check(*case(objects, misses, hits, image_ids, category_ids), protocol)


def test_perfect_detections_in_any_order():
    ground_truth = random_case(5)[0]
    found = perfect(ground_truth)
    for detections in (found, found[::-1]):
        metrics = evaluate(ground_truth, detections).metrics
        assert [metrics[name] for name in OLRP] == nearly(0, 0, 0, 0)
