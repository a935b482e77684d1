"""What `jol reproduce` trains for each table, and the table it makes of known results."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from detectors.models.anchor_plans import plan_anchors
from detectors.paper.finished_runs import Run
from detectors.paper.reproduction import (
    BEST,
    KINDS,
    NUMBERS,
    Job,
    Settings,
    Trained,
    all_settings,
    comparison,
    interval,
    jobs,
    options_of,
)
from detectors.paper.table_plan import TABLES
from detectors.utils.text_tables import render

BOTH = tuple(all_settings(KINDS))
FAIR = [Settings("fair")]


def planned(dataset: str, kind: str) -> dict[tuple[str, str | None, str], dict[str, str]]:
    """Detector, assigner and loss → options."""
    found = jobs(TABLES[NUMBERS[dataset]], [Settings(kind)])
    return {(j.cell.detector, j.cell.assigner, j.cell.loss): dict(j.options) for j in found}


@pytest.mark.parametrize("dataset", NUMBERS)
def test_fair_settings_are_the_same_for_both_losses(dataset: str) -> None:
    found = planned(dataset, "fair")
    methods = {key[:2] for key in found}
    assert len(found) == 2 * len(methods) and len(methods) == (1 if dataset == "coco" else 6)
    for method in methods:
        assert found[(*method, "base")] == found[(*method, "jol")]


@pytest.mark.parametrize(
    ("dataset", "smallest"),
    [("visdrone", 16), ("aitod", 8), ("aitodv2", 8), ("sodad", 8), ("coco", 32)],
)
def test_the_smallest_anchor_of_fair_settings(dataset: str, smallest: int) -> None:
    """The same in pixels for every detector that has anchors."""
    for (detector, _, _), options in planned(dataset, "fair").items():
        if detector == "fcos":
            assert options == {}
            continue
        scale = float(options["--anchor-scale"]) if options else None
        plan = plan_anchors(detector, "paper", scale=scale)
        assert plan.scale is not None and plan.scale * plan.strides[0] == smallest


@pytest.mark.parametrize("dataset", NUMBERS)
def test_paper_settings_are_preset_paper_but_for_sodads_base(dataset: str) -> None:
    other = {key: options for key, options in planned(dataset, "paper").items() if options}
    if dataset != "sodad":
        assert other == {}
        return
    names = ("faster_rcnn", "cascade_rcnn", "detectors")
    assert other == {(name, None, "base"): {"--anchor-scale": "2"} for name in names}


def test_runs_of_both_kinds_are_one_job() -> None:
    coco = jobs(TABLES[6], BOTH)
    assert [(j.cell.loss, j.settings) for j in coco] == [("base", BOTH), ("jol", BOTH)]
    found = {(j.cell.detector, j.cell.loss): j.settings for j in jobs(TABLES[3], BOTH)[:8]}
    assert found["fcos", "base"] == found["fcos", "jol"] == BOTH
    assert len(jobs(TABLES[3], BOTH)) == 2 * 2 * 5 + 2  # FCOS once
    assert [j.cell.detector for j in jobs(TABLES[3], FAIR, ["fcos"])] == ["fcos", "fcos"]
    assert jobs(TABLES[6], BOTH, ["fcos"]) == []


def test_other_rates_are_other_runs_of_fair_settings_alone() -> None:
    settings = all_settings(KINDS, [1, 0.5, 1])
    assert list(map(str, settings)) == ["fair", "fair, rate x 0.5", "paper"]
    coco = [(j.cell.loss, j.rate, len(j.settings)) for j in jobs(TABLES[6], settings)]
    assert coco == [("base", 1, 2), ("jol", 1, 2), ("base", 0.5, 1), ("jol", 0.5, 1)]


def trained(job: Job, aps: dict[int, float], steps: int = 100) -> Trained:
    """Runs with these AP in per cent by seed, and AP_t half as large."""
    runs = {}
    for seed, ap in aps.items():
        metrics = {"AP": ap / 100, "AP_t": ap / 200, "AP_vt": math.nan}
        settings = {"steps": steps, "seed": seed, "preset": "paper"}
        runs[seed] = Run(Path("x"), settings, "visdrone", {}, metrics)
    return Trained(job, 100, runs)


def rows(
    found: list[Trained], settings: Sequence[Settings] = BOTH
) -> dict[tuple[str, ...], list[str]]:
    grid = comparison(TABLES[2], settings, found, ["a note"], ["faster_rcnn"])
    assert all(len(row) == len(grid.header) for row in grid.rows)
    return {tuple(row[:3]): row[3:] for row in grid.rows}


def test_the_table_of_known_results() -> None:
    fair, paper = ({}, {})
    for job in jobs(TABLES[2], BOTH, ["faster_rcnn"]):
        (fair if job.settings == (Settings("fair"),) else paper)[job.cell.loss] = job
    found = [
        trained(fair["base"], {0: 20.0, 1: 22.0, 2: 27.0}),
        trained(fair["jol"], {0: 21.0, 1: 22.5, 2: 31.0, 7: 50.0}),
        trained(paper["base"], {0: 22.0}),
        trained(paper["jol"], {0: 25.0}, steps=40),
    ]
    table = rows(found)
    # pairs: +1, +0.5, +4; mean 1.833, deviation 1.893; t(2, .975) = 4.3027: +- 4.702
    assert table["faster_rcnn", "fair", "AP"] == [
        *("3", "100", "23.0", "24.8", "+1.8", "-2.9", "+6.5"),
        *("22.3", "26.9", "+4.6"),
    ]
    assert table["faster_rcnn", "fair", "AP_t"][4:7] == ["+0.9", "-1.4", "+3.3"]
    assert table["faster_rcnn", "fair", "AP_vt"] == [
        *("0", "100", "-", "-", "-", "-", "-", "0.1", "8.1", "+8.0")
    ]
    assert table["faster_rcnn", "paper", "AP"] == [
        *("1", "40 of 100 / 100", "22.0", "25.0", "+3.0", "-", "-", "22.3", "26.9", "+4.6")
    ]
    grid = comparison(TABLES[2], BOTH, found, ["a note"], ["faster_rcnn"])
    assert grid.notes[0].startswith("CUT SHORT") and grid.notes[1] == "a note"
    text = render(grid, "csv").splitlines()
    assert text[1] == "faster_rcnn,fair,AP,3,100,23.0,24.8,+1.8,-2.9,+6.5,22.3,26.9,+4.6"


def test_each_loss_at_its_best_rate() -> None:
    settings = all_settings(["fair"], [0.5, 1])
    ap = {
        ("base", 0.5): {0: 20.0, 1: 22.0},
        ("base", 1): {0: 24.0, 1: 26.0},
        ("jol", 0.5): {0: 26.0, 1: 27.0},
        ("jol", 1): {0: 18.0, 1: 40.0},
    }
    found = [
        trained(job, ap[job.cell.loss, job.rate])
        for job in jobs(TABLES[2], settings, ["faster_rcnn"])
    ]
    table = rows(found, settings)
    assert table["faster_rcnn", "fair, rate x 0.5", "AP"][2:5] == ["21.0", "26.5", "+5.5"]
    assert table["faster_rcnn", "fair", "AP"][2:5] == ["25.0", "29.0", "+4.0"]
    assert table["faster_rcnn", BEST, "AP"][2:5] == ["25.0", "29.0", "+4.0"]
    found[3].runs[1].metrics["AP"] = 0.3  # its mean falls to 24
    table = rows(found, settings)
    # +2, +1; t(1, .975) = 12.706, half the distance .5: +- 6.353
    assert table["faster_rcnn", BEST, "AP"] == [
        *("2", "100", "25.0", "26.5", "+1.5", "-4.9", "+7.9"),
        *("22.3", "26.9", "+4.6"),
    ]
    assert list(dict.fromkeys(key[1] for key in table)) == ["fair, rate x 0.5", "fair", BEST]
    notes = comparison(TABLES[2], settings, found, [], ["faster_rcnn"]).notes
    assert any(note.startswith(BEST) and "chosen on what is reported" in note for note in notes)
    half = all_settings(["fair"], [0.5])
    assert {key[1] for key in rows(found[:2], half)} == {"fair, rate x 0.5"}
    notes = comparison(TABLES[2], half, found[:2], [], ["faster_rcnn"]).notes
    assert any(note.startswith("rate x F") for note in notes)
    assert not any(BEST in note for note in notes)


def test_what_was_not_trained_says_so() -> None:
    fair = jobs(TABLES[2], FAIR, ["faster_rcnn"])
    found = [trained(fair[0], {0: 20.0}), Trained(fair[1], 100)]
    assert rows(found, FAIR)["faster_rcnn", "fair", "AP"] == [
        *("0", "100", "20.0", "no run", "-", "-", "-", "22.3", "26.9", "+4.6")
    ]
    notes = comparison(TABLES[2], FAIR, found, [], ["faster_rcnn"]).notes
    assert not any("CUT SHORT" in note for note in notes)


def test_runs_of_another_preset_are_named() -> None:
    """What the notes say of anchors and settings is of preset paper."""
    fair = jobs(TABLES[2], FAIR, ["faster_rcnn"])
    found = [trained(fair[0], {0: 20.0}), trained(fair[1], {0: 20.0})]
    notes = comparison(TABLES[2], FAIR, found, [], ["faster_rcnn"]).notes
    assert not any("PRESET" in note for note in notes)
    for one in found:
        one.runs[0].settings["preset"] = "slim"
    notes = comparison(TABLES[2], FAIR, found, [], ["faster_rcnn"]).notes
    assert notes[0].startswith("PRESET slim, not paper") and "not a reproduction" in notes[0]


def test_runs_of_other_data_are_named() -> None:
    """Their images were wanting when the first runs were done, and are there since."""
    fair = jobs(TABLES[2], FAIR, ["faster_rcnn"])
    found = [trained(fair[0], {0: 20.0, 1: 21.0}), trained(fair[1], {0: 20.0, 1: 21.0})]
    notes = comparison(TABLES[2], FAIR, found, [], ["faster_rcnn"]).notes
    assert not any("DATA" in note for note in notes)
    old = dataclasses.replace(found[0].runs[1], path=Path("base-1"), data={"train_sha256": "1"})
    found[0] = dataclasses.replace(found[0], runs={**found[0].runs, 1: old})
    notes = comparison(TABLES[2], FAIR, found, [], ["faster_rcnn"]).notes
    assert notes[0] == "OTHER DATA than the other runs had: base-1; train these anew."


def test_the_interval_by_hand() -> None:
    """Of two values: 12.706 times half their distance."""
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert all(math.isnan(end) for end in interval([1.0])) and math.isnan(interval([])[0])


def test_sodads_detectors_have_no_cited_base() -> None:
    """The paper has DetectoRS there with JOL alone, and with SimD."""
    found = [Trained(job, 100) for job in jobs(TABLES[5], FAIR, ["detectors"])]
    grid = comparison(TABLES[5], FAIR, found, [], ["detectors"])
    assert grid.rows[0][-3:] == ["-", "33.4", "-"]
    assert options_of("paper", "sodad", found[0].job.cell) == {"--anchor-scale": "2"}
