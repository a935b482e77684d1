"""Evaluations of hundreds of classes: in seconds, and left as soon as a signal comes."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import perfect, truth

from detectors.evaluation import Evaluation, average_precision, curves, evaluate, report
from detectors.evaluation.model_evaluation import evaluate_model
from detectors.utils.signals import Interrupted, Stopping

CLASSES = 1203
"""LVIS has as many."""


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """Class k has k % 40 objects but for the 20 last, which have 40; half of them are found."""
    counts = [40 if k >= CLASSES - 20 else k % 40 for k in range(CLASSES)]
    boxes = [(n % 8, k, 10.0 * n, 10.0, 8.0, 8.0) for k in range(CLASSES) for n in range(counts[k])]
    ground_truth = truth(boxes, images=8, classes=CLASSES)
    return evaluate(ground_truth, perfect(ground_truth)[::2])


def test_files_of_many_classes_take_seconds(
    found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took over nine minutes; results.json is there before the first picture."""
    drawn = []
    real = {"pr_curves.png": report.pr_curves, "pr_classes.png": report.pr_classes}

    def draw(runs: dict, path: Path) -> None:
        assert json.loads((tmp_path / "results.json").read_text())["AP"] == found.metrics["AP"]
        real[path.name](runs, path)
        drawn.append(path.name)

    monkeypatch.setattr(report, "pr_curves", draw)
    monkeypatch.setattr(report, "pr_classes", draw)
    began = time.process_time()
    report.write_results(tmp_path, found, "jol")
    assert time.process_time() - began < 20
    assert drawn == ["pr_curves.png", "pr_classes.png"]
    assert len(list(csv.reader((tmp_path / "per_class.csv").open()))) == 1 + CLASSES
    assert len(report.class_table(found).splitlines()) == 2 + CLASSES


def test_figures_show_the_classes_with_the_most_objects(
    found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the labels, and they say so; the tables have all."""
    figures: list = []
    monkeypatch.setattr(curves.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    curves.pr_classes({"base": found, "jol": found}, tmp_path / "x.png")
    curves.pr_thresholds({"jol": found}, tmp_path / "x.png")
    classes, thresholds = ([a for a in f.axes if a.axison] for f in figures)
    assert len(classes) == len(thresholds) == 30
    titles = [axes.get_title().split("\n")[0] for axes in classes]
    assert titles[10:] == [f"class {k}" for k in range(CLASSES - 20, CLASSES)]
    assert titles[:10] == [f"class {k}" for k in range(39, 400, 40)]  # the first of those with 39
    for figure, shown in zip(figures, (30, 29), strict=True):
        words = [each.get_title().get_text() for each in figure.legends]
        assert f"{shown} of 1,203 classes, those with the most objects" in words
    older = Evaluation(*list(found.__dict__.values())[:-1])  # its file did not count
    curves.pr_classes({"jol": older}, tmp_path / "x.png")
    titles = [axes.get_title().split("\n")[0] for axes in figures[-1].axes]
    assert titles == [f"class {k}" for k in range(30)]


@pytest.mark.parametrize("evaluator", ["faster", "pycocotools"])
def test_shares_of_the_classes_give_what_all_at_once_give(
    evaluator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone; of some there is nothing in an image, or in none."""
    boxes = [(0, 1, 10, 10, 8, 8), (2, 1, 30, 10, 30, 8), (2, 4, 10, 10, 8, 8, 1)]
    ground_truth = truth(boxes, images=4, classes=6)
    results = [{**each, "image_id": i} for each in perfect(ground_truth) for i in (2, 0, 3)]
    results += [{**each, "category_id": 12, "score": 0.3} for each in results]
    whole = evaluate(ground_truth, results, evaluator=evaluator)
    monkeypatch.setattr(average_precision, "AT_ONCE", 1)
    np.testing.assert_equal(
        evaluate(ground_truth, results, evaluator=evaluator).__dict__, whole.__dict__
    )
    assert list(whole.objects.values()) == [0, 2, 0, 0, 0, 0]


def stop_soon() -> None:
    """SIGTERM comes in a moment, while something else goes on; to be called where it is heard."""
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()


def endless(*_: object, **__: object) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["find", "evaluate"])
def test_a_signal_ends_an_evaluation_at_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within an image, and while AP is computed; it was heard after that."""
    from detectors.evaluation import model_evaluation

    class Data(list):
        ground_truth = None

        def assemble(self, results: list) -> list:
            return results

    class Model:
        def buffers(self) -> list:
            return []

    monkeypatch.setattr(model_evaluation, where, endless)
    began = time.monotonic()
    with Stopping() as stopping, pytest.raises(Interrupted):
        stop_soon()
        evaluate_model(Model(), Data(), "cpu", at_once=stopping.at_once)  # type: ignore[arg-type]
    assert time.monotonic() - began < 10 and stopping.asked == "SIGTERM"


def test_a_signal_ends_the_drawing_of_pictures(
    found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "pr_curves", endless)
    began = time.monotonic()
    with Stopping() as stopping, pytest.raises(Interrupted):
        stop_soon()
        report.write_results(tmp_path, found, "jol", at_once=stopping.at_once)
    assert time.monotonic() - began < 10
    assert {"results.json", "per_class.csv", "pr_curves.npz"} <= {
        p.name for p in tmp_path.iterdir()
    }
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked == "SIGTERM"  # elsewhere it is a wish
        with pytest.raises(Interrupted), stopping.at_once():
            raise AssertionError("it had come before")
