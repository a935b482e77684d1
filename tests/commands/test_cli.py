"""The command line: exit statuses, messages, and that a mistake leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from detectors import cli
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
    given: list[str], scenes: tuple[Path, Path], tmp_path: Path
) -> None:
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


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "eval", "predict", "export", "demo", "table", "sweep"):
        assert main([command, "--help"]) == 0
        listed = capsys.readouterr().out.split("options:")[1]
        options = [line for line in listed.splitlines() if line.startswith("  -")]
        assert len(options) >= 3
        lines = listed.splitlines()
        for line in options:
            following = lines[lines.index(line) + 1] if lines[-1] != line else ""
            explained = len(line.strip().split("  ", 1)) == 2 or following.startswith(" " * 20)
            assert explained, line


ABSENT = [
    *("--train-images", "a", "--train-annotations", "b.json"),
    *("--val-images", "c", "--val-annotations", "d.json"),
]
HEAVY = ("torch", "torchvision", "matplotlib", "numpy", "PIL")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 0),
        (["--version"], 0),
        *(([*command, "--help"], 0) for command in (
            ["train"], ["eval"], ["predict"], ["export"], ["demo"], ["table"], ["figure"],
            ["sweep"], ["data"], ["data", "stats"], ["data", "check"], ["data", "convert"],
            ["bench"],
        )),
        (["trian"], 2),
        (["train"], 2),
        *((["train", *words], 2) for words in (
            ["--detector", "yolo"], ["--assigner", "giou"], ["--preset", "fast"],
            ["--location-score", "area"], ["--dataset", "voc"], ["--protocol", "voc"],
        )),
        (["train", "--config", "nowhere.json", "--out", "nowhere"], 2),
        (["sweep", "2", "--out", "nowhere"], 2),
        (["eval", "--out", "nowhere"], 2),
        (["train", "--detector", "fcos", "--loss", "jol", *ABSENT, "--out", "nowhere"], 2),
        (["eval", "--checkpoint", "no.pt", *ABSENT[4:], "--out", "nowhere"], 2),
        (["data", "stats"], 2),
        (["data", "stats", "--annotations", "no.json"], 2),
        (["predict", "no.png", "--checkpoint", "no.pt", "--out", "nowhere"], 2),
        (["export", "--checkpoint", "no.pt", "--out", "nowhere.pt2"], 2),
        (["table", "2", "--runs", "nowhere"], 2),
        (["figure", "3", "--out", "nowhere.txt"], 2),
        (["bench", "--providers", "eagr"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_help_and_wrong_arguments_need_no_torch(words: list[str], status: int) -> None:
    code = (
        f"import sys; from detectors.cli import main; status = main({words!r}); "
        f"assert status == {status}, status; "
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_the_library_exports_without_torch() -> None:
    code = (
        "import sys; from jolkernels import spec; assert 'torch' not in sys.modules; "
        "import jolkernels; jolkernels.JointOptimizationLoss(lam=3.0); "
        "from jolkernels import *; joint_optimization_loss, JointLoss, PerSample; "
        "assert not hasattr(jolkernels, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jol_alone_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert alone == capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"\n  {command.__name__.rpartition('.')[2]} " in alone.replace("\n    ", "\n  ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jol {metadata.version('jolkernels')}\n"


def test_all_problems_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lr", "0", "--assigner", "iuo", "--strides", "--learning-rate", "3", "--seeds=4"]
    assert main(["train", *words, "--image-size", "64", "x", "--train-images", "y"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "jol train: --lr: got '0', wanted a positive number below 1e+38",
        "jol train: --assigner: got 'iuo', wanted one of iou, simd, nwd, nwd-rka, dotd, rfla, atss;"
        " did you mean iou?",
        "jol train: --strides: expected at least one argument",
        "jol train: --image-size: got 'x', wanted a whole number from 1 to below 16384",
        "jol train: --train-images: y: no such folder",
        "jol train: the following arguments are required: --out",
        "jol train: unknown option --learning-rate; did you mean --lr?",
        "jol train: unknown option --seeds; did you mean --seed?",
        "jol train: missing --detector and --loss, or --config of an earlier run",
        "jol train: wanted --dataset NAME --data-root DIR or --train-images --train-annotations "
        "--val-images --val-annotations; missing --train-annotations --val-images "
        "--val-annotations",
        "jol train --help lists the options",
    ]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["evla"], "jol: unknown command evla; did you mean eval?\n"),
        (["qqq"], "jol: unknown command qqq\n"),
        (["data", "stat"], "jol data: unknown command stat; did you mean stats?\n"),
        (["--verson"], "jol: unknown option --verson; did you mean --version?\n"),
        (["demo", "--qqq"], "jol demo: unknown option --qqq\n"),
        (["demo", "x"], "jol demo: unexpected argument 'x'\n"),
        (["demo", "--seed", "1", "-2"], "jol demo: unexpected argument '-2'\n"),
        (["demo", "--see", "1"], "jol demo: unknown option --see; did you mean --seed?\n"),
        (["sweep", "2", "--out", "x", "--", "--sed", "1"], "jol train: unknown option --sed; did"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_nearest_command_or_option(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert wanted in capsys.readouterr().err


def test_a_channels_last_option_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", "x", "--no-channels-last"]) == 2
    assert "unknown option --no-channels-last\n" in capsys.readouterr().err


def test_python_m_detectors() -> None:
    """The exit status reaches the shell."""
    done = subprocess.run(
        [sys.executable, "-m", "detectors", "train", "--detector", "fcos"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the following arguments are required" in done.stderr


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """As in `jol table 2 | head -1`: no traceback, and no success either."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "from detectors.cli import main; "
        f"sys.exit(main(['table', '2', '--runs', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == ""


def test_all_wrong_words_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "extra", "--batchsize", "3", "--lam", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "unexpected argument 'extra'" in error
    assert "unknown option --batchsize; did you mean --batch-size?" in error
    assert "--lam: got '0.5', wanted a number of 1 or more" in error
    assert "required: --out" in error and "missing --detector" in error


def test_settings_that_a_detector_does_not_take_are_reported_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--anchor-ratios", "1", "--anchor-scale", "2", "--assigner", "iou", "--strides", "3"]
    words += ["--preset", "slim", "--backbone-weights", "imagenet", "--lr", "-1"]
    given = ["train", "--detector", "fcos", "--loss", "jol", "--out", str(tmp_path / "o"), *words]
    assert main(given) == 2
    error = capsys.readouterr().err
    for wanted in (
        "--lr: got '-1'",
        "anchor_scale: got 2.0, wanted none",
        "anchor_ratios: got [1.0], wanted none",
        "assigner: got 'iou' with fcos",
        "strides: got (3,)",
        "backbone_weights: ImageNet's batch norm",
    ):
        assert wanted in error
    assert main([*given, "--strides", "x"]) == 2  # a wrong value is compared with nothing
    assert "strides: got (" not in capsys.readouterr().err


def test_all_absent_files_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--detector", "fcos", "--loss", "jol", *ABSENT, "--out", "o"]) == 2
    error = capsys.readouterr().err
    for path in ("a: no such folder", "b.json: no such file", "c: no such", "d.json: no such"):
        assert path in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_the_letters_of_a_table(encoding: str, tmp_path: Path) -> None:
    """Shows their numbers: the note below has λ, say."""
    words = [sys.executable, "-m", "detectors", "table", "8", "--runs", str(tmp_path)]
    said = [
        subprocess.run(
            words, env={**os.environ, "PYTHONIOENCODING": name}, capture_output=True, check=True
        ).stdout
        for name in ("utf-8", encoding)
    ]
    assert said[0].decode().encode(encoding, "backslashreplace") == said[1] != said[0]
