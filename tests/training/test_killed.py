"""A run that is killed, stopped or out of disk space resumes with the same result."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child, run_jol

from detectors.data.synthetic import write_scenes
from detectors.training import checkpoints, loop, run_folder
from detectors.utils import files
from detectors.utils.locks import LOCK

STEPS = 5
EPOCH = 2  # 3 images, 2 a step


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run of a few steps, without --out."""
    images, annotations = map(
        str, write_scenes(tmp_path_factory.mktemp("s"), images=3, seed=0, size=64)
    )
    return [
        *("train", "--detector", "faster_rcnn", "--loss", "jol", "--preset", "slim"),
        *("--max-steps", str(STEPS), "--batch-size", "2", "--crop", "48", "--device", "cpu"),
        *("--train-images", images, "--train-annotations", annotations),
        *("--val-images", images, "--val-annotations", annotations),
    ]


@pytest.fixture(scope="module", autouse=True)
def every_step_is_logged() -> Iterator[None]:
    """In this process, which the children are forks of."""
    before, loop.LOG_EVERY = loop.LOG_EVERY, 1
    yield
    loop.LOG_EVERY = before


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happened to, and the seconds it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    child = run_jol([*words, "--out", str(out)], out.parent)
    assert child.end() == 0, child.said
    return out, time.monotonic() - began


def lines_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same(out: Path, whole: Path) -> None:
    """Weights, momentum, log and results, bit for bit."""
    for name in ("last.pt", "best.pt"):
        mine, other = (checkpoints.load(folder / name) for folder in (out, whole))
        assert mine["step"] == other["step"]
        parts = ["model"] + (["optimizer", "scaler"] if name == "last.pt" else [])
        for part in parts:
            assert checkpoints.digest(mine[part]) == checkpoints.digest(other[part]), (name, part)
    assert lines_of(out) == lines_of(whole)
    for name in ("results.json", "per_class.csv"):
        assert (out / name).read_text() == (whole / name).read_text()


def finish(words: list[str], out: Path, whole: Path) -> Child:
    """Resume the run, which ends as the whole one did."""
    child = run_jol([*words, "--out", str(out), "--resume"], out.parent)
    assert child.end() == 0, child.said
    assert_same(out, whole)
    return child


@pytest.mark.slow
def test_killed_at_random_moments(
    words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    """Started with --resume each time, as a scheduler does; the first time there is no run yet."""
    out, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
    print(f"moments of seed {seed}")  # pytest shows it where the test fails
    draw = random.Random(seed)
    killed = 0
    for attempt in range(5):
        child = run_jol([*words, "--out", str(out), "--resume"], tmp_path)
        if attempt == 2:  # however slow the machine is now, one of them has a checkpoint
            child.wait_for((out / "last.pt").exists)
        time.sleep(draw.uniform(0, 0.8 * whole[1]))
        child.signal(signal.SIGKILL)
        status = child.end()
        assert status in (-signal.SIGKILL, 0), child.said
        killed += status != 0
    assert killed
    finish(words, out, whole[0])


def killing(where: str, save: int) -> Callable[[], None]:
    """Let the process kill itself in the middle of its save number `save` (from 1) of last.pt."""

    def arrange() -> None:
        saves = [0]
        write, rename = checkpoints._write, Path.replace

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def written(checkpoint: dict[str, Any], file: Any) -> None:
            saves[0] += "optimizer" in checkpoint
            if where == "half written" and saves[0] == save:
                write(checkpoint, file)
                file.truncate(file.tell() // 2)
                die()
            write(checkpoint, file)

        def renamed(self: Path, target: Path) -> Path:
            moved = rename(self, target)
            if saves[0] == save and (where, Path(target).name) in (
                ("written beside", "last.pt.new"),
                ("old one moved", checkpoints.PREVIOUS),
                ("done", checkpoints.LAST),
            ):
                die()
            return moved

        checkpoints._write = written
        Path.replace = renamed  # type: ignore[method-assign]

    return arrange


@pytest.mark.parametrize(
    ("where", "save"),
    [
        ("half written", 1),
        pytest.param("written beside", 2, marks=pytest.mark.slow),
        ("old one moved", 2),
        pytest.param("done", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_of_a_checkpoint(
    where: str, save: int, words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = run_jol([*words, "--out", str(out)], tmp_path, killing(where, save))
    assert child.end() == -signal.SIGKILL
    found, problems = checkpoints.load_last(out, run_folder.read_config(out / "config.json")[0])
    assert (found["step"] if found else 0) == EPOCH * (save if where == "done" else save - 1)
    assert not problems
    finish(words, out, whole[0])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: signal.Signals, words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = run_jol([*words, "--out", str(out)], tmp_path)
    child.wait_for(lambda: (out / "metrics.jsonl").exists() and '"step": 1' in log(out))
    child.signal(number)
    assert child.end() == 1
    step = checkpoints.load(out / "last.pt")["step"]
    assert 1 <= step < STEPS
    last = child.said.splitlines()[-1]
    assert last.startswith("jol train: step ") and f"stopped by {number.name}" in last
    assert f"of step {step}" in last and "the same command and --resume" in last
    assert "Traceback" not in child.said
    finish(words, out, whole[0])


def test_a_second_process_is_refused_by_name(
    words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = run_jol([*words, "--out", str(out)], tmp_path)
    child.wait_for(lambda: (out / "metrics.jsonl").exists() and '"step": 1' in log(out))
    child.signal(signal.SIGSTOP)  # or it might end meanwhile
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    others = [
        ["train", "--resume", "--out", str(out)],
        ["eval", "--checkpoint", str(whole[0] / "best.pt"), *words[-4:], "--out", str(out)],
    ]
    for other in others:
        second = run_jol(other, tmp_path)
        assert second.end() == 2
        assert f"{out}: process {child.process.pid} on " in second.said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    child.signal(signal.SIGCONT)
    assert child.end() == 0, child.said
    assert_same(out, whole[0])
    assert not (out / LOCK).exists()


def log(out: Path) -> str:
    return (out / "metrics.jsonl").read_text()


def test_workers_leave_signals_to_the_loop(
    words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    """Ctrl-C and torchrun's SIGTERM reach every process of the group, loading ones too."""
    out = tmp_path / "run"
    child = run_jol([*words, "--out", str(out), "--workers", "1"], tmp_path, os.setpgrp)
    child.wait_for(lambda: (out / "metrics.jsonl").exists() and '"step": 1' in log(out))
    assert child.process.pid is not None
    os.killpg(child.process.pid, signal.SIGTERM)
    assert child.end() == 1
    assert "stopped by SIGTERM" in child.said and "DataLoader" not in child.said
    finish(words, out, whole[0])


@pytest.fixture(scope="module")
def killed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, killed after the second."""
    out = tmp_path_factory.mktemp("killed") / "run"
    child = run_jol([*words, "--out", str(out)], out.parent, killing("done", 2))
    assert child.end() == -signal.SIGKILL
    steps = [checkpoints.load(out / n)["step"] for n in ("last.pt", "previous.pt")]
    assert steps == [2 * EPOCH, EPOCH]
    return out


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    """A copy of the run that was killed."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change a byte of a weight, which the file's own structure does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_file(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def older(path: Path) -> None:
    """As of a version that kept less of a run."""
    checkpoint = checkpoints.load(path)
    checkpoints.save(path, {k: v for k, v in checkpoint.items() if k not in ("scaler", "sha256")})


def of_another_run(path: Path) -> None:
    checkpoint = {k: v for k, v in checkpoints.load(path).items() if k != "sha256"}
    settings = checkpoint["settings"] | {"seed": 7}
    checkpoints.save(path, checkpoint | {"settings": settings})


def with_momentum_of_another_shape(path: Path) -> None:
    checkpoint = {k: v for k, v in checkpoints.load(path).items() if k != "sha256"}
    checkpoint["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    checkpoints.save(path, checkpoint)


def with_a_text_for_settings(path: Path) -> None:
    checkpoint = {k: v for k, v in checkpoints.load(path).items() if k != "sha256"}
    checkpoints.save(path, checkpoint | {"settings": "seed 0"})


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (cut, "no checkpoint that can be read"),
        (flip, "damaged"),
        *(
            pytest.param(harm, wanted, marks=pytest.mark.slow)
            for harm, wanted in (
                (other_file, "lacks model"),
                (older, "cannot be resumed from, it lacks scaler"),
                (of_another_run, "of another run: seed was 7, is now 0"),
                (with_momentum_of_another_shape, "the momentum of parameter 0 is [3] of float32,"),
                (with_a_text_for_settings, "its settings are a str, wanted a dict"),
            )
        ),
    ],
)
def test_a_bad_checkpoint_is_named_and_the_one_before_used(
    harm: Callable[[Path], None],
    wanted: str,
    interrupted: Path,
    words: list[str],
    whole: tuple[Path, float],
) -> None:
    harm(interrupted / "last.pt")
    said = finish(words, interrupted, whole[0]).said
    assert f"{interrupted / 'last.pt'}: " in said and wanted in said
    assert "using the previous one" in said and f"resuming after step {EPOCH}" in said


def test_only_bad_checkpoints_are_an_error(interrupted: Path, words: list[str]) -> None:
    for name in ("last.pt", "previous.pt"):
        cut(interrupted / name)
    (interrupted / LOCK).unlink()  # of the process that was killed
    before = {p.name: p.read_bytes() for p in interrupted.iterdir()}
    child = run_jol([*words, "--out", str(interrupted), "--resume"], interrupted.parent)
    assert child.end() == 2
    assert "last.pt" in child.said and "previous.pt" in child.said
    assert {p.name: p.read_bytes() for p in interrupted.iterdir()} == before


def test_a_checkpoint_runs_no_code(interrupted: Path, words: list[str], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    for name in ("last.pt", "previous.pt"):
        torch.save({"model": Bomb(), "optimizer": {}}, interrupted / name)
    child = run_jol([*words, "--out", str(interrupted), "--resume"], tmp_path)
    assert child.end() == 2 and "is no checkpoint that can be read" in child.said
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_loses_no_checkpoint(
    interrupted: Path, words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: what is written stays, more fails."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = {n: (interrupted / n).read_bytes() for n in ("last.pt", "previous.pt", "best.pt")}
    child = run_jol([*words, "--out", str(interrupted), "--resume"], tmp_path, limit)
    assert child.end() == 1
    last = child.said.splitlines()[-1]
    assert f"step {STEPS}: {interrupted / 'last.pt'}" in last and "File too large" in last
    assert f"the last checkpoint, of step {2 * EPOCH}, is in {interrupted}" in last
    for name, content in before.items():
        assert (interrupted / name).read_bytes() == content
    assert not list(interrupted.glob(f"*{files.PART}"))
    finish(words, interrupted, whole[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(
    small_disk: Path, words: list[str], whole: tuple[Path, float], tmp_path: Path
) -> None:
    size = (whole[0] / "last.pt").stat().st_size
    out = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(int(120 * 2**20 - 2.4 * size)))  # a checkpoint, weights, no more
    child = run_jol([*words, "--out", str(out)], tmp_path)
    assert child.end() == 1
    last = child.said.splitlines()[-1]
    assert "cannot be written: No space left on device" in last and str(small_disk) in last
    assert f"the last checkpoint, of step {EPOCH}" in last
    assert checkpoints.load(out / "last.pt")["step"] == EPOCH
    ballast.unlink()
    shutil.copytree(out, tmp_path / "moved")
    finish(words, tmp_path / "moved", whole[0])


def test_what_is_renamed_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut could leave the new name with no content."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(number: int) -> None:
        events.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def renamed(self: Path, target: Path) -> Path:
        events.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    files.replace(tmp_path / "file", lambda file: file.write(b"content"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        files.replace(tmp_path / "pipe", lambda file: file.write(b"content"))
    assert (tmp_path / "pipe").is_fifo()
    assert events == ["sync file.part", "rename file.part", f"sync {tmp_path.name}"]
    assert (tmp_path / "file").read_bytes() == b"content"
