"""The report says what the rows say: effects that are there, and none where there is none."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.__main__ import main
from bench.study import answers, grid, mechanism, report, runs
from bench.study.grid import COMPARISONS, MAIN, Cell, Comparison
from bench.study.training import SAMPLE_COLUMNS

CELLS = tuple(Cell(data, "fcos") for data in ("nuclei-half", "scenes-4-8", "scenes-8-16"))


@pytest.fixture
def asked(monkeypatch):
    """Two questions in three cells."""
    compared = (
        Comparison(MAIN.question, "jol", "base", CELLS),
        Comparison("The gradient?", "jol", "detached", CELLS),
    )
    monkeypatch.setattr(grid, "PASSES", ((compared, 5),))
    monkeypatch.setattr(report, "COMPARISONS", compared)
    monkeypatch.setattr(answers, "COMPARISONS", compared)
    return compared


def write_rows(path, gain, spread=0.1, seeds=5):
    """All rows of the grid: AP of a seed, more of `gain` with JOL, best at a rate of 0.01."""
    random = np.random.default_rng(0)
    rows: dict = {}
    while wanted := [
        r for r in dict.fromkeys(grid.pending(rows)) if r.seed in (*range(seeds), 100)
    ]:
        for run in wanted:
            ap = 25.0 + 2 * run.seed + gain * (run.loss == "jol") - 100 * abs(run.lr - 0.01)
            ap += spread * random.standard_normal() if run.part == "report" else 0
            values = dict.fromkeys(("AP", "AP50", "AP75", "AP_vt", "AP_t"), ap)
            values |= {"AP_s": math.nan, "AP_m": math.nan, "loss_cls": 1.0, "loss_box": 1.0}
            about = {"problem": "", "seconds": 36.0, "commit": "abc", "machine": "a CPU"}
            rows[run] = values | about | {"weight": 1.5}
    runs.append(path, [runs.row_of(run, found) for run, found in rows.items()])
    return rows


def line(text, start):
    """The first line of the text with this beginning, in cells."""
    (found, *_) = [x for x in text.splitlines() if x.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_gain_that_is_there_is_found(asked, tmp_path, capsys):
    rows = write_rows(tmp_path / "study.csv", 1.5, spread=0.3)
    assert main(["study", "report", "--rows", str(tmp_path / "study.csv")]) == 0
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "study.md").read_text().strip()
    assert f"{len(rows)} runs (resnet18), {len(rows) / 100:.1f} hours" in text
    data, detector, pairs, jol, base, gain, *sizes, alone = line(text, "nuclei-half")
    assert (data, detector, pairs) == ("nuclei-half", "fcos", "5")
    assert float(jol) - float(base) == pytest.approx(1.5, abs=0.5)
    assert 1 < float(gain.split()[0]) < 2 and sizes == [gain, gain, ""] and alone == ""
    # Two questions, and one of few and many positives for each cell that has these.
    assert f"one for each of {2 + len(grid.MATCHED)} questions" in text
    _, _, pairs, _, _, gain, *sizes, together = line(text, "all")
    mean, low, high = (float(x.strip("()")) for x in gain.replace(" to ", " ").split())
    wide = [float(x) for x in together.strip("*").split(" to ")]
    assert together.startswith("**") and wide[0] < low <= mean <= high < wide[1]
    assert pairs == "15"
    # The same mean, from five seeds and from three cells.
    assert f"alike:\n{gain.split()[0]} (" in text and f"in it: {gain.split()[0]} (" in text
    # Rates and the AP they were chosen by.
    assert line(text[text.index("What was chosen") :], "nuclei-half")[2:] == [
        "base", "0.01", "-", "225.0",
    ]  # fmt: skip


def test_a_null_data_set_gives_a_null(asked, tmp_path):
    write_rows(tmp_path / "study.csv", 0.0, spread=0.5)
    text = report.write(tmp_path / "study.csv", tmp_path / "none.csv", "resnet18")
    assert "**" not in text
    overall = report.answer(asked[0], runs.read(tmp_path / "study.csv"), "resnet18").overall()
    low, high = overall.interval()
    assert low < 0 < high and high - low < 1.5


def test_rows_that_are_missing_leave_their_cells_out(asked, tmp_path):
    write_rows(tmp_path / "whole.csv", 1.0, seeds=3)
    rows = runs.read(tmp_path / "whole.csv")
    kept = [r for r in rows if not (r.data == "scenes-4-8" and r.loss == "detached")]
    runs.append(tmp_path / "study.csv", [runs.row_of(r, rows[r]) for r in kept])
    text = report.write(tmp_path / "study.csv", tmp_path / "none.csv", "resnet18")
    first, second = text.split("## The gradient?")
    assert "| scenes-4-8 |" in first and "| scenes-4-8 |" not in second.split("##")[0]
    assert line(second, "all")[2] == "6"


def test_what_a_reader_should_doubt_is_said(asked, tmp_path):
    rows = write_rows(tmp_path / "whole.csv", 1.0)
    text = report.write(tmp_path / "whole.csv", tmp_path / "none.csv", "resnet18")
    assert "diverged" not in text and "pairs have" not in text and " * |" not in text
    for run, found in rows.items():
        if (run.data, run.loss, run.seed) == ("scenes-4-8", "jol", 2):
            found |= {"problem": "step 7: total = nan; image ids 1, 2", "AP": 0.0}
        if (run.data, run.loss, run.part) == ("scenes-8-16", "jol", "report"):
            found["machine"] = "a GPU"
        if (run.data, run.loss, run.lr) == ("nuclei-half", "base", 0.04):
            for lr in (0.04, 0.08, 0.16):  # better and better, as far as is tried
                rows = rows | {replace(run, lr=lr): found | {"AP": found["AP"] + 1000 * lr}}
            for seed in range(5):
                rows = rows | {replace(run, lr=0.16, part="report", seed=seed): dict(found)}
    runs.append(tmp_path / "study.csv", [runs.row_of(run, found) for run, found in rows.items()])
    text = report.write(tmp_path / "study.csv", tmp_path / "none.csv", "resnet18")
    bad = line(text[text.index("## Runs that diverged") :], "report")
    assert bad[1:] == [
        "scenes-4-8", "fcos", "jol", "0.01", "-", "2", "step 7: total = nan",
    ]  # fmt: skip
    # With both other losses: 5 seeds in each of 6 cells.
    assert "10 of 30 pairs have their runs on two machines." in text
    assert "two commits" not in text
    found = text[text.index("What was chosen") :]
    assert line(found, "nuclei-half")[2:4] == ["base", "0.16 *"]
    assert line(found, "scenes-4-8")[2:4] == ["base", "0.01"]


def pairs_of(gains):
    """A pair a seed: all AP of the second loss are 20, of the first so much higher."""
    names = ("AP", *report.SIZES)
    return {
        seed: (dict.fromkeys(names, 20 + gain), dict.fromkeys(names, 20.0))
        for seed, gain in enumerate(gains)
    }


def test_each_detector_has_a_mean_of_its_own():
    cells = [
        Cell(data, name) for name in ("fcos", "retinanet") for data in ("nuclei", "scenes-4-8")
    ]
    gains = dict(zip(cells, ([1.0, 1.2], [2.0, 2.2], [-3.0, -3.2], [-1.0, -1.2]), strict=True))
    answer = report.Answer(MAIN, {cell: pairs_of(gains[cell]) for cell in cells})
    rows = {tuple(row[:2]): row[5].split()[0] for row in report.table(answer, 19)}
    assert rows["all", "fcos"] == "+1.6" and rows["all", "retinanet"] == "-2.1"
    assert rows["all", ""] == "-0.2" and len(rows) == 4 + 2 + 1


def test_gains_with_few_and_with_many_positives_are_compared():
    few, many = Cell("nuclei-half", "retinanet"), Cell("nuclei-half", "retinanet", "rfla")

    def answer(cell, gains):
        return report.Answer(Comparison("", "jol", "base", (cell,)), {cell: pairs_of(gains)})

    answers = [answer(few, [2.0, 2.2, 1.8]), answer(many, [0.5, 0.7, 0.3])]
    # Their differences are of the family, whether there are any yet or not.
    assert report.family() == len(COMPARISONS) + len(grid.MATCHED)
    found = "\n".join(report.few_and_many(answers, 3))
    _, detector, assigner, more, together = line(found, "nuclei-half")
    assert (detector, assigner) == ("retinanet", "rfla") and more.startswith("+1.5 (+1.0 to +2.0)")
    assert together == "**+0.9 to +2.1**"
    assert not list(report.few_and_many(answers[:1], 3))


def test_figures_are_drawn(asked, tmp_path):
    write_rows(tmp_path / "study.csv", 1.0)
    lines = [
        {"data": data, "detector": "fcos", "loss": loss, "backbone": "resnet18", "seed": seed,
         "step": step, "size": size, "objects": 9, "samples": 40, "share": 50.0,
         "correlation": 0.2, "s_loc": 0.7, "s_cls": 0.6 + 0.1 * seed}
        for data in ("nuclei-half", "scenes-4-8") for loss in ("base", "jol") for seed in (0, 1)
        for step in (50, 500) for size in ("vt", "t")
    ]  # fmt: skip
    runs.append(tmp_path / "study-samples.csv", lines, SAMPLE_COLUMNS)
    text = report.write(tmp_path / "study.csv", tmp_path / "study-samples.csv", "resnet18")
    seen = line(text[text.index("What the loss sees") :], "nuclei-half")
    assert seen[1:6] == ["fcos", "vt", "2", "50.0", "+0.0 (+0.0 to +0.0)"]
    for name in ("study.png", "study-sizes.png", "study-samples.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 500 and np.asarray(image.convert("L")).std() > 5


def seen_line(data="nuclei", size="vt", loss="base", seed=0, step=50, **values):
    where = {"data": data, "detector": "fcos", "loss": loss, "backbone": "resnet18",
             "seed": seed, "step": step, "size": size}  # fmt: skip
    usual = {"objects": 9, "samples": 40, "share": 50.0, "correlation": 0.2, "s_loc": 0.7}
    return where | usual | {"s_cls": math.nan} | values


def test_what_the_loss_saw_counts_each_run_once_and_knows_gaps(tmp_path):
    lines = [
        seen_line(loss="jol", correlation=0.5),
        seen_line(loss="jol", correlation=0.4, seed=1, s_loc=0.8),
        seen_line(correlation=0.9),  # done anew
        seen_line(correlation=0.2, s_loc=0.4),
        seen_line(correlation=math.nan, seed=1, s_loc=0.7),
        seen_line(seed=2, share=90.0),  # JOL's is to come
    ]
    runs.append(tmp_path / "samples.csv", lines, SAMPLE_COLUMNS)
    seen = mechanism.read(tmp_path / "samples.csv", "resnet18")
    (found,) = mechanism.lines(seen)
    # S_loc: +.3 and +.1; t(1, .975) = 12.706 times half their distance .1: +- 1.27
    assert found == (
        *("nuclei", "fcos", "vt", "2", "50.0", "+0.0 (+0.0 to +0.0)", "0.20", "+0.30"),
        *("0.55", "+0.20 (-1.07 to +1.47)", "", ""),
    )


def test_what_the_loss_saw_at_the_end_and_over_data_sets():
    lines = [
        seen_line(data, loss=loss, seed=seed, step=step, **values)
        for data, gain in (("nuclei", 4), ("nuclei-half", 2), ("scenes-4-8", 0))
        for seed in (0, 1)
        for loss, step, values in (
            ("base", 50, {"share": 30.0}),
            ("base", 500, {"share": 40.0, "s_loc": 0.6 if data == "nuclei" else 0.5}),
            ("jol", 50, {"share": 90.0}),
            ("jol", 500, {"share": 40.0 + gain + seed, "s_loc": 0.7,
                          "samples": 29 if data == "nuclei" else 30}),
        )
    ]  # fmt: skip
    found = {line[0]: line[3:] for line in mechanism.lines(lines)}
    assert list(found) == ["nuclei-half", "scenes-4-8", "nuclei", "all"]
    assert found["nuclei"][1:3] == ("40.0", "+4.5 (-1.9 to +10.9)")
    assert found["nuclei"][3:] == ("",) * 6, "of 29 positives no scores"
    assert found["scenes-4-8"][1:3] == ("", ""), "their only size has all of the loss"
    # Of +4.5 and +2.5, each with error .5: mean 3.5, error .5 / sqrt(2), t(2, .975) = 4.303
    assert found["all"][:3] == ("4", "", "+3.5 (+2.0 to +5.0)")
    assert found["all"][6] == "+0.20 (+0.20 to +0.20)"


def test_no_rows_are_no_report(tmp_path, capsys):
    assert main(["study", "report", "--rows", str(tmp_path / "study.csv")]) == 2
    assert "study.csv: holds no row; `run` writes them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_questions_are_those_of_the_study():
    names = [(c.loss, c.other) for c in COMPARISONS]
    assert names[0] == ("jol", "base") and names[-1] == ("jol", "base")
    assert len({c.question for c in COMPARISONS}) == len(names)
    places = [(c.loss, c.other, cell) for c in COMPARISONS for cell in c.cells]
    assert len(set(places)) == len(places)
    assert {cell.detector for cell in MAIN.cells} == {"faster_rcnn", "fcos", "retinanet"}
    assert len(MAIN.cells) == 15
