"""One writer per folder: a lock that is released however the process that holds it ends."""

import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detectors.errors import RunError

LOCK = "run.lock"
"""The file in a folder while a process writes there; left by a killed process it locks nothing."""
PATIENCE = 1.0
"""Seconds for which a lock is requested: `writer` takes one for a moment."""
_held: set[int] = set()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder, and let no other process that asks write there meanwhile.

    Folders that were made and stay empty are removed again.

    Raises:
        RunError: another process writes there, or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            number = _locked(folder)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
        _held.add(number)
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()
            _held.discard(number)
            os.close(number)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def writer(folder: Path) -> str:
    """Who writes into a folder, such as "process 7 on host"; "" if nobody does."""
    try:
        number = _opened(folder / LOCK, os.O_RDONLY)
    except (OSError, RunError):
        return ""
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(number)
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(number)
    return ""


def _locked(folder: Path) -> int:
    """The number of the open lock file, which is locked where the file system can do that."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = _opened(folder / LOCK, os.O_RDWR | os.O_CREAT)
        except (FileNotFoundError, FileExistsError):
            if time.monotonic() > until or _is_no_folder(folder):
                raise
            continue  # another writer has just removed the folder it had made
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _name(number)
            os.close(number)
            if time.monotonic() > until:
                raise RunError(f"{folder}: {who} is writing there; wait for it to end") from None
            time.sleep(PATIENCE / 10)
            continue
        except OSError as error:
            print(
                f"{folder}: no locks on this file system ({error.strerror}); nothing keeps a "
                "second run from writing there",
                file=sys.stderr,
            )
        if _is(number, folder / LOCK):
            with suppress(OSError):  # a full disk: it is locked without a name
                os.truncate(number, 0)
                os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return number
        os.close(number)  # the last writer has removed it since it was opened


def _opened(path: Path, flags: int) -> int:
    """The number of the open file; a link is not followed, to a file that would be emptied.

    Raises:
        RunError: a link, or another thing that is no file.
    """
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
        os.close(number)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
    raise RunError(f"{path}: is no regular file; remove it")


def _is_no_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.lstat())
    except FileNotFoundError:
        return False


def _name(number: int) -> str:
    text = os.pread(number, 200, 0).decode(errors="replace")
    return text if text.isprintable() and text else "another process"


def _close_in_child() -> None:
    """A loading process may outlive its run, which would stay locked."""
    for number in _held:
        with suppress(OSError):
            os.close(number)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
