"""What is wrong with an access, and how it is said."""

from collections.abc import Callable

import numpy as np

from bench.ptx.floats import Array
from bench.ptx.races import Conflict

WIDEST = 16  # bytes of an access


class Fault(Exception):
    """What is wrong with an access, by its index in the instruction."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


def index(at: Array | slice, i: int) -> int:
    """Which access of the instruction the i-th of a region is."""
    return i if isinstance(at, slice) else int(at[i])


def racing(what: str, race: Conflict, verb: str) -> str:
    """The text of a race."""
    return f"a race: {verb} here and {race.text}, with no order between the two: {what}"


def check_same(
    at: Array | slice,
    lost: Array,
    differs: Array,
    describe: Callable[[int], str],
    cells: Array,
) -> None:
    """Raise Fault where one of several threads that write a cell at once holds another number.

    With the same number, as Triton stores what all lanes hold, no order can change the result.
    """
    if (lost & differs).any():
        i = int(np.flatnonzero(lost & differs)[0])
        what = describe(int(cells[i]))
        raise Fault(index(at, i), f"a race: several threads write different numbers here: {what}")
