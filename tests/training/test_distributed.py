"""Two processes do what one does: batches, evaluation, files, messages."""

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import Tensor, nn

from detectors import cli, errors
from detectors.commands import demo, train
from detectors.commands.demo import DemoSize
from detectors.data import CocoDetection, DataError, train_batches
from detectors.data.synthetic import write_scenes
from detectors.evaluation.model_evaluation import evaluate_model
from detectors.training import checkpoints, loop, run_folder
from detectors.training.settings import TrainSettings
from detectors.training.step import Stepper
from detectors.utils import locks
from detectors.utils.distributed import World
from detectors.utils.signals import Interrupted


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=5, seed=0, size=64)


@pytest.fixture(scope="module")
def data(scenes: tuple[Path, Path]) -> CocoDetection:
    return CocoDetection(*scenes)


SETTINGS = demo.demo_settings("jol", 0, DemoSize(crop=48, steps=6, batch_size=2))


def world(rank: int) -> World:
    return World(rank, 2, dist.group.WORLD)


def test_ranks_share_each_batch(data: CocoDetection) -> None:
    given: dict[str, Any] = {"batch_size": 4, "crop": 32, "seed": 3, "steps": 3}
    whole = list(train_batches(data, **given))
    parts = [list(train_batches(data, **given, rank=rank, ranks=2)) for rank in (0, 1)]
    for (images, targets), (first, his), (second, hers) in zip(whole, *parts, strict=True):
        assert all(map(torch.equal, images, [*first, *second]))
        assert [t["image_id"] for t in targets] == [t["image_id"] for t in [*his, *hers]]
    with pytest.raises(ValueError, match="batch_size is 4, wanted a multiple of 3"):
        train_batches(data, **given, ranks=3)


class Guess(nn.Module):
    """Finds the objects of an image, some of them shifted or with low scores, as its pixels say."""

    def __init__(self, data: CocoDetection) -> None:
        super().__init__()
        self.known = {float(data[i][0].double().sum()): data[i][1] for i in range(len(data))}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        target = self.known[float((images[0] * 255).round().double().sum())]
        count = len(target["boxes"])
        g = torch.Generator().manual_seed(count)
        noise = 2 * torch.randn(count, 4, generator=g)
        scores = torch.rand(count, generator=g).round(decimals=1)  # with ties
        boxes = torch.cat([target["boxes"] + noise, target["boxes"]])
        labels = torch.cat([target["labels"], target["labels"]])
        return [{"boxes": boxes, "labels": labels, "scores": torch.cat([scores, scores])}]


def test_evaluation_of_two_processes_equals_one(data: CocoDetection) -> None:
    alone = evaluate_model(Guess(data), data, "cpu")
    assert alone is not None and 0.1 < alone.metrics["AP"] < 0.9
    first, second = in_processes(metrics_of_shares, data)
    assert second == {}
    for name, value in alone.metrics.items():
        assert first[name] == value or (math.isnan(first[name]) and math.isnan(value)), name


def metrics_of_shares(rank: int, data: CocoDetection) -> dict[str, float]:
    evaluation = evaluate_model(Guess(data), data, "cpu", world=world(rank))
    return {} if evaluation is None else evaluation.metrics


def test_an_evaluation_is_that_of_what_rank_0_saves(data: CocoDetection) -> None:
    """Though in training each rank's batch norm has kept statistics of its own images."""
    first, second = in_processes(statistics_of_an_evaluation, data)
    assert first == second == [0.0] * 5


def statistics_of_an_evaluation(rank: int, data: CocoDetection) -> list[float]:
    class Normed(Guess):
        def __init__(self, data: CocoDetection) -> None:
            super().__init__(data)
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(rank)
            self.seen: list[float] = []

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            self.seen.append(float(self.norm.running_mean.mean()))
            return super().forward(images)

    model = Normed(data)
    evaluate_model(model, data, "cpu", world=world(rank))
    return (model.seen * 5)[:5]


def test_an_evaluation_that_one_process_is_asked_to_leave(data: CocoDetection) -> None:
    """Both do, so that none waits for the other's detections."""
    assert in_processes(left_by_the_second, data) == [True, True]


def test_an_image_to_evaluate_on_that_one_process_cannot_read(data: CocoDetection) -> None:
    """Both say so: a message of rank 1 alone would be lost."""
    said = in_processes(broken_for_the_second, data)
    assert said[0] == said[1] == "image 2 of rank 1 cannot be decoded"


def broken_for_the_second(rank: int, data: CocoDetection) -> str:
    class Broken(CocoDetection):
        def __getitem__(self, index: int) -> Any:
            if rank == 1:
                raise DataError(f"image {data.image_ids[index]} of rank {rank} cannot be decoded")
            return super().__getitem__(index)

    known = Guess(data)
    data.__class__ = Broken
    try:
        evaluate_model(known, data, "cpu", world=world(rank))
    except DataError as error:
        return str(error)
    return ""


def left_by_the_second(rank: int, data: CocoDetection) -> bool:
    try:
        evaluate_model(Guess(data), data, "cpu", world=world(rank), leaving=lambda: rank == 1)
    except Interrupted:
        return True
    return False


def test_what_all_raise_is_told_before_any_ends() -> None:
    """As torchrun ends the others as soon as one has ended, with a message or without."""
    (text, told, _), (nothing, _, ended) = in_processes(telling)
    assert text == "jol train: step 3: so it is\n" and nothing == "" and told < ended


def telling(rank: int) -> tuple[str, float, float]:
    """What this rank writes, slowly, when it has written it, and when it ends."""
    told = 0.0

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal told
            time.sleep(0.2)
            told = time.monotonic()
            return super().write(text)

    with (
        redirect_stderr(Slow()) as written,
        suppress(errors.Stopped),
        train._reported_before_any_ends(world(rank)),
    ):
        raise errors.Stopped("step 3: so it is")
    return written.getvalue(), told, time.monotonic()


@pytest.mark.parametrize(("rank", "local", "says"), [("4", "0", True), ("5", "1", False)])
def test_each_machine_says_what_is_wrong_with_its_data(
    rank: str,
    local: str,
    says: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", rank), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, value)
    words = "train --detector fcos --loss jol --out none --train-images no --train-annotations no"
    assert cli.main([*words.split(), "--val-images", "no", "--val-annotations", "no"]) == 2
    assert bool(capsys.readouterr().err) == says


def test_all_ranks_are_refused_where_another_process_writes(tmp_path: Path) -> None:
    with locks.claimed(tmp_path):
        first, second = in_processes(refused, tmp_path)
    assert first == second and f"process {os.getpid()} on" in first
    assert in_processes(refused, tmp_path) == ["", ""]


def refused(rank: int, folder: Path) -> str:
    try:
        with world(rank).claimed(folder):
            dist.barrier()
    except errors.RunError as error:
        return str(error)
    return ""


def trained(
    rank: int, settings: TrainSettings, data: CocoDetection, out: Path, poisoned: tuple[int, int]
) -> dict[str, Any]:
    """Train as rank `rank` of two; (rank, step) gets images of NaN."""
    forward, count = Stepper._forward, [0]

    def poison(self: Stepper, images: list[Tensor], targets: list[Any]) -> Any:
        count[0] += 1
        if (rank, count[0]) == poisoned:
            images = [image * math.nan for image in images]
        return forward(self, images, targets)

    Stepper._forward = poison  # type: ignore[method-assign]
    model = loop.make_model(settings, len(data.class_names), world=world(rank))
    if rank == 0:
        run_folder.start(out, settings, {})
    dist.barrier()
    try:
        result = loop.train(settings, model, data, data, out, world=world(rank))
    except errors.TrainingError as error:
        return {"error": str(error)}
    return {"weights": dict(model.state_dict()), "leads": result is not None}


def test_two_processes_train_as_one(data: CocoDetection, tmp_path: Path) -> None:
    """In float32 and GroupNorm: up to rounding, which few steps do not blow up.

    An evaluation in between, after step 3 of 6, leaves all models in training.
    """
    settings = replace(SETTINGS, eval_every=1)
    (tmp_path / "one").mkdir()
    model = loop.make_model(settings, len(data.class_names))
    run_folder.start(tmp_path / "one", settings, {})
    loop.train(settings, model, data, data, tmp_path / "one")
    first, second = in_processes(trained, settings, data, tmp_path / "two", (-1, -1))
    assert (first["leads"], second["leads"]) == (True, False)
    for name, value in model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-3, atol=1e-4)
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two] == [3, 6, 6]
    for name in ("loss_classifier", "loss_box_reg", "loss_objectness", "total", "negative_weight"):
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-3), name
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["settings"] == dataclasses.asdict(settings)  # nothing of the number of processes
    assert {p.name for p in (tmp_path / "one").iterdir()} == {
        p.name for p in (tmp_path / "two").iterdir()
    }


def test_one_ranks_bad_step_is_everybodys(data: CocoDetection, tmp_path: Path) -> None:
    ends = in_processes(trained, SETTINGS, data, tmp_path / "stops", (1, 2))
    assert ends[0] == ends[1]
    healthy, bad = ends[0]["error"].split("; rank 1: ")
    # The ranks share the weight of the negatives; what the proposals cost is a rank's own.
    assert healthy.startswith("step 2: rank 0: ") and "negative_weight = nan" in healthy
    assert "loss_objectness" not in healthy and "loss_objectness = nan" in bad
    assert "image ids" in bad
    forgiving = replace(SETTINGS, max_bad_steps=1)
    first, second = in_processes(trained, forgiving, data, tmp_path / "goes", (1, 2))
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]) and value.isfinite().all()


def while_the_other_ends(
    rank: int, settings: TrainSettings, data: CocoDetection, out: Path, where: str
) -> str:
    """What rank 0 says when rank 1 ends in its third step, before the forward or the backward."""
    model = loop.make_model(settings, len(data.class_names), world=world(rank))
    forward, count = Stepper._forward, [0]

    def end(self: Stepper, images: list[Tensor], targets: list[Any]) -> Any:
        count[0] += 1
        if count[0] < 3:
            return forward(self, images, targets)
        losses = forward(self, images, targets) if where == "backward" else None
        raise ZeroDivisionError(losses)

    if rank == 1:
        Stepper._forward = end  # type: ignore[method-assign]
    else:
        run_folder.start(out, settings, {})
    dist.barrier()
    try:
        loop.train(settings, model, data, data, out, world=world(rank))
    except ZeroDivisionError:
        return "ended"
    except errors.TrainingError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rank_that_ends_leaves_no_riddle(where: str, data: CocoDetection, tmp_path: Path) -> None:
    said, end = in_processes(while_the_other_ends, SETTINGS, data, tmp_path / "run", where)
    kept = f"no checkpoint was written in {tmp_path / 'run'} before"
    assert end == "ended"
    assert said == f"after step 2: rank 0: another rank has ended or cannot be reached; {kept}"


def with_a_broken_image(
    rank: int, settings: TrainSettings, scenes: tuple[Path, Path], folder: Path
) -> dict[str, Any]:
    """Rank 1 alone cannot read the second image."""
    images = folder / str(rank)
    images.mkdir(parents=True)
    for image in scenes[0].iterdir():
        (images / image.name).write_bytes(image.read_bytes())
    broken = CocoDetection(images, scenes[1])
    if rank == 1:
        bad = images / broken.ground_truth["images"][1]["file_name"]
        bad.write_bytes(bad.read_bytes()[:500])
    whole = CocoDetection(*scenes)
    model = loop.make_model(settings, len(whole.class_names), world=world(rank))
    out = folder / "run"
    if rank == 0:
        run_folder.start(out, settings, {})
    dist.barrier()
    loop.train(settings, model, broken, whole, out, world=world(rank))
    return dict(model.state_dict())


def test_an_image_that_one_rank_cannot_read(
    scenes: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, max_bad_steps=3)
    first, second = in_processes(with_a_broken_image, settings, scenes, tmp_path / "f")
    assert all(torch.equal(first[name], second[name]) for name in first)
    said = capfd.readouterr().err
    assert "rank 1: " in said and "cannot be decoded" in said and "step skipped" in said


def torchrun(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command of docs/training.md, with two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node", "2", "-m", "detectors", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_torchrun_stopped_and_resumed(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    """Rank 0 alone talks; SIGTERM to torchrun ends the step and saves; --resume goes on."""
    images, annotations = map(str, scenes)
    words = [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "slim"),
        *("--max-steps", "40", "--batch-size", "2", "--crop", "48", "--device", "cpu"),
        *("--eval-every", "0", "--train-images", images, "--train-annotations", annotations),
        *("--val-images", images, "--val-annotations", annotations, "--out", "run", "--resume"),
    ]
    run = tmp_path / "run"
    child = torchrun(words, tmp_path)
    until = time.monotonic() + 120
    while not (run / "last.pt").exists():
        assert child.poll() is None and time.monotonic() < until, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode != 0
    step = checkpoints.load(run / "last.pt")["step"]
    (line,) = [line for line in said.splitlines() if line.startswith("jol train: step")]
    assert "FutureWarning" not in said
    assert 3 <= step < 40 and f"step {step} of 40: stopped by SIGTERM" in line
    child = torchrun(words, tmp_path)
    printed, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert f"resuming after step {step}" in said
    assert printed.count("results in run") == 1 and said.count("step 40: AP") == 1
    assert checkpoints.load(run / "last.pt")["step"] == 40
    assert "AP" in json.loads((run / "results.json").read_text())


@pytest.mark.slow
def test_torchrun_killed_and_resumed_ends_with_the_same_bits(
    scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    """With batch norm that learns, loading processes and evaluations in between."""
    images, annotations = map(str, scenes)
    words = [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "torchvision"),
        *("--backbone", "resnet18", "--backbone-weights", "none", "--image-size", "64"),
        *("--max-steps", "9", "--batch-size", "2", "--workers", "1", "--device", "cpu"),
        *("--train-images", images, "--train-annotations", annotations, "--val-images", images),
        *("--val-annotations", annotations, "--resume", "--out"),
    ]
    child = torchrun([*words, "whole"], tmp_path)
    assert child.wait(300) == 0, child.communicate()
    child = torchrun([*words, "killed"], tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / "best.pt").exists():
        assert child.poll() is None and time.monotonic() < until, child.communicate()
        time.sleep(0.05)
    started = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    groups = {os.getpgid(int(process)) for process in started}  # torchrun gives ranks their own
    assert len(started) >= 2 and os.getpgid(0) not in groups
    for group in {child.pid, *groups}:
        os.killpg(group, signal.SIGKILL)
    child.communicate()
    child = torchrun([*words, "killed"], tmp_path)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0 and "resuming after step" in said, said
    ends = [checkpoints.load(tmp_path / name / "last.pt") for name in ("whole", "killed")]
    assert any(name.endswith("running_mean") for name in ends[0]["model"])
    for part in ("model", "optimizer"):
        first, second = (checkpoints.digest(end[part]) for end in ends)
        assert first == second, part
