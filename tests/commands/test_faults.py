"""A machine that gives a command less than it asks for: a line, never a traceback or a wait."""

import json
import os
import resource
import shutil
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from children import run_jol
from PIL import Image
from untrained import CATEGORY_IDS, CLASSES, write_checkpoint

from detectors.cli import main
from detectors.data import loading
from detectors.data.synthetic import write_scenes

DATA = ("--val-images", "scenes/images", "--val-annotations", "boxes.json")
COMMANDS = {
    "predict": ("predict", "scenes/images", "--checkpoint", "base/best.pt", "--out", "out"),
    "eval": ("eval", *DATA, "--checkpoint", "base/best.pt", "--out", "out"),
    "export": ("export", "--checkpoint", "base/best.pt", "--out", "out.pt2"),
    "figure 1": ("figure", "1", *DATA, "--base", "base", "--out", "out.png"),
    "figure 4": ("figure", "4", *DATA, "--base", "base", "--out", "out.png"),
    "figure 7": ("figure", "7", *DATA, "--base", "base", "--out", "out.png"),
    "train": (
        *("train", "--train-images", "scenes/images", "--train-annotations", "boxes.json", *DATA),
        *("--detector", "fcos", "--loss", "base", "--preset", "slim", "--max-steps", "1"),
        *("--device", "cpu", "--out", "out"),
    ),
    "data check": ("data", "check", "--images", "scenes/images", "--annotations", "boxes.json"),
}
ROOM = 3000
"""Bytes that a file may have on a full disk."""
HELPS = {
    "predict": "a smaller --batch-size or --detections, smaller images, or, on a GPU, --device cpu",
    "eval": "a smaller --detections, smaller images, or, on a GPU, --device cpu",
    "export": "a smaller --image-size",
    **dict.fromkeys(
        ("figure 1", "figure 4", "figure 7"), "fewer --images, smaller ones, or, on a GPU, --device"
    ),
    "train": "a smaller --batch-size, --crop or --image-size",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, and a run with a checkpoint of their classes."""
    folder = tmp_path_factory.mktemp("made")
    _, file = write_scenes(folder / "scenes", images=2, seed=0, size=96)
    content = json.loads(file.read_text())
    content["categories"] = [
        {"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)
    ]
    for record in content["annotations"]:
        record["category_id"] = CATEGORY_IDS[0]
    (folder / "boxes.json").write_text(json.dumps(content))
    (folder / "base").mkdir()
    write_checkpoint(folder / "base" / "best.pt", "fcos")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made`, which commands run in."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def what_is_there(work: Path) -> set[str]:
    return {str(path.relative_to(work)) for path in work.rglob("*")}


def test_a_run_from_another_machine(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose data lie elsewhere: what to give is said; a figure needs no training data."""
    assert main(COMMANDS["train"]) == 0
    (work / "scenes").rename(work / "there")
    config = Path("out/config.json")
    for words in (
        ("train", "--out", "out", "--resume"),
        ("train", "--out", "new", "--config", str(config)),
        ("figure", "4", "--base", "out", "--out", "out.png"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{config}: the run's data are no longer at {work / 'scenes' / 'images'}" in line
        wanted = "--val-images --val-annotations"
        assert line.endswith(f"name them by {wanted}") == (words[0] == "figure")
        assert line.endswith(f"--train-images --train-annotations {wanted}") == (
            words[0] == "train"
        )
    content = json.loads(config.read_text())
    content["data"]["val_images"] = str(work / "there" / "images")
    config.write_text(json.dumps(content))
    assert main(("figure", "4", "--base", "out", "--out", "out.png", "--device", "cpu")) == 0


NO_MEMORY = {
    "MemoryError": MemoryError(),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte"),
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "C++": RuntimeError("std::bad_alloc"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "system": OSError(12, "Cannot allocate memory"),
    "library": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [*((name, "CPU") for name in HELPS), *(("eval", kind) for kind in NO_MEMORY if kind != "CPU")],
)
def test_too_little_memory(
    command: str,
    kind: str,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the model and in reading the checkpoint, which is not called a bad one for it."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise NO_MEMORY[kind]

    before = what_is_there(work)
    for place in ("torch.nn.Conv2d.forward", "torch.load"):
        if (command, place) == ("train", "torch.load"):
            continue
        with monkeypatch.context() as planted:
            planted.setattr(place, fail)
            assert main(COMMANDS[command]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"jol {command.split()[0]}: ")
        assert f"out of memory; wanted {HELPS[command]}" in error
        assert len(error) < 250
    if command != "train":
        assert what_is_there(work) == before


@pytest.mark.parametrize(
    "command",
    ["predict", "eval", pytest.param("export", marks=pytest.mark.slow), "figure 3", "figure 4"],
)
def test_a_full_disk(command: str, work: Path) -> None:
    """A limit on the size of files stands for it: one line, and no half a file."""
    before = what_is_there(work)

    def limit() -> None:
        os.chdir(work)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

    drawing = ("figure", "3", "--out", "out.svg")
    child = run_jol(COMMANDS.get(command, drawing), work.parent, limit)
    assert child.end() == 1
    (line,) = child.said.splitlines()
    assert line.startswith(f"jol {command.split()[0]}: out")
    assert line.endswith(": File too large") and "." in line.split(":")[1]
    for name in what_is_there(work) - before:  # a class's numbers, say
        assert not name.endswith((".part", ".lock"))
        assert (work / name).is_dir() or 0 < (work / name).stat().st_size < ROOM


READ = ["predict", "eval", "figure 1", "figure 4", "figure 7", "data check"]


@pytest.mark.parametrize("command", READ)
def test_a_disk_that_does_not_answer(
    command: str,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command that reads images waits for a time, not for ever."""
    before, there = what_is_there(work), threading.Event()
    monkeypatch.setattr(Image, "open", lambda *_: there.wait(60))
    monkeypatch.setattr(loading, "WAIT", 3)
    monkeypatch.setattr(loading, "wait", lambda answers, seconds: wait(answers, seconds / 20))
    began = time.monotonic()
    try:
        assert main(COMMANDS[command]) in (1, 2)
    finally:
        there.set()
    assert time.monotonic() - began < 20
    error = capsys.readouterr().err
    assert "was not read in 3 seconds; wanted images on a disk that answers" in error
    assert "Traceback" not in error and what_is_there(work) == before
