"""What `jol reproduce` refuses before it trains: data, weights, disk, arguments."""

import json
import shutil
from pathlib import Path

import pytest
from reproducing import FCOS, QUICK, command, has_free

from detectors.cli import main
from detectors.commands import reproduce_checks


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
