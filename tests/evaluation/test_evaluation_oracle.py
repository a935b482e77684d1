"""Every number against pycocotools, called here as the benchmarks' own tools call it."""

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
    random_case,
    result,
    truth,
)
from hypothesis import example, given, settings

from detectors.evaluation import PROTOCOLS, evaluate

# Area ranges in the order of the tools, the first for all objects; limits; where AP is read.
OFFICIAL = {
    "coco": (
        {"": [0, 1e10], "_s": [0, 32**2], "_m": [32**2, 96**2], "_l": [96**2, 1e10]},
        [1, 10, 100],
        2,
    ),
    "aitod": (
        {"": [0, 1e10], "_vt": [0, 8**2], "_t": [8**2, 16**2], "_s": [16**2, 32**2],
         "_m": [32**2, 1e10]},
        [100, 300, 1500],
        2,
    ),
    "sodad": (
        {"": [0, 32**2], "_eS": [0, 12**2], "_rS": [12**2, 20**2], "_gS": [20**2, 32**2],
         "_N": [32**2, 40 * 50]},
        [100, 300, 1000],
        0,
    ),
}  # fmt: skip
protocols = pytest.mark.parametrize("protocol", sorted(OFFICIAL))


def numbers(ground_truth: dict, detections: list[dict], protocol: str) -> list[dict]:
    """Metrics of all classes, then of each by ascending id; -1 as the tools give it."""
    areas, limits, read_at = OFFICIAL[protocol]
    with contextlib.redirect_stdout(io.StringIO()):
        run = official(ground_truth, detections)
        run.params.areaRng, run.params.areaRngLbl = list(areas.values()), list(areas)
        run.params.maxDets = limits
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., read_at]  # [T, R, K, A]
    classes = range(precision.shape[2])
    return [_named(precision[:, :, k], areas) for k in (list(classes), *([k] for k in classes))]


def _named(precision: np.ndarray, areas: dict) -> dict[str, float]:
    values = {f"AP{name}": precision[..., a] for a, name in enumerate(areas)}
    values |= {"AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    return {n: v[v > -1].mean() if (v > -1).any() else -1 for n, v in values.items()}


def check(ground_truth: dict, detections: list[dict], protocol: str) -> dict[str, float]:
    """Both evaluators give the official numbers, for all classes and for each."""
    expected = numbers(ground_truth, detections, protocol)
    for evaluator in ("faster", "pycocotools"):
        found = evaluate(ground_truth, detections, protocol=protocol, evaluator=evaluator)
        for wanted, came in zip(expected, [found.metrics, *found.per_class.values()], strict=True):
            for name, value in wanted.items():
                got = -1 if math.isnan(came[name]) else came[name]
                assert got == pytest.approx(value, rel=0, abs=1e-9), (evaluator, name)
    return expected[0]


@protocols
@settings(max_examples=60, deadline=None)
@given(annotations, guesses, hits, ids, ids)
@example([], [], [], (0, 1, 2), (0, 1, 2))
@example([], [(0, 0, 1.0, 1.0, 8, 8, 0.5)], [], (0, 1, 2), (0, 1, 2))
@example([(1, 1, 0.0, 0.0, 8, 8, 64, 0)], [], [], (0, 1, 2), (0, 1, 2))
@example([(1, 1, 0.0, 0.0, 8, 8, 64, 1)], [], [(0, 0, 3)], (0, 1, 2), (0, 1, 2))
@example([(0, 0, 0.0, 0.0, 32, 32, 1024, 0)] * 3, [], [(0, 0, 2)], (0, 1, 2), (0, 1, 2))
def test_small_cases_full_of_ties(protocol, objects, misses, hits, image_ids, category_ids):
    check(*case(objects, misses, hits, image_ids, category_ids), protocol)


@protocols
def test_random_cases(protocol):
    values = [check(*random_case(seed), protocol)["AP"] for seed in range(100, 115)]
    assert np.std(values) > 0.05 and np.mean(values) > 0.1  # the cases say something


def crowded(detections: int) -> tuple[dict, list[dict]]:
    """One image with 20 objects; scores in 40 steps, so that every limit falls among equals."""
    random = np.random.default_rng(0)
    boxes = [
        (0, 0, *random.uniform(0, 300, 2).round(), *random.integers(6, 40, 2)) for _ in range(20)
    ]
    boxes = [tuple(map(float, box)) for box in boxes]
    ground_truth = truth([(0, 0, *box[2:]) for box in boxes], images=2, classes=2)
    found = []
    for number in range(detections):
        box = np.array(boxes[number % 20][2:]) + random.normal(0, 2, 4) * (number % 3)
        score = float(random.integers(40)) / 40
        found.append(result(0, int(number % 11 == 0), np.maximum(box, 1).tolist(), score))
    return ground_truth, found


@protocols
def test_3000_detections_in_an_image(protocol):
    """About 2,700 of one class: every limit cuts, in a run of equal scores."""
    ground_truth, detections = crowded(3000)
    assert 0 < check(ground_truth, detections, protocol)["AP"] < 1


@pytest.mark.parametrize("evaluator", ["faster", "pycocotools"])
def test_of_equal_scores_the_first_given_and_the_lower_image_id_come_first(evaluator):
    ground_truth = truth([(0, 0, 10, 10, 12, 12), (1, 0, 10, 10, 12, 12)], images=2)
    right, wrong = result(0, 0, [10, 10, 12, 12], 0.5), result(0, 0, [90, 90, 12, 12], 0.5)
    # precision at recall up to 1/2 is 1 or 1/2, beyond it 0
    first = evaluate(ground_truth, [right, wrong], evaluator=evaluator).metrics["AP"]
    second = evaluate(ground_truth, [wrong, right], evaluator=evaluator).metrics["AP"]
    assert first == pytest.approx(51 / 101) and second == pytest.approx(51 / 202)
    other = {**wrong, "image_id": 1}
    for order in ([right, other], [other, right]):
        found = evaluate(ground_truth, order, evaluator=evaluator).metrics["AP"]
        assert found == pytest.approx(51 / 101)


def test_sodad_leaves_out_what_is_larger_than_1024_pixels():
    """A large object is no miss and a large detection no error, except in its own bucket."""
    ground_truth = truth([(0, 0, 10, 10, 12, 12), (0, 0, 100, 100, 40, 40)])
    small, large = result(0, 0, [10, 10, 12, 12], 0.5), result(0, 0, [300, 300, 60, 60], 0.9)
    metrics = evaluate(ground_truth, [small, large], protocol="sodad").metrics
    assert list(metrics)[:7] == ["AP", "AP50", "AP75", "AP_eS", "AP_rS", "AP_gS", "AP_N"]
    assert metrics["AP"] == metrics["AP_eS"] == metrics["AP_rS"] == pytest.approx(1)  # 144: in both
    assert metrics["AP_N"] == 0 and math.isnan(metrics["AP_gS"]) and metrics["oLRP"] == 0


def test_sodad_takes_ap_at_100_detections():
    ground_truth = truth([(0, 0, 10, 10, 12, 12)])
    wrong = [result(0, 0, [500, 500, 12, 12], 1 - i * 1e-4) for i in range(99)]
    right = result(0, 0, [10, 10, 12, 12], 0.5)
    found = evaluate(ground_truth, [*wrong, right], protocol="sodad").metrics
    assert found["AP"] == pytest.approx(0.01)
    found = evaluate(ground_truth, [*wrong, wrong[0], right], protocol="sodad").metrics
    assert found["AP"] == 0


def test_the_protocols_are_the_official_ones():
    assert set(PROTOCOLS) == set(OFFICIAL)
    for name, rules in PROTOCOLS.items():
        areas, limits, read_at = OFFICIAL[name]
        assert [list(rules.whole), *map(list, rules.areas.values())] == list(areas.values())
        assert rules.max_dets == limits[read_at]
