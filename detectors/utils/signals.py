"""SIGTERM and Ctrl-C: as errors that end a command, and as a wish to stop, which training looks at.

The training loop does so between steps.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

AGAIN = 0.05
"""Seconds after which a signal that came at a wrong time is raised once more."""


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises where Ctrl-C raises KeyboardInterrupt."""


def with_errors(work: Callable[[], Result]) -> Result:
    """What `work` returns; within it SIGTERM is an error as Ctrl-C is, and cleaned up after.

    Both wait until modules are imported: an error in the middle makes torch abort, and NumPy call
    itself without end. In a destructor, where Python drops errors, they are raised once more.
    Outside the main thread, and for a signal that is ignored, nothing changes.

    Raises:
        Terminated, KeyboardInterrupt: a signal came.
    """
    before = {}
    hook = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _raise)

    def dropped(error: "sys.UnraisableHookArgs") -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):
            ended = issubclass(error.exc_type, Terminated)
            _raise_later(signal.SIGTERM if ended else signal.SIGINT)
        else:
            hook(error)

    if before:
        sys.unraisablehook = dropped
    try:
        return work()
    finally:
        if before:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code is not with_errors.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _raise_later(number)
            return
        frame = frame.f_back
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _raise_later(number: int) -> None:
    main = threading.main_thread().ident
    again = threading.Timer(AGAIN, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()


class Interrupted(BaseException):
    """Work within Stopping.at_once was ended by a signal; no Exception, lest a library eat it."""


class Stopping:
    """A context manager within which SIGTERM and Ctrl-C end nothing by themselves.

    A second Ctrl-C does: it raises KeyboardInterrupt. Outside the main thread, where Python hands
    out no signals, and for a signal that is ignored, it does nothing.

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
                if signal.getsignal(number) is not signal.SIG_IGN:
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
