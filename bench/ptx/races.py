"""Which accesses are ordered: a race is two of the same cell, one a write, that are not.

The order is that of the PTX memory model (ISA, section 8), as far as kernels here use it:

- A thread's own accesses are in order.
- bar.sync orders what all threads of the program did before it and what they do after it.
- bar.warp.sync orders the same for the lanes of a warp. Shuffles and votes order nothing.
- Between programs: a release (atom, red, st or a fence before one of them) of a location, and an
  acquire of the same location that comes after it, at .gpu or .sys scope. It takes along what
  barriers and earlier acquires have ordered before it.

So the programs may run in any order, one that no fault of the GPU would show included: only the
order that the code enforces counts. Two atomic or otherwise strong accesses do not race.

An access is a stamp, an int64; a later phase is a larger stamp:

    bits 0-9    thread of the program         bits 13-26  epoch: releases since the barrier
    bit  10     and others of its warp        bits 27-38  bar.warp.sync since the barrier
    bit  11     and others of other warps     bits 39-62  phase: bar.sync so far, plus 1
    bit  12     atomic
"""

import numpy as np

from bench.ptx.errors import PtxError
from bench.ptx.floats import Array

SEVERAL = -1  # in the place of a program that read
WARP_BITS, THREAD_BITS = 0x3E0, 0x3FF
LANES, WARPS, ATOMIC = 1 << 10, 1 << 11, 1 << 12
WHO = THREAD_BITS | LANES | WARPS
EPOCH, WARP_PHASE, PHASE = 13, 27, 39
MOST_EPOCHS, MOST_WARP_PHASES = 1 << 14, 1 << 12


def raced(was: Array, now: Array) -> Array:
    """Where an earlier access and the present one, of the same program, are not ordered."""
    unordered = ((was >> PHASE) == (now >> PHASE)) & (((was ^ now) & WHO) != 0)
    if not unordered.any():
        return unordered
    same_warp = ((was ^ now) & (WARP_BITS | WARPS)) == 0
    synced = same_warp & ((was >> WARP_PHASE) < (now >> WARP_PHASE))
    return unordered & ~synced & ((was & now & ATOMIC) == 0)


def merged(was: Array, now: Array) -> Array:
    """What to remember of two reads: the later, marked if the earlier is not ordered before it."""
    both = raced(was & ~np.int64(ATOMIC), now)
    if not both.any():
        return now
    apart = ((was ^ now) & WARP_BITS) != 0
    flags = np.where(apart, WARPS | LANES, LANES) | (was & (WARPS | LANES))
    return np.where(both, both_strong(was, now) | flags, now)


def both_strong(was: Array, now: Array) -> Array:
    """`now`, atomic only if `was` is too."""
    return now & (was | ~np.int64(ATOMIC))


class Clocks:
    """How far each program is, and what it knows of the others.

    Knowledge is a row with a stamp for each program: everything of an earlier phase is known, and
    of that phase what the stamp's thread did up to the stamp's epoch.
    """

    def __init__(self, programs: int, warps: int) -> None:
        self.phase = np.ones(programs, np.int64)
        self.warp_phase = np.zeros((programs, warps), np.int64)
        self.epoch = np.zeros(programs, np.int64)
        self.of_program: dict[int, Array] = {}  # rows that all its threads know
        self.of_thread: dict[tuple[int, int], Array] = {}  # since the last barrier
        self.released: dict[int, Array] = {}  # by address
        self.fenced: dict[tuple[int, int], Array] = {}  # what a strong write would publish
        self.seen: dict[tuple[int, int], Array] = {}  # what a fence would acquire

    def stamps(self, programs: Array) -> Array:
        """Stamps of the warps of some programs, [programs, warps], without threads."""
        phase, epoch = self.phase[programs, None], self.epoch[programs, None]
        return phase << PHASE | self.warp_phase[programs] << WARP_PHASE | epoch << EPOCH

    def barrier(self, programs: Array) -> None:
        """All threads of these programs have arrived at a bar.sync."""
        self.phase[programs] += 1
        self.warp_phase[programs] = 0
        self.epoch[programs] = 0
        if self.of_thread:
            arrived = set(programs.tolist())
            for program, thread in [k for k in self.of_thread if k[0] in arrived]:
                row = self.of_thread.pop((program, thread))
                known = self.of_program.get(program)
                self.of_program[program] = row if known is None else np.maximum(row, known)

    def warp_barrier(self, programs: Array, warps: Array) -> None:
        """All lanes of these warps have arrived at a bar.warp.sync."""
        if self.warp_phase.shape[1] == 1:
            self.barrier(programs)
            return
        self.warp_phase[programs, warps] += 1
        if (self.warp_phase[programs, warps] >= MOST_WARP_PHASES).any():
            raise PtxError("more than 4,095 bar.warp.sync without a bar.sync")

    def row(self, program: int, thread: int) -> Array:
        """What a thread knows of all programs."""
        row = self.of_thread.get((program, thread), self.of_program.get(program))
        return np.zeros(len(self.phase), np.int64) if row is None else row

    def snapshot(self, program: int, thread: int) -> Array:
        """What a thread would publish now."""
        row = self.row(program, thread).copy()
        row[program] = self.phase[program] << PHASE | self.epoch[program] << EPOCH | thread
        return row

    def advance(self, program: int) -> None:
        """Something was released: what follows is of a new epoch."""
        self.epoch[program] += 1
        if self.epoch[program] >= MOST_EPOCHS:
            raise PtxError("more than 16,383 releases without a bar.sync")

    def learn(self, program: int, thread: int, row: Array | None) -> None:
        """A thread acquires what was published."""
        if row is not None:
            self.of_thread[program, thread] = np.maximum(self.row(program, thread), row)

    def fence(self, program: int, thread: int) -> None:
        """A fence: acquires for earlier strong reads, releases for later strong writes.

        To be followed by `advance` once for the program.
        """
        self.learn(program, thread, self.seen.pop((program, thread), None))
        self.fenced[program, thread] = self.snapshot(program, thread)

    def strong_read(self, program: int, thread: int, address: int, acquire: bool) -> None:
        """A read of a location at gpu scope."""
        row = self.released.get(address)
        if acquire:
            self.learn(program, thread, row)
        elif row is not None:
            seen = self.seen.get((program, thread))
            self.seen[program, thread] = row if seen is None else np.maximum(row, seen)

    def strong_write(
        self, program: int, thread: int, address: int, release: bool, update: bool
    ) -> None:
        """A write of a location at gpu scope; an update (read and write) keeps what is there."""
        if release:
            row: Array | None = self.snapshot(program, thread)
            self.advance(program)
        else:
            row = self.fenced.get((program, thread))
        before = self.released.get(address) if update else None
        if row is None or before is None:
            row = before if row is None else row
        else:
            row = np.maximum(row, before)
        if row is None:
            self.released.pop(address, None)
        else:
            self.released[address] = row

    def known(self, program: int, threads: Array, others: Array, stamps: Array) -> Array:
        """Whether threads of a program know of accesses by other programs."""
        made = np.zeros(len(threads), bool)
        alone = [t for p, t in self.of_thread if p == program]
        for thread in (None, *alone):
            mine = ~np.isin(threads, alone) if thread is None else threads == thread
            if mine.any():
                row = self.row(program, -1 if thread is None else thread)[others[mine]]
                was = stamps[mine]
                earlier = (was >> PHASE) < (row >> PHASE)
                same = (was >> PHASE == row >> PHASE) & ((was ^ row) & WHO == 0)
                up_to = (was >> EPOCH) % MOST_EPOCHS <= (row >> EPOCH) % MOST_EPOCHS
                made[mine] = earlier | (same & up_to)
        return made


class Now:
    """Who makes the accesses of one instruction: a stamp, a program and a thread for each."""

    def __init__(self, stamps: Array, programs: Array) -> None:
        self.stamps, self.programs = stamps, programs

    def repeated(self, times: int) -> "Now":
        """For accesses of several cells each."""
        return Now(np.repeat(self.stamps, times), np.repeat(self.programs, times))


class Conflict(Exception):
    """An access, by its index in the instruction, that races with an earlier one of its cell."""

    def __init__(self, index: int, before: str, program: int, stamp: int) -> None:
        super().__init__(index)
        self.index = index
        several = stamp & (LANES | WARPS)
        threads = "several threads" if several else f"thread {stamp & THREAD_BITS}"
        whose = "several programs" if program == SEVERAL else f"{threads} of program {program}"
        self.text = f"{before} by {whose}"


class History:
    """The last write and the last reads of each cell of some memory.

    Of several unordered reads, that there were several. Reads by several programs count as never
    ordered before a write, which no kernel here needs.
    """

    def __init__(self, cells: int, clocks: Clocks | None) -> None:
        self.clocks = clocks  # None: memory of single programs, shared memory
        self.writes = np.zeros(cells, np.int64)
        self.writers = np.zeros(cells if clocks else 0, np.int32)
        self.reads, self.readers = np.zeros_like(self.writes), np.zeros_like(self.writers)
        self.written = False
        self.atomics: dict[int, dict[int, int]] = {}  # cell: program: last stamp

    def read(self, cells: Array, now: Now) -> None:
        """Enter reads, which must be ordered after the last writes."""
        if self.written:
            self.compare(self.writes, self.writers, cells, now, "written")
        was = self.reads[cells]
        marked = merged(was, now.stamps)
        if self.clocks is None:
            self.reads[cells] = marked
            mark_shared(self.reads, cells, marked)
            return
        by = self.readers[cells]
        foreign = (was != 0) & (by != now.programs)
        readers = np.where(foreign, SEVERAL, now.programs).astype(np.int32)
        self.reads[cells] = marked = np.where(foreign, both_strong(was, now.stamps), marked)
        self.readers[cells] = readers
        clash = self.readers[cells] != readers
        self.readers[cells[clash]] = SEVERAL
        mark_shared(self.reads, cells, marked)

    def write(self, cells: Array, now: Now) -> Array | None:
        """Enter writes, ordered after all before; returns where others wrote the same cell now."""
        self.written = True
        self.compare(self.writes, self.writers, cells, now, "written")
        self.compare(self.reads, self.readers, cells, now, "read")
        self.reads[cells] = 0
        self.writes[cells] = now.stamps
        if self.clocks is not None:
            self.writers[cells] = now.programs
            clash = np.flatnonzero(self.writers[cells] != now.programs)
            if len(clash):
                i = int(clash[0])
                other = int(self.writers[cells[i]])
                raise Conflict(i, "written", other, int(self.writes[cells[i]]))
        if self.atomics or now.stamps[0] & ATOMIC:
            self.note_atomics(cells, now)
        return mark_shared(self.writes, cells, now.stamps)

    def note_atomics(self, cells: Array, now: Now) -> None:
        """Remember the last atomic write of each program."""
        for cell, program, stamp in zip(*map(np.ndarray.tolist, (cells, now.programs, now.stamps)),
                                        strict=True):  # fmt: skip
            if stamp & ATOMIC:
                self.atomics.setdefault(cell, {})[program] = stamp
            else:
                self.atomics.pop(cell, None)

    def compare(self, stamps: Array, programs: Array, cells: Array, now: Now, before: str) -> None:
        """Raise Conflict unless what is remembered of the cells is ordered before now."""
        was = stamps[cells]
        bad = raced(was, now.stamps)
        by = now.programs
        if self.clocks is not None:
            by = programs[cells]
            foreign = (by != now.programs) & (was != 0)
            if foreign.any():
                bad &= ~foreign
                bad |= self.unknown(was, by, now, foreign)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise Conflict(i, before, int(by[i]), int(was[i]))
        if self.atomics and before == "written" and not now.stamps[0] & ATOMIC:
            self.compare_atomics(cells, now)

    def unknown(self, was: Array, by: Array, now: Now, foreign: Array) -> Array:
        """Which of the foreign accesses the present ones do not know of."""
        assert self.clocks is not None
        bad = foreign & ((was & now.stamps & ATOMIC) == 0)
        for program in np.unique(now.programs[bad & (by != SEVERAL)]):
            at = np.flatnonzero(bad & (by != SEVERAL) & (now.programs == program))
            threads = now.stamps[at] & THREAD_BITS
            bad[at] = ~self.clocks.known(int(program), threads, by[at], was[at])
        return bad

    def compare_atomics(self, cells: Array, now: Now) -> None:
        """Raise Conflict unless plain accesses know of every program's atomic ones."""
        assert self.clocks is not None
        for i in np.flatnonzero(np.isin(cells, list(self.atomics))):
            program, thread = int(now.programs[i]), int(now.stamps[i]) & THREAD_BITS
            for other, stamp in self.atomics[int(cells[i])].items():
                was = np.array([stamp])
                if other == program:
                    fine = not raced(was, now.stamps[i : i + 1] & ~ATOMIC)[0]
                else:
                    one = np.array([thread])
                    fine = self.clocks.known(program, one, np.array([other]), was)[0]
                if not fine:
                    raise Conflict(int(i), "written", other, stamp)


def mark_shared(stamps: Array, cells: Array, stored: Array) -> Array | None:
    """Mark cells into which one instruction has stored the stamps of several threads.

    Returns where another's stamp has replaced `stored`; None if nowhere.
    """
    kept = stamps[cells]
    lost = kept != stored
    if not lost.any():
        return None
    apart = lost & (((kept ^ stored) & WARP_BITS) != 0)
    stamps[cells[lost]] |= LANES
    stamps[cells[apart]] |= WARPS
    return lost
