"""One source of defaults, options and config.json; a run repeated from its config."""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from detectors import cli
from detectors.cli import main
from detectors.commands import train
from detectors.data.synthetic import write_scenes
from detectors.models import build_detector
from detectors.training import checkpoints, run_folder
from detectors.training.settings import DEFAULTS, LENGTH, USUAL, TrainSettings, resolve, setting
from detectors.training.step import Stepper
from jolkernels import spec

FIELDS = {field.name for field in dataclasses.fields(TrainSettings)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=4, seed=0, size=64)


def data(scenes: tuple[Path, Path]) -> list[str]:
    images, annotations = map(str, scenes)
    return [
        *("--train-images", images, "--train-annotations", annotations),
        *("--val-images", images, "--val-annotations", annotations),
    ]


def options_of_train() -> dict[str, argparse.Action]:
    parser = cli.make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {action.dest: action for action in commands.choices["train"]._actions}


def test_every_setting_is_an_option_and_no_option_has_a_default_of_its_own() -> None:
    options = options_of_train()
    assert FIELDS - options.keys() == {"steps", "decay_steps", "channels_last"}
    assert set(LENGTH) < options.keys()  # which become steps and decay_steps
    for name in FIELDS & options.keys():
        assert options[name].default == argparse.SUPPRESS, name


def test_a_new_field_is_an_option_without_another_line(
    scenes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(TrainSettings):
        warm_up: int = setting("steps of a rising rate", "training", 7, least=0)
        decay_kind: str | None = setting("fall", "loss", None, choices=("cosine",), none="off")

    monkeypatch.setattr("detectors.commands.train.TrainSettings", More)
    assert main(["train", "--help"]) == 0
    assert "--warm-up N           steps of a rising rate (default: 7)" in capsys.readouterr().out
    words = ["--detector", "fcos", "--loss", "jol", "--out", "x", *data(scenes)]
    parsed = train.parse([*words, "--warm-up", "3", "--decay-kind", "off"])
    assert (parsed["warm_up"], parsed["decay_kind"]) == (3, None)
    assert "warm_up" not in train.parse(words)
    for given, wanted in (
        (["--warm-up", "-1"], "--warm-up: got '-1', wanted a whole number of 0 or more"),
        (["--decay-kind", "cosin"], "wanted one of cosine, off; did you mean cosine?"),
    ):
        with pytest.raises(SystemExit):
            train.parse([*words, *given])
        assert wanted in capsys.readouterr().err


def test_a_score_of_the_library_is_an_option_at_once(
    scenes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--detector", "fcos", "--loss", "jol", "--out", "x", *data(scenes)]
    words += ["--location-score", "area"]
    with pytest.raises(SystemExit):
        train.parse(words)
    monkeypatch.setitem(spec.CHOICES["location_score"], "area", spec.IoU)
    assert train.parse(words)["location_score"] == "area"


def test_losses_of_the_head_are_options(
    scenes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--detector", "fcos", "--loss", "jol", "--out", "x", *data(scenes)]
    given = ["--regression", "inner:loss=ciou,ratio=0.7", "--classification", "focal:gamma=1"]
    parsed = train.parse([*words, *given])
    settings = resolve(
        {k: parsed[k] for k in ("detector", "loss", "regression", "classification")}, 10, None, {}
    )
    assert (settings.regression, settings.classification) == (given[1], given[3])
    settings.check()
    with pytest.raises(ValueError, match="regression: got 'iou:mode=cube', wanted one of linear"):
        dataclasses.replace(settings, regression="iou:mode=cube").check()
    for wrong, wanted in (
        (["--regression", "gio"], "--regression: got 'gio', wanted one of l1,"),
        (["--regression", "iou:mod=log"], "got 'mod=log', wanted mode=VALUE"),
        (["--classification", "focal:alpha=2"], "Focal: alpha: got 2"),
        (["--classification", "cross_entropy"], "its head has no column for the background"),
    ):
        with pytest.raises(SystemExit):
            train.parse([*words, *wrong])
        assert wanted in capsys.readouterr().err


def test_the_help_names_the_defaults_there_are() -> None:
    """Those of fields, presets, detectors and data sets."""
    options = options_of_train()
    checked = 0
    for name, default in {**DEFAULTS, **USUAL}.items():
        plain = isinstance(default, int | float | str) and not isinstance(default, bool)
        if plain and name not in ("device", "protocol"):  # said in other words
            text = f"{default:g}" if isinstance(default, float) else str(default)
            assert f"(default: {text}" in str(options[name].help), name
            checked += 1
    assert checked >= 9
    for name, wanted in {
        "batch_size": "(default: 2; with slim 4)",
        "lr": "(default: 0.005, retinanet and fcos 0.001; with slim 0.02)",
        "backbone": "(default: resnet50; with slim resnet18, detectors resnet14)",
        "score_threshold": "(default: 0.05; with torchvision 0.05, fcos 0.2)",
        "epochs": "(default: 12; --dataset aitod, aitodv2: 24)",
        "anchor_scale": "(default: 8, retinanet 4; with slim 6 to 180 pixels by level)",
    }.items():
        assert wanted in str(options[name].help), name


def test_a_run_of_a_version_that_had_channels_last(tmp_path: Path) -> None:
    """Its config.json and its checkpoints can be read, whatever it was."""
    given = {"detector": "fcos", "loss": "jol", "preset": "slim", "epochs": 12}
    settings = dataclasses.asdict(resolve(given, 100, None, {}))
    assert settings["channels_last"] is True
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": settings | {"channels_last": False}, "data": {}}))
    was, _ = run_folder.read_config(file)
    assert resolve({"lr": 1.0}, 100, None, was).lr == 1.0
    model = build_detector("fcos", 2, "jol", **resolve(given, 100, None, {}).model_arguments())
    checkpoint = {
        "settings": settings | {"channels_last": False},
        "class_names": ["a", "b"],
        "model": model.state_dict(),
    }
    loaded = checkpoints.load_detector(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_given_before_config_before_defaults() -> None:
    given = {"detector": "fcos", "loss": "jol", "preset": "slim"}
    fresh = resolve(given, 100, None, {})
    assert (fresh.lr, fresh.batch_size, fresh.crop, fresh.steps) == (0.02, 4, 192, 300)
    config = dataclasses.asdict(dataclasses.replace(fresh, lr=0.5, clip=3.0, decay_steps=[7]))
    assert resolve({}, 100, None, config) == TrainSettings(**config)
    again = resolve({"clip": 2.0, "epochs": 2, "max_steps": 30}, 100, None, config)
    assert (again.lr, again.clip, again.steps, again.decay_steps) == (0.5, 2.0, 30, [7])
    assert resolve({**given, "max_steps": 7}, 100, None, {}).steps == 7
    assert resolve({**given, "epochs": 1, "max_steps": 70}, 100, None, {}).steps == 25
    assert resolve({**given, "decay_epochs": [1, 2]}, 100, None, {}).decay_steps == [25, 50]
    assert resolve({**given, "image_size": [640]}, 100, None, {}).image_size == 640


def test_config_repeats_a_run_bit_for_bit(
    scenes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From another folder too; what is given holds; other data are refused."""
    monkeypatch.chdir(scenes[0].parent)
    words = [
        *("train", "--detector", "retinanet", "--loss", "jol", "--preset", "slim", "--lam", "3"),
        *("--max-steps", "2", "--batch-size", "2", "--crop", "48", "--device", "cpu"),
        *("--location-score", "none", "--image-size", "64", "80", "--detach-weights"),
        *("--assigner", "simd", "--assigner-settings", "m=5"),
        *("--anchor-ratios", "0.5", "1", "--eval-every", "0", "--clip", "4"),
    ]
    relative = [str(Path(w).relative_to(Path.cwd())) if "/" in w else w for w in data(scenes)]
    assert main([*words, *relative, "--out", str(tmp_path / "first")]) == 0
    monkeypatch.chdir(tmp_path)
    again = ["train", "--config", "first/config.json"]
    assert main([*again, "--out", "second"]) == 0
    first, second = (checkpoints.load(tmp_path / n / "last.pt") for n in ("first", "second"))
    assert checkpoints.digest(first["model"]) == checkpoints.digest(second["model"])
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("first", "second")]
    assert configs[0] == configs[1]
    assert configs[0]["settings"]["location_score"] is None
    results = [(tmp_path / n / "results.json").read_text() for n in ("first", "second")]
    assert results[0] == results[1]

    assert main([*again, "--out", "third", "--seed", "1", "--location-score", "giou"]) == 0
    changed = json.loads((tmp_path / "third" / "config.json").read_text())["settings"]
    wanted = configs[0]["settings"] | {"seed": 1, "location_score": "giou"}
    assert changed == wanted
    third = checkpoints.load(tmp_path / "third" / "last.pt")
    assert checkpoints.digest(first["model"]) != checkpoints.digest(third["model"])

    capsys.readouterr()
    annotations = scenes[1].read_text()
    scenes[1].write_text(annotations.replace(" ", "  ", 1))
    try:
        assert main([*again, "--out", "fourth"]) == 2
        assert "train_sha256 was" in capsys.readouterr().err
        assert main([*again, "--out", "fifth", *data(scenes)]) == 0  # other data, as given
    finally:
        scenes[1].write_text(annotations)
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"steps": "6"}, "steps: got '6', wanted int"),
        ({"lr": True}, "lr: got True, wanted float"),
        ({"image_size": [64, 8.5]}, "image_size: got [64, 8.5], wanted int | list[int] | None"),
        ({"image_size": []}, "image_size: got [], wanted one or more numbers"),
        ({"assigner_settings": {"m": "5"}}, "assigner_settings: got {'m': '5'}, wanted dict"),
        ({"lr": math.nan}, "lr: got nan, wanted a positive number"),
        ({"lam": math.inf}, "lam: got inf, wanted a number of 1 or more"),
        ({"steps": 0}, "steps: got 0, wanted a whole number of 1 or more"),
        ({"workers": -1}, "workers: got -1, wanted a whole number from 0 to below 1024"),
        (
            {"crop": 2**62},
            "crop: got 4611686018427387904, wanted a whole number from 1 to bel",
        ),
        (
            {"image_size": [64, 2**62]},
            "4611686018427387904], wanted a whole number from 1 to bel",
        ),
        ({"backbone_weights": ""}, "backbone_weights: got '', wanted imagenet|none|FILE"),
        ({"anchor_ratios": [1, 0]}, "anchor_ratios: got [1, 0], wanted a positive number"),
        ({"backbone": "vgg"}, "backbone: got 'vgg', wanted one of resnet14, resnet18"),
        ({"seed": 10**30}, "seed: got 1000000000000000000000000000000, wanted a whole number"),
        ({"amp": "fp8"}, "amp: got 'fp8', wanted one of off, bf16, fp16"),
        ({"protocol": "voc"}, "protocol: got 'voc', wanted one of "),
        ({"evaluator": "none"}, "evaluator: got 'none', wanted one of faster, pycocotools"),
    ],
)
def test_a_config_edited_by_hand(
    change: dict[str, Any], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"detector": "fcos", "loss": "jol", "preset": "slim", "epochs": 12}
    settings = dataclasses.asdict(resolve(given, 100, None, {}))
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"settings": settings | {"lr": 1}, "data": {}}))
    assert run_folder.read_config(file)[0]["lr"] == 1
    file.write_text(json.dumps({"settings": settings | change, "data": {}}))
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"{file}: " in said and wanted in said
    assert not (tmp_path / "run").exists()


def test_resume_takes_the_runs_own_settings(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("train", "--detector", "fcos", "--loss", "base", "--preset", "slim"),
        *("--max-steps", "2", "--batch-size", "2", "--crop", "48", "--device", "cpu"),
    ]
    out = ["--out", str(tmp_path / "run")]
    assert main([*words, *data(scenes), *out]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", *out]) == 0
    assert "resuming after step 2" in capsys.readouterr().err
    assert main(["train", "--resume", *out, "--lam", "3"]) == 2
    assert "cannot resume: lam was 2.0, is now 3.0" in capsys.readouterr().err
    config = tmp_path / "run" / "config.json"
    other = json.loads(config.read_text())
    other["settings"]["lam"] = 5.0
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert main(["train", "--resume", *out, "--config", str(tmp_path / "other.json")]) == 2
    assert "cannot resume: lam was 2.0, is now 5.0" in capsys.readouterr().err
    other["settings"]["colour"] = "red"
    config.write_text(json.dumps(other))
    assert main(["train", "--resume", *out]) == 2
    assert "no settings of a run: " in (error := capsys.readouterr().err) and "'colour'" in error
    config.unlink()
    assert main(["train", "--resume", *out]) == 2
    assert f"{config}: missing" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(tmp_path / "none")]) == 2
    assert "wanted --dataset NAME" in capsys.readouterr().err


def test_deterministic_is_on_while_training_only(
    scenes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    step = Stepper.__call__

    def noted(self: Any, *given: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(self, *given)

    monkeypatch.setattr(Stepper, "__call__", noted)
    words = [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "slim"),
        *("--max-steps", "1", "--batch-size", "2", "--crop", "48", "--device", "cpu"),
    ]
    for name, flags in (("on", ["--deterministic"]), ("off", [])):
        assert main([*words, *data(scenes), *flags, "--out", str(tmp_path / name)]) == 0
    assert seen == [True, False] and not torch.are_deterministic_algorithms_enabled()


def test_tensorboard_holds_what_metrics_jsonl_holds(
    scenes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("detectors.training.loop.LOG_EVERY", 1)
    words = [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "slim"),
        *("--max-steps", "3", "--batch-size", "2", "--crop", "48", "--device", "cpu"),
    ]
    out = tmp_path / "run"
    # Once more, it evaluates its last step again.
    for resume in ([], ["--resume"]):
        assert main([*words, *data(scenes), "--tensorboard", "--out", str(out), *resume]) == 0
        events = EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        total = [(e.step, e.value) for e in events.Scalars("train/total")]
        wanted = [(r["step"], pytest.approx(r["total"], rel=1e-6)) for r in lines if "total" in r]
        assert total == wanted and len(total) == 3
        found = [(e.step, e.value) for e in events.Scalars("evaluation/AP")]
        assert found == [
            (r["step"], pytest.approx(r["evaluation"]["AP"], abs=1e-6))
            for r in lines
            if "evaluation" in r
        ]


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_made(
    scenes: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    words = ["train", "--detector", "fcos", "--loss", "jol", "--preset", "slim", "--tensorboard"]
    assert main([*words, *data(scenes), "--out", str(tmp_path / "run")]) == 2
    assert "the package tensorboard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
