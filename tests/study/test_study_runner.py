"""The runner goes through the grid, keeps what ended, and goes on where it was stopped."""

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.study import grid, runner, runs
from bench.study.grid import Cell, Comparison
from bench.study.losses import LOSSES
from bench.study.runner import Study
from detectors.errors import DataError
from detectors.utils import locks

WORKER = """
import json, sys, time
for line in sys.stdin:
    order = json.loads(line)
    run = order["run"]
    if run["loss"] == "constant" and run["seed"] == 1:
        sys.exit(3)
    time.sleep(float(sys.argv[1]))
    ap = 30 - 1000 * abs(run["lr"] - (0.01 if run["loss"] == "jol" else 0.02))
    ap -= abs(run["anchor_scale"] - 4)
    names = "AP AP50 AP75 AP_vt AP_t AP_s AP_m loss_cls loss_box weight".split()
    found = {**dict.fromkeys(names, ap), "problem": "", "seconds": 1.0, "AP_m": float("nan")}
    print(json.dumps({"run": run, "found": found, "samples": []}), flush=True)
"""
DRIVER = """
import sys, time
from pathlib import Path
from bench.__main__ import main
from bench.study import grid, runner
from bench.study.runner import Study
cell = grid.Cell("scenes-8-16", "fcos")
grid.PASSES = (((grid.Comparison("", "jol", "base", (cell,)),), 5),)
runner.prepare = lambda name, work, nuclei: work
rows, script = map(Path, sys.argv[1:])
about = {"commit": "c", "machine": "m"}
worker = (sys.executable, str(script), "0.15")
study = Study(rows, rows, rows, None, "cpu", "resnet18", about, time.monotonic() + 1000, worker)
study.run(2)
"""


@pytest.fixture
def small(monkeypatch):
    """A grid of one cell and two comparisons."""
    cells = (Cell("scenes-8-16", "faster_rcnn"),)
    compared = [Comparison("", "jol", other, cells) for other in ("base", "constant")]
    monkeypatch.setattr(grid, "PASSES", ((compared[:1], 3), (compared, 5)))
    monkeypatch.setattr(runner, "prepare", lambda name, work, nuclei: work)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


def study(tmp_path, script, seconds=1000.0, nuclei=None, pause="0"):
    about = {"commit": "c", "machine": "m, with a comma"}
    until = time.monotonic() + seconds
    worker = (sys.executable, str(script), pause)
    rows = tmp_path / "study.csv"
    return Study(rows, rows, tmp_path, nuclei, "cpu", "resnet18", about, until, worker)


def test_rates_and_anchors_are_chosen_before_the_pairs_run(small, tmp_path, script):
    done = study(tmp_path, script)
    done.run(1)
    order = list(done.rows)
    assert [r.part for r in order[:14]] == ["tune"] * 14 and order[14].part == "report"
    assert all(r.seed == grid.TUNING_SEED for r in order if r.part == "tune")
    reported = [r for r in order if r.part == "report"]
    chosen = {r.loss: (r.lr, r.anchor_scale) for r in reported}
    assert chosen == {"base": (0.02, 4.0), "jol": (0.01, 4.0), "constant": (0.02, 4.0)}
    pairs = [(r.loss, r.seed) for r in reported]
    wanted = [(loss, seed) for seed in range(3) for loss in ("base", "jol")]
    assert pairs[:6] == wanted
    # The worker dies in one run of constant, which is left out; the others go on.
    assert len(done.failed) == 1
    assert Counter(loss for loss, _ in pairs) == {"base": 5, "jol": 5, "constant": 4}
    assert runs.read(tmp_path / "study.csv").keys() == done.rows.keys()


@pytest.mark.parametrize(
    ("best", "chosen", "tried"),
    [
        (0.01, 0.01, {0.005, 0.01, 0.02, 0.04}),
        (0.04, 0.04, {0.005, 0.01, 0.02, 0.04, 0.08}),
        (0.0025, 0.0025, {0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04}),
        (1.0, 0.16, {0.005, 0.01, 0.02, 0.04, 0.08, 0.16}),
        (0.0, 0.00125, {0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04}),
    ],
)
def test_a_rate_at_the_end_of_those_tried_is_not_taken_for_the_best(best, chosen, tried):
    cell, rows = Cell("nuclei", "fcos"), {}
    while isinstance(choice := grid.choose(cell, "base", rows, "resnet18"), list):
        assert not rows.keys() & set(choice)
        rows |= {run: {"AP": -abs(run.lr - best)} for run in choice}
    assert choice.lr == chosen and {run.lr for run in rows} == tried


def test_two_workers_do_no_run_twice(small, tmp_path, script):
    study(tmp_path, script, pause="0.02").run(2)
    with (tmp_path / "study.csv").open() as file:
        lines = list(csv.DictReader(file))
    keys = [tuple(line[name] for name in runs.COLUMNS[:12]) for line in lines]
    assert len(keys) == len(set(keys)) == 14 + 4 + 14
    assert lines[0]["AP_m"] == "" and lines[0]["machine"] == "m, with a comma"


def test_what_is_done_is_not_done_again(small, tmp_path, script):
    study(tmp_path, script).run(1)
    before = (tmp_path / "study.csv").read_bytes()
    again = study(tmp_path, script)
    again.run(2)
    assert again.done == 0 and (tmp_path / "study.csv").read_bytes() == before


def test_no_run_begins_that_could_not_end_in_time(small, tmp_path, script):
    short = study(tmp_path, script, seconds=runner.FIRST - 1)
    short.run(2)
    assert short.done == 0
    # From the first run's end on it is known that runs are short.
    longer = study(tmp_path, script, seconds=runner.FIRST + 2, pause="0.1")
    longer.run(1)
    assert longer.done > 10


def test_an_error_beside_the_runs_ends_the_study(small, tmp_path, script, monkeypatch, capsys):
    def no_data(*_):
        raise DataError("val.json: cannot be read")

    monkeypatch.setattr(runner, "prepare", no_data)
    with pytest.raises(DataError, match=r"val\.json"):
        study(tmp_path, script).run(2)
    words = ["--minutes", "9", "--rows", str(tmp_path / "study.csv"), "--work", str(tmp_path)]
    assert main(["study", "run", *words]) == 2
    assert "val.json: cannot be read" in capsys.readouterr().err


def test_a_full_disk_ends_the_study(small, tmp_path, script, monkeypatch):
    inner, calls = runs.append, []

    def append(*given):
        calls.append(given)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(*given)

    monkeypatch.setattr(runs, "append", append)
    done = study(tmp_path, script)
    with pytest.raises(OSError, match="No space left"):
        done.run(1)
    assert list(runs.read(tmp_path / "study.csv")) == list(done.rows)
    assert len(calls) == 4 and len(done.rows) == 3


def test_a_worker_that_dies_within_its_answer_has_failed(small, tmp_path, script):
    words = script.read_text().replace("), flush=True)", ")[:40], end='', flush=True); sys.exit(1)")
    script.write_text(words)
    done = study(tmp_path, script)
    done.run(1)
    assert done.done == 0 and len(done.failed) == 8 and not (tmp_path / "study.csv").exists()


def test_nuclei_are_left_out_where_they_are_not(tmp_path, script):
    assert list(study(tmp_path, script).data) == ["scenes-4-8", "scenes-8-16", "scenes-16-32"]
    assert list(study(tmp_path, script, nuclei=tmp_path).data) == list(grid.DATA)
    scenes = grid.pending({}, data=["scenes-4-8"])
    assert {r.data for r in scenes} == {"scenes-4-8"}


def rows_of(path):
    return runs.read(path) if path.exists() else {}


def test_a_killed_study_goes_on(tmp_path, script):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    file = tmp_path / "study.csv"
    command = [sys.executable, str(driver), str(file), str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(grid.__file__).parents[2])}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(rows_of(file)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = rows_of(file)
    assert 3 <= len(kept) < 18
    with file.open("a") as cut:
        cut.write("scenes-8-16,tune,fc")  # a line that it was writing
    assert rows_of(file) == kept
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
    rows = rows_of(file)
    assert list(rows)[: len(kept)] == list(kept) and len(rows) == 2 * (4 + 5)
    with file.open() as lines:
        assert len(list(lines)) == 1 + len(rows)


@pytest.mark.parametrize("shared", ["rows", "work"])
def test_two_studies_share_no_folder(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    words = ["--minutes", "0.001", "--rows", str(tmp_path / "rows" / "study.csv")]
    with locks.claimed(tmp_path / shared):
        assert main(["study", "run", *words, "--work", str(tmp_path / "work")]) == 2
    assert f"{shared}: process {os.getpid()} on" in capsys.readouterr().err
    assert main(["study", "run", *words, "--work", str(tmp_path / "rows")]) == 0


def test_signals_are_heard_as_before(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    words = ["--minutes", "0.001", "--rows", str(tmp_path / "study.csv"), "--work", str(tmp_path)]
    assert main(["study", "run", *words]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def row(run, machine):
    found = dict.fromkeys(runs.FOUND, 1.0) | {"problem": "", "commit": "c", "machine": machine}
    return runs.row_of(run, found)


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_an_unfinished_line_is_no_row_and_takes_no_other_along(cut, tmp_path, run, monkeypatch):
    file = tmp_path / "study.csv"
    runs.append(file, [row(run(seed=seed), "a CPU, 1 thread") for seed in (0, 1)])
    file.write_bytes(file.read_bytes()[:-cut])  # by 1 or 2, all columns are there
    assert [r.seed for r in runs.read(file)] == [0]
    monkeypatch.setattr(Path, "write_bytes", None)  # what is there is not written anew
    runs.append(file, [row(run(seed=2), "a GPU")])
    rows = runs.read(file)
    assert [r.seed for r in rows] == [0, 2] and rows[run(seed=0)]["machine"] == "a CPU, 1 thread"


def test_a_row_is_read_as_it_was_written(tmp_path, run):
    file = tmp_path / "study.csv"
    for rate in (grid.RATES.least, *grid.RATES.first):
        given = run(lr=rate, anchor_scale=0.5, assigner="rfla", part="report")
        problem = 'step 3: total = nan; "image" ids 1,\n2'
        runs.append(file, [row(given, "m") | {"problem": problem, "AP_s": math.nan}])
        found = runs.read(file)[given]
        assert found["problem"] == problem and math.isnan(found["AP_s"])
        assert found["AP"] == found["seconds"] == 1.0


def test_a_file_of_other_columns_is_refused(tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("data,AP\nx,1\n")
    with pytest.raises(runs.RunError, match="got columns data, AP"):
        runs.read(file)
    file.write_text(",".join(runs.COLUMNS) + "\n" + ",".join(["x"] * len(runs.COLUMNS)) + "\n")
    with pytest.raises(runs.RunError, match="line 2: could not convert"):
        runs.read(file)


def test_the_grid_asks_what_it_declares():
    """Every comparison has runs, whose settings a detector takes, and pairs differ in the loss."""
    from bench.study.training import settings_of
    from detectors.models.compatibility import misfits

    rows: dict = {}
    while wanted := list(dict.fromkeys(grid.pending(rows))):
        rows |= {key: {"AP": 1.0} for key in wanted}
    seen = Counter((r.loss, r.part) for r in rows)
    losses = {c.loss for c in grid.COMPARISONS} | {c.other for c in grid.COMPARISONS}
    assert losses == set(LOSSES)
    for comparison in grid.COMPARISONS:
        for cell in comparison.cells:
            assert len(grid.pairs(comparison, cell, rows)) == 5
    for r in {json.dumps([r.detector, r.assigner, r.anchor_scale]): r for r in rows}.values():
        settings = settings_of(r, 8, "cpu")
        assert not list(misfits(settings.detector, **settings.model_arguments()))
    assert seen["base", "report"] == 5 * (15 + 4)
    full = list(grid.pending({}, "resnet50"))
    assert {(r.backbone, r.crop, r.batch_size, r.steps) for r in full} == {("resnet50", 0, 8, 1500)}
