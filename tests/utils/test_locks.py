"""A folder has one writer at a time; a killed one leaves nothing locked."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from detectors.errors import RunError
from detectors.utils import locks
from detectors.utils.locks import LOCK, claimed, writer

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, ready: Any, then: Callable[[], object]) -> None:
    with claimed(folder):
        then()
        ready.set()
        time.sleep(60)


@contextmanager
def held(folder: Path, then: Callable[[], object] = lambda: None) -> Iterator[BaseProcess]:
    """A process that writes into the folder."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(folder, ready, then))
    process.start()
    try:
        assert ready.wait(30)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        who = f"process {process.pid} on "
        assert writer(tmp_path).startswith(who)
        with pytest.raises(RunError) as caught, claimed(tmp_path):
            pass
        assert str(caught.value).startswith(f"{tmp_path}: {who}")
        assert "is writing there" in str(caught.value)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert (tmp_path / LOCK).exists() and writer(tmp_path) == ""
        with claimed(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_what_a_writer_has_forked_holds_nothing(tmp_path: Path) -> None:
    """Such as a loading process that is stuck when its run is killed."""
    pids = FORK.Queue()

    def fork() -> None:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        pids.put(pid)

    with held(tmp_path, fork) as process:
        child = pids.get(timeout=30)
        process.kill()
        process.join()
        try:
            with claimed(tmp_path):
                os.kill(child, 0)  # it is there
        finally:
            os.kill(child, signal.SIGKILL)


def test_folders_that_were_made_go_unless_they_are_used(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "mine").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["mine"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match="cannot be written: File exists"),
        claimed(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_full_disk_leaves_nothing_behind(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock without a name is one too; what cannot be made is refused."""
    own, folder = getattr(os, call), tmp_path / "a" / "b"

    def full(first: Any, *given: Any, **named: Any) -> Any:
        if call == "write" or str(first) == str(folder / LOCK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(first, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "write":
            with claimed(folder):
                assert writer(folder) == "another process"
        else:
            with pytest.raises(RunError, match="b: cannot be written: No space"), claimed(folder):
                pass
    assert list(tmp_path.iterdir()) == []
    with claimed(folder):
        pass


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with claimed(tmp_path):
        assert writer(tmp_path) == ""
    assert (
        f"{tmp_path}: no locks on this file system (No locks available)" in capsys.readouterr().err
    )


def test_a_folder_that_is_removed_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path.mkdir has found it there, and then found no folder."""
    mkdir, calls = Path.mkdir, []

    def removed(path: Path, *given: Any, **named: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        mkdir(path, *given, **named)

    monkeypatch.setattr(Path, "mkdir", removed)
    with claimed(tmp_path / "f"):
        assert (tmp_path / "f" / LOCK).exists()
    assert len(calls) == 2


def take_turns(folder: Path, log: Path) -> None:
    for _ in range(20):
        with claimed(folder):
            number = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(number, b"(")
            time.sleep(0.001)
            os.write(number, b")")
            os.close(number)


def test_never_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each removes the lock's file, which another may just have opened."""
    monkeypatch.setattr(locks, "PATIENCE", 30.0)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.001)))
    log = tmp_path / "log"
    processes = [FORK.Process(target=take_turns, args=(tmp_path / "f", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "()" * 80


@pytest.mark.parametrize("text", [b"", b"\x1b[2J", b"\xff"])
def test_a_lock_of_strange_content(text: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(text)
    number = os.open(tmp_path / LOCK, os.O_RDWR)
    fcntl.flock(number, fcntl.LOCK_EX)
    try:
        assert writer(tmp_path).isprintable() and writer(tmp_path)
    finally:
        os.close(number)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_lock_file_is_neither_followed_nor_written(kind: str, tmp_path: Path) -> None:
    """Such as a link planted in a shared folder: the file it leads to would be emptied."""
    lock, other = tmp_path / "run" / LOCK, tmp_path / "other"
    lock.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    with pytest.raises(RunError) as caught, claimed(lock.parent):
        pass
    assert str(caught.value) == f"{lock}: is no regular file; remove it"
    assert writer(lock.parent) == ""
    assert other.exists() == (kind == "link") and (kind != "link" or other.read_text() == "mine")
