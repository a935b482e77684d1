"""`jol reproduce` on tiny trees of every data set: plan, runs, resuming, the table."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
from children import run_jol
from pictures import draw_no_curves
from published import TRAIN
from reproducing import FCOS, QUICK, TINY, command, table_of

from detectors.cli import main
from detectors.commands import sweep, train
from detectors.errors import DataError, Unusable
from detectors.models.presets import find_detector
from detectors.paper.reproduction import NUMBERS
from detectors.training import timing
from detectors.training.settings import resolve
from detectors.training.timing import Speed


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
    rows = table_of(out)
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
    rows = [row for row in table_of(tmp_path) if row["metric"] == "AP"]
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
    assert {row["pairs"] for row in table_of(tmp_path) if row["metric"] == "AP"} == {"1"}
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
    row = table_of(out)[0]
    assert row["steps"] == "30 of 36" and row["pairs"] == "1"
    steps = [json.loads(line)["step"] for line in (joint / "metrics.jsonl").open()]
    assert steps == [20, 30, 30]
