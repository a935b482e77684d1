"""`jol` in processes that tests can kill: forks of this one, which have everything imported."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from detectors.cli import main


@dataclass
class Child:
    """A process that runs `jol`, with one thread so that its sums have one order."""

    process: BaseProcess
    stderr: Path

    @property
    def said(self) -> str:
        return self.stderr.read_text()

    def end(self, seconds: float = 120) -> int:
        """Its exit status, that of a signal negative."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} seconds: {self.said}")
        status = self.process.exitcode
        assert status is not None
        return status

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait_for(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Until something is so; fails if the process ends before."""
        until = time.monotonic() + seconds
        while not what():
            assert self.process.is_alive(), f"ended too early: {self.said}"
            assert time.monotonic() < until, f"waited in vain: {self.said}"
            time.sleep(0.01)


def run_jol(words: Sequence[str], folder: Path, before: Callable[[], None] = lambda: None) -> Child:
    """Start `jol` with these words; `before` is called in the new process first."""
    stderr = folder / f"stderr-{time.monotonic_ns()}.txt"
    stderr.touch()
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(list(words), stderr, before)
    )
    process.start()
    return Child(process, stderr)


def _child(words: list[str], stderr: Path, before: Callable[[], None]) -> None:
    sys.stderr = sys.stdout = stderr.open("a", buffering=1)  # pytest has put its own there
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the background ignores
    before()
    status = main(words)
    os._exit(status)  # no clean-up of what belongs to the parent
