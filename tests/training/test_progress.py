"""What a run shows while it goes on: a line on a terminal, plain lines elsewhere, from rank 0."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

import pytest

from detectors.utils.progress import Progress

FIELDS = ["cls 0.500  box 0.250  w⁻ 1.500", "9.5 images/s", "epoch 1/2", "lr 0.01", "1.5 GiB"]
END = "<end>"


def shown(columns: int, *, leads: bool = True) -> str:
    """All that a terminal this wide gets of three steps, a note between them."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    before = sys.stderr
    try:
        with os.fdopen(slave, "w") as sys.stderr, Progress("jol", 0, 3, leads=leads) as progress:
            for step in (1, 2, 3):
                progress.step(step, FIELDS, [0.1] * step)
                progress.note(f"after {step}")
            progress._bar.refresh()
            print(END, end="", file=sys.stderr, flush=True)
            arrived = b""  # the kernel hands it over in pieces and in its own time
            while not arrived.endswith(END.encode()):
                arrived += os.read(master, 4096)
            return arrived.decode().removesuffix(END)
    finally:
        sys.stderr = before
        os.close(master)


@pytest.mark.parametrize(("columns", "fields"), [(200, 5), (110, 3), (85, 1)])
def test_a_terminal_gets_one_line_with_what_it_has_room_for(columns: int, fields: int) -> None:
    *_, last = (line for line in shown(columns).replace("\n", "\r").split("\r") if "3/3" in line)
    assert last.startswith("jol: 100%") and "  ".join(FIELDS[:fields]) in last
    assert not any(field in last for field in FIELDS[fields:])
    assert len(last) <= columns


def test_a_note_stands_on_a_line_of_its_own() -> None:
    lines = [line.split("\r")[-1] for line in shown(120).replace("\r\n", "\n").split("\n")]
    *notes, last = lines
    assert notes == [f"jol: after {n}" for n in (1, 2, 3)] and last.startswith("jol: 100%")


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(120, leads=False) == ""
    with Progress("jol", 0, 1, leads=False) as progress:
        progress.step(1, FIELDS, [0.1])
        progress.note("something")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
def test_the_work_goes_on_when_nobody_listens_any_more(
    opened: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C in `jol train ... 2>&1 | tee log`, which ends tee at once."""
    reader, writer = opened()
    if opened is pty.openpty:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    monkeypatch.setattr(
        sys, "stderr", io.TextIOWrapper(io.FileIO(writer, "w"), line_buffering=True)
    )
    done = 0
    with Progress("jol", 0, 3) as progress:
        for step in (1, 2, 3):
            progress.step(step, FIELDS, [0.1] * step)
            progress.note(f"after {step}")
            done += 1
            if step == 1:
                os.close(reader)
    with suppress(OSError):  # of what is left in its buffer
        sys.stderr.close()
    assert done == 3


def test_without_a_terminal_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("detectors.utils.progress.time.monotonic", lambda: now[0])
    with Progress("jol", 0, 100) as progress:
        for step in range(1, 101):
            now[0] += 1.0
            progress.step(step, FIELDS, [2.0] * step)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (*range(15, 100, 15), 100)]
    assert lines[0] == "jol: 15/100  02:50 left  " + "  ".join(FIELDS)
    assert "\r" not in "".join(lines)
