"""The evaluation's benchmark: what it generates, and that it runs."""

import sys

import numpy as np
import pytest

from bench import evaluation_time as bench


def test_what_is_generated():
    ground_truth, results = bench.generate(60, 30)
    objects = ground_truth["annotations"]
    assert len(results) == 60 * 30 and 20 < len(objects) / 60 < 30
    assert np.bincount([r["image_id"] for r in results]).tolist() == [30] * 60
    sizes = [np.sqrt(r["bbox"][2] * r["bbox"][3]) for r in objects]
    assert np.mean(sizes) == pytest.approx(12.8, abs=0.6)
    assert np.mean([r["category_id"] == 0 for r in objects]) == pytest.approx(0.9, abs=0.05)
    assert bench.generate(5, 3) == bench.generate(5, 3) != bench.generate(5, 3, seed=1)


def test_it_measures_a_detector_neither_perfect_nor_useless(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["bench.evaluation_time", "--images", "40", "--detections", "60"]
    )
    bench.main()
    numbers, measured = capsys.readouterr().out.splitlines()
    values = dict(part.split(" ") for part in numbers.split(", "))
    assert 10 < float(values["AP"]) < 80 and float(values["AP"]) < float(values["AP50"]) < 95
    assert measured.startswith("40 images, 60 detections each, faster: ")
    assert measured.endswith("GiB")
