"""Evaluations on disk and in print."""

import csv
import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import perfect, random_case, truth

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


FILES = ["per_class.csv", "pr_curves.npz", "results.json", "pr_curves.png", "pr_classes.png"]


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the file before; results.json says that those before it are of one evaluation."""
    report.write_results(tmp_path, evaluate(*random_case(2)), "jol")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        report.write_results(tmp_path, evaluate(*random_case(1)), "jol")
    assert caught.value.filename == str(tmp_path / name)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(after) == sorted(set(FILES) - ({"results.json"} if "png" not in name else set()))
    kept = FILES[FILES.index(name) :]
    assert all(after[file] == before[file] for file in kept if file in after)
    changed = FILES[: FILES.index(name)]
    assert all(after[file] != before[file] for file in changed if "png" not in file)


def test_the_table_of_classes(tmp_path: Path) -> None:
    ground_truth, detections = random_case(4)
    found = evaluate(ground_truth, detections)
    report.write_results(tmp_path, found, "jol")
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", *METRICS, *OLRP, "objects"]
    assert [row["class"] for row in rows] == list(found.per_class)
    for row in rows:
        for name, value in found.per_class[row["class"]].items():
            assert row[name] == "" if math.isnan(value) else float(row[name]) == value
    assert any(value == "" for row in rows for value in row.values())
    assert {row["class"]: int(row["objects"]) for row in rows} == found.objects
    assert sum(found.objects.values()) == sum(
        not record["iscrowd"] for record in ground_truth["annotations"]
    )

    lines = report.class_table(found).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == len(rows) + 2
    assert lines[0].split() == ["objects", *METRICS, *OLRP]
    counts = [*found.objects.values(), sum(found.objects.values())]
    for line, metrics, count in zip(
        lines[1:], [*found.per_class.values(), found.metrics], counts, strict=True
    ):
        number, *shown = line.split()[-len(metrics) - 1 :]
        assert number == f"{count:,}"
        for text, value in zip(shown, metrics.values(), strict=True):
            assert text == "-" if math.isnan(value) else abs(float(text) - 100 * value) < 0.051
    assert lines[-1].startswith("all ")


def test_what_is_printed_fits_80_columns() -> None:
    """Of training: no line is broken within a word, and nothing is lost."""
    found = evaluate(*random_case(4))
    long = {f"{name} of {'seven seas ' * 9}": value for name, value in found.per_class.items()}
    counts = dict(zip(long, found.objects.values(), strict=True))
    found = dataclasses.replace(found, per_class=long, objects=counts)
    table = report.class_table(found, narrow=True)
    assert max(map(len, table.splitlines())) == 80 and "oLRP" not in table and "…" in table
    wide = report.class_table(found).splitlines()
    assert max(map(len, wide)) < 250 and all("seven seas seven" in line for line in wide[1:-1])
    before = "faster_rcnn: step 12: "
    line = report.metrics_line(found, before)
    assert [len(part) <= 80 for part in (before + line).splitlines()] == [True, True]
    words = [f"{name} {report._percent(value)}" for name, value in found.metrics.items()]
    assert all(word in line for word in words) and line.split() == " ".join(words).split()


def test_ap_says_what_it_is_a_mean_over() -> None:
    boxes = [(0, k, 40.0 * k, 10, 9, 9) for k in range(14)]
    boxes += [(0, 3, 9.0 * n, 60, 9, 9) for n in range(20)]
    ground_truth = truth(boxes, classes=15)
    said = report.about_ap(evaluate(ground_truth, perfect(ground_truth)))
    assert said == (
        "AP is the mean over 14 of 15 classes. Without objects: ['class 14'].\n"
        "Fewer than 10 objects, so that AP says little: ['class 0 (1)', 'class 1 (1)',\n"
        "  'class 2 (1)', 'class 4 (1)', 'class 5 (1)' and 8 more]."
    )
    boxes = [(0, 0, 9.0 * n, 60, 9, 9) for n in range(10)]
    assert report.about_ap(evaluate(truth(boxes), [])) == "AP is the mean over 1 class."
