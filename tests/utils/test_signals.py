"""SIGTERM and Ctrl-C as errors: when they come, and what they leave behind."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detectors.utils import files
from detectors.utils.signals import Stopping, Terminated, with_errors

BOTH = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    """Ctrl-C is an error, which it is not where a shell has put pytest into the background."""
    given = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = handlers()
    yield
    assert handlers() == before
    signal.signal(signal.SIGINT, given)


def receive(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)
    raise AssertionError("no signal came")


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_signal_is_an_error(number: signal.Signals, tmp_path: Path) -> None:
    """A file that is being replaced is as it was."""
    (tmp_path / "file").write_text("old")
    with pytest.raises(BOTH[number]):
        with_errors(lambda: files.replace(tmp_path / "file", lambda _: receive(number)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
    assert with_errors(lambda: 3) == 3


IMPORTED = """
import os, signal, time
heard = False
try:
    os.kill(os.getpid(), {number})
    time.sleep(0.2)
except BaseException:  # as C code does that imports NumPy
    heard = True
"""


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_an_import_is_not_broken_off(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"imported_{number.name}"
    (tmp_path / f"{name}.py").write_text(IMPORTED.format(number=int(number)))

    def work() -> None:
        __import__(name)
        time.sleep(5)

    try:
        with pytest.raises(BOTH[number]):
            with_errors(work)
        assert not sys.modules[name].heard
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_destructor_drops_no_signal(number: signal.Signals) -> None:
    """Python calls what it collects in the middle of anything, and drops its errors."""
    hook = sys.unraisablehook

    class Collected:
        def __del__(self) -> None:
            receive(number)

    def work() -> None:
        Collected()
        time.sleep(5)

    with pytest.raises(BOTH[number]):
        with_errors(work)
    assert sys.unraisablehook is hook


def test_other_errors_of_a_destructor_are_reported_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: found.append(error.exc_type))

    class Collected:
        def __del__(self) -> None:
            raise KeyError

    with_errors(lambda: Collected() and None)
    assert found == [KeyError]


def test_an_import_that_calls_us_defers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a script that another one imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "calls_us.py").write_text(
        "import os, signal, time\n"
        "from detectors.utils.signals import with_errors\n"
        "def work():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(5)\n"
        "with_errors(work)\n"
    )
    with pytest.raises(Terminated):
        __import__("calls_us")


def test_what_ignores_a_signal_goes_on_ignoring_it() -> None:
    """As a shell has its background jobs do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with_errors(lambda: os.kill(os.getpid(), signal.SIGINT))
        with Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopping.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hear_nothing() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(with_errors(lambda: 3)))
    thread.start()
    thread.join()
    assert found == [3]
