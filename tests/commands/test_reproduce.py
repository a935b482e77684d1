"""`jol reproduce` on tiny trees of every data set: checks, plan, runs, resuming, the table."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import time
from argparse import Namespace
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
from children import run_jol
from pictures import draw_no_curves
from published import TRAIN, write_tree

from detectors.cli import main
from detectors.commands import reproduce_checks, sweep, train
from detectors.errors import DataError, Unusable
from detectors.models.presets import find_detector
from detectors.paper.reproduction import NUMBERS
from detectors.training import timing
from detectors.training.settings import resolve
from detectors.training.timing import Speed

TINY = ["--preset", "slim", "--batch-size", "1", "--crop", "48"]
TINY += ["--workers", "0", "--device", "cpu"]
QUICK = [*TINY, "--max-steps", "1"]
FCOS = ["--detectors", "fcos"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each data set by its name."""
    root = tmp_path_factory.mktemp("trees")
    for name in NUMBERS:
        write_tree(name, root / name)
    return root


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Training and timing in this process, which need not import torch again; the words of runs."""
    calls: list[list[str]] = []

    def launch(words: list[str]) -> int:
        calls.append(words)
        return main(words)

    monkeypatch.setattr(sweep, "_launch", launch)
    monkeypatch.setattr(timing, "measure", timing.measure_here)
    draw_no_curves(monkeypatch)
    return calls


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs that leave results at once, a hundredth more AP with each; their words."""
    calls: list[list[str]] = []

    def launch(words: list[str]) -> int:
        calls.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        args = Namespace(**train.parse(words[1:]))
        settings = resolve(train.given_settings(args), TRAIN, args.dataset, {})
        config = {"settings": dataclasses.asdict(settings), "data": {}}
        (out / "config.json").write_text(json.dumps(config))
        (out / "results.json").write_text(json.dumps({"AP": 0.01 * len(calls)}))
        return 0

    monkeypatch.setattr(sweep, "_launch", launch)
    speeds = Speed(0.5, 0.25, 3_000_000_000, 1_000_000_000, "a GPU")
    monkeypatch.setattr(timing, "measure", lambda settings, *_: [speeds] * len(settings))
    has_free(monkeypatch, 10**15)
    return calls


def has_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the disk have so many bytes."""
    usage = namedtuple("usage", "total used free")(10**16, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def command(name: str, trees: Path, out: Path, *words: str, after: list[str] = QUICK) -> list[str]:
    root = ["--data-root", str(trees / name), "--out", str(out)]
    return ["reproduce", name, *root, *words, "--", *after]


@pytest.mark.parametrize("name", NUMBERS)
def test_from_data_to_the_table(
    name: str,
    trees: Path,
    here: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole of it in the data set's own format; base and JOL, and each once only."""
    out = tmp_path / "out"
    method = "faster_rcnn" if name == "coco" else "fcos"
    words = command(name, trees, out, "--seeds", "0", "--detectors", method)
    assert main(words) == 0
    printed = capsys.readouterr()
    assert f"{method}-jol" in printed.out and "2 of 2 runs are left" in printed.out
    assert "the paper's data set has" in printed.err
    assert [Path(w[w.index("--out") + 1]).name for w in here] == [
        f"{method}-base-seed0",
        f"{method}-jol-seed0",
    ]
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = 24 if name.startswith("aitod") else 12
    assert {row["steps"] for row in rows} == {f"1 of {TRAIN * epochs}"}
    assert {(row["detector"], row["settings"]) for row in rows} == {
        (method, "fair"),
        (method, "paper"),
    }
    assert {row["pairs"] for row in rows if row["metric"] == "AP"} == {"1"}
    assert re.fullmatch(r"\d+\.\d", rows[0]["base"]) and float(rows[0]["paper:JOL"]) > 10
    text = (out / "table.md").read_text()
    said = ["CUT SHORT", "PRESET slim", "--max-steps 1", "not the paper's data"]
    assert all(word in text for word in said)
    here.clear()
    assert main(words) == 0
    assert here == [] and "0 of 2 runs are left" in capsys.readouterr().out


def test_the_plan_says_runs_steps_hours_and_disk(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    after = [*TINY, "--batch-size", "2"]
    words = command("visdrone", trees, out, "--seeds", "0", "1", "--dry-run", after=after)
    assert main(words) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "data: train: 3 images, 6 objects, 0 crowd or ignored" in lines
    # 12 epochs of 3 images, 2 a step: 18 steps of half a second, 2 images of a quarter; two seeds
    row = next(line for line in lines if line.startswith("faster_rcnn-base-anchor_scale4"))
    assert row.split()[1:] == ["fair", "2", "0", "18", "0.500", "0.0"]
    assert next(line for line in lines if line.startswith("fcos-jol ")).split()[1:4] == [
        *("fair", "and", "paper")
    ]
    assert "44 of 44 runs are left" in lines
    # 44 times two checkpoints and the best weights, and one under way
    assert any(line.startswith(f"{44 * 7 + 3:.1f} GB to write") for line in lines)
    assert "about 0.1 hours on a GPU: an estimate" in printed.out
    assert "made for a CPU" not in printed.err  # preset slim is
    assert untrained == [] and not out.exists()


def test_the_evaluation_at_the_end_counts(
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = Speed(0.5, 3600.0, 3, 1, "a GPU")
    monkeypatch.setattr(timing, "measure", lambda settings, *_: [speed] * len(settings))
    words = ["--seeds", "0", *FCOS, "--dry-run"]
    after = [*TINY, "--batch-size", "2", "--eval-every", "4"]
    assert main(command("visdrone", trees, tmp_path, *words, after=after)) == 0
    # 2 steps an epoch, 18 steps: evaluated after 8, 16 and 18; 2 images, 2 runs
    assert "about 12.0 hours" in capsys.readouterr().out


def test_settings_and_detectors_choose_and_the_rest_is_train_s(
    trees: Path, untrained: list[list[str]], tmp_path: Path
) -> None:
    words = ["--seeds", "4", "--settings", "fair", "--detectors", "retinanet"]
    assert main(command("aitod", trees, tmp_path, *words)) == 0
    assert len(untrained) == 2
    for one in untrained:
        pairs = dict(pairwise(one))
        assert pairs["--anchor-scale"] == "1" and pairs["--seed"] == "4"
        assert pairs["--eval-every"] == "0" and pairs["--preset"] == "slim"
        assert pairs["--data-root"] == str(trees / "aitod") and one[-1] == "--resume"


def test_fair_settings_at_several_rates(
    trees: Path, untrained: list[list[str]], tmp_path: Path
) -> None:
    words = ["--seeds", "0", "--rates", "1", "0.5", *FCOS]
    assert main(command("aitod", trees, tmp_path, *words, after=[*QUICK, "--lr", "0.03"])) == 0
    rates = {w[w.index("--out") + 1]: train.parse(w[1:])["lr"] for w in untrained}
    assert rates == {
        str(tmp_path / f"fcos-{loss}{rate}-seed0"): lr
        for loss in ("base", "jol")
        for rate, lr in (("", 0.03), ("-rate0.5", 0.015))
    }
    with (tmp_path / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "AP"]
    kinds = ["fair", "fair, rate x 0.5", "fair, best rates", "paper"]
    assert [row["settings"] for row in rows] == kinds
    # The n-th run has n per cent: base and JOL, then both at half the rate
    assert [row["JOL-base"] for row in rows] == ["+1.0", "+1.0", "+1.0", "+1.0"]
    assert [row["base"] for row in rows] == ["1.0", "3.0", "3.0", "1.0"]
    untrained.clear()
    assert main(command("aitod", trees, tmp_path / "own", *words, "--settings", "fair")) == 0
    lr = find_detector("fcos").learning_rate["slim"]
    assert [sweep.value_of(w, "--lr") for w in untrained] == [None, None, *[f"{lr / 2:g}"] * 2]


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {"step": "x"}}', "half"])
def test_speeds_that_were_edited_are_measured_anew(
    content: str,
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command("aitod", trees, tmp_path, "--seeds", "0", *FCOS)
    assert main([*words, "--max-steps", "1"]) == 0
    if content == "half":
        content = (tmp_path / "speed.json").read_text().replace("0.5", '"a half"')
    (tmp_path / "speed.json").write_text(content)
    (tmp_path / "fcos-jol-seed0" / "results.json").unlink()
    capsys.readouterr()
    assert main([*words, "--max-steps", "1"]) == 0
    assert "timing fcos" in capsys.readouterr().out


def test_a_finished_run_that_cannot_be_read_leaves_a_table_of_the_rest(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("aitod", trees, tmp_path, "--seeds", "0", "1", *FCOS)
    assert main(words) == 0
    (tmp_path / "fcos-jol-seed1" / "results.json").write_text("{")
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'fcos-jol-seed1'}: results.json cannot be read" in error
    assert "1 finished run not read" in error
    with (tmp_path / "table.csv").open() as file:
        assert {row["pairs"] for row in csv.DictReader(file) if row["metric"] == "AP"} == {"1"}
    assert "results.json cannot be read" in (tmp_path / "table.md").read_text()


def test_other_arguments_are_not_the_same_runs(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seeds", "0", *FCOS]
    assert main(command("visdrone", trees, tmp_path, *words)) == 0
    table = (tmp_path / "table.md").read_bytes()
    assert main(command("visdrone", trees, tmp_path, *words, after=TINY)) == 2
    assert "max_steps was 1, is now not given; give another --out" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_bytes() == table and len(untrained) == 2
    more = ["--seeds", "0", "1", *FCOS]
    for name, extra, was in (
        ("visdrone", ["--dry-run"], "max_steps was 1"),
        ("aitod", ["--dry-run"], "dataset was visdrone, is now aitod"),
        ("aitod", [], "dataset was visdrone, is now aitod"),
    ):
        assert main(command(name, trees, tmp_path, *more, *extra, after=TINY)) == 2
        printed = capsys.readouterr()
        assert was in printed.err and "timing" not in printed.out and "done" not in printed.out


def test_the_data_may_move(trees: Path, here: list[list[str]], tmp_path: Path) -> None:
    """As on a cluster, which unpacks them into another folder for each job."""
    words = ["--seeds", "0", "--settings", "fair", *FCOS]
    assert main(command("visdrone", trees, tmp_path / "out", *words)) == 0
    (tmp_path / "out" / "fcos-jol-seed0" / "results.json").unlink()  # it was interrupted
    here.clear()
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    for run in record.values():  # as earlier versions kept it
        run["data_root"] = str(trees / "visdrone")
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(record))
    shutil.copytree(trees / "visdrone", tmp_path / "visdrone")
    assert main(command("visdrone", tmp_path, tmp_path / "out", *words)) == 0
    assert [Path(w[w.index("--out") + 1]).name for w in here] == ["fcos-jol-seed0"]


def fail_jol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of JOL fail, those of base do not."""
    launch = sweep._launch
    monkeypatch.setattr(sweep, "_launch", lambda w: 1 if "jol" in w else launch(w))


def test_one_that_fails_leaves_a_table_of_the_rest(
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_jol(monkeypatch)
    assert main(command("visdrone", trees, tmp_path, "--seeds", "0", *FCOS)) == 1
    assert "1 of 2 runs failed: fcos-jol-seed0 (status 1)" in capsys.readouterr().err
    assert "no run" in (tmp_path / "table.md").read_text()


def test_a_table_that_cannot_be_written_is_printed_and_hides_no_failure(
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a disk that has filled up, which is why the runs failed."""
    (tmp_path / "table.md").mkdir()
    words = command("visdrone", trees, tmp_path, "--seeds", "0", *FCOS)
    with monkeypatch.context() as failing:
        fail_jol(failing)
        assert main(words) == 1
    printed = capsys.readouterr()
    assert "Table 2 reproduced" in printed.out and f"{tmp_path / 'table.md'}: " in printed.err
    assert "1 of 2 runs failed: fcos-jol-seed0 (status 1)" in printed.err
    assert main(words) == 1
    assert f"jol reproduce: {tmp_path / 'table.md'}: " in capsys.readouterr().err


def damaged(trees: Path, name: str, tmp_path: Path) -> Path:
    shutil.copytree(trees / name, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "gone", "wanted"),
    [
        ("visdrone", "VisDrone2019-DET-val", ["no VisDrone2019-DET-val or val there"]),
        ("visdrone", "VisDrone2019-DET-train/annotations", ["train/annotations: no such folder"]),
        ("visdrone", "VisDrone2019-DET-train/images/train1.jpg", ["no image train1 in"]),
        (
            "aitod",
            "annotations/aitod_trainval_v1.json",
            ["no annotations/aitod_trainval_v1.json or aitod_trainval_v1.json or"],
        ),
        ("aitodv2", "test/images/test1.png", ["image 1: no file", "test/images/test1.png"]),
        ("sodad", "tiles/test.json", ["write the tiles with jol data convert", "--split test"]),
        ("sodad", "Images/test0.jpg", ["no file", "Images/test0.jpg"]),
        ("coco", "annotations", ["no annotations/instances_train2017.json", "_val2017.json there"]),
        ("coco", "train2017", ["image 0: no file", "train2017/000000000000.jpg"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_missing_data_are_named(
    name: str,
    gone: str,
    wanted: list[str],
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = damaged(trees, name, tmp_path)
    path = root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = tmp_path / "out"
    assert main(command(name, tmp_path, out)) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in wanted) and "nothing was trained" in error
    assert str(root) in error and "Traceback" not in error
    assert untrained == [] and not out.exists()


@pytest.mark.parametrize(
    ("split", "change", "wanted"),
    [
        ("train", {"annotations": []}, "no objects to learn from"),
        ("val", {"categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "zebra"}]}, "zebra"),
    ],
    ids=["nothing to learn", "another class to find"],
)
def test_what_train_would_refuse_is_a_problem(
    split: str,
    change: dict[str, list],
    wanted: str,
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = damaged(trees, "coco", tmp_path) / "annotations" / f"instances_{split}2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert main(command("coco", tmp_path, tmp_path / "out", "--seeds", "0")) == 2
    printed = capsys.readouterr()
    assert str(file) in printed.err and wanted in printed.err and "timing" not in printed.out
    assert "nothing was trained" in printed.err and untrained == []


def test_tiles_that_are_not_there_are_not_counted(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(damaged(trees, "sodad", tmp_path) / "tiles")
    assert main(command("sodad", tmp_path, tmp_path / "out")) == 2
    printed = capsys.readouterr()
    assert "to train on" not in printed.out and "2 problems" in printed.err


def test_what_cannot_be_counted_is_not_called_other_data(
    trees: Path, untrained: list[list[str]], tmp_path: Path
) -> None:
    """SODA-D's val, which nothing is trained or tested on."""
    (damaged(trees, "sodad", tmp_path) / "Annotations" / "val.json").unlink()
    assert main(command("sodad", tmp_path, tmp_path / "out", "--seeds", "0", *FCOS)) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "not all there, so not counted" in text and "not the paper's data" not in text


def test_many_problems_are_counted(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = damaged(trees, "visdrone", tmp_path)
    for stem in ("train0", "train1"):
        file = root / "VisDrone2019-DET-train" / "annotations" / f"{stem}.txt"
        file.write_text("x\ny\nz\n")
    assert main(command("visdrone", tmp_path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "train0.txt line 3" in error and "line 1: 'x'" in error
    assert "train: 3 more problems; all are told by jol data check --dataset visdrone" in error
    assert "jol reproduce: 4 problems; nothing was trained" in error


def test_weights_and_data_are_told_together(
    trees: Path, untrained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = damaged(trees, "visdrone", tmp_path)
    shutil.rmtree(root / "VisDrone2019-DET-val")
    after = [*QUICK, "--backbone-weights", str(tmp_path / "no.pth")]
    assert main(command("visdrone", tmp_path, tmp_path / "out", after=after)) == 2
    error = capsys.readouterr().err
    assert f"backbone_weights: no such file: {tmp_path / 'no.pth'}" in error
    assert "no VisDrone2019-DET-val or val there" in error and "2 problems" in error


def test_a_full_disk(
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    has_free(monkeypatch, 16 * 10**9)
    words = ["--seeds", "0", *FCOS]  # two runs, 17 GB
    assert main(command("visdrone", trees, tmp_path / "out", *words)) == 2
    printed = capsys.readouterr()
    assert "17.0 GB to write, 16 GB free" in printed.out and "not enough disk" in printed.err
    assert untrained == []
    run = tmp_path / "out" / "fcos-jol-seed0"
    run.mkdir(parents=True)
    with (run / "last.pt").open("wb") as file:  # of an interrupted run, which needs less then
        file.truncate(3 * 10**9)
    assert main([*command("visdrone", trees, tmp_path / "out", *words), "--max-steps", "2"]) == 0
    assert "14.0 GB to write" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--", "--anchor-scale", "4"], "--anchor-scale after --"),
        (["--", "--loss=jol"], "--loss after --"),
        (["--", "--seed", "4"], "--seed after --"),
        (["--", "--colour", "red"], "unknown option --colour"),
        (["--settings", "best"], "--settings: got 'best', wanted one of fair, paper, both"),
        (["--detectors", "yolo"], "--detectors: got 'yolo'"),
        (["--detectors", "faster_rcnn", "fcos"], "table 6 has no fcos"),
        (["--seeds", "x"], "--seeds"),
        (["--rates", "0"], "--rates: got '0', wanted a positive number"),
        (["--rates", "0.5", "--settings", "paper"], "--rates: only of fair settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(
    words: list[str],
    wanted: str,
    trees: Path,
    untrained: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = ["--data-root", str(trees / "coco"), "--out", str(tmp_path / "out")]
    assert main(["reproduce", "coco", *root, *words]) == 2
    error = capsys.readouterr().err
    assert wanted in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_the_numbers_of_a_whole_data_set_are_no_difference(
    trees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = ((("trainval", "test"), 5, 10),)
    monkeypatch.setitem(reproduce_checks.COUNTS, "aitod", counts)
    assert reproduce_checks.check_data("aitod", trees / "aitod").warnings == []
    monkeypatch.setitem(reproduce_checks.COUNTS, "aitod", ((("trainval", "test"), 5, 11),))
    (told,) = reproduce_checks.check_data("aitod", trees / "aitod").warnings
    assert told.startswith("not the paper's data: trainval and test: 5 images, 10 objects; the pap")


@pytest.mark.slow
def test_what_the_timing_process_refuses_comes_back(trees: Path) -> None:
    words = ["--detector", "fcos", "--loss", "jol", "--dataset", "coco"]
    args = Namespace(
        **train.parse([*words, "--data-root", str(trees / "coco"), "--out", "x", *QUICK])
    )
    given = {**train.given_settings(args), "backbone_weights": "no.pth"}
    settings = resolve(given, TRAIN, "coco", {})
    with pytest.raises(Unusable, match=r"no such file: no\.pth"):
        timing.measure([settings], "coco", trees / "coco")
    with pytest.raises(DataError, match="no annotations"):
        timing.measure([settings], "coco", trees / "aitod")


@pytest.mark.slow
def test_stopped_while_timing_it_leaves_no_process(trees: Path, tmp_path: Path) -> None:
    words = ["--seeds", "0", "--settings", "fair", *FCOS]
    words = command("visdrone", trees, tmp_path / "out", *words, after=[*TINY, "--workers", "2"])
    child = run_jol(words, tmp_path, before=os.setpgrp)
    group = child.process.pid
    assert group is not None
    # Itself, the timing, what loads, and maybe the tracker that multiprocessing starts once.
    child.wait_for(lambda: members(group) >= 4)
    child.signal(signal.SIGTERM)
    assert child.end() == 1
    until = time.monotonic() + 30  # a loading process looks for its parent every 5 seconds
    while (left := members(group)) and time.monotonic() < until:
        time.sleep(0.1)
    if left:
        os.killpg(group, signal.SIGKILL)
    assert not left


def members(group: int) -> int:
    """How many processes a group has."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found += int(stat.read_text().rpartition(")")[2].split()[2]) == group
    return found


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on(trees: Path, tmp_path: Path) -> None:
    """In processes of their own: SIGTERM to the command, then SIGKILL to the run under way."""
    out = tmp_path / "out"
    words = ["--seeds", "0", "--settings", "fair", *FCOS]
    words = command("visdrone", trees, out, *words, after=[*TINY, "--max-steps", "30"])
    base, joint = (out / f"fcos-{loss}-seed0" for loss in ("base", "jol"))

    child = run_jol(words, tmp_path)
    child.wait_for((base / "last.pt").exists)
    child.signal(signal.SIGTERM)
    assert child.end() == 1
    assert "stopped by SIGTERM; the same command goes on with it" in child.said
    assert not (base / "results.json").exists() and (out / "speed.json").exists()

    child = run_jol(words, tmp_path)
    child.wait_for((joint / "last.pt").exists)
    assert (base / "results.json").exists()
    number = re.match(r"process (\d+) on", (joint / "run.lock").read_text())
    assert number
    os.kill(int(number[1]), signal.SIGKILL)
    assert child.end() == 1
    assert "1 of 2 runs failed: fcos-jol-seed0 (status -9)" in child.said

    child = run_jol(words, tmp_path)
    assert child.end() == 0
    assert "timing" not in child.said
    with (out / "table.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["steps"] == "30 of 36" and row["pairs"] == "1"
    steps = [json.loads(line)["step"] for line in (joint / "metrics.jsonl").open()]
    assert steps == [20, 30, 30]
