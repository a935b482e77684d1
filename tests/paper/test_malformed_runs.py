"""Files of finished runs that something else has written: a line for each, never a traceback."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import random_case

from detectors.cli import main
from detectors.errors import RunError
from detectors.evaluation import report
from detectors.evaluation.average_precision import evaluate
from detectors.paper.finished_runs import read_run
from detectors.training.settings import resolve

DEEP = "[" * 100_000
ODD = ["", "5", "null", "[]", '"x"', DEEP, '{"AP": "x"}', '{"AP": [1]}', '{"AP": 1e999}', "\0"]
ODD += ['{"AP": NaN}', '{"AP": -1}', '{"AP": true, "x": {}}', '{"AP": 1' + "0" * 400 + "}"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    given = {"detector": "fcos", "loss": "jol", "max_steps": 3}
    settings = vars(resolve(given, 1, None, {}))
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": settings, "data": {}}))
    (folder / "results.json").write_text('{"AP": 0.5}')
    (folder / "metrics.jsonl").write_text('{"step": 20, "seconds": 0.5}\n')
    return folder


def table(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert main(["table", "7", "--runs", str(run.parent)]) == 0
    capsys.readouterr()
    assert main(["table", "runs", "--runs", str(run.parent)]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_tables_name_what_they_cannot_use(
    text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "one" in table(run, capsys)[0]
    for name in ("results.json", "config.json"):
        before = (run / name).read_text()
        (run / name).write_text(text)
        _, said = table(run, capsys)
        assert said.startswith(f"skipped: {run}: ") and name in said and len(said) < 700
        (run / name).write_text(before)


def test_settings_that_no_run_has(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    for name in config["settings"]:
        for value in ("x" * 9999, -(10**30), [[]], {"a": []}, True, None, math.nan):
            changed = {**config, "settings": config["settings"] | {name: value}}
            (run / "config.json").write_text(json.dumps(changed))
            try:
                assert read_run(run).settings[name] == value
            except RunError as error:
                assert name in str(error) and len(str(error)) < 700


LINES = [*ODD, '{"step": 1, "seconds": NaN}', '{"step": 1, "seconds": "x"}']


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_log_of_something_else(line: str, run: Path) -> None:
    for content in (line.encode(), b"\xff\xfe", b'{"step": 1}\n' + line.encode()):
        (run / "metrics.jsonl").write_bytes(content)
        assert math.isnan(read_run(run).seconds())
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert math.isnan(read_run(run).seconds())


def test_figures_name_what_they_cannot_use(tmp_path: Path) -> None:
    report.write_results(tmp_path, evaluate(*random_case(1)), "jol")
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with np.load(tmp_path / "pr_curves.npz") as stored:
        arrays = dict(stored)

    def refused(name: str) -> None:
        with pytest.raises(RunError, match=f"{name}: missing or broken"):
            report.read_results(tmp_path)
        path = tmp_path / name
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(good[name])

    for text in (t for t in ODD if t not in ODD[8:]):
        (tmp_path / "results.json").write_text(text)
        refused("results.json")
    for name in ("results.json", "pr_curves.npz", "per_class.csv"):
        for make in (os.mkfifo, os.mkdir):
            (tmp_path / name).unlink()
            make(tmp_path / name)
            refused(name)
    for change in (
        {"precision": arrays["precision"][0]},
        {"precision": np.array(5.0)},
        {"recall_points": arrays["recall_points"][:3]},
        {"precision": arrays["precision"].astype(str) + "x"},
        {"precision": np.array([None], dtype=object)},
    ):
        np.savez(tmp_path / "pr_curves.npz", **(arrays | change))
        refused("pr_curves.npz")
    np.savez(tmp_path / "pr_curves.npz", x=np.zeros(1))
    refused("pr_curves.npz")
    for rows in (
        b"class\n",
        b"class,AP\n\0,1\n",
        b"class,AP\n" + b"x" * 200_000 + b",1\n",
        b"\xff",
    ):
        (tmp_path / "per_class.csv").write_bytes(rows)
        refused("per_class.csv")
