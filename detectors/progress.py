"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from tqdm import tqdm

from detectors.models import LOSS_NAMES

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Shows rate, remaining time and running means of the losses; a context manager.

    Args:
        title: what is going on.
        start: steps done before.
        steps: steps in all.
        quiet: nothing at all where there is no terminal.
    """

    def __init__(self, title: str, start: int, steps: int, *, quiet: bool = False) -> None:
        # tqdm draws nothing on a terminal that says it has no lines
        terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > 0
        self._title, self._steps, self._lines = title, steps, not terminal and not quiet
        self._bar = tqdm(
            desc=title,
            initial=start,
            total=steps,
            leave=not quiet,
            disable=not terminal,
            dynamic_ncols=True,
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
        self._bar.close()

    def step(self, step: int, means: Mapping[str, float], seconds: Sequence[float]) -> None:
        """Report that `step` is done.

        Args:
            step: number of steps done.
            means: losses by torchvision's names, and negative_weight.
            seconds: time of each step so far.
        """
        losses = losses_line(means)
        if losses:
            self._bar.set_postfix_str(losses, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._lines and (time.monotonic() >= self._next_line or step == self._steps):
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            recent = seconds[-50:]
            mean = sum(recent) / max(1, len(recent))
            left = tqdm.format_interval(mean * (self._steps - step))
            self.note(f"{step}/{self._steps}  {mean:.2f} s/step  {left} left  {losses}")

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(f"{self._title}: {text}", file=sys.stderr)


def losses_line(means: Mapping[str, float]) -> str:
    """The two losses of the joint head and w⁻ as text, those that are there."""
    shown = [
        f"{short} {means[name]:.3f}"
        for short, names in LOSS_NAMES.items()
        for name in names
        if name in means
    ]
    return "  ".join(shown)
