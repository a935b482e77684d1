"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

from detectors.utils.printable import printable_lines

SECONDS_BETWEEN_LINES = 15.0
BAR = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class Progress:
    """Shows how far a loop is, the remaining time and whatever else it is given; a context manager.

    Args:
        title: what is going on.
        start: steps done before.
        steps: steps in all.
        quiet: nothing at all where there is no terminal.
        leads: False: nothing at all, because another process shows it.
    """

    def __init__(
        self, title: str, start: int, steps: int, *, quiet: bool = False, leads: bool = True
    ) -> None:
        # tqdm draws nothing on a terminal that reports no lines
        terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > 0
        self.title, self._steps, self._leads = title, steps, leads
        self._lines = leads and not terminal and not quiet
        self._bar = tqdm(
            desc=title,
            initial=start,
            total=steps,
            leave=not quiet,
            disable=not (terminal and leads),
            dynamic_ncols=True,
            bar_format=BAR,
            file=sys.stderr,
        )
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._heard():
            self._bar.close()

    def step(self, step: int, fields: Sequence[str] = (), seconds: Sequence[float] = ()) -> None:
        """Report that `step` is done.

        Args:
            step: number of steps done.
            fields: what to show next to it, the most important first: a narrow terminal gets the
                first ones.
            seconds: time of each step so far, where plain lines are wanted.
        """
        with self._heard():
            if fields and not self._bar.disable:
                self._bar.set_postfix_str(self._fitting(fields), refresh=False)
            self._bar.update(step - self._bar.n)
        if self._lines and (time.monotonic() >= self._next_line or step == self._steps):
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            recent = seconds[-50:]
            mean = sum(recent) / max(1, len(recent))
            left = tqdm.format_interval(mean * (self._steps - step))
            self.note("  ".join([f"{step}/{self._steps}", f"{left} left", *fields]))

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        with self._heard():
            if self._leads:
                tqdm.write(printable_lines(f"{self.title}: {text}"), file=sys.stderr)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Continue silently once nobody can read: `tee` or the terminal has ended, the run not."""
        try:
            yield
        except OSError:
            self._leads = self._lines = False
            self._bar.disable = True

    def _fitting(self, fields: Sequence[str]) -> str:
        """As many of the fields as the terminal has room for next to the bar."""
        digits = len(str(self._steps))
        columns = os.get_terminal_size(sys.stderr.fileno()).columns  # stdout may be elsewhere
        room = columns - len(self.title) - 2 * digits - 42
        shown = list(fields)
        while len("  ".join(shown)) > room and len(shown) > 1:
            shown.pop()
        return "  ".join(shown)


def peak_memory(device: str) -> str:
    """The most memory so far as text: allocated on the GPU, or resident of this process."""
    if device == "cuda":
        used = torch.cuda.max_memory_allocated()
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{used / 2**30:.1f} GiB"
