"""SIGTERM and Ctrl-C: as errors that end a command, and as a wish to stop, which training looks at.

The training loop does so between steps.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

AGAIN = 0.05
"""Seconds after which a signal that came during an import is raised once more."""


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises where Ctrl-C raises KeyboardInterrupt."""


def with_errors(work: Callable[[], Result]) -> Result:
    """What `work` returns; within it SIGTERM is an error as Ctrl-C is, and cleaned up after.

    Both wait until modules are imported: an error in the middle makes torch abort, and NumPy call
    itself without end. Outside the main thread, and for a signal that is ignored, nothing changes.

    Raises:
        Terminated, KeyboardInterrupt: a signal came.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _raise)
    try:
        return work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code is not with_errors.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            main = threading.main_thread().ident
            again = threading.Timer(AGAIN, signal.pthread_kill, (main, number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


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
