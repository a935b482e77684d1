"""Evaluations on disk and in print."""

import csv
import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import random_case

from detectors.errors import RunError
from detectors.evaluation import METRICS, Evaluation, evaluate, report
from detectors.evaluation.olrp import OLRP


def same(first: Evaluation, second: Evaluation) -> None:
    assert list(first.metrics) == list(second.metrics)
    assert list(first.per_class) == list(second.per_class)
    np.testing.assert_equal(first.__dict__, second.__dict__)


def test_written_and_read_again(tmp_path: Path) -> None:
    seen = []
    for seed in range(4):
        found = evaluate(*random_case(seed))
        report.write_results(tmp_path, found, "jol")
        same(report.read_results(tmp_path), found)
        seen += found.metrics.values()
    assert np.isnan(seen).any() and np.nanstd(seen) > 0.1
    nothing = {"images": [{"id": 1}], "categories": [{"id": 1, "name": 'a "car", or not'}]}
    found = evaluate({**nothing, "annotations": []}, [])
    report.write_results(tmp_path, found, "jol")
    same(report.read_results(tmp_path), found)
    assert set(json.loads((tmp_path / "results.json").read_text()).values()) == {None}


@pytest.mark.parametrize("name", ["results.json", "per_class.csv", "pr_curves.npz"])
def test_what_is_missing_or_broken_is_named(name: str, tmp_path: Path) -> None:
    report.write_results(tmp_path, evaluate(*random_case(1)), "jol")
    content = (tmp_path / name).read_bytes()
    for bad in (content[: len(content) // 2], b"", b"\xff{}"):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(RunError, match=f"{name}: missing or broken"):
            report.read_results(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=f"{name}: missing or broken"):
        report.read_results(tmp_path)


@pytest.mark.parametrize("name", ["pr_curves.npz", "pr_curves.png", "results.json"])
def test_a_full_disk_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {
        "pr_curves.npz": "numpy.savez",
        "pr_curves.png": "detectors.evaluation.report.pr_curves",
    }
    monkeypatch.setattr(where.get(name, "os.fsync"), full)
    with pytest.raises(OSError, match="No space left") as caught:
        report.write_results(tmp_path, evaluate(*random_case(1)), "jol")
    assert caught.value.filename == str(tmp_path / name)


def test_the_table_of_classes(tmp_path: Path) -> None:
    ground_truth, detections = random_case(4)
    found = evaluate(ground_truth, detections)
    report.write_results(tmp_path, found, "jol")
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", *METRICS, *OLRP]
    assert [row["class"] for row in rows] == list(found.per_class)
    for row in rows:
        for name, value in found.per_class[row["class"]].items():
            assert row[name] == "" if math.isnan(value) else float(row[name]) == value
    assert any(value == "" for row in rows for value in row.values())

    lines = report.class_table(found).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == len(rows) + 2
    assert lines[0].split() == [*METRICS, *OLRP]
    for line, metrics in zip(lines[1:], [*found.per_class.values(), found.metrics], strict=True):
        shown = line.split()[-len(metrics) :]
        for text, value in zip(shown, metrics.values(), strict=True):
            assert text == "-" if math.isnan(value) else abs(float(text) - 100 * value) < 0.051
    assert lines[-1].startswith("all ")
