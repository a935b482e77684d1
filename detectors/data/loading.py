"""Samples read where signals are heard: by a thread, or by other processes.

A disk that does not answer is waited for, but not for ever. Processes may also die or lack memory
and files.

A batch is handed over as a file without a name, whose descriptor travels through a socket. torch's
own way needs room in /dev/shm (64 MB in a Docker container by default) and several open files for
each image. Where there is too little of either the batch is lost, and the loader waits forever.
"""

import errno
import mmap
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detectors.errors import LoadingError

WAIT = 300
"""Seconds without a batch, or an image, after which its reading counts as stuck; generous to slow
disks."""
POLL = 1
"""Seconds between checks for signals and dead processes."""
ALIGNED = 64
"""Arrays in a file begin at a multiple of this many bytes."""
SHARED_MEMORY = "/dev/shm"
"""Where the system keeps semaphores, a few of which loading processes need."""
GIVEN_UP = "no batch came in time"
ANSWERING = "wanted images on a disk that answers"
Read = TypeVar("Read")


def load(
    dataset: Dataset[Any],
    schedule: Iterable[Sequence[Any]],
    workers: int,
    leaving: Callable[[], object],
) -> Iterator[list[Any]]:
    """For each list of keys in `schedule` the list of `dataset`'s samples.

    Args:
        dataset: from key to sample: a tuple (tensor, dict), or an exception that stands for it.
        schedule: the keys of each batch.
        workers: number of loading processes; 0: this process loads.
        leaving: asked every second while there is no batch, and by this process between samples:
            whether to stop waiting.

    Raises:
        LoadingError: no loading processes, or nothing that brings the next batch.
        RuntimeError: a loading process died.
    """
    if not workers:
        for keys in schedule:
            reads = (partial(dataset.__getitem__, key) for key in keys)
            yield [read_in_time(read, "the next image", leaving) for read in reads]
        return
    with ExitStack() as stack:
        stack.callback(_restore, signal.getsignal(signal.SIGCHLD))
        batches, sockets = _start(dataset, schedule, workers, stack)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises anywhere, even in the middle of an optimizer step. Without it
            # a dead worker is noticed when its batch is missing.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            while (handed := _next(batches, workers, leaving)) is not None:
                worker, problem = handed
                if problem:
                    raise LoadingError(problem)
                yield _received(sockets[worker])
        finally:
            del batches  # which ends processes that are not stuck


def read_in_time(
    read: Callable[[], Read], what: str, leaving: Callable[[], object] = lambda: False
) -> Read:
    """What `read` returns or raises, in a thread: signals are heard while a disk does not answer.

    Args:
        read: reads and decodes an image.
        what: what it reads, for messages.
        leaving: asked first and every second: whether to stop waiting.

    Raises:
        LoadingError: nothing came in WAIT seconds, or `leaving` said so.
    """
    if leaving():
        raise LoadingError(GIVEN_UP)
    answer: Future[Read] = Future()
    threading.Thread(target=_answer, args=(read, answer), daemon=True).start()
    for _ in range(0, WAIT, POLL):
        if wait([answer], POLL).done:
            return answer.result()
        if leaving():
            raise LoadingError(GIVEN_UP)
    raise LoadingError(f"{what} was not read in {WAIT} seconds; {ANSWERING}")


def _answer(read: Callable[[], Read], answer: Future[Read]) -> None:
    try:
        answer.set_result(read())
    except BaseException as error:
        answer.set_exception(error)


def map_images(
    work: Callable[[dict[str, Any], Path, str], Read],
    images: Iterable[dict[str, Any]],
    files: Iterable[Path],
    source: str,
) -> Iterator[Read]:
    """What `work` makes of every image, in order, by threads: Pillow lets them run side by side.

    Args:
        work: (record, file, where) of an image → result; `where` is for messages.
        images: records of a CocoFile.
        files: theirs.
        source: what messages call it.

    Raises:
        LoadingError: an image took `work` more than WAIT seconds.
    """
    left = threading.Event()

    def in_time(image: dict[str, Any], file: Path) -> Read:
        where = f"{source}: image {image['id']}"
        return read_in_time(partial(work, image, file, where), where, left.is_set)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield from pool.map(in_time, images, files)
        finally:
            left.set()


def _start(
    dataset: Dataset[Any], schedule: Iterable[Sequence[Any]], workers: int, stack: ExitStack
) -> tuple[Iterator[Any], list[socket.socket]]:
    """The processes' answers, one per batch, and a socket to each; `stack` ends the processes."""
    before = set(multiprocessing.active_children())
    hook = sys.unraisablehook
    try:
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(workers)]
        with warnings.catch_warnings():  # torch's of more processes than cores, with its source
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                dataset,
                batch_sampler=schedule,  # type: ignore[arg-type]  # any iterable will do
                num_workers=workers,
                collate_fn=_HandOver([theirs for _, theirs in pairs]),
                generator=torch.Generator(),  # its own: the loader would draw from the global one
                worker_init_fn=_leave_ctrl_c_to_the_main_process,
                timeout=POLL,
            )
            return iter(loader), [ours for ours, _ in pairs]
    except OSError as error:
        # torch reports an error of its own while it discards the half-made loader
        sys.unraisablehook = lambda _: None
        error.__traceback__ = None
        what = f"{workers} loading processes cannot be started: {error.strerror}"
        raise LoadingError(f"{what}{_remedy(error)}") from error
    finally:
        sys.unraisablehook = hook
        stack.callback(_end, set(multiprocessing.active_children()) - before)


def _restore(handler: Any) -> None:
    """Give SIGCHLD its handler back, where Python can."""
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _next(
    batches: Iterator[Any], workers: int, leaving: Callable[[], object]
) -> tuple[int, str] | None:
    """What the next batch's process sent: its number and "", or what is wrong; None at the end."""
    for _ in range(0, WAIT, POLL):
        try:
            return next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        if leaving():
            raise LoadingError(GIVEN_UP)
    raise LoadingError(
        f"no batch came from {workers} loading processes in {WAIT} seconds; {ANSWERING}"
    )


def _end(processes: Iterable[BaseProcess]) -> None:
    """Kill those that torch did not end, because they are stuck."""
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join(POLL)


class _HandOver:
    """Sends a batch to the main process; called by a loading process with its samples."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets

    def __call__(self, samples: Sequence[Any]) -> tuple[int, str]:
        """This process's number and "", or why the batch cannot be sent."""
        info = get_worker_info()
        assert info is not None
        plain = [s if isinstance(s, Exception) else _as(_array, *s) for s in samples]
        try:
            with _nameless() as file:
                _write(plain, file)
                socket.send_fds(self._sockets[info.id], [b"-"], [file.fileno()])
        except OSError as error:
            size = sum(s[0].nbytes for s in plain if not isinstance(s, Exception))
            what = f"a batch of {size / 2**20:.0f} MiB cannot be handed over"
            return info.id, f"{what}: {error.strerror}{_remedy(error)}"
        return info.id, ""


def _received(ours: socket.socket) -> list[Any]:
    """The samples of the next batch that a process sent."""
    ours.settimeout(WAIT)
    try:
        _, files, _, _ = socket.recv_fds(ours, 1, 1)
        if not files:  # the system drops what it cannot open
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with open(files[0], "r+b") as file:
            plain = _read(file)
    except OSError as error:
        raise LoadingError(f"a batch cannot be received: {error}{_remedy(error)}") from error
    return [s if isinstance(s, Exception) else _as(_tensor, *s) for s in plain]


def _write(plain: Any, file: IO[bytes]) -> None:
    """Pickle into `file`: the length of a head, the head, then the arrays as they are."""
    arrays: list[Any] = []
    content = pickle.dumps(plain, protocol=5, buffer_callback=arrays.append)
    lengths = [array.raw().nbytes for array in arrays]
    head = pickle.dumps((content, lengths))
    for part in (len(head).to_bytes(ALIGNED, "little"), head, *arrays):
        file.write(part)
        file.write(bytes(-file.tell() % ALIGNED))
    file.flush()


def _read(file: IO[bytes]) -> Any:
    """What `_write` wrote; the arrays stay in the file, a private map of this process."""
    every = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    at = ALIGNED + int.from_bytes(every[:ALIGNED], "little")
    content, lengths = pickle.loads(every[ALIGNED:at])  # noqa: S301  # from a process of ours
    arrays = []
    for length in lengths:
        at += -at % ALIGNED
        arrays.append(every[at : at + length])
        at += length
    return pickle.loads(content, buffers=arrays)  # noqa: S301


def _as(kind: Callable[[Any], Any], image: Any, target: dict[str, Any]) -> tuple[Any, Any]:
    return kind(image), {name: kind(value) for name, value in target.items()}


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _nameless() -> IO[bytes]:
    """A file without a name: in memory, or on a disk where the system has no such files."""
    try:
        return open(os.memfd_create("batch"), "w+b")
    except (AttributeError, OSError):
        return tempfile.TemporaryFile()


def _remedy(error: OSError) -> str:
    """The resource that ran out, and what to do."""
    few = "; use fewer --workers, or 0"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"; a process may have {limit} files open (ulimit -n){few}"
    if error.errno in (errno.ENOSPC, errno.ENOENT, errno.ENOSYS, errno.EACCES):
        if not os.path.isdir(SHARED_MEMORY):
            return f"; there is no {SHARED_MEMORY}{few}"
        room = shutil.disk_usage(SHARED_MEMORY)
        size = f"{room.free / 2**20:.1f} of {room.total / 2**20:.1f} MiB are free"
        return f"; in {SHARED_MEMORY} {size} (docker run --shm-size){few}"
    return few
