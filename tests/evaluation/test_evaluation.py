"""AP by hand, faster-coco-eval against pycocotools, and what evaluation must not do."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import perfect, random_case, result, truth

from detectors.data import CocoDetection
from detectors.evaluation import METRICS, PROTOCOLS, Evaluation, evaluate
from detectors.evaluation.olrp import OLRP

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei"
ONE = pytest.approx(1.0, abs=1e-12)  # pycocotools adds 2e-16 to a denominator
BUCKETS = {"AP_vt": 6, "AP_t": 12, "AP_s": 24, "AP_m": 60}  # metric → side of a box in it


both = pytest.mark.parametrize("evaluator", ["faster", "pycocotools"])


@both
def test_perfect_detections_score_one_in_each_bucket(evaluator):
    boxes = [(0, 0, 100 * i, 50, side, side) for i, side in enumerate(BUCKETS.values())]
    ground_truth = truth(boxes)
    found = evaluate(ground_truth, perfect(ground_truth), evaluator=evaluator)
    assert tuple(found.metrics) == METRICS + OLRP
    assert list(found.metrics.values()) == [ONE] * 7 + [0, 0, 0, 0]
    assert found.per_class == {"class 0": found.metrics}
    assert found.precision.shape == (10, 101, 1) and (found.precision > 1 - 1e-12).all()
    assert found.recall_points == pytest.approx(np.arange(101) / 100)
    assert found.iou_thresholds == pytest.approx(np.arange(50, 100, 5) / 100)


@both
def test_a_wrong_detection_above_a_right_one_halves_ap(evaluator):
    found = evaluate(
        truth([(0, 0, 10, 10, 12, 12)]),
        [result(0, 0, [500, 500, 12, 12], 0.9), result(0, 0, [10, 10, 12, 12], 0.8)],
        evaluator=evaluator,
    )
    assert found.metrics["AP"] == pytest.approx(0.5, abs=1e-12)
    assert found.metrics["AP_t"] == pytest.approx(0.5, abs=1e-12)
    assert all(math.isnan(found.metrics[name]) for name in ("AP_vt", "AP_s", "AP_m"))


@both
def test_one_of_two_objects_found_covers_51_of_101_recall_points(evaluator):
    ground_truth = truth([(0, 0, 10, 10, 12, 12), (0, 0, 60, 60, 12, 12)])
    found = evaluate(ground_truth, perfect(ground_truth)[:1], evaluator=evaluator)
    assert found.metrics["AP"] == pytest.approx(51 / 101, abs=1e-12)


@both
def test_iou_thresholds_are_told_apart(evaluator):
    """IoU 0.8 counts at 0.5 ... 0.8: 7 of 10 thresholds; IoU 0.76 at 6, 0.75 among them."""
    ground_truth = truth([(0, 0, 10, 10, 100, 100)])
    found = evaluate(ground_truth, [result(0, 0, [10, 10, 100, 80.0001], 0.9)], evaluator=evaluator)
    assert found.metrics["AP"] == pytest.approx(0.7) and found.metrics["AP50"] == ONE
    found = evaluate(ground_truth, [result(0, 0, [10, 10, 100, 76], 0.9)], evaluator=evaluator)
    assert found.metrics["AP"] == pytest.approx(0.6) and found.metrics["AP75"] == ONE
    found = evaluate(ground_truth, [result(0, 0, [10, 10, 100, 74], 0.9)], evaluator=evaluator)
    assert found.metrics["AP"] == pytest.approx(0.5) and found.metrics["AP75"] == 0


@both
def test_bucket_ends_belong_to_both_buckets(evaluator):
    ground_truth = truth([(0, 0, 10, 10, 16, 16)])  # area 256
    metrics = evaluate(ground_truth, perfect(ground_truth), evaluator=evaluator).metrics
    assert (metrics["AP_t"], metrics["AP_s"]) == (ONE, ONE) and math.isnan(metrics["AP_vt"])


@both
def test_crowds_are_neither_missed_nor_wrong(evaluator):
    ground_truth = truth([(0, 0, 10, 10, 12, 12), (0, 0, 100, 100, 80, 80, True)])
    detections = [result(0, 0, [110, 110, 12, 12], 0.95), result(0, 0, [10, 10, 12, 12], 0.8)]
    assert evaluate(ground_truth, detections[1:], evaluator=evaluator).metrics["AP"] == ONE
    assert evaluate(ground_truth, detections, evaluator=evaluator).metrics["AP"] == ONE


@both
def test_no_detections_no_objects(evaluator):
    none = evaluate(truth([(0, 0, 10, 10, 12, 12)], images=3), [], evaluator=evaluator).metrics
    assert none["AP"] == none["AP50"] == none["AP_t"] == 0 and math.isnan(none["AP_s"])
    empty = truth([], images=2, classes=2)
    for detections in ([], [result(1, 1, [1, 1, 5, 5], 0.5)]):
        metrics = evaluate(empty, detections, evaluator=evaluator).metrics
        assert all(math.isnan(value) for value in metrics.values())


@both
def test_a_class_without_objects_does_not_count(evaluator):
    ground_truth = truth([(0, 1, 10, 10, 12, 12)], classes=3)
    detections = [*perfect(ground_truth), result(0, 0, [50, 50, 9, 9], 1.0)]
    found = evaluate(ground_truth, detections, evaluator=evaluator)
    assert found.metrics["AP"] == ONE and found.per_class["class 1"]["AP"] == ONE
    assert math.isnan(found.per_class["class 0"]["AP"])
    assert np.isnan(found.precision[:, :, [0, 2]]).all()
    assert list(found.per_class) == ["class 0", "class 1", "class 2"]


@both
def test_ap_is_taken_at_1500_detections(evaluator):
    """The only right detection comes 1,200th: seen at 1500, not at 100 or 300."""
    ground_truth = truth([(0, 0, 10, 10, 12, 12)])
    wrong = [result(0, 0, [500, 500, 12, 12], 1 - i * 1e-4) for i in range(1199)]
    detections = [*wrong, result(0, 0, [10, 10, 12, 12], 0.5)]
    assert evaluate(ground_truth, detections, evaluator=evaluator).metrics["AP"] == pytest.approx(
        1 / 1200, rel=1e-9
    )
    coco = evaluate(ground_truth, detections, evaluator=evaluator, protocol="coco")
    assert coco.metrics["AP"] == 0


def assert_equal(first: Evaluation, second: Evaluation) -> None:
    np.testing.assert_allclose(
        list(first.metrics.values()), list(second.metrics.values()), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(first.precision, second.precision, rtol=0, atol=1e-9)
    assert list(first.per_class) == list(second.per_class)
    for name, metrics in first.per_class.items():
        np.testing.assert_allclose(
            list(metrics.values()), list(second.per_class[name].values()), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_faster_coco_eval_equals_pycocotools(protocol):
    values = []
    for seed in range(40):
        case = random_case(seed)
        fast = evaluate(*case, protocol=protocol)
        assert_equal(fast, evaluate(*case, protocol=protocol, evaluator="pycocotools"))
        values.append(fast.metrics["AP"])
    assert np.nanstd(values) > 0.05 and np.nanmean(values) > 0.1  # the cases say something


def test_coco_protocol_names():
    ground_truth = truth([(0, 0, 10, 10, 120, 120)])
    metrics = evaluate(ground_truth, perfect(ground_truth), protocol="coco").metrics
    assert list(metrics) == ["AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", *OLRP]
    assert metrics["AP_l"] == ONE and math.isnan(metrics["AP_m"])


@both
def test_inputs_are_left_alone_and_nothing_is_printed(evaluator, capfd):
    ground_truth, detections = random_case(3)
    before = copy.deepcopy((ground_truth, detections))
    first = evaluate(ground_truth, detections, evaluator=evaluator)
    assert (ground_truth, detections) == before
    assert_equal(first, evaluate(ground_truth, detections, evaluator=evaluator))
    out, err = capfd.readouterr()
    assert out == "" and err == ""


@pytest.mark.parametrize(
    "record, fault",
    [
        (result(4, 0, [1, 1, 2, 2], 0.5), r"detections\[1\]: image 4 is not"),
        (result(0, 7, [1, 1, 2, 2], 0.5), r"detections\[1\]: category 17 is not"),
        (result(0, 0, [1, 1, 2, 2], math.nan), r"detections\[1\]: .* score nan"),
        (result(0, 0, [1, math.inf, 2, 2], 0.5), r"detections\[1\]: bbox .*inf"),
        (result(0, 0, [1, 1, 2], 0.5), r"detections\[1\]: bbox"),
        (result(0, 0, [], 0.5), r"detections\[1\]: bbox"),
        (result(0, 0, [1, 1, "wide", 2], 0.5), r"detections\[1\]: bbox .*wide"),
        (result(0, 0, [1, 1, 2, 2], None), r"detections\[1\]: .* score None"),
        (result(0, 0, [1, 1, 2, 2], [0.5]), r"detections\[1\]: .* score \[0.5\]"),
        (result(0, 0, [1, 1, -2, 2], 0.5), r"detections\[1\]: bbox .*not negative"),
    ],
)
def test_bad_detections_are_named(record, fault):
    ground_truth = truth([(0, 0, 10, 10, 12, 12)])
    with pytest.raises(ValueError, match=fault):
        evaluate(ground_truth, [*perfect(ground_truth), record])


def test_unknown_names():
    with pytest.raises(ValueError, match="protocol is 'soda'"):
        evaluate(truth([]), [], protocol="soda")
    with pytest.raises(ValueError, match="evaluator is 'slow'"):
        evaluate(truth([]), [], evaluator="slow")


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="the nuclei data set is not here")
@pytest.mark.parametrize("file, classes", [("val.json", 1), ("val_3cls.json", 3)])
def test_nuclei_ground_truth_as_detections(file, classes):
    data = CocoDetection(NUCLEI / "val", NUCLEI / "val" / file)
    assert len(data.class_names) == classes
    found = evaluate(data.ground_truth, perfect(data.ground_truth))
    assert list(found.metrics.values()) == [ONE] * 7 + [0, 0, 0, 0]
