"""Training: schedule, reproducibility, resuming, what a run leaves on disk, and the demo."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors import errors
from detectors.cli import main
from detectors.commands import demo
from detectors.commands.demo import DemoSize
from detectors.data import CocoDetection
from detectors.data.synthetic import write_scenes
from detectors.errors import RunError
from detectors.evaluation import METRICS, curves, evaluate_model, report
from detectors.evaluation.olrp import OLRP
from detectors.inference import detect
from detectors.training import checkpoints, loop, run_folder, schedule
from detectors.training.settings import TrainSettings
from detectors.training.state import State
from detectors.training.step import Outcome, Stepper
from detectors.utils.progress import Progress
from detectors.utils.signals import Stopping

RUN_FILES = {
    "config.json",
    "metrics.jsonl",
    "last.pt",
    "previous.pt",
    "best.pt",
    "results.json",
    "per_class.csv",
    "pr_curves.npz",
    "pr_curves.png",
    "pr_classes.png",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDetection:
    folder = tmp_path_factory.mktemp("scenes")
    return CocoDetection(*write_scenes(folder, images=5, seed=0, size=96))


@pytest.fixture
def settings() -> TrainSettings:
    return replace(
        demo.demo_settings("jol", 0, DemoSize(crop=64, steps=5, batch_size=2)), eval_every=1
    )


def test_learning_rate(settings: TrainSettings) -> None:
    long = replace(settings, steps=1200, lr=1.0)
    assert schedule.learning_rate(0, long) == pytest.approx(1 / 120)
    assert schedule.learning_rate(59, long) == pytest.approx(0.5)
    assert [schedule.learning_rate(s, long) for s in (119, 799)] == [1.0, 1.0]
    assert [schedule.learning_rate(s, long) for s in (800, 1099)] == pytest.approx([0.1, 0.1])
    assert schedule.learning_rate(1100, long) == pytest.approx(0.01)
    very_long = replace(settings, steps=90_000, lr=1.0)
    assert schedule.learning_rate(249, very_long) == pytest.approx(0.5)  # 500 steps of warm-up


def test_base_and_jol_start_alike(settings: TrainSettings) -> None:
    one = loop.make_model(settings, 3).state_dict()
    torch.rand(5)
    other = loop.make_model(replace(settings, loss="base"), 3).state_dict()
    seed1 = loop.make_model(replace(settings, seed=1), 3).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not all(torch.equal(one[k], seed1[k]) for k in one)


def run_to_end(
    settings: TrainSettings, data: CocoDetection, out: Path, resume: bool = False
) -> loop.TrainResult:
    model = loop.make_model(settings, len(data.class_names))
    checkpoint = None
    if resume:
        checkpoint, problems = checkpoints.load_last(out, vars(settings))
        assert not problems
    else:
        run_folder.start(out, settings, {"digest": data.digest})
    return loop.train(settings, model, data, data, out, checkpoint=checkpoint)


def lines_of(out: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def test_resumed_run_equals_an_uninterrupted_one(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, momentum and log, bit for bit; the run is broken between two checkpoints."""
    monkeypatch.setattr(loop, "LOG_EVERY", 2)  # the fourth step's means begin before step 3
    run_to_end(settings, data, tmp_path / "whole")

    step = Stepper.__call__

    def breaks(self: Stepper, batch: Any, number: int, *rest: Any) -> Outcome:
        if number == 5:
            raise RuntimeError("power cut")
        return step(self, batch, number, *rest)

    monkeypatch.setattr(Stepper, "__call__", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        run_to_end(settings, data, tmp_path / "broken")  # an epoch of 3 steps: last.pt is of 3
    monkeypatch.setattr(Stepper, "__call__", step)
    assert lines_of(tmp_path / "broken")[-1]["step"] == 4
    assert checkpoints.load(tmp_path / "broken" / "last.pt")["step"] == 3
    torch.rand(7)
    run_to_end(settings, data, tmp_path / "broken", resume=True)

    whole, broken = (checkpoints.load(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    assert whole["step"] == broken["step"] == 5
    for key, value in whole["model"].items():
        assert torch.equal(value, broken["model"][key]), key
    for key, state in whole["optimizer"]["state"].items():
        other = broken["optimizer"]["state"][key]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], other)
    for checkpoint in (whole, broken):
        for values in checkpoint["state"]["recent"]:
            values.pop("seconds")
    assert whole["state"] == broken["state"]
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "broken")
    results = [(tmp_path / n / "results.json").read_text() for n in ("whole", "broken")]
    assert results[0] == results[1]


@pytest.mark.parametrize("end", [b'{"step": 2, "AP', b"\0\0\0", b"\xff\xfe\n"])
def test_what_is_no_line_of_the_metrics_is_dropped(end: bytes, tmp_path: Path) -> None:
    """A machine that dies may leave anything at the end of a file."""
    line = b'{"step": 1, "total": 2.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line + end)
    with run_folder.MetricsLog(tmp_path, 3) as log:
        log.write({"step": 4, "total": math.nan})
    wanted = line + b'{"step": 4, "total": null}\n'
    assert (tmp_path / "metrics.jsonl").read_bytes() == wanted


def test_what_a_run_leaves(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in (curves.pr_curves, curves.pr_classes):
        monkeypatch.setattr(report, draw.__name__, draw)
    out = tmp_path / "new" / "run"
    result = run_to_end(settings, data, out)
    assert {p.name for p in out.iterdir() if p.stat().st_size} == RUN_FILES
    results = json.loads((out / "results.json").read_text())
    assert tuple(results) == METRICS + OLRP
    for name, value in result.evaluation.metrics.items():
        assert results[name] == (None if math.isnan(value) else value)
    config = json.loads((out / "config.json").read_text())
    assert TrainSettings(**config["settings"]) == settings
    assert config["data"] == {"digest": data.digest}
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [3, 5, 5]
    assert {"lr", "loss_classifier", "loss_box_reg", "negative_weight"} <= lines[1].keys()
    assert 1 < lines[1]["negative_weight"] < 2
    assert set(lines[2]["evaluation"]) == set(METRICS + OLRP)
    assert result.seconds_per_step > 0

    best = checkpoints.load(out / "best.pt")
    model = checkpoints.load_detector(best)
    assert all(torch.equal(v, best["model"][k]) for k, v in model.state_dict().items())
    again = evaluate_model(model, data, "cpu", "pycocotools")
    logged = [e["evaluation"] for e in lines if "evaluation" in e and e["step"] == best["step"]]
    assert again.metrics["AP"] == pytest.approx(logged[0]["AP"])


def test_a_run_whose_ap_is_not_defined_keeps_its_last_weights(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**data.ground_truth, "annotations": []}))
    images = data._files[0].parent
    model = loop.make_model(settings, len(data.class_names))
    result = loop.train(settings, model, data, CocoDetection(images, empty), tmp_path)
    assert result is not None and math.isnan(result.best) and result.best_step == settings.steps
    assert checkpoints.load(tmp_path / "best.pt")["step"] == settings.steps


def test_black_images_are_worth_one_line(
    settings: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = CocoDetection(*write_scenes(tmp_path / "scenes", images=4, seed=0, size=96))
    for name in data.file_names[:3]:
        file = tmp_path / "scenes" / "images" / name
        Image.fromarray(np.ones((96, 96), np.uint16)).save(file, "PNG")
    run_to_end(replace(settings, steps=2), data, tmp_path / "run")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "black" in line]
    assert line.startswith(
        f"train: warning: {data.source}: 3 images of those read came out black: "
    )
    assert "no pixel reaches 8 of 255; save masks" in line


def test_a_trainer_of_one_s_own_parts(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path
) -> None:
    """Its steps alone give the weights that `train` gives; checkpoints are for its `run`."""
    run_to_end(settings, data, tmp_path / "run")
    steps, out = tmp_path / "steps", tmp_path / "own"
    model = loop.make_model(settings, len(data.class_names))

    def trainer(folder: Path, state: State, log: run_folder.MetricsLog | None) -> loop.Trainer:
        folder.mkdir(exist_ok=True)
        stepper = Stepper(model, settings)
        files = checkpoints.Checkpoints(folder)
        return loop.Trainer(
            settings, stepper, data, data, files, log, Progress("own", 0, 5), Stopping(), state
        )

    stepping = trainer(steps, State(), run_folder.MetricsLog(steps, 0))
    batches = stepping.batches()
    for done in range(1, settings.steps + 1):
        stepping.step(batches)
        assert stepping.state.step == len(stepping.seconds) == done
    assert [p.name for p in steps.iterdir()] == ["metrics.jsonl"]
    wanted = checkpoints.load(tmp_path / "run" / "last.pt")["model"]
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())

    result = trainer(out, stepping.state, None).run()  # every step is done: it evaluates
    assert result is not None and math.isnan(result.seconds_per_step)
    assert result.best_step == settings.steps
    assert not (out / "last.pt").exists() and not (out / "metrics.jsonl").exists()
    read = [(folder / "results.json").read_text() for folder in (out, tmp_path / "run")]
    assert read[0] == read[1]


def test_loss_that_is_not_finite_stops(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path
) -> None:
    model = loop.make_model(settings, len(data.class_names))
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, math.nan)
    with pytest.raises(errors.TrainingError) as caught:
        loop.train(settings, model, data, data, tmp_path)
    message = str(caught.value)
    assert message.startswith("step 1: loss_classifier = nan")
    assert message.endswith(f"; no checkpoint was written in {tmp_path} before")
    named = message.split("image ids ")[1].split(";")[0].split(", ")
    assert len(named) == 2 and {int(n) for n in named} <= set(data.image_ids)
    assert not (tmp_path / "last.pt").exists()


def test_predictions_are_coco_results(settings: TrainSettings, data: CocoDetection) -> None:
    model = loop.make_model(settings, len(data.class_names))
    model.roi_heads.score_thresh = 0.0
    results = detect.predict(model, data, "cpu")
    assert {r["image_id"] for r in results} == set(data.image_ids)
    assert {r["category_id"] for r in results} == set(data.category_ids)
    x, y, w, h = torch.tensor([r["bbox"] for r in results]).unbind(1)
    assert (w > 0).all() and (h > 0).all() and (x + w <= 96).all() and (y + h <= 96).all()


def test_resume_checks_what_it_goes_on_with(settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json: missing or broken"):
        run_folder.refuse_other(tmp_path, settings, {})
    data = {"train_sha256": "a", "train_images": "there"}
    run_folder.start(tmp_path, settings, data)
    with pytest.raises(RunError, match="holds a run already"):
        run_folder.start(tmp_path, settings, data)
    with pytest.raises(RunError, match=rf"lr was {settings.lr}, is now 0\.5"):
        run_folder.refuse_other(tmp_path, replace(settings, lr=0.5), data)
    with pytest.raises(RunError, match="train_sha256 was 'a', is now 'b'"):
        run_folder.refuse_other(tmp_path, settings, data | {"train_sha256": "b"})
    run_folder.refuse_other(tmp_path, replace(settings, workers=3), data | {"train_images": "here"})


def test_checkpoint_of_another_shape_is_refused(settings: TrainSettings) -> None:
    state = {
        "model": loop.make_model(settings, 3).state_dict(),
        "settings": vars(settings) | {},
        "class_names": ["a", "b"],
        "step": 1,
    }
    with pytest.raises(RunError, match="does not fit"):
        checkpoints.load_detector(state)


@pytest.mark.slow
def test_demo_in_a_tiny_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = DemoSize(train_images=5, val_images=2, pixels=96, crop=64, steps=4, batch_size=2)
    out = tmp_path / "demo"
    demo.compare(out, seed=1, size=size)
    assert {p.name for p in out.iterdir()} == {
        demo.MARK, "train", "val", "base", "jol", "table.txt", "detections.png", "pr_curves.png",
    }  # fmt: skip
    for loss in ("base", "jol"):
        assert {p.name for p in (out / loss).iterdir()} == RUN_FILES
        assert checkpoints.load(out / loss / "last.pt")["settings"]["loss"] == loss
    printed = capsys.readouterr().out
    table = (out / "table.txt").read_text()
    assert table in printed
    for name in ("base", "JOL", "AP ", "AP50", "AP_vt", "seconds a step", "One seed (1)"):
        assert name in table
    base, joint = (
        json.loads((out / loss / "results.json").read_text()) for loss in ("base", "jol")
    )
    row = next(line for line in table.splitlines() if line.startswith("AP  ")).split()
    assert row[1:3] == [f"{100 * base['AP']:.1f}", f"{100 * joint['AP']:.1f}"]

    demo.compare(out, seed=1, size=replace(size, steps=1))  # an earlier demo is replaced
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds what no demo wrote"):
        demo.compare(out, size=size)
    assert (out / "thesis.txt").exists() and (out / "table.txt").exists()
    for name in ("thesis", "data"):  # what no demo wrote is not, whatever its folders are called
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "mine.txt").write_text("precious")
        with pytest.raises(RunError, match="holds what no demo wrote"):
            demo.compare(tmp_path / name, seed=1, size=size)
        assert (tmp_path / name / "train" / "mine.txt").read_text() == "precious"


def test_a_demo_killed_while_it_removes_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one takes what is left for a demo's."""
    (tmp_path / demo.MARK).touch()
    (tmp_path / "train").mkdir()

    def killed(path: Path) -> None:
        assert (tmp_path / demo.MARK).exists()
        raise KeyboardInterrupt

    listed = [tmp_path / demo.MARK, tmp_path / "train"]  # a system lists them in any order
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(listed))
    monkeypatch.setattr(demo.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        demo.compare(tmp_path)


@pytest.mark.parametrize("trouble", ["signal", "nan"])
def test_a_demo_that_ends_early_says_so(
    trouble: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which every rank of a run raises, and `jol train` reports."""
    tiny = DemoSize(train_images=2, val_images=1, pixels=96, crop=64, steps=2, batch_size=1)
    monkeypatch.setattr(demo, "DemoSize", lambda: tiny)
    call: Any = Stepper.__call__

    def troubled(self: Stepper, *given: Any) -> Outcome:
        if trouble == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
            return call(self, *given)
        return Outcome({}, "loss_classifier = nan", False)

    monkeypatch.setattr(Stepper, "__call__", troubled)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 1
    said = "stopped by a signal; the next demo begins anew"
    if trouble == "nan":
        said = "step 1: loss_classifier = nan; no checkpoint was written in"
    assert f"jol demo: {said}" in capsys.readouterr().err


def test_a_nan_that_would_end_the_process_names_step_and_images(
    data: CocoDetection, settings: TrainSettings, tmp_path: Path
) -> None:
    model = loop.make_model(settings, len(data.class_names))

    def fail(*_: object) -> None:
        raise FloatingPointError("layer2.0.conv2: offset_s gave 3 of 9 offsets that are NaN")

    model.register_forward_pre_hook(fail)
    with pytest.raises(errors.TrainingError, match=r"step 1: layer2.* are NaN; image ids \d, \d"):
        loop.train(settings, model, data, data, tmp_path)


def test_a_resumed_run_does_not_read_its_first_weights_again(
    settings: TrainSettings, tmp_path: Path
) -> None:
    gone = replace(settings, preset="paper", backbone_weights=str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match="no such file"):
        loop.make_model(gone, 2)
    model = loop.make_model(gone, 2, resumed=True)
    assert not model.backbone.body.conv1.weight.requires_grad  # frozen as with weights
