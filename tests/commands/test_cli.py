"""The command line: exit statuses, messages, and that a mistake leaves nothing behind."""

import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import draw_no_curves

from detectors.cli import main
from detectors.data.synthetic import CLASSES, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=4, seed=0, size=96)


def data_arguments(images: Path, annotations: Path, split: str) -> list[str]:
    return [f"--{split}-images", str(images), f"--{split}-annotations", str(annotations)]


def train_arguments(scenes: tuple[Path, Path], out: Path) -> list[str]:
    return [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "slim"),
        *("--max-steps", "2", "--batch-size", "2", "--crop", "64", "--device", "cpu"),
        *data_arguments(*scenes, "train"),
        *data_arguments(*scenes, "val"),
        *("--out", str(out)),
    ]


def test_train_eval_resume(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(train_arguments(scenes, out)) == 0
    printed = capsys.readouterr().out
    head, *lines = printed.splitlines()[: 2 + len(CLASSES)]
    assert head.split() == ["objects", "AP", "AP50", "AP75", "AP_vt", "AP_t", "AP_s", "AP_m"]
    assert [line.split()[0] for line in lines] == [*CLASSES, "all"]
    assert f"AP is the mean over {len(CLASSES)} classes.\nFewer than 10 objects" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80 and printed.count("AP_vt") == 1
    assert "seconds a step" in printed
    assert "best AP 0.0 at step 2 (epoch 1.0)" in printed
    results = json.loads((out / "results.json").read_text())

    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main(train_arguments(scenes, out)) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    assert main([*train_arguments(scenes, out), "--resume"]) == 0  # has nothing left to do
    assert json.loads((out / "results.json").read_text()) == results
    assert main([*train_arguments(scenes, out), "--resume", "--lr", "0.5"]) == 2
    assert "lr was 0.02, is now 0.5" in capsys.readouterr().err

    evaluation = [
        *("eval", "--checkpoint", str(out / "last.pt"), "--out", str(tmp_path / "eval")),
        *data_arguments(*scenes, "val"),
    ]
    assert main(evaluation) == 0
    assert json.loads((tmp_path / "eval" / "results.json").read_text()) == results
    assert (tmp_path / "eval" / "pr_curves.png").stat().st_size > 0
    assert (tmp_path / "eval" / "pr_classes.png").stat().st_size > 0
    head, *lines = capsys.readouterr().out.splitlines()[: 2 + len(CLASSES)]
    assert head.split()[:4] == ["objects", "AP", "AP50", "AP75"]
    assert [line.split()[0] for line in lines] == [*CLASSES, "all"]
    assert main([*evaluation, "--protocol", "coco", "--evaluator", "pycocotools"]) == 0
    assert "AP_l" in json.loads((tmp_path / "eval" / "results.json").read_text())


@pytest.mark.parametrize(
    "given",
    [
        ["--detector", "retinanet", "--assigner", "nwd-rka", "--assigner-settings", "k=2"],
        ["--detector", "cascade_rcnn", "--assigner", "simd", "--anchor-scale", "2"],
        ["--detector", "fcos", "--assigner", "atss", "--score-threshold", "0"],
    ],
    ids=lambda given: given[1],
)
def test_a_run_keeps_its_detector_and_assigner(
    given: list[str], scenes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_no_curves(monkeypatch)
    out = tmp_path / "run"
    assert main([*train_arguments(scenes, out), *given]) == 0
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["detector"], settings["assigner"]) == (given[1], given[3])
    assert settings["assigner_settings"] == ({"k": 2} if given[1] == "retinanet" else {})
    results = json.loads((out / "results.json").read_text())
    evaluation = [
        *("eval", "--checkpoint", str(out / "last.pt"), "--out", str(tmp_path / "eval")),
        *data_arguments(*scenes, "val"),
    ]
    assert main(evaluation) == 0
    assert json.loads((tmp_path / "eval" / "results.json").read_text()) == results


def test_failure_while_running_is_status_1(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*train_arguments(scenes, tmp_path / "run"), "--max-steps", "6", "--lr", "1e30"]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jol train: step ") and "image ids" in error


class Broken(io.StringIO):
    """A stream that nobody reads, and that is no file of the system."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_nobody_reads_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        assert main(["table", "1"]) == 1


def test_nobody_reads_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is that of the error all the same."""
    (tmp_path / "a.json").write_text("{")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Broken())
        assert main(["data", "stats", "--annotations", str(tmp_path / "a.json")]) == 2


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    """A change of the parsed annotation file as a change of its text."""

    def edited(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edited


def outside(content: dict[str, Any]) -> None:
    content["annotations"][3] |= {"id": 333, "bbox": [500, 500, 10, 10]}


def undeclared(content: dict[str, Any]) -> None:
    content["annotations"][3] |= {"id": 333, "category_id": 77}


def other_classes(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category["name"] += "s"


def no_images(content: dict[str, Any]) -> None:
    content |= {"images": [], "annotations": []}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda text: text[: len(text) // 2], ["line", "column"]),
        (edit(outside), ["333"]),
        (edit(undeclared), ["333", "77"]),
        (edit(no_images), ["no images"]),
    ],
    ids=["broken", "outside", "undeclared", "empty"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_bad_annotations(
    change: Callable[[str], str],
    wanted: list[str],
    split: str,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(change(scenes[1].read_text()))
    arguments = train_arguments(scenes, tmp_path / "run")
    arguments[arguments.index(f"--{split}-annotations") + 1] = str(bad)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert str(bad) in error and all(w in error for w in wanted)
    assert len(error.splitlines()) <= 2 and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_other_classes_in_validation(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(edit(other_classes)(scenes[1].read_text()))
    arguments = train_arguments(scenes, tmp_path / "run")
    arguments[arguments.index("--val-annotations") + 1] = str(bad)
    assert main(arguments) == 2
    assert "categories" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


LIMITS = {
    "--image-size": "1 to below 16384",
    "--crop": "1 to below 16384, or 0",
    "--detections": "1 to below 100000",
    "--batch-size": "1 to below 65536",
    "--workers": "0 to below 1024",
    "--epochs": "1 to below 100000",
    "--decay-epochs": "1 to below 100000",
}
"""Numbers with which training would end in a traceback, at its end, or never."""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--train-images", "nowhere"], "nowhere"),
        (["--val-annotations", "nowhere.json"], "nowhere.json"),
        (["--detector", "yolo"], "got 'yolo', wanted one of retinanet, fcos"),
        (["--detector", "detectors", "--backbone", "resnet18"], "Bottleneck"),
        (["--detector", "fcos", "--assigner", "simd"], "'simd' with fcos, wanted one of atss"),
        (["--detector", "fcos", "--anchor-scale", "2"], "fcos has no anchors"),
        (["--assigner", "giou"], "--assigner"),
        (["--assigner", "simd", "--assigner-settings", "k=2"], "setting of assigner simd: got 'k'"),
        (["--assigner", "simd", "--assigner-settings", "m"], "got 'm', wanted NAME=NUMBER"),
        (["--assigner-settings", "m=2"], "wanted none without an assigner"),
        (["--score-threshold", "1"], "--score-threshold: got '1'"),
        (["--location-score", "area"], "--location-score"),
        (["--lam", "0.5"], "lam: got '0.5', wanted a number of 1 or more"),
        (["--lam", "nan"], "lam: got 'nan', wanted a number of 1 or more"),
        (["--lr", "0"], "--lr: got '0', wanted a positive number"),
        (["--max-steps", "0"], "--max-steps: got '0', wanted a whole number of 1 or more"),
        (["--batch-size", "two"], "--batch-size: got 'two'"),
        *(
            ([option, str(2**62)], f"{option}: got '{2**62}', wanted a whole number from {limits}")
            for option, limits in LIMITS.items()
        ),
        (["--lr", "1e300"], "--lr: got '1e300', wanted a positive number below 1e+38"),
        (["--backbone-weights", ""], "--backbone-weights: got '', wanted imagenet|none|FILE"),
        (["--out", ""], "--out: got '', wanted a folder"),
        (["--seed", "-1"], "--seed"),
        (["--backbone-weights", "imagenet"], "GroupNorm"),
        (["--backbone-weights", "nowhere.pth"], "no such file: nowhere.pth"),
        (["--config", "nowhere.json"], "--config: nowhere.json: no such file"),
        (["--centreness-weights", "yes"], "got 'yes', wanted one of on, off"),
        (["--amp", "fp8"], "--amp"),
        (["--colour", "red"], "unknown option --colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(
    given: list[str],
    wanted: str,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*train_arguments(scenes, tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert wanted in error
    assert len(error.splitlines()) <= 2 and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_eval_without_a_usable_checkpoint(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, wanted in (("none.pt", "no such file"), ("text.pt", "no checkpoint")):
        arguments = [
            *("eval", "--checkpoint", str(tmp_path / name), "--out", str(tmp_path / "eval")),
            *data_arguments(*scenes, "val"),
        ]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert name in error and wanted in error and len(error.splitlines()) <= 2
    assert not (tmp_path / "eval").exists()
