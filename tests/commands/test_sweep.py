"""`jol sweep`: which runs, skipping, resuming, failing; and two real runs of a few steps."""

import json
import os
import shlex
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from detectors.cli import main
from detectors.commands import sweep
from detectors.data.synthetic import write_scenes
from detectors.utils.locks import claimed

DATA = [
    *("--train-images", "a", "--train-annotations", "a.json"),
    *("--val-images", "b", "--val-annotations", "b.json"),
]
ONE = [*DATA, "--detector", "faster_rcnn", "--loss", "jol"]


def value(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


class Train:
    """Stands in for the process: notes the arguments and leaves what a run leaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.failing: set[str] = set()
        monkeypatch.setattr(sweep, "_launch", self)

    def __call__(self, words: list[str]) -> int:
        self.calls.append(words)
        out = Path(str(value(words, "--out")))
        if out.name in self.failing:
            return 1
        assert "--resume" in words  # without it train refuses a folder with a run
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text("{}")
        (out / "results.json").write_text("{}")
        return 0

    @property
    def names(self) -> list[str]:
        return [Path(str(value(words, "--out"))).name for words in self.calls]


@pytest.fixture(autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of DATA, which exist and hold nothing."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / f"{name}.json").touch()
    monkeypatch.chdir(folder)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    return Train(monkeypatch)


def test_tables_2_to_6_need_every_method_with_both_losses(train: Train, tmp_path: Path) -> None:
    assert main(["sweep", "3", "--out", str(tmp_path), "--seeds", "5", "6", "--", *DATA]) == 0
    found = Counter(
        (value(w, "--detector"), value(w, "--assigner"), value(w, "--loss")) for w in train.calls
    )
    methods = ["retinanet", "fcos", "faster_rcnn", "cascade_rcnn", "detectors"]
    wanted = [(name, None) for name in methods] + [("detectors", "simd")]
    assert found == {(*method, loss): 2 for method in wanted for loss in ("base", "jol")}
    assert [value(w, "--seed") for w in train.calls] == ["5"] * 12 + ["6"] * 12
    assert {value(w, "--preset") for w in train.calls} == {"paper"}
    assert len(set(train.names)) == 24
    assert "detectors-simd-jol-seed6" in train.names


def test_table_7_turns_scores_off_and_table_8_changes_lambda(train: Train, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--seeds", "0", "--"]
    assert main(["sweep", "7", *out, *DATA, "--preset", "slim"]) == 0
    flags = ("--loss", "--location-score", "--class-score")
    assert [tuple(value(w, f) for f in flags) for w in train.calls] == [
        ("base", None, None),
        ("jol", "iou", "none"),
        ("jol", "none", "probability"),
        ("jol", "iou", "probability"),
    ]
    assert {value(w, "--detector") for w in train.calls} == {"faster_rcnn"}
    assert {value(w, "--preset") for w in train.calls} == {"slim"}
    train.calls.clear()
    assert main(["sweep", "8", *out, *DATA, "--preset", "slim"]) == 0
    assert [value(w, "--lam") for w in train.calls] == ["1", "3", "4", "5"]  # 2 is Table 7's run


def test_table_9_runs_a_few_steps(train: Train, tmp_path: Path) -> None:
    assert main(["sweep", "9", "--out", str(tmp_path / "a"), "--seeds", "0", "--", *DATA]) == 0
    assert len(train.calls) == 6 and {value(w, "--max-steps") for w in train.calls} == {"60"}
    train.calls.clear()
    given = ["--", *DATA, "--max-steps=7"]
    assert main(["sweep", "9", "--out", str(tmp_path / "b"), "--seeds", "0", *given]) == 0
    assert all("--max-steps=7" in w and "--max-steps" not in w for w in train.calls)


def test_common_arguments_choose_among_the_runs(train: Train, tmp_path: Path) -> None:
    assert main(["sweep", "2", "--out", str(tmp_path), "--", *ONE, "--lr", "0.01"]) == 0
    assert train.names == [f"faster_rcnn-jol-seed{seed}" for seed in (0, 1, 2)]
    for words in train.calls:
        assert words.count("--detector") == words.count("--loss") == 1
        assert value(words, "--lr") == "0.01" and words[0] == "train"


def test_what_is_done_is_skipped_and_what_was_interrupted_resumed(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "2", "--out", str(tmp_path), "--seeds", "0", "1", "2", "3", "--", *ONE]
    done, stopped, young, _ = (tmp_path / f"faster_rcnn-jol-seed{seed}" for seed in range(4))
    for folder, files in (
        (done, ("config.json", "last.pt", "results.json")),
        (stopped, ("config.json", "last.pt", "metrics.jsonl")),
        (young, ("config.json", "metrics.jsonl")),  # died before its first checkpoint
    ):
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    assert main(command) == 0
    assert train.names == [f"faster_rcnn-jol-seed{seed}" for seed in (1, 2, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["done", "resume", "resume", "start"]
    assert (stopped / "metrics.jsonl").exists()
    train.calls.clear()
    assert main(command) == 0 and train.calls == []


def test_a_failing_run_does_not_end_the_sweep(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "2", "--out", str(tmp_path), "--", *ONE]
    train.failing = {"faster_rcnn-jol-seed1"}
    assert main(command) == 1
    assert len(train.calls) == 3
    error = capsys.readouterr().err
    assert error == ("jol sweep: 1 of 3 runs failed: faster_rcnn-jol-seed1 (status 1)\n")
    train.failing = set()
    train.calls.clear()
    assert main(command) == 0
    assert train.names == ["faster_rcnn-jol-seed1"]


def test_a_run_under_way_is_passed_over_and_reported(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "2", "--out", str(tmp_path), "--", *ONE]
    with claimed(tmp_path / "faster_rcnn-jol-seed1"):
        assert main(command) == 1
    printed = capsys.readouterr()
    assert train.names == ["faster_rcnn-jol-seed0", "faster_rcnn-jol-seed2"]
    assert f"[2/3] faster_rcnn-jol-seed1: under way, process {os.getpid()} on" in printed.out
    assert printed.err == "jol sweep: 1 of 3 runs are under way: faster_rcnn-jol-seed1\n"


RUN = """#!/bin/sh
trap 'sleep 0.5; touch saved; kill $!; exit 1' TERM
touch begun
sleep 60 &
wait
"""
"""Stands in for `jol train`, which writes a checkpoint when it is told to stop."""


def test_a_signal_is_handed_on_and_the_run_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at once it would lose the steps since its last checkpoint, alone it would go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").write_text(RUN)
    (tmp_path / "run").chmod(0o700)
    monkeypatch.setattr("sys.executable", str(tmp_path / "run"))
    pid = os.getpid()

    def kill() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)

    threading.Thread(target=kill).start()
    with pytest.raises(sweep.SweepError, match="stopped by SIGTERM; the same command goes on"):
        sweep._launch(["--out", "x"])
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("text", ["[]", '{"x": 5}', "[" * 100_000, "", '"x"'])
def test_a_record_that_is_none(
    text: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert main(["sweep", "2", "--out", str(tmp_path), "--", *ONE]) == 2
    assert "sweep.json: is not what a sweep writes" in capsys.readouterr().err


def test_status_0_without_results_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "_launch", lambda words: 0)
    assert main(["sweep", "2", "--out", str(tmp_path), "--seeds", "0", "--", *ONE]) == 1
    assert "faster_rcnn-jol-seed0 (status 0)" in capsys.readouterr().err


def test_runs_of_other_arguments_are_not_taken_for_these(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "2", "--out", str(tmp_path), "--seeds", "0", "--", *ONE]
    assert main([*command, "--lr", "0.01"]) == 0
    before = sorted(tmp_path.rglob("*"))
    train.calls.clear()
    assert main([*command, "--lr", "0.02"]) == 2
    error = capsys.readouterr().err
    assert "faster_rcnn-jol-seed0: lr was 0.01, is now 0.02; give another --out" in error
    assert main(command) == 2
    assert "lr was 0.01, is now not given; give another --out" in capsys.readouterr().err
    assert main([*command, "--lr", "1e-2", "--workers", "3"]) == 0  # the same run
    assert train.calls == [] and sorted(tmp_path.rglob("*")) == before


def test_dry_run_prints_commands_that_train_takes(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a folder"
    command = ["sweep", "8", "--out", str(out), "--seeds", "0", "--dry-run", "--", *DATA]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert train.calls == [] and not out.exists() and len(lines) == 5
    words = shlex.split(lines[2])
    assert words[:2] == ["jol", "train"] and value(words, "--lam") == "3"
    assert main(words[1:]) == 2  # all can be parsed, and then b.json holds no JSON
    assert "a.json: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["2", "--out", "OUT"], "missing --train-images --train-annotations --val-images"),
        (["1", "--out", "OUT", "--", *DATA], "got '1', wanted one of 2, 3, 4, 5, 6, 7, 8, 9"),
        (["2", "--", *DATA], "the following arguments are required: --out"),
        (["2", "--out", "OUT", "--seeds", "x", "--", *DATA], "--seeds"),
        (["2", "--out", "OUT", "--", *DATA, "--seed", "3"], "--seed after --"),
        (["2", "--out", "OUT", "--", *DATA, "--resume"], "--resume after --"),
        (["2", "--out", "OUT", "--", *DATA, "--colour", "red"], "unknown option --colour"),
        (["2", "--out", "OUT", "--", *DATA, "--detector", "yolo"], "no run of table 2 agrees"),
        (["8", "--out", "OUT", "--", *DATA, "--lam", "7"], "no run of table 8 agrees"),
        (["2", "--out", "OUT", "--", "--dataset", "aitod"], "table 2 is of visdrone"),
        (["2", "--out", "FILE", "--", *DATA], "is a file, wanted a folder"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_unusable_arguments(
    given: list[str],
    wanted: str,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    assert main(["sweep", *(places.get(word, word) for word in given)]) == 2
    error = capsys.readouterr().err
    assert wanted in error and len(error.splitlines()) <= 2 and "Traceback" not in error
    assert train.calls == [] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_real_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of them crashes its process; the table then names what is missing."""
    images, annotations = write_scenes(tmp_path / "scenes", images=2, seed=0, size=64)
    data = ["--train-images", images, "--train-annotations", annotations]
    data += ["--val-images", images, "--val-annotations", annotations]
    common = [*map(str, data), "--preset", "slim", "--max-steps", "1", "--batch-size", "1"]
    common += ["--crop", "64", "--device", "cpu", "--detector", "faster_rcnn"]
    out = tmp_path / "sweep"
    command = ["sweep", "2", "--out", str(out), "--seeds", "0", "--", *common]
    (out / "faster_rcnn-jol-seed0").mkdir(parents=True)
    (out / "faster_rcnn-jol-seed0" / "metrics.jsonl.part").mkdir()
    (out / "faster_rcnn-jol-seed0" / "config.json.part").mkdir()  # what train cannot write over
    assert main(command) == 1
    printed = capfd.readouterr()
    assert "[1/2] faster_rcnn-base-seed0: start" in printed.out
    assert "1 of 2 runs failed: faster_rcnn-jol-seed0" in printed.err
    settings = json.loads((out / "faster_rcnn-base-seed0" / "config.json").read_text())["settings"]
    assert (settings["loss"], settings["seed"], settings["steps"]) == ("base", 0, 1)
    (out / "faster_rcnn-jol-seed0" / "config.json.part").rmdir()
    assert main(command) == 0
    assert "[1/2] faster_rcnn-base-seed0: done" in capfd.readouterr().out
    assert main(["table", "runs", "--runs", str(out)]) == 0
    listed = capfd.readouterr().out
    assert "faster_rcnn-base-seed0" in listed and "mean of 1 pair" in listed
