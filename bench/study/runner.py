"""Goes through the grid in a given time: workers in processes of their own, a row as a run ends."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.study import grid, runs
from bench.study.data import prepare
from bench.study.runs import Run
from bench.study.training import SAMPLE_COLUMNS

WORKER = (sys.executable, "-m", "bench.study.training")
FIRST = 120.0
"""Seconds that a run is thought to take before any has ended."""
POLL = 0.5
"""Seconds between looks for work that other runs have to end for."""


class Study:
    """The runs that are done, under way and failed.

    Args:
        rows: the file of rows, which may have some.
        samples: the file of what the loss saw.
        work: folder of the data.
        nuclei: the folder of nuclei; None: without them.
        device: where to train.
        backbone: of the detectors.
        about: commit and machine.
        until: when the last run has to be done, of time.monotonic.
        worker: the command of a process that does runs.
    """

    def __init__(
        self,
        rows: Path,
        samples: Path,
        work: Path,
        nuclei: Path | None,
        device: str,
        backbone: str,
        about: Mapping[str, str],
        until: float,
        worker: tuple[str, ...] = WORKER,
    ) -> None:
        self.file, self.samples, self.work, self.nuclei = rows, samples, work, nuclei
        self.device, self.backbone, self.about = device, backbone, about
        self.until, self.worker = until, worker
        self.rows = runs.read(rows)
        self.busy: set[Run] = set()
        self.failed: set[Run] = set()
        self.done = 0
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[str]] = set()
        self.leaving = False
        self.error: Exception | None = None

    @property
    def data(self) -> Container[str]:
        """The data sets that are there."""
        return [name for name in grid.DATA if self.nuclei or not name.startswith("nuclei")]

    def run(self, jobs: int) -> None:
        """Do runs, so many at a time, until none is left or the time is up.

        Raises:
            KeyboardInterrupt, DataError, OSError: as they came, such as of a full disk; runs under
                way are lost, those that ended are not.
        """
        threads = [threading.Thread(target=self._work_or_end, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._end()
        if self.error:
            raise self.error

    def _end(self) -> None:
        self.leaving = True
        for process in tuple(self.processes):
            process.kill()

    def _work_or_end(self) -> None:
        """An error of a thread would else be lost with it, and its run stay under way for good."""
        try:
            self._work()
        except Exception as error:
            self.error = self.error or error
            self._end()

    def _work(self) -> None:
        """One worker's runs; a worker that dies is replaced, and its run is not tried again."""
        process = None
        while run := self._next():
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None and process.stdout is not None
            order = {"run": asdict(run), "folder": str(self._folder(run)), "device": self.device}
            try:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = ""
            if self.leaving:
                return
            if answer.endswith("\n"):  # else it died, maybe within the line
                self._keep(run, json.loads(answer))
            else:
                self._fail(run, process)
        if process is not None:
            process.kill()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.processes.add(process)
        if self.leaving:  # and those that were there have been ended
            process.kill()
        return process

    def _folder(self, run: Run) -> Path:
        with self.lock:
            return prepare(run.data, self.work, self.nuclei or Path())

    def _next(self) -> Run | None:
        """The next run, which is then under way; None: there is none, or no time for it."""
        while not self.leaving:
            with self.lock:
                for run in grid.pending(self.rows, self.backbone, self.data):
                    if run in self.busy or run in self.failed:
                        continue
                    if time.monotonic() + self._expected(run) > self.until:
                        return None
                    self.busy.add(run)
                    return run
                if not self.busy:
                    return None
            time.sleep(POLL)
        return None

    def _expected(self, run: Run) -> float:
        """Seconds that a run will take, from those of its like."""
        like = runs.matching(self.rows, data=run.data, detector=run.detector, backbone=run.backbone)
        seconds = [found["seconds"] for _, found in like]
        return statistics.median(seconds) if seconds else FIRST

    def _keep(self, run: Run, answer: Mapping[str, Any]) -> None:
        found = {**answer["found"], **self.about}
        with self.lock:
            runs.append(self.file, [runs.row_of(run, found)])
            if answer["samples"]:
                runs.append(self.samples, answer["samples"], SAMPLE_COLUMNS)
            self.rows[run] = found
            self.busy.discard(run)
            self.done += 1
            left = (self.until - time.monotonic()) / 60
        say(f"{named(run)}: AP {found['AP']:.1f}  {found['seconds']:.0f} s  {left:.0f} min left")

    def _fail(self, run: Run, process: "subprocess.Popen[str]") -> None:
        with self.lock:
            self.failed.add(run)
            self.busy.discard(run)
        say(f"{named(run)}: FAILED, its process ended with {process.wait()}")


def named(run: Run) -> str:
    """A run in a line."""
    words = [run.part, run.data, run.detector, run.assigner, run.loss, f"lr {run.lr:g}"]
    words += [f"anchors {run.anchor_scale:g}"] if run.anchor_scale else []
    return " ".join([*filter(None, words), f"seed {run.seed}"])


def say(text: str) -> None:
    """A line of the log."""
    print(text, flush=True)
