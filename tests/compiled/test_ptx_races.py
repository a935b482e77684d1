"""Which accesses race: short histories of two programs of two warps."""

import numpy as np
import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx.races import ATOMIC, Clocks, Conflict, History, Now

pytestmark = pytest.mark.compiled


def happens(events: str, shared: bool = False) -> None:
    """Let events happen, or raise Conflict.

    Each is a program, a dot, a thread (or several, as 0+32), and what these do, with one cell
    each of two, x and y: rx, wx (read, write), ax (a relaxed update), +x (release), -x (acquire),
    *x (both), F (fence); "0.warp1" is a bar.warp.sync, "0.bar" a bar.sync.
    """
    clocks = Clocks(programs=2, warps=2)
    history = History(2, None if shared else clocks)
    for event in events.split():
        who, _, what = event.partition(":")
        program, _, threads = who.partition(".")
        p = int(program)
        if threads == "bar":
            clocks.barrier(np.array([p]))
        elif threads.startswith("warp"):
            clocks.warp_barrier(np.array([p]), np.array([int(threads[4:])]))
        else:
            act(history, clocks, p, [int(t) for t in threads.split("+")], what)


def act(history, clocks, p, threads, what):
    if what == "F":
        clocks.fence(p, threads[0])
        clocks.advance(p)
        return
    kind, cell = what[0], "xy".index(what[1])
    strong = ATOMIC if kind in "a+-*s" else 0
    stamps = np.array([clocks.stamps(np.array([p]))[0, t // 32] | t | strong for t in threads])
    now = Now(stamps, np.full(len(threads), p))
    cells = np.full(len(threads), cell)
    (history.read if kind in "rs" else history.write)(cells, now)
    if kind in "a+-*":
        clocks.strong_read(p, threads[0], cell, acquire=kind in "-*")
        clocks.strong_write(p, threads[0], cell, release=kind in "+*", update=True)


ORDERED = [
    "0.1:wx 0.1:rx 0.1:wx",
    "0.1:wx 0.bar 0.40:rx 0.bar 0.2:wx",
    "0.1:rx 0.40:rx 0.bar 0.1:wx",
    "0.1:wx 0.warp0 0.2:rx 0.warp0 0.3:wx",
    "0.1:rx 0.2:rx 0.warp0 0.1:wx",
    "0.1:rx 0.warp0 0.2:rx 0.2:wx",
    "0.1+2:rx 0.bar 0.40:wx",
    "0.1:wx 0.1:wy 0.bar 0.40+1:rx 0.40+1:ry",
    # between programs
    "0.1:rx 1.1:rx",
    "0.1:ax 1.1:ax 0.2:ax",
    "0.1:wx 0.1:*y 1.1:*y 1.1:rx",
    "0.1:wx 0.1:+y 1.1:-y 1.1:rx 1.1:wx",
    "0.1:wx 0.bar 0.40:+y 1.1:-y 1.bar 1.50:rx",
    "0.1:rx 0.1:+y 1.1:-y 1.1:wx",
    "0.1:wx 0.1:+y 1.1:ay 1.2:-y 1.2:rx",
    "0.1:wx 0.1:F 0.1:ay 1.1:ay 1.1:F 1.1:rx",
    "0.1:wx 0.1:F 0.1:ay 1.1:-y 1.1:rx",
    "0.1:*y 1.1:*y 1.1:wy",
    "0.1:sx 1.1:ax",
]
RACES = [
    "0.1:wx 0.2:rx",
    "0.1:rx 0.2:wx",
    "0.1:wx 0.2:wx",
    "0.1:wx 0.40:rx",
    "0.bar 0.1:wx 0.2:wx",
    "0.1:rx 0.2:rx 0.1:wx",
    "0.1+2:rx 0.1:wx",
    "0.1+2:rx 0.2:wx",
    "0.1+40:rx 0.warp0 0.1:wx",
    "0.1:rx 0.40:rx 0.warp0 0.1:wx",
    "0.1:wx 0.warp0 0.40:rx",
    "0.1:wx 0.warp1 0.2:rx",
    "0.40:rx 0.1:rx 0.warp0 0.2:wx",
    # between programs
    "0.1:wx 1.1:rx",
    "0.1:rx 1.1:wx",
    "0.1:wx 0.bar 1.bar 1.1:rx",
    "0.1:wx 0.1:ay 1.1:ay 1.1:rx",
    "0.1:wx 0.1:+y 1.1:ay 1.1:rx",
    "0.1:wx 0.1:ay 1.1:-y 1.1:rx",
    "0.1:+y 0.1:wx 1.1:-y 1.1:rx",
    "0.1:wx 0.2:+y 1.1:-y 1.1:rx",
    "0.1:wx 0.1:+y 1.1:-y 1.2:rx",
    "0.1:wx 0.1:+y 1.1:-x 1.1:rx",
    "0.1:F 0.1:wx 0.1:ay 1.1:-y 1.1:rx",
    "0.1:wx 0.1:F 0.1:ay 1.1:F 1.1:ay 1.1:rx",
    "0.1:ax 1.1:wx",
    "0.1:ax 1.1:*x 1.1:rx",
    "0.1:rx 1.1:sx 0.2:ax",
    "0.1:rx 1.1:ax",
]


@pytest.mark.parametrize("events", ORDERED)
def test_what_is_ordered(events):
    happens(events)


@pytest.mark.parametrize("events", RACES)
def test_what_is_a_race(events):
    with pytest.raises(Conflict):
        happens(events)


@pytest.mark.parametrize("events", ORDERED[:8])
def test_shared_memory_in_order(events):
    happens(events, shared=True)


@pytest.mark.parametrize("events", RACES[:13])
def test_a_race_in_shared_memory(events):
    with pytest.raises(Conflict):
        happens(events, shared=True)


def test_several_threads_in_one_instruction_are_told():
    clocks = Clocks(programs=1, warps=2)
    history = History(3, None)
    stamps = clocks.stamps(np.array([0]))[0, [0, 0, 1]] | np.array([1, 2, 40])
    lost = history.write(np.array([0, 0, 1]), Now(stamps, np.zeros(3, int)))
    assert lost.tolist() in ([True, False, False], [False, True, False])
    assert history.write(np.array([2]), Now(stamps[:1], np.zeros(1, int))) is None
