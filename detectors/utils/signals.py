"""SIGTERM and Ctrl-C as a wish to stop, which the training loop looks at between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(BaseException):
    """Work within Stopping.at_once was ended by a signal; no Exception, lest a library eat it."""


class Stopping:
    """A context manager within which SIGTERM and Ctrl-C end nothing by themselves.

    A second Ctrl-C does: it raises KeyboardInterrupt. Outside the main thread, where Python hands
    out no signals, it does nothing.

    Attributes:
        asked: the name of the signal that came, such as "SIGTERM"; "" while there is none.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, a signal ends work that takes long and leaves nothing half done.

        Raises:
            Interrupted: a signal came, or had come before.
        """
        self._at_once = True
        try:
            self._leave()
            yield
        finally:
            self._at_once = False
        self._leave()

    def _leave(self) -> None:
        if self.asked:
            raise Interrupted(self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == self.asked == "SIGINT":
            raise KeyboardInterrupt
        self.asked = name
        if self._at_once:
            self._leave()
