"""Global memory, which is the tensors of a launch and nothing else.

A tensor's bytes stay where they are; kernels see them at addresses of their own, 2^40 bytes apart,
so that no access beyond one tensor's end reaches another. Its address has the real one's remainder
modulo 4,096. Accessible are the elements' bytes only: not the gaps of a strided view.
"""

import ctypes
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from bench.ptx.errors import PtxError
from bench.ptx.faults import WIDEST, Fault, check_same, index, racing
from bench.ptx.floats import Array
from bench.ptx.races import Clocks, Conflict, History, Now

APART, PAGE, SECTOR = 1 << 40, 1 << 12, 32


class Role(Enum):
    """What a kernel does with a tensor: outputs are to be filled, scratch holds something."""

    INPUT, OUTPUT, WORKSPACE, SCRATCH = range(4)


@dataclass(frozen=True)
class Buffer:
    """A tensor argument."""

    name: str
    tensor: Tensor
    role: Role = Role.INPUT

    @property
    def written(self) -> bool:
        """Whether stores to it are allowed."""
        return self.role != Role.INPUT

    @property
    def empty(self) -> bool:
        """Whether it holds nothing before."""
        return self.role in (Role.OUTPUT, Role.WORKSPACE)

    @property
    def low(self) -> int:
        """Its real address."""
        return self.tensor.data_ptr()

    @property
    def size(self) -> int:
        """Bytes from the first element's to the last's."""
        if self.tensor.numel() == 0:
            return 0
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return (sum((n - 1) * step for n, step in steps) + 1) * self.tensor.itemsize

    def offsets(self) -> Array:
        """The byte offset of each element, in the tensor's shape."""
        made = np.zeros((), np.int64)
        for n, step in zip(self.tensor.shape, self.tensor.stride(), strict=True):
            made = made[..., None] + np.arange(n) * (step * self.tensor.itemsize)
        return made


class Region:
    """Memory of one tensor, or of several whose spans overlap, as cells of the smallest element."""

    def __init__(self, buffers: Sequence[Buffer], address: int, clocks: Clocks) -> None:
        self.buffers = buffers
        first = min(b.low for b in buffers)
        self.size = max(b.low + b.size for b in buffers) - first
        self.low = address + first % PAGE
        self.cell = min(b.tensor.itemsize for b in buffers)
        self.table: Array | None = None  # offsets of the cells, unless they fill the span
        own: list[Array] = []
        if not (len(buffers) == 1 and buffers[0].tensor.is_contiguous()):
            own = [self.offsets(b) for b in buffers]
            check_overlap(buffers, own)
            table = np.unique(np.concatenate(own))
            self.table = table if len(table) * self.cell != self.size else None
        self.cells = self.size // self.cell if self.table is None else len(self.table)
        self.start = self.low - first % WIDEST  # of the view, so that wide accesses are aligned
        length = -(-(self.size + first % WIDEST) // WIDEST) * WIDEST
        self.bytes = np.zeros(0, np.uint8)
        if length:
            there = (ctypes.c_uint8 * length).from_address(first - first % WIDEST)
            self.bytes = np.ctypeslib.as_array(there)
        self.history = History(self.cells if any(b.written for b in buffers) else 0, clocks)
        self.writable = np.zeros(self.cells, bool)
        self.undefined = np.zeros(self.cells, bool)
        for i, b in enumerate(buffers):
            cells = self.at(own[i]) if own else slice(None)
            if b.written:
                self.writable[cells] = True
            if b.empty:
                self.undefined[cells] = True
        self.starts_empty = bool(self.undefined.any())
        self.to_fill = any(b.role == Role.OUTPUT for b in buffers)
        sectors = self.low % SECTOR + (self.table if self.table is not None else np.zeros(0))
        self.sectors = np.unique(sectors // SECTOR).astype(np.int64)
        count = len(self.sectors) or (self.low % SECTOR + self.size) // SECTOR + 1
        self.touched = {kind: np.zeros(count, bool) for kind in ("ld", "st")}

    def offsets(self, buffer: Buffer) -> Array:
        """Offsets in the region of a buffer's cells, sorted."""
        shift = buffer.low - min(b.low for b in self.buffers)
        if buffer.tensor.is_contiguous():
            return shift + np.arange(0, buffer.size, self.cell)
        parts = np.arange(0, buffer.tensor.itemsize, self.cell)
        return shift + (np.unique(buffer.offsets())[:, None] + parts).reshape(-1)

    def at(self, offsets: Array) -> Array:
        """The cells at some offsets."""
        if self.table is None:
            return offsets // self.cell
        return np.minimum(np.searchsorted(self.table, offsets, "right") - 1, len(self.table) - 1)

    def find(self, addresses: Array, size: int) -> Array:
        """The cells [accesses * n] of accesses of some bytes each.

        Raises:
            Fault: one is not of this memory's elements.
        """
        offsets = addresses - self.low
        count = max(1, size // self.cell)
        outside = (offsets < 0) | (offsets + size > self.size)
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            raise Fault(i, self.describe_outside(int(offsets[i]), size))
        first = self.at(offsets)
        cells = (first[:, None] + np.arange(count)).reshape(-1) if count > 1 else first
        if self.table is not None:
            wanted = offsets[:, None] + np.arange(count) * self.cell
            found = self.table[np.minimum(cells, self.cells - 1)].reshape(-1, count)
            gap = (wanted < found) | (wanted + min(size, self.cell) > found + self.cell)
            if gap.any():
                i = int(np.flatnonzero(gap.any(1))[0])
                raise Fault(i, f"{size} bytes at offset {offsets[i]} are between the elements of "
                               f"{self.name}")  # fmt: skip
        return cells

    @property
    def name(self) -> str:
        """The names of its tensors."""
        return " and ".join(b.name for b in self.buffers)

    def describe_outside(self, offset: int, size: int) -> str:
        """Where an access that leaves the region lies."""
        if offset < 0:
            return f"{size} bytes lie {-offset} bytes before {self.name}"
        return f"{size} bytes at offset {offset} lie outside {self.name} of {self.size} bytes"

    def describe(self, cell: int) -> str:
        """The element that a cell belongs to."""
        offset = cell * self.cell if self.table is None else int(self.table[cell])
        for b in sorted(self.buffers, key=lambda b: not b.written):
            relative = offset - (b.low - min(other.low for other in self.buffers))
            distance = relative - b.offsets()
            inside = np.argwhere((distance >= 0) & (distance < b.tensor.itemsize))
            if len(inside):
                return f"element {inside[0].tolist()} of {b.name}"
        return f"offset {offset} of {self.name}"

    def touch(self, kind: str, cells: Array) -> None:
        """Mark the 32-byte sectors of some cells as moved."""
        if self.table is None:
            sectors = (cells * self.cell + self.low % SECTOR) // SECTOR
        else:
            wanted = (self.table[cells] + self.low % SECTOR) // SECTOR
            sectors = np.searchsorted(self.sectors, wanted)
        self.touched[kind][sectors] = True


def check_overlap(buffers: Sequence[Buffer], offsets: Sequence[Array]) -> None:
    """Raise PtxError for a tensor to be written that shares bytes with another argument."""
    for i, one in enumerate(buffers):
        for j, other in enumerate(buffers):
            if i != j and one.written and len(np.intersect1d(offsets[i], offsets[j])):
                raise PtxError(f"output {one.name} overlaps {other.name}")
        if written_twice(one):
            raise PtxError(f"output {one.name} overlaps itself")


def written_twice(buffer: Buffer) -> bool:
    """Whether two elements of a tensor that is written are in one place."""
    tensor = buffer.tensor
    if not buffer.written or tensor.is_contiguous():
        return False
    return len(np.unique(buffer.offsets())) < tensor.numel()


class GlobalMemory:
    """All tensors of a launch."""

    def __init__(self, buffers: Collection[Buffer], clocks: Clocks) -> None:
        self.clocks = clocks
        groups: list[list[Buffer]] = []
        end = -1
        for buffer in sorted(buffers, key=lambda b: (b.low, b.size)):
            if buffer.size == 0 or buffer.low >= end:
                groups.append([])
            groups[-1].append(buffer)
            end = max(end, buffer.low + buffer.size)
        self.regions = [Region(g, APART * (i + 1), clocks) for i, g in enumerate(groups)]

    def address(self, name: str) -> int:
        """Where kernels see a tensor."""
        for region in self.regions:
            for b in region.buffers:
                if b.name == name:
                    return region.low + b.low - min(other.low for other in region.buffers)
        raise KeyError(name)

    def of(self, addresses: Array, size: int) -> list[tuple[Region, Array | slice]]:
        """The regions of some aligned accesses, with the accesses of each.

        Raises:
            Fault: one is not aligned to its size, or far from every tensor.
        """
        if (addresses & (size - 1)).any():
            i = int(np.flatnonzero(addresses & (size - 1))[0])
            raise Fault(i, f"{size} bytes at {self.near(addresses[i])} are not aligned")
        which = (addresses + APART // 2) // APART - 1
        if (which == which[0]).all():
            if 0 <= which[0] < len(self.regions):
                return [(self.regions[int(which[0])], slice(None))]
            raise Fault(0, f"{size} bytes at {self.near(addresses[0])}")
        parts: list[tuple[Region, Array | slice]] = []
        for i in np.unique(which):
            at = np.flatnonzero(which == i)
            if not 0 <= i < len(self.regions):
                raise Fault(int(at[0]), f"{size} bytes at {self.near(addresses[at[0]])}")
            parts.append((self.regions[int(i)], at))
        return parts

    def near(self, address: int) -> str:
        """An address by the nearest tensor's."""
        if not self.regions:
            return f"address {int(address):#x} without any tensor"
        region = min(self.regions, key=lambda r: abs(int(address) - r.low))
        return f"offset {int(address) - region.low} of {region.name}"

    def load(self, addresses: Array, dtype: np.dtype, count: int, now: Now) -> Array:
        """Numbers [accesses, count]."""
        size = dtype.itemsize * count
        parts = self.of(addresses, size)
        made = np.empty((len(addresses), count), dtype) if len(parts) > 1 else None
        for region, at in parts:
            cells, n = self.located(region, addresses, at, size)
            if region.starts_empty and region.undefined[cells].any():
                i = int(np.flatnonzero(region.undefined[cells])[0])
                raise Fault(index(at, i // n), f"nothing has written {region.describe(cells[i])}")
            if len(region.history.writes):  # else an input
                with_history(region, at, cells, n, "read", region.history.read, now)
            region.touch("ld", cells[::n])
            found = region.bytes.view(dtype).reshape(-1, count)[
                (addresses[at] - region.start) // size
            ]
            if made is None:
                return found
            made[at] = found
        assert made is not None
        return made

    def store(self, addresses: Array, values: Array, now: Now) -> None:
        """Numbers [accesses, count] into memory."""
        size = values.itemsize * values.shape[1]
        for region, at in self.of(addresses, size):
            cells, n = self.located(region, addresses, at, size)
            self.check_writable(region, at, cells, n)
            lost = with_history(region, at, cells, n, "written", region.history.write, now)
            where = (addresses[at] - region.start) // size
            memory = region.bytes.view(values.dtype).reshape(-1, values.shape[1])
            memory[where] = values[at]
            if lost is not None:
                differs = (memory[where] != values[at]).any(1)
                check_same(at, np.any(lost.reshape(-1, n), 1), differs, region.describe, cells[::n])
            region.undefined[cells] = False
            region.touch("st", cells[::n])

    def check_writable(self, region: Region, at: Array | slice, cells: Array, n: int) -> None:
        """Raise Fault for a store into what is no output."""
        if not region.writable[cells].all():
            i = int(np.flatnonzero(~region.writable[cells])[0])
            raise Fault(index(at, i // n), f"stores to {region.describe(cells[i])}, no output")

    def located(
        self, region: Region, addresses: Array, at: Array | slice, size: int
    ) -> tuple[Array, int]:
        """The cells of a region's accesses, and how many each has."""
        try:
            cells = region.find(addresses[at], size)
        except Fault as fault:
            raise Fault(index(at, fault.index), str(fault)) from None
        return cells, max(1, size // region.cell)

    def word(self, address: int, dtype: np.dtype) -> tuple[Region, Array, int]:
        """One word for an atomic update: its region, memory that holds it, and the index there."""
        ((region, _),) = self.of(np.array([address]), dtype.itemsize)
        region.find(np.array([address]), dtype.itemsize)
        return region, region.bytes.view(dtype), (address - region.start) // dtype.itemsize

    def check_written(self) -> None:
        """Raise PtxError for an element of an output that nothing has written."""
        for region in self.regions:
            if region.to_fill and region.undefined.any():
                missing = np.flatnonzero(region.undefined)
                raise PtxError(
                    f"nothing has written {region.describe(missing[0])} and {len(missing) - 1} more"
                )


def with_history(
    region: Region,
    at: Array | slice,
    cells: Array,
    n: int,
    verb: str,
    enter: Callable[[Array, Now], Array | None],
    now: Now,
) -> Array | None:
    """Enter accesses of n cells each into a region's history; a race is a Fault."""
    mine = Now(now.stamps[at], now.programs[at])
    try:
        return enter(cells, mine.repeated(n) if n > 1 else mine)
    except Conflict as race:
        what = region.describe(int(cells[race.index]))
        raise Fault(index(at, race.index // n), racing(what, race, verb)) from None
