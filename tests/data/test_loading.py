"""Loading processes that are stuck, die, or lack memory and files: an error, never a wait."""

import errno
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from detectors.data import loading, train_batches
from detectors.data.batches import Batch
from detectors.data.coco import read_coco
from detectors.data.images import decode
from detectors.errors import DataError, LoadingError, TrainingError
from detectors.training.batch_feed import feed
from detectors.utils.signals import Stopping


class Made:
    """Eight images; `trouble` is called in the process that loads one."""

    def __init__(self, trouble: Callable[[int], object] = lambda index: None) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        self.trouble(index)
        image = torch.full((3, 40, 50), index, dtype=torch.uint8)
        boxes = torch.tensor([[1.0, 2, 3, 4 + index]]).expand(index, 4)
        labels = torch.arange(index)
        return image, {"boxes": boxes.clone(), "labels": labels, "image_id": index}


def batches(data: Made, workers: int = 1, **given: Any) -> Iterator[Batch]:
    return train_batches(data, batch_size=2, crop=None, seed=0, steps=12, workers=workers, **given)


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_not_collected_again() -> Iterator[None]:
    """After many other tests that takes seconds, in each test and in each process it starts."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    gc.collect()  # errors of other tests may hold theirs
    yield
    assert multiprocessing.active_children() == []


def lowest() -> int:
    """The lowest number that a file opened now would get."""
    number = os.dup(0)
    os.close(number)
    return number


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    """Let no file have this number or a higher one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_handler_of_ended_processes_stays_the_callers() -> None:
    def mine(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGCHLD, mine)
    try:
        assert len(list(batches(Made()))) == 12
        assert signal.getsignal(signal.SIGCHLD) is mine
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_handed_over_is_what_was_loaded(workers: int) -> None:
    found = list(batches(Made(), workers))
    for (images, targets), (others, wanted) in zip(found, batches(Made(), 0), strict=True):
        for image, other, target, want in zip(images, others, targets, wanted, strict=True):
            assert torch.equal(image, other) and target["image_id"] == want["image_id"]
            for name in ("boxes", "labels"):
                assert torch.equal(target[name], want[name])
                assert target[name].dtype == want[name].dtype
                target[name].add_(1)  # memory of its own, which can be written


def test_more_processes_than_cores_are_no_warning_of_torchs(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    next(batches(Made(), workers=2))
    given = [warning for warning in recwarn if warning.category is not DeprecationWarning]
    assert [str(warning.message) for warning in given] == []  # Python 3.12's is of fork


def test_a_system_without_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert len(list(batches(Made()))) == 12


def wait_for_ever(index: int) -> None:
    while index == 3:
        time.sleep(60)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_stuck_ends_in_an_error(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second try: it would wait as long. The processes ignore SIGTERM, as in a run."""
    monkeypatch.setattr(loading, "WAIT", 2)
    notes: list[str] = []
    wanted = "no batch came from 2 loading" if workers else "the next image was not read in 2 sec"
    began = time.monotonic()
    with Stopping(), pytest.raises(TrainingError, match=rf"step \d: {wanted}"):
        list(feed(lambda _: batches(Made(wait_for_ever), workers), 0, 12, 9, notes.append, bool))
    assert time.monotonic() - began < 10 and not notes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_is_obeyed_while_an_image_is_missing(workers: int) -> None:
    main = os.getpid()

    def stop(index: int) -> None:
        if index == 3:
            os.kill(main, signal.SIGTERM)
        wait_for_ever(index)

    began = time.monotonic()
    with Stopping() as stopping:

        def asked() -> str:
            return stopping.asked

        def load(step: int) -> Iterator[Batch]:
            return batches(Made(stop), workers, leaving=asked)

        given = list(feed(load, 0, 12, 0, print, asked))
    assert given[-1] == "no batch came in time" and asked() == "SIGTERM"
    assert time.monotonic() - began < 10


def test_a_signal_is_obeyed_between_the_images_of_a_batch() -> None:
    seen: list[int] = []
    large = train_batches(
        Made(seen.append),
        **dict(batch_size=8, crop=None, seed=0, steps=12, leaving=lambda: len(seen) == 3),
    )
    assert list(feed(lambda _: large, 0, 12, 0, print, lambda: True)) == ["no batch came in time"]
    assert len(seen) == 3


def test_what_goes_wrong_while_an_image_is_read_is_raised() -> None:
    def fail(index: int) -> None:
        raise DataError(f"image {index} is torn") if index == 3 else MemoryError

    with pytest.raises(MemoryError):
        list(batches(Made(fail), workers=0))


def test_too_few_files_to_start_with() -> None:
    """Wherever in the start they run out; pytest fails a test that leaves errors in __del__."""
    refused = 0
    for limit in range(lowest(), lowest() + 40, 4):
        try:
            with open_files(limit):
                assert len(list(batches(Made(), 2))) == 12
        except LoadingError as error:
            refused += 1
            assert "Too many open files; a process may have" in str(error)
            assert "(ulimit -n); use fewer --workers" in str(error)
    assert refused >= 2


def test_too_few_files_to_receive_a_batch() -> None:
    given = batches(Made())
    next(given)
    with open_files(lowest()), pytest.raises(LoadingError, match=r"be received: .*ulimit -n"):
        list(given)


def test_too_few_files_to_send_a_batch() -> None:
    def limit(index: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    with pytest.raises(LoadingError, match=r"handed over: Too many open files; .*ulimit -n"):
        list(batches(Made(limit)))


def test_no_room_for_a_batch() -> None:
    """A limit on the size of files stands for memory."""

    def limit(index: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    with pytest.raises(LoadingError, match="a batch of 0 MiB cannot be handed over: File too l"):
        list(batches(Made(limit)))


def test_no_room_for_semaphores_names_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loading, "DataLoader", full)
    with pytest.raises(LoadingError) as caught:
        list(batches(Made()))
    said = str(caught.value)
    assert "cannot be started: No space left on device; in /dev/shm " in said
    assert "MiB are free (docker run --shm-size); use fewer --workers, or 0" in said


def test_a_process_that_is_killed_is_missed_at_once() -> None:
    def die(index: int) -> None:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches(Made(die), 2))


SMALL = """
import torch
from detectors.data import train_batches
class Large:
    def __len__(self): return 8
    def __getitem__(self, index):
        return torch.zeros(3, 1500, 2000, dtype=torch.uint8), {"image_id": index,
            "boxes": torch.zeros(1, 4), "labels": torch.zeros(1).long()}
steps = train_batches(Large(), batch_size=4, crop=2000, seed=0, steps=4, workers=2)
print(sum(len(images) for images, _ in steps))
"""


@pytest.mark.slow
def test_a_small_shared_memory_suffices(tmp_path: Path) -> None:
    """Docker's 64 MB, of which a batch with torch's own way of handing over takes 48."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.call(["unshare", "-m", "sh", "-c", mount], stderr=subprocess.DEVNULL):
        pytest.skip("needs the right to mount a tmpfs")
    command = ["unshare", "-m", "sh", "-c", f'{mount}; exec "$0" -c "$1"', sys.executable, SMALL]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout == "16\n"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    """An image, a COCO file."""
    file = tmp_path / "endless"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"here: .*cannot be decoded: .*is no regular file"):
        decode(file, (4, 4), "here")
    with pytest.raises(DataError, match="cannot be read: is no regular file"):
        read_coco(file, tmp_path)
