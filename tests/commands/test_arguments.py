"""Help and wrong arguments: what is said, all at once, and without torch."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from detectors import cli
from detectors.cli import main


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "eval", "predict", "export", "demo", "table", "sweep", "reproduce"):
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
            ["sweep"], ["reproduce"], ["data"], ["data", "stats"], ["data", "check"],
            ["data", "convert"], ["bench"],
        )),
        (["trian"], 2),
        (["train"], 2),
        *((["train", *words], 2) for words in (
            ["--detector", "yolo"], ["--assigner", "giou"], ["--preset", "fast"],
            ["--location-score", "area"], ["--dataset", "voc"], ["--protocol", "voc"],
        )),
        (["train", "--config", "nowhere.json", "--out", "nowhere"], 2),
        (["sweep", "2", "--out", "nowhere"], 2),
        (["reproduce", "coco", "--data-root", "nowhere"], 2),
        (["reproduce", "voc", "--data-root", "."], 2),
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
        assert re.search(rf"\n    {command.__name__.rpartition('.')[2]}\s", alone)


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
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
