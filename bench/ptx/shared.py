"""Shared memory."""

from collections.abc import Callable

import numpy as np

from bench.ptx.faults import WIDEST, Fault, check_same, racing
from bench.ptx.floats import Array
from bench.ptx.races import Conflict, History, Now


class SharedMemory:
    """The shared memory of the programs of a chunk, uninitialised."""

    def __init__(self, programs: int, size: int, cell: int) -> None:
        self.size, self.cell = size, cell
        self.step = -(-size // WIDEST) * WIDEST
        self.bytes = np.full(programs * self.step, 0xFF, np.uint8)
        self.history = History(programs * self.step // cell, None)

    def find(self, locals_: Array, addresses: Array, size: int) -> tuple[Array, Array, int]:
        """Where the accesses lie in `bytes`, their cells, and how many cells each has."""
        outside = (addresses < 0) | (addresses + size > self.size)
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            raise Fault(i, f"{size} bytes at {addresses[i]} of {self.size} of shared memory")
        if (addresses & (size - 1)).any():
            i = int(np.flatnonzero(addresses & (size - 1))[0])
            raise Fault(i, f"{size} bytes at {addresses[i]} of shared memory are not aligned")
        where = locals_ * self.step + addresses
        first, n = where // self.cell, max(1, size // self.cell)
        return where, (first[:, None] + np.arange(n)).reshape(-1) if n > 1 else first, n

    def load(
        self, locals_: Array, addresses: Array, dtype: np.dtype, count: int, now: Now
    ) -> Array:
        """Numbers [accesses, count], each of a program by its place in the chunk."""
        size = dtype.itemsize * count
        where, cells, n = self.find(locals_, addresses, size)
        if not self.history.writes[cells].all():
            i = int(np.flatnonzero(self.history.writes[cells] == 0)[0])
            raise Fault(i // n, f"nothing has written {self.describe(int(cells[i]))}")
        self.enter(cells, n, "read", self.history.read, now)
        return self.bytes.view(dtype).reshape(-1, count)[where // size]

    def store(self, locals_: Array, addresses: Array, values: Array, now: Now) -> None:
        """Numbers [accesses, count] into memory."""
        size = values.itemsize * values.shape[1]
        where, cells, n = self.find(locals_, addresses, size)
        lost = self.enter(cells, n, "written", self.history.write, now)
        memory = self.bytes.view(values.dtype).reshape(-1, values.shape[1])
        memory[where // size] = values
        if lost is not None:
            differs = (memory[where // size] != values).any(1)
            check_same(
                slice(None), np.any(lost.reshape(-1, n), 1), differs, self.describe, cells[::n]
            )

    def enter(
        self, cells: Array, n: int, verb: str, enter: Callable[..., Array | None], now: Now
    ) -> Array | None:
        """Enter accesses into the history; a race is a Fault."""
        try:
            return enter(cells, now.repeated(n) if n > 1 else now)
        except Conflict as race:
            what = self.describe(int(cells[race.index]))
            raise Fault(race.index // n, racing(what, race, verb)) from None

    def describe(self, cell: int) -> str:
        """A cell by its address."""
        return f"byte {cell * self.cell % self.step} of shared memory"
