"""Names of classes and files that would act on a terminal, in a picture or a spreadsheet."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.cli import main
from detectors.data import CocoDetection, DataError
from detectors.evaluation import evaluate
from detectors.evaluation.report import class_table, read_results, write_results
from detectors.inference.drawing import draw_detections
from detectors.paper.class_detections import class_figure
from detectors.utils.printable import csv_cell, from_csv_cell, printable, printable_lines
from detectors.utils.text_tables import Grid, render

CLEAR = "\x1b[2J\x1b]0;title\x07"
"""What clears a terminal and names its window."""
HARMLESS = ["car", "Zürich", "船", "a b", "\u3000", "👩\u200d🚀", "क्\u200dष", "'", '"', "\\"]


@pytest.mark.parametrize("text", HARMLESS)
def test_text_stays_what_it_is(text: str):
    assert printable(text) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        (CLEAR, r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\rc\td\0", r"a\nb\rc\td\x00"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U0001f600\x1b", "\U0001f600\\x1b"),
    ],
)
def test_what_acts_is_escaped(text: str, shown: str):
    assert printable(text) == shown
    assert printable_lines(f"one\n{text}").startswith("one\n")


@pytest.mark.parametrize("formula", ["=1+1", "+cmd|'/c calc'!A0", "-2+3", "@SUM(A1)"])
def test_cells_compute_nothing(formula: str):
    assert csv_cell(formula) == f"'{formula}"
    names = [formula, f"'{formula}", f"''{formula}", "'", "'=", "''+", "'-1", "-1", "'a", "="]
    cells = [csv_cell(name) for name in names]
    assert len(set(cells)) == len(cells) and [from_csv_cell(cell) for cell in cells] == names
    for cell in ("-1.5", "+3", "-inf", "1e-3", "a=b", "", "a-b"):
        assert csv_cell(cell) == cell
    grid = Grid("t", ["class", "AP"], [[formula, "-0.5"], [CLEAR, "1"]], 1, 0, [])
    rows = list(csv.reader(render(grid, "csv").splitlines()))
    assert rows[1:] == [[f"'{formula}", "-0.5"], [printable(CLEAR), "1"]]


@pytest.mark.parametrize("style", ["text", "markdown", "csv"])
def test_tables_hold_no_control_characters(style: str):
    grid = Grid("t", ["class", "AP"], [[f"a{CLEAR}\nb", "1"]], 1, 0, [])
    assert printable_lines(text := render(grid, style)) == text
    assert r"a\x1b[2J" in text


def test_names_of_classes_in_results(tmp_path: Path):
    names = ["=1+1", "a,b", "'", "-car"]
    truth = {
        "images": [{"id": 1, "width": 64, "height": 64}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 9, 9]}],
    }
    evaluation = evaluate(truth, [])
    write_results(tmp_path, evaluation, "base")
    cells = [row[0] for row in csv.reader((tmp_path / "per_class.csv").open())]
    assert cells == ["class", "'=1+1", "a,b", "'", "'-car"]
    assert list(read_results(tmp_path).per_class) == names
    evaluation.per_class[CLEAR] = evaluation.per_class.pop("a,b")
    assert "\x1b" not in class_table(evaluation)


@pytest.mark.parametrize("name", ["a\nb", CLEAR, "$x_{", "_hidden"])
def test_names_of_classes_in_pictures(tmp_path: Path, name: str):
    image = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    boxes, labels = torch.tensor([[20.0, 20, 40, 40]]), torch.tensor([0])
    drawn = draw_detections(image, boxes, torch.tensor([0.9]), labels, [name])
    shown = draw_detections(image, boxes, torch.tensor([0.9]), labels, [printable(name)])
    assert (np.asarray(drawn) == np.asarray(shown)).all()
    class_figure([(image, boxes, labels)], [name], tmp_path / "a.png")
    class_figure([(image, boxes, labels)], [printable(name)], tmp_path / "b.png")
    pictures = [np.asarray(Image.open(tmp_path / f"{letter}.png")) for letter in "ab"]
    assert (pictures[0] == pictures[1]).all()


def test_names_in_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {
        "images": [{"id": 1, "file_name": f"{CLEAR}.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}],
        "categories": [{"id": 1, "name": "car"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = ["--images", str(tmp_path), "--annotations", str(tmp_path / "boxes.json")]
    assert main(["data", "check", *data]) == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"no file" in out and r"\x1b[2J" in out
    evaluated = ["--val-images", str(tmp_path), "--val-annotations", str(tmp_path / "boxes.json")]
    trained = [word.replace("val", "train") if word[0] == "-" else word for word in evaluated]
    words = ["train", "--detector", "fcos", "--loss", "base", "--out", str(tmp_path / "run")]
    assert main([*words, *trained, *evaluated, "--max-steps", "1"]) == 2
    assert "\x1b" not in (error := capsys.readouterr().err) and r"\x1b[2J" in error
    content["categories"][0]["name"] = CLEAR
    with pytest.raises(DataError, match=r"category 1: name is .* wanted one without control"):
        CocoDetection(tmp_path, content)
