"""The paper's numbers: against its tables as read from its text, where these are at hand."""

import csv
from pathlib import Path
from typing import Any

import pytest

from detectors.models.cost import build, parameters
from detectors.models.presets import DETECTORS
from detectors.paper.published_numbers import (
    COMPARISONS,
    COSTS,
    DATA_SETS,
    LAMBDAS,
    SCORES,
    Row,
)
from detectors.paper.table_plan import METHODS, PAPER_NAMES, TABLES, published_name

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"
needs_paper = pytest.mark.skipif(not PAPER.is_dir(), reason="no ../shared/paper")


def read(table: int) -> list[dict[str, str]]:
    with (PAPER / f"table{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_method(table: int) -> dict[str, Row]:
    rows = COMPARISONS[table][1]
    found = {row.method: row for row in rows}
    assert len(found) == len(rows)
    return found


def text(value: Any) -> str:
    return "" if value is None else str(value)


@needs_paper
@pytest.mark.parametrize("table", [2, 3, 4, 5, 6])
def test_tables_2_to_6_hold_every_cell(table: int) -> None:
    wanted = read(table)
    rows = COMPARISONS[table][1]
    assert len(rows) == len(wanted)
    for row, cells in zip(rows, wanted, strict=True):
        numbers = {k: v for k, v in cells.items() if k.startswith("AP")}
        assert {k: f"{v:.1f}" for k, v in row.numbers.items()} == {
            k: v for k, v in numbers.items() if v
        }
        assert text(row.reference) == cells["reference"]
        assert text(row.publication) == cells["publication"]
        assert text(row.backbone) == cells["backbone"]
        assert text(row.gain) == cells["gain_AP"]
        if table == 6:  # the paper writes the group behind the name
            assert f"{row.method} ({row.group})" == cells["method"]
        else:
            assert (row.group, row.method) == (cells["group"], cells["method"])


@needs_paper
def test_table_1_holds_every_cell() -> None:
    for row, cells in zip(DATA_SETS.values(), read(1), strict=True):
        assert row.name == cells["dataset"]
        assert [row.categories, row.images, row.objects, row.image_size] == [
            int(cells[k]) for k in ("categories", "images", "instances", "image_size_px")
        ]
        assert row.size == float(cells["absolute_size_px"])
        assert row.relative == float(cells["relative_size"])


@needs_paper
def test_tables_7_and_8_hold_every_cell() -> None:
    assert len(SCORES) == len(read(7)) and len(LAMBDAS) == len(read(8))
    for cells in read(7):
        numbers = SCORES[bool(cells["S_loc"]), bool(cells["S_cls"])]
        assert numbers == {k: float(cells[k]) for k in ("AP", "AP50", "AP75")}
    assert {str(k): str(v) for k, v in LAMBDAS.items()} == {r["lambda"]: r["AP"] for r in read(8)}


@needs_paper
def test_table_9_holds_every_cell() -> None:
    rows = {cells["method"]: cells for cells in read(9)}
    assert len(rows) == 2 * len(COSTS)
    for name, cost in COSTS.items():
        for loss, seconds in (("base", cost.base_seconds), ("jol", cost.jol_seconds)):
            method = published_name(name, None, loss)
            cells = rows[method]
            entry = next(e for e in TABLES[9].entries if e.labels == (name, loss))
            assert cost.gflops == float(cells["gflops_800x800"])
            assert cost.parameters == float(cells["parameters_M"])
            assert cost.megabytes == float(cells["model_size_MB"])
            assert seconds == float(cells["training_s_per_batch_of_2"])
            assert entry.published["AP"] == float(cells["AP"])
            assert text(entry.gain) == cells["gain_AP"]


def test_some_numbers_of_each_table() -> None:
    assert DATA_SETS["sodad"].size == 20.3 and DATA_SETS["aitodv2"].objects == 752_745
    assert by_method(2)["DetectoRS w/ SimD + JOL"].numbers["AP_t"] == 18.8
    assert by_method(3)["KLDet"].numbers == {"AP": 25.2}
    assert by_method(4)["YOLOv3"].publication == "ArXiv 2018"
    assert by_method(5)["DetectoRS w/ JOL"].gain == 0.6
    assert by_method(6)["Faster R-CNN"].numbers["AP_l"] == 46.8
    assert SCORES[True, False]["AP75"] == 17.9 and LAMBDAS[1] == 21.7
    assert COSTS["fcos"].gflops == 123.3 and COSTS["retinanet"].megabytes == 292.0


def test_gains_and_relative_sizes_follow_from_the_other_numbers() -> None:
    for table in COMPARISONS:
        found = by_method(table)
        for method, row in found.items():
            if row.gain is not None:
                base = method.replace(" + JOL", "").replace(" w/ JOL", "")
                base = base if base in found else f"{base} w/ SimD"  # DetectoRS on SODA-D
                assert row.numbers["AP"] - found[base].numbers["AP"] == pytest.approx(row.gain)
    for row in DATA_SETS.values():
        assert row.size / row.image_size == pytest.approx(row.relative, abs=5.1e-4)


def test_every_published_method_has_its_row() -> None:
    """Each in the place of our own method, or else among the others."""
    assert PAPER_NAMES.keys() <= DETECTORS.keys() and len(METHODS) == len(PAPER_NAMES) + 1
    assert [TABLES[i].dataset for i in range(2, 10)] == [
        *("visdrone", "aitod", "aitodv2", "sodad", "coco", "aitod", "aitod", "aitod")
    ]
    for number, (dataset, rows) in COMPARISONS.items():
        table = TABLES[number]
        placed = [dict(entry.published) for entry in table.entries if entry.published]
        assert table.dataset == dataset and len(placed) + len(table.others) == len(rows)
        for entry in table.entries:
            cell = entry.cell
            name = published_name(cell.detector, cell.assigner, cell.loss)
            row = by_method(number).get(name)
            assert entry.published == (row.numbers if row else {})
        assert not any("JOL" in row.method for row in table.others)
    assert {entry.cell.detector for n in (7, 8) for entry in TABLES[n].entries} == {"faster_rcnn"}
    assert [entry.cell.detector for entry in TABLES[9].entries[::2]] == list(COSTS)


def test_the_model_size_is_8_bytes_a_parameter() -> None:
    for cost in COSTS.values():
        assert cost.megabytes == pytest.approx(8 * cost.parameters, abs=0.8)
    ours = 8 * parameters(build("retinanet", "base", 96))
    assert ours == pytest.approx(COSTS["retinanet"].megabytes, abs=0.5)
