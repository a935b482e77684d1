"""Tables from run folders written here: means, differences, spreads, missing and broken runs."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detectors.cli import main
from detectors.models.presets import DETECTORS
from detectors.paper import published_numbers
from detectors.paper.cost_table import cost_table
from detectors.paper.finished_runs import find_runs
from detectors.paper.published_numbers import COMPARISONS
from detectors.paper.table_plan import TABLES
from detectors.paper.tables import results_table, runs_table
from detectors.utils.text_tables import Grid, render

SETTINGS: dict[str, Any] = {
    "detector": "faster_rcnn",
    "loss": "base",
    "preset": "paper",
    "backbone": "resnet50",
    "backbone_weights": "imagenet",
    "image_size": None,
    "lam": 2.0,
    "location_score": "iou",
    "class_score": "probability",
    "detach_weights": False,
    "steps": 100,
    "batch_size": 2,
    "lr": 0.005,
    "crop": None,
    "seed": 0,
}


def write_run(
    folder: Path,
    metrics: dict[str, float | None] | None,
    *,
    dataset: str | None = "visdrone",
    seconds: tuple[float, ...] = (),
    weights: int = 0,
    **settings: Any,
) -> Path:
    """A run's folder; metrics in per cent, None: not finished."""
    folder.mkdir(parents=True)
    data = {"train_sha256": "a" * 64, "val_sha256": "b" * 64}
    if dataset:
        data["dataset"] = dataset
    config = {"settings": {**SETTINGS, **settings}, "data": data, "versions": {}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.dumps({"step": 20 * i, "seconds": s}) for i, s in enumerate(seconds, 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1'][: len(lines) + 1]))
    if weights:
        (folder / "best.pt").write_bytes(b"0" * weights)
    if metrics is not None:
        share = {k: None if v is None else v / 100 for k, v in metrics.items()}
        (folder / "results.json").write_text(json.dumps(share))
    return folder


def write_coco(path: Path, images: list[list[list[int]]]) -> Path:
    """A COCO file of 100 x 100 images, each with these boxes."""
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0}
        for i, boxes in enumerate(images, 1)
        for box in boxes
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100}
            for i, _ in enumerate(images, 1)
        ],
        "annotations": [{"id": i, **record} for i, record in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "ship"}],
    }
    path.write_text(json.dumps(content))
    return path


def lines_of(grid: Grid, *labels: str) -> dict[str, dict[str, str]]:
    """what → column → cell of the rows with these labels."""
    what = grid.header.index("what")
    found = [row for row in grid.rows if tuple(row[:what]) == labels]
    return {row[what]: dict(zip(grid.header, row, strict=True)) for row in found}


def test_means_spreads_and_differences_are_those_by_hand(tmp_path: Path) -> None:
    for seed, ap, tiny in ((0, 20.0, 5.0), (1, 22.0, None), (2, 27.0, 8.0)):
        write_run(tmp_path / f"b{seed}", {"AP": ap, "AP_t": tiny}, seed=seed)
    for seed, ap in ((0, 21.0), (2, 31.0)):
        write_run(tmp_path / "deep" / f"j{seed}", {"AP": ap, "AP_t": 9.0}, seed=seed, loss="jol")
    runs, problems = find_runs(tmp_path)
    assert problems == []
    grid = results_table(2, runs)

    base = lines_of(grid, "faster_rcnn", "base")
    assert (base["paper [24]"]["AP"], base["paper [24]"]["AP50"]) == ("22.3", "38.0")
    assert (base["ours"]["runs"], base["ours"]["AP"], base["ours"]["AP_t"]) == ("3", "23.0", "6.5")
    # sqrt(((-3)² + (-1)² + 4²) / 2) = 3.606, and sqrt((1.5² + 1.5²) / 1) = 2.121
    assert (base["±"]["AP"], base["±"]["AP_t"]) == ("3.6", "2.1")
    assert (base["ours - paper"]["AP"], base["ours - paper"]["AP_t"]) == ("+0.7", "+0.3")

    joint = lines_of(grid, "faster_rcnn", "jol")
    assert (joint["ours"]["AP"], joint["ours - paper"]["AP"]) == ("26.0", "-0.9")

    # Pairs of the same seed only: +1 and +4; the difference of the means would be +3.
    gain = lines_of(grid, "faster_rcnn", "jol-base")
    assert (gain["paper"]["AP"], gain["ours"]["runs"], gain["ours"]["AP"]) == ("+4.6", "2", "+2.5")
    assert (gain["±"]["AP"], gain["ours - paper"]["AP"]) == ("2.1", "-2.1")
    assert gain["ours"]["AP_t"] == "+2.5"  # seeds 0 and 2: 9 - 5 and 9 - 8


def test_a_cell_without_a_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"AP": 20.0}, detector="fcos")
    grid = results_table(2, find_runs(tmp_path)[0])
    assert lines_of(grid, "fcos", "base")["ours"]["AP"] == "20.0"
    empty = [row for row in grid.rows if "no run" in row]
    # 12 cells less one, and jol-base of the six methods, which the paper has
    assert len(empty) == 17
    assert ["detectors+simd", "jol", "ours", "0", "no run"] in [row[:5] for row in empty]


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "aitod"},
        {"dataset": None},
        {"detector": "fcos"},
        {"assigner": "simd"},
        {"lam": 3.0},
        {"location_score": "nwd"},
        {"class_score": None},
        {"regression": "giou"},
        {"classification": "mal"},
    ],
    ids=str,
)
def test_a_run_of_another_cell_is_not_counted(other: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"AP": 20.0}, loss="jol", **other)
    grid = results_table(2, find_runs(tmp_path)[0])
    assert lines_of(grid, "faster_rcnn", "jol")["ours"]["AP"] == "no run"


def test_a_run_with_the_detectors_own_losses_is_counted_however_it_names_them(
    tmp_path: Path,
) -> None:
    own = {"classification": "cross_entropy", "regression": "l1"}  # of preset paper
    write_run(tmp_path / "a", {"AP": 20.0}, loss="jol", **own)
    grid = results_table(2, find_runs(tmp_path)[0])
    assert lines_of(grid, "faster_rcnn", "jol")["ours"]["AP"] == "20.0"


def test_runs_that_differ_otherwise_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"AP": 20.0}, seed=0)
    write_run(tmp_path / "b", {"AP": 30.0}, seed=1, lr=0.01)
    write_run(tmp_path / "c", {"AP": 40.0}, seed=2, lr=0.01, steps=10)  # a trial
    write_run(tmp_path / "d", {"AP": 50.0}, seed=1, lr=0.01)  # b again
    grid = results_table(2, find_runs(tmp_path)[0])
    rows = lines_of(grid, "faster_rcnn", "base")
    assert (rows["ours a"]["AP"], rows["ours b"]["AP"]) == ("20.0", "30.0")
    assert rows["ours a"]["runs"] == rows["ours b"]["runs"] == "1"
    notes = "\n".join(grid.notes)
    assert "a: preset paper, resnet50, 100 steps, batch 2, lr 0.005" in notes
    assert "b: preset paper, resnet50, 100 steps, batch 2, lr 0.01" in notes
    assert f"{tmp_path / 'c'}: skipped, 10 steps, others 100" in notes
    assert f"{tmp_path / 'd'}: skipped, a repetition of {tmp_path / 'b'}" in notes


def test_what_changes_nothing_separates_nothing(tmp_path: Path) -> None:
    """Workers and device change no result; λ none of a base run; an older run lacks settings."""
    write_run(tmp_path / "a", {"AP": 20.0}, seed=0, workers=4, lam=3.0, device="cuda")
    write_run(tmp_path / "b", {"AP": 30.0}, seed=1, anchor_scale=None, assigner_settings={})
    rows = lines_of(results_table(2, find_runs(tmp_path)[0]), "faster_rcnn", "base")
    assert (rows["ours"]["runs"], rows["ours"]["AP"]) == ("2", "25.0")


def test_ablations_are_of_faster_rcnn_on_aitod(tmp_path: Path) -> None:
    write_run(tmp_path / "base", {"AP": 20.0}, dataset="aitod")
    write_run(tmp_path / "l", {"AP": 21.0}, dataset="aitod", loss="jol", class_score=None)
    write_run(tmp_path / "full", {"AP": 24.0}, dataset="aitod", loss="jol")
    write_run(tmp_path / "five", {"AP": 23.0}, dataset="aitod", loss="jol", lam=5.0)
    for other in ({"detector": "fcos"}, {"dataset": "visdrone"}, {"dataset": None}):
        settings = {"dataset": "aitod", "loss": "jol", "lam": 3.0, **other}
        write_run(tmp_path / f"{other}", {"AP": 9.0}, **settings)
    runs, _ = find_runs(tmp_path)
    scores, lams = results_table(7, runs), results_table(8, runs)
    found = {
        labels: lines_of(scores, *labels)["ours"]["AP"]
        for labels in (("off", "off"), ("on", "off"), ("off", "on"), ("on", "on"))
    }
    assert list(found.values()) == ["20.0", "21.0", "no run", "24.0"]
    assert lines_of(scores, "off", "off")["ours - paper"]["AP"] == "+8.9"
    assert [row[0] for row in lams.rows if "no run" in row] == ["1", "3", "4"]
    assert lines_of(lams, "5")["ours"]["AP"] == "23.0"
    assert lines_of(lams, "5")["ours - paper"]["AP"] == "-1.7"
    assert len(results_table(8, []).rows) == 10


def test_table_6_has_no_rows_of_methods_that_neither_the_paper_nor_a_run_has(
    tmp_path: Path,
) -> None:
    grid = results_table(6, [])
    assert {row[0] for row in grid.rows} == {"faster_rcnn"} and len(grid.rows) == 6
    write_run(tmp_path / "a", {"AP": 20.0}, dataset="coco", detector="fcos", loss="jol")
    grid = results_table(6, find_runs(tmp_path)[0])
    assert {row[0] for row in grid.rows} == {"fcos", "faster_rcnn"}
    assert lines_of(grid, "fcos", "jol")["ours"]["AP"] == "20.0"
    assert lines_of(grid, "fcos", "base")["ours"]["AP"] == "no run"
    # the paper has DetectoRS with JOL alone on SODA-D, and its base cell stays to be filled
    assert lines_of(results_table(5, []), "detectors", "base")["ours"]["AP"] == "no run"


def test_columns_follow_what_runs_have(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"AP": 20.0, "oLRP": 80.0, "AP_eS": 7.0}, dataset="sodad")
    grid = results_table(5, find_runs(tmp_path)[0])
    assert grid.header[4:] == ["AP", "gain", "AP50", "AP75", "AP_eS"]
    write_run(tmp_path / "b", {"AP": 20.0, "AP_t": 1.0, "AP75": 7.0, "AP_l": 3.0})
    grid = results_table(2, find_runs(tmp_path)[0])
    assert grid.header[4:] == ["AP", "gain", "AP50", "AP75", "AP_vt", "AP_t", "AP_l"]


BROKEN = {
    "no json": lambda f: (f / "config.json").write_text("{"),
    "a list": lambda f: (f / "config.json").write_text("[]"),
    "no settings": lambda f: (f / "config.json").write_text('{"data": {}}'),
    "few settings": lambda f: (f / "config.json").write_text('{"settings": {}, "data": {}}'),
    "bytes": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "no results": lambda f: (f / "results.json").unlink(),
    "cut results": lambda f: (f / "results.json").write_text('{"AP": 0.'),
    "other results": lambda f: (f / "results.json").write_text('{"accuracy": 1}'),
    "no rate": lambda f: (f / "config.json").write_text(
        json.dumps({"settings": {**SETTINGS, "lr": None}, "data": {}})
    ),
    "odd seed": lambda f: (f / "config.json").write_text(
        json.dumps({"settings": {**SETTINGS, "seed": "one"}, "data": {}})
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_runs_are_named_and_left_out(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "good", {"AP": 20.0})
    BROKEN[kind](write_run(tmp_path / "bad", {"AP": 90.0}, seed=1))
    for name in ("2", "runs"):
        assert main(["table", name, "--runs", str(tmp_path), "--format", "csv"]) == 0
        printed = capsys.readouterr()
        assert "20.0" in printed.out and "90.0" not in printed.out
        assert str(tmp_path / "bad") in printed.err and "Traceback" not in printed.err
        assert len(printed.err.splitlines()) == 1


def test_the_list_of_runs_pairs_base_and_jol(tmp_path: Path) -> None:
    for seed, ap in ((0, 20.0), (1, 22.0)):
        write_run(tmp_path / f"b{seed}", {"AP": ap, "AP50": 40.0}, seed=seed, dataset=None)
        for lam in (2.0, 3.0):
            values = {"AP": ap + lam + seed, "AP50": 39.0}
            settings = {"seed": seed, "loss": "jol", "lam": lam, "dataset": None}
            write_run(tmp_path / f"j{lam:g}{seed}", values, **settings)
    alone = {"AP": 1.0, "AP50": 2.0}
    write_run(tmp_path / "alone", alone, detector="fcos", loss="jol", dataset=None)
    grid = runs_table(find_runs(tmp_path)[0], tmp_path)
    assert grid.header == ["run", "detector", "loss", "seed", "steps", "AP", "AP50"]
    name, letter = grid.rows[0][0].split()
    assert [name, *grid.rows[0][1:]] == ["alone", "fcos", "jol", "0", "100", "1.0", "2.0"]
    lettered = {row[0].rpartition(" ")[2] for row in grid.rows}  # every note is of a row, and back
    assert lettered == {note[0] for note in grid.notes if note[1:2] == ":"} >= {letter}
    of_lambda_3 = next(note[0] for note in grid.notes if note.endswith("lam 3.0"))
    assert {row[0].split()[0] for row in grid.rows if row[0].endswith(f" {of_lambda_3}")} == {
        *("j30", "j31", "mean", "±")
    }
    assert len(grid.rows) == 7 + 4
    # λ = 2: +2 and +3; λ = 3: +3 and +4
    means = [row for row in grid.rows if row[0].startswith("mean of 2 pairs")]
    assert [row[5:] for row in means] == [["+2.5", "-1.0"], ["+3.5", "-1.0"]]
    assert [row[5:] for row in grid.rows if row[0].startswith("±")] == [["0.7", "0.0"]] * 2
    letters = [row[0][-1] for row in means]
    assert len(set(letters)) == 2
    note = next(note for note in grid.notes if note.startswith(f"{letters[1]}: "))
    assert note.endswith("lam 3.0")
    for loss in ("base", "jol"):  # shorter, a pair of its own
        write_run(tmp_path / f"z{loss}", {"AP": 5.0}, loss=loss, steps=10, dataset=None)
    shorter = runs_table(find_runs(tmp_path)[0], tmp_path).rows[-5:]
    assert sorted(row[4] for row in shorter) == ["10", "100", "100", "100", "100"]
    write_run(tmp_path / "named", alone, seed=3, loss="jol", dataset="coco")
    more = runs_table(find_runs(tmp_path)[0], tmp_path)
    assert more.header[:3] == ["run", "data", "detector"]
    rows = [[row[0].split()[0], *row[1:5]] for row in more.rows]
    assert ["named", "coco", "faster_rcnn", "jol", "3"] in rows
    assert ["alone", "-", "fcos", "jol", "0"] in rows


def test_costs_are_of_preset_paper_and_seconds_skip_the_first_line(tmp_path: Path) -> None:
    for name, ap, seconds, settings in (
        ("b", 11.0, (9.0, 1.0, 1.2, 1.1), {}),
        ("j", 24.2, (9.0, 1.21), {"loss": "jol"}),
        ("s", 1.0, (9.0, 0.1), {"preset": "slim"}),
        ("v", 1.0, (9.0, 0.2), {"dataset": "visdrone"}),
        ("g", 20.0, (9.0, 0.01), {"loss": "jol", "device": "cuda"}),
    ):
        settings = {"dataset": "aitod", **settings}
        write_run(tmp_path / name, {"AP": ap}, seconds=seconds, **settings)
    measured = dict.fromkeys(published_numbers.COSTS, (130.0, 41.4))
    grid = cost_table(find_runs(tmp_path)[0], measured)
    base = lines_of(grid, "faster_rcnn", "base")
    assert base["ours cpu"]["s/step"] == "1.100" and base["ours cpu"]["runs"] == "1"
    assert base["ours cpu"]["MB"] == "331.2"  # 8 bytes a parameter
    assert base["ours cpu - paper"]["MB"] == "-0.5"
    assert base["ours cpu - paper"]["s/step"] == "+0.990"
    assert base["ours cpu - paper"]["GFLOPs"] == "-4.5"
    assert base["ours cpu - paper"]["params M"] == "+0.0"
    joint = lines_of(grid, "faster_rcnn", "jol")
    assert {what: (row["AP"], row["gain"]) for what, row in base.items()} == {
        "paper": ("11.1", "-"),
        "ours cpu": ("11.0", "-"),
        "ours cpu - paper": ("-0.1", "-"),
    }
    assert {what: (row["AP"], row["gain"]) for what, row in joint.items()} == {
        "paper": ("24.7", "13.6"),
        "ours cpu": ("24.2", "13.2"),
        "ours cpu - paper": ("-0.5", "-0.4"),
        "ours cuda": ("20.0", "-"),  # no base run on this device
        "ours cuda - paper": ("-4.7", "-"),
    }
    assert (joint["ours cpu"]["s/step"], joint["ours cuda"]["s/step"]) == ("1.210", "0.010")
    assert joint["ours cpu"]["MB"] == "331.2"
    ratio = lines_of(grid, "faster_rcnn", "jol/base")
    assert list(ratio) == ["paper", "ours cpu", "ours cpu - paper"]
    assert ratio["ours cpu"]["s/step"] == "1.100"
    assert (ratio["paper"]["s/step"], ratio["ours cpu - paper"]["s/step"]) == ("1.091", "+0.009")
    retina = lines_of(grid, "retinanet", "base")
    assert (retina["ours"]["GFLOPs"], retina["ours"]["s/step"]) == ("130.0", "no run")
    assert (retina["ours"]["AP"], retina["paper"]["AP"]) == ("no run", "8.7")
    assert "AI-TOD, trained on trainval, tested on test" in grid.title
    assert max(map(len, render(grid, "text").splitlines())) <= 100
    assert retina["ours - paper"]["GFLOPs"] == "+0.2"


def test_table_9_measures_our_own_detectors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detectors.paper.cost_table.SIZE", 96)
    assert main(["table", "9", "--runs", str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    ours = [row for row in rows if row["what"] == "ours" and row["loss"] == "base"]
    assert [row["params M"] for row in ours] == ["36.5", "32.1", "41.4"]
    assert all(float(row["GFLOPs"]) > 0.5 for row in ours)
    off = [row for row in rows if row["what"] == "ours - paper"]
    assert all(abs(float(row["MB"])) < 1 for row in off) and len(off) == 6


def test_table_1_counts_what_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_coco(tmp_path / "a.json", [[[0, 0, 4, 9], [0, 0, 16, 16]], []])
    two = write_coco(tmp_path / "b.json", [[[0, 0, 4, 4]]])
    given = ["--annotations", "aitod", str(one), str(two), "--annotations", "mine", str(two)]
    assert main(["table", "1", *given, "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert ["aitod", "ours", "1", "3", "3", "100", "8.7", "0.087"] in rows  # (6 + 16 + 4) / 3
    off = ["aitod", "ours - paper", "-7", "-28033", "-700618", "-700", "-4.1", "+0.071"]
    assert off in rows
    assert ["mine", "paper", "-", "-", "-", "-", "-", "-"] in rows
    assert ["mine", "ours", "1", "1", "1", "100", "4.0", "0.040"] in rows
    assert ["visdrone", "paper", "10", "10209", "343205", "1000", "35.8", "0.036"] in rows
    assert ["visdrone", "ours", "not given", "", "", "", "", ""] in rows
    assert main(["table", "1", "--annotations", "mine", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_formats_hold_the_same_cells(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", {"AP": 20.0 + seed, "AP50": 40.0}, seed=seed)
    grid = results_table(2, find_runs(tmp_path)[0])
    assert list(csv.reader(io.StringIO(render(grid, "csv")))) == [grid.header, *grid.rows]
    table = [line for line in render(grid, "markdown").splitlines() if line.startswith("| ")]
    parsed = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    assert parsed == [grid.header, *grid.rows]
    text = render(grid, "text").splitlines()
    assert max(map(len, text)) <= 100
    said = [line.split() for line in text if "ours" in line and "20.5" in line]
    assert said == [["ours", "2", "20.5", "40.0", "-", "-"]]
    assert sum(line.startswith("faster_rcnn") for line in text) == 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["10"], "got '10', wanted one of 1, 2, 3, 4, 5, 6, 7, 8, 9, runs"),
        (["2", "--runs", "nowhere"], "--runs: nowhere: no such folder"),
        (["2", "--format", "html"], "--format"),
        (["2", "--annotations", "a", "b"], "--annotations"),
        (["1", "--annotations", "a"], "--annotations"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(
    given: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", *given]) == 2
    error = capsys.readouterr().err
    assert wanted in error and len(error.splitlines()) <= 3


def test_a_detector_that_the_paper_lacks_needs_no_row_in_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new row of DETECTORS alone: the commands work, and the list of runs has its runs."""
    write_run(tmp_path / "a", {"AP": 20.0}, detector="mine")
    monkeypatch.setitem(DETECTORS, "mine", DETECTORS["fcos"])
    for name, wanted in (("runs", "mine"), ("2", "faster_rcnn")):
        assert main(["table", name, "--runs", str(tmp_path)]) == 0
        printed = capsys.readouterr()
        assert wanted in printed.out and printed.err == ""
    new = "from detectors.models.presets import DETECTORS as d; d['mine'] = d['fcos']; "
    code = f"import sys; {new}from detectors.cli import main; sys.exit(main(['train', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "mine" in done.stdout


def test_no_runs_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("3", "runs"):
        assert main(["table", name]) == 0
    assert "no run" in capsys.readouterr().out


def test_methods_of_others_are_cited_once_and_have_no_runs() -> None:
    grid = results_table(3, [])
    cited = [row for row in grid.rows if row[1] == "-"]
    assert [row[0] for row in cited][:2] == ["Cascade RPN", "SSD-512"] and len(cited) == 9
    assert cited[-1][:5] == ["KLDet", "-", "paper [15]", "", "25.2"]
    assert cited[-1][5] == "" and set(cited[-1][6:]) == {"-"}
    text = render(grid, "text").splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith("Cascade RPN"))
    assert text[first - 1] == "" and "" not in text[first : first + 9]
    assert any(line.startswith("[n]: cited by the paper") for line in text)
    assert lines_of(grid, "faster_rcnn", "jol")["paper"]["AP"] == "24.7"
    assert not any("[n]" in note for note in results_table(6, []).notes)


@pytest.mark.parametrize("which", range(2, 9))
def test_every_table_fits_the_screen(which: int, tmp_path: Path) -> None:
    entry = next(e for e in reversed(TABLES[which].entries) if e.published).cell
    settings = {"detector": entry.detector, "loss": entry.loss, "assigner": entry.assigner}
    values = dict.fromkeys(("AP", "AP50", "AP75", "AP_vt", "AP_t", "AP_s", "AP_m"), 90.0)
    for lr in (0.1, 0.2):
        settings |= {"lam": entry.lam, "lr": lr, "dataset": TABLES[which].dataset}
        write_run(tmp_path / f"{lr}", values, **settings)
    grid = results_table(which, find_runs(tmp_path)[0])
    assert max(map(len, render(grid, "text").splitlines())) <= 100
    assert any(row[grid.labels - 1] == "ours b - paper" for row in grid.rows)
    if "gain" in grid.header:  # what text may skip, the other formats have
        assert "gain" in render(grid, "csv").splitlines()[0]
        assert "| gain |" in render(grid, "markdown")


@pytest.mark.parametrize("which", range(2, 9))
def test_the_gains_that_the_paper_prints_stand_next_to_its_ap(which: int) -> None:
    """Also that of DetectoRS in Table 5, which is over a method that is not its base."""
    grid = results_table(which, [])
    if which > 5:
        assert "gain" not in grid.header
        return
    assert grid.header[4:6] == ["AP", "gain"]
    printed = {row.method: row.gain for row in COMPARISONS[which][1] if row.gain is not None}
    found = {(row[0], row[1], row[2]): row[5] for row in grid.rows if row[5]}
    assert found == {
        (name, "jol", "paper"): f"{printed[method]:.1f}"
        for name, method in (
            ("retinanet", "RetinaNet w/ JOL"),
            ("fcos", "FCOS w/ JOL"),
            ("faster_rcnn", "Faster R-CNN w/ JOL"),
            ("cascade_rcnn", "Cascade R-CNN w/ JOL"),
            ("detectors", "DetectoRS w/ JOL"),
            ("detectors+simd", "DetectoRS w/ SimD + JOL"),
        )
    }
    assert len(printed) == 6 and " gain " in render(grid, "text")
    if which == 5:
        assert found["detectors", "jol", "paper"] == "0.6"
        assert any("over DetectoRS with SimD" in note for note in grid.notes)
