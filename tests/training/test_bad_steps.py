"""What is wrong with a step is named, and the run stops or skips the step, as its settings say."""

import errno
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import errors
from detectors.commands import demo
from detectors.commands.demo import DemoSize
from detectors.data import CocoDetection, train_batches
from detectors.data.synthetic import write_scenes
from detectors.training import checkpoints, loop, run_folder
from detectors.training.batch_feed import feed
from detectors.training.settings import TrainSettings
from detectors.training.step import Stepper

STEPS = 5


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=5, seed=0, size=64)


@pytest.fixture
def data(scenes: tuple[Path, Path]) -> CocoDetection:
    return CocoDetection(*scenes)


@pytest.fixture
def settings() -> TrainSettings:
    return demo.demo_settings("jol", 0, DemoSize(crop=48, steps=STEPS, batch_size=2))


def run(
    settings: TrainSettings, data: CocoDetection, out: Path, val: CocoDetection | None = None
) -> dict[str, Tensor]:
    """Train and return the final weights."""
    model = loop.make_model(settings, len(data.class_names))
    run_folder.start(out, settings, {})
    loop.train(settings, model, data, val or data, out)
    return dict(model.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


def poison(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int]) -> None:
    """Images that are NaN in these steps, as a broken decoder or a bad memory gives them."""
    forward, count = Stepper._forward, [0]

    def poisoned(self: Stepper, images: list[Tensor], targets: list[dict[str, Any]]) -> Any:
        count[0] += 1
        if count[0] in steps:
            images = [image * math.nan for image in images]
        return forward(self, images, targets)

    monkeypatch.setattr(Stepper, "_forward", poisoned)


def test_a_nan_stops_and_names_what_there_is(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [4])
    with pytest.raises(errors.TrainingError) as caught:
        run(settings, data, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("step 4: ") and "loss_classifier = nan" in message
    assert "image ids" in message
    assert message.endswith(f"the last checkpoint, of step 3, is in {tmp_path / 'run'}")


def test_a_bad_step_is_left_out_and_changes_nothing(
    settings: TrainSettings,
    data: CocoDetection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if the step's update had not been: weights and momentum stay."""
    settings = replace(settings, max_bad_steps=1)
    kept: list[dict[str, Tensor]] = []
    call = Stepper.__call__

    def noted(self: Stepper, *given: Any) -> Any:
        outcome = call(self, *given)
        state = self.optimizer.state_dict()["state"]
        momentum = {f"m{k}": v["momentum_buffer"].clone() for k, v in state.items()}
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        kept.append(weights | momentum)
        return outcome

    monkeypatch.setattr(Stepper, "__call__", noted)
    poison(monkeypatch, [2, 4])
    run(settings, data, tmp_path / "run")
    assert equal(kept[1], kept[0]) and equal(kept[3], kept[2])
    assert not equal(kept[2], kept[1]) and not equal(kept[4], kept[3])
    said = capsys.readouterr().err
    assert "step 2: " in said and said.count("step skipped, 1 of 1 in a row") == 2
    means = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "null" not in means.splitlines()[0]  # the bad step is not in the running means


@pytest.mark.parametrize("fails", [False, True])
def test_a_bad_step_leaves_batch_norms_statistics_alone(
    fails: bool, settings: TrainSettings, data: CocoDetection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pretrained weights preset torchvision learns them: one NaN would never leave."""
    trained = {"preset": "torchvision", "backbone": "resnet18", "image_size": 48}
    settings = replace(settings, **trained)
    stepper = Stepper(loop.make_model(settings, len(data.class_names)), settings)
    batch = next(train_batches(data, batch_size=2, crop=48, seed=0, steps=1))
    before = {k: v.clone() for k, v in stepper.model.state_dict().items()}
    poison(monkeypatch, [1])
    if fails:
        poisoned = Stepper._forward

        def failing(self: Stepper, *given: Any) -> Any:
            poisoned(self, *given)
            raise FloatingPointError("not a number")

        monkeypatch.setattr(Stepper, "_forward", failing)
    assert stepper(batch, 1, 0.1).problem
    after = stepper.model.state_dict()
    assert any(k.endswith("running_mean") for k in after) and equal(before, after)


def test_too_many_in_a_row_stop(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [2, 3])
    with pytest.raises(errors.TrainingError, match="step 3: "):
        run(replace(settings, max_bad_steps=1), data, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_open(
    workers: int,
    settings: TrainSettings,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for image in scenes[0].iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes())
    broken = CocoDetection(tmp_path, scenes[1])
    bad = tmp_path / broken.ground_truth["images"][2]["file_name"]
    bad.write_bytes(bad.read_bytes()[:500])
    settings = replace(settings, workers=workers)
    with pytest.raises(errors.TrainingError) as caught:
        run(settings, broken, tmp_path / "stops", CocoDetection(*scenes))
    assert str(caught.value).startswith("step ") and f"{bad} cannot be decoded" in str(caught.value)
    run(replace(settings, max_bad_steps=2), broken, tmp_path / "goes", CocoDetection(*scenes))
    said = capsys.readouterr().err
    assert said.count("step skipped") == 2  # 10 samples of 5 images
    assert checkpoints.load(tmp_path / "goes" / "last.pt")["step"] == STEPS


def test_an_image_to_evaluate_on_that_does_not_open(
    settings: TrainSettings, data: CocoDetection, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    for image in scenes[0].iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes())
    val = CocoDetection(tmp_path, scenes[1])
    bad = tmp_path / val.ground_truth["images"][2]["file_name"]
    bad.write_bytes(bad.read_bytes()[:500])
    settings, out = replace(settings, eval_every=1), tmp_path / "run"
    with pytest.raises(errors.TrainingError) as caught:
        run(settings, data, out, val)
    message = str(caught.value)
    assert message.startswith("step 3: its evaluation: ") and f"{bad} cannot be decoded" in message
    assert message.endswith(f"the last checkpoint, of step 3, is in {out}")


def test_a_bad_step_that_is_taken_again_leaves_the_scale_alone(
    settings: TrainSettings, data: CocoDetection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a run is stopped in."""
    settings = replace(settings, amp="fp16")
    stepper = Stepper(loop.make_model(settings, len(data.class_names)), settings)
    batch = next(train_batches(data, batch_size=1, crop=32, seed=0, steps=1))
    poison(monkeypatch, [1, 2])
    stepper.scaler.scale(torch.zeros(()))  # makes the scale, which is lazy
    before = stepper.state()["scaler"]
    assert stepper(batch, 1, 0.1, True).problem and stepper.state()["scaler"] == before
    stepper.scaler._per_optimizer_states.clear()
    assert stepper(batch, 1, 0.1, False).problem and stepper.state()["scaler"] != before


class Deadly(CocoDetection):
    """Kills the loading process that reads an image while one of `lives` is left to take."""

    lives: Path

    def __getitem__(self, index: int) -> Any:
        left = sorted(self.lives.iterdir())
        if index == 1 and torch.utils.data.get_worker_info() and left:
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def deadly(scenes: tuple[Path, Path], folder: Path, lives: int) -> Deadly:
    folder.mkdir()
    for number in range(lives):
        (folder / str(number)).touch()
    data = Deadly(*scenes)
    data.lives = folder
    return data


def test_a_loading_process_that_dies_is_started_again_and_nothing_is_lost(
    settings: TrainSettings,
    data: CocoDetection,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = replace(settings, workers=1, max_bad_steps=1)
    undisturbed = run(settings, data, tmp_path / "whole")
    disturbed = run(settings, deadly(scenes, tmp_path / "lives", 1), tmp_path / "run", data)
    assert equal(undisturbed, disturbed)
    said = capsys.readouterr().err
    assert "DataLoader worker" in said and "loading processes started again" in said


def test_loading_processes_that_die_too_often_end_the_run(
    settings: TrainSettings, data: CocoDetection, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(errors.TrainingError, match=r"step \d: DataLoader worker.*; no checkpoint"):
        run(replace(settings, workers=1), deadly(scenes, tmp_path / "l", 1), tmp_path / "r", data)


class Stuck(CocoDetection):
    """As on a disk that does not answer; if it `stops`, SIGTERM comes to `main` meanwhile."""

    stops: bool
    main = os.getpid()

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            if self.stops:
                os.kill(self.main, signal.SIGTERM)
            while True:
                time.sleep(60)
        return super().__getitem__(index)


READ = "not read in 3 seconds; wanted images on a disk that answers; the last checkpoint"


@pytest.mark.parametrize(
    ("stuck_in", "workers", "said"),
    [
        ("training", 1, r"step \d: no batch came from 1 loading processes in 3 sec"),
        ("training", 0, r"step \d: the next image was not read in 3 seconds; wanted images on a d"),
        ("evaluation", 0, rf"step 5: its evaluation: .*\.json: image \d was {READ}"),
    ],
    ids=["a worker", "the run", "evaluation"],
)
@pytest.mark.parametrize("stops", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_does_not_answer(
    stops: bool,
    stuck_in: str,
    workers: int,
    said: str,
    settings: TrainSettings,
    data: CocoDetection,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends the run, however many bad steps are allowed; a signal does while it is waited for."""
    monkeypatch.setattr("detectors.data.loading.WAIT", 60 if stops else 3)
    settings = replace(settings, workers=workers, max_bad_steps=9)
    stuck = Stuck(*scenes)
    stuck.stops = stops
    wanted: tuple[type[Exception], str] = (errors.TrainingError, said)
    if stops:
        where = r"step \d of 5:" if stuck_in == "training" else "step 5: its evaluation was"
        wanted = errors.Stopped, rf"{where} stopped by SIGTERM; the last checkpoint, of step \d"
    both = (stuck, data) if stuck_in == "training" else (data, stuck)
    began = time.monotonic()
    with pytest.raises(wanted[0], match=wanted[1]):
        run(settings, both[0], tmp_path / "run", both[1])
    assert time.monotonic() - began < 40


class Faulty(CocoDetection):
    """Fails as a bug does, not as an image."""

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("a bug")


def test_an_error_of_ours_in_a_loading_process_is_not_taken_for_its_death(
    settings: TrainSettings, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="a bug") as caught:
        run(replace(settings, workers=1, max_bad_steps=9), Faulty(*scenes), tmp_path / "run")
    assert not isinstance(caught.value, errors.TrainingError)


def test_only_what_cannot_be_written_is_called_so(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(Stepper, "__call__", out_of_memory)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        run(settings, data, tmp_path / "run")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4.47 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_said_in_a_line(
    error: Exception,
    settings: TrainSettings,
    data: CocoDetection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call: Callable[..., Any] = Stepper.__call__

    def out_of_memory(self: Stepper, batch: Any, step: int, *given: Any) -> Any:
        if step == 4:
            raise error
        return call(self, batch, step, *given)

    monkeypatch.setattr(Stepper, "__call__", out_of_memory)
    with pytest.raises(errors.TrainingError) as caught:
        run(settings, data, tmp_path / "run")
    assert str(caught.value) == (
        "after step 3: out of memory; wanted a smaller --batch-size, --crop or --image-size; "
        f"the last checkpoint, of step 3, is in {tmp_path / 'run'}"
    )


def test_fp16_scales_down_instead_of_stopping(
    settings: TrainSettings, data: CocoDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient beyond half precision is the scale's fault: that step is no bad one."""
    settings = replace(settings, amp="fp16", steps=2, crop=32)  # float16 is slow on a CPU
    val = CocoDetection(*write_scenes(tmp_path / "val", images=1, seed=0, size=48))
    scales: list[float] = []
    call: Callable[..., Any] = Stepper.__call__

    def noted(self: Stepper, *given: Any) -> Any:
        if not scales:
            self.scaler.scale(torch.zeros(()))  # makes the scale, which is lazy
            self.scaler._scale.fill_(2.0**40)  # type: ignore[union-attr]
        outcome = call(self, *given)
        scales.append(self.scaler.get_scale())
        return outcome

    monkeypatch.setattr(Stepper, "__call__", noted)
    run(settings, data, tmp_path / "run", val)
    assert scales[0] == 2.0**39 and scales == sorted(scales, reverse=True)
    state = checkpoints.load(tmp_path / "run" / "last.pt")["scaler"]
    assert state["scale"] == scales[-1]
    assert "null" not in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]


HALF_HANDED_OVER = [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "gone")]


@pytest.mark.parametrize("error", HALF_HANDED_OVER, ids=lambda error: type(error).__name__)
def test_a_loading_process_that_dies_while_it_hands_over_is_dead(error: Exception) -> None:
    """Then no message of torch's comes, but what its connection makes of that."""
    asked, notes = [], []

    def load(step: int) -> Any:
        asked.append(step)
        yield [], [step]
        if len(asked) == 1:
            raise error
        yield [], [step + 1]

    def taken(restarts: int, leaving: bool) -> list[Any]:
        asked.clear()
        return list(feed(load, 0, 3, restarts, notes.append, lambda: leaving))

    assert taken(1, False) == [([], [0]), ([], [1]), ([], [2])]
    assert notes == ["step 2: DataLoader worker died; loading processes started again"]
    assert taken(0, True) == [([], [0]), "DataLoader worker died"]
    with pytest.raises(errors.TrainingError, match="step 2: DataLoader worker died"):
        taken(0, False)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "gone", "a.jpg"),
        EOFError("Caught EOFError in DataLoader worker process 0."),
        OSError(24, "too many open files"),
    ],
)
def test_other_errors_of_loading_are_no_death(error: Exception) -> None:
    def load(step: int) -> Any:
        raise error
        yield

    with pytest.raises(type(error)):
        list(feed(load, 0, 3, 5, print, lambda: False))
