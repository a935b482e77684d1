"""Runs a program: many at once, every lane of which is an element of numpy arrays.

The programs of a chunk go through the code together. Lanes that branch apart take turns in the
order of flow.py, until they meet again; a warp that arrives at a barrier waits until all warps of
its program have.
"""

from collections.abc import Sequence

import numpy as np

from bench.ptx import operands
from bench.ptx.counts import Counts
from bench.ptx.decode import BARRIER, BRANCH, PLAIN, WARP, WARP_BARRIER, Code
from bench.ptx.errors import PtxError
from bench.ptx.faults import Fault
from bench.ptx.floats import Array
from bench.ptx.memory import GlobalMemory
from bench.ptx.operands import Mask
from bench.ptx.races import Now
from bench.ptx.shared import SharedMemory

MOST_STEPS = 3_000_000  # instructions of a chunk; a loop that waits for another program never ends


class Chunk:
    """Programs that run together: their registers, their shared memory, where they are.

    Arrays are [warps, 32]; the warps of a program are next to each other.
    """

    def __init__(
        self,
        code: Code,
        programs: Array,
        grid: int,
        parameters: Sequence[int],
        memory: GlobalMemory,
        shared_size: int,
        counts: Counts,
        poison: int,
    ) -> None:
        self.code, self.programs, self.parameters = code, programs, parameters
        self.memory, self.counts = memory, counts
        self.warps = code.program.threads // WARP  # of a program
        self.shape = (len(programs) * self.warps, WARP)
        self.everyone = np.ones(self.shape, bool)
        lanes = np.arange(code.program.threads, dtype=np.int64).reshape(self.warps, WARP)
        self.thread = np.tile(lanes, (len(programs), 1))
        self.program_of = np.repeat(programs, self.warps)[:, None]  # [warps, 1]
        self.local = np.repeat(np.arange(len(programs)), self.warps)[:, None]
        self.clocks = memory.clocks
        self.shared = SharedMemory(len(programs), shared_size, code.shared_cell)
        fixed = {"%ntid.x": code.program.threads, "%nctaid.x": grid, "%nctaid.y": 1,
                 "%nctaid.z": 1}  # fmt: skip
        self.special = {name: np.full((1, 1), fixed.get(name, 0)) for name in operands.SPECIAL}
        self.special |= {
            "%tid.x": self.thread,
            "%ctaid.x": self.program_of,
            "%laneid": self.thread[:1] % WARP,
        }
        undefined = {
            bits: np.full((1, 1), poison & 1, bool)
            if bits == 1
            else operands.constant(poison * 0x0101010101010101, np.dtype(f"u{bits // 8}"))
            for bits in set(code.program.registers)
        }
        self.registers = [undefined[bits] for bits in code.program.registers]
        self.here = 0
        self.stamps: Array | None = None

    # What steps use.

    def lanes(self, values: Array, mask: Mask) -> Array:
        """The active lanes' numbers, one after the other."""
        if values.shape != self.shape:
            values = np.broadcast_to(values, self.shape if mask is None else mask.shape)
        return values.reshape(-1) if mask is None else values[mask]

    def spread(self, values: Array, mask: Mask) -> Array:
        """[warps, 32] with these in the active lanes."""
        if mask is None:
            return np.ascontiguousarray(values).reshape(self.shape)
        made = np.zeros(self.shape, values.dtype)
        made[mask] = values
        return made

    def now(self, mask: Mask, flags: int = 0) -> Now:
        """Who the active lanes are."""
        if self.stamps is None:
            phases = self.clocks.stamps(self.programs).reshape(-1, 1)
            self.stamps = phases | self.thread
        stamps = self.stamps | flags if flags else self.stamps
        return Now(self.lanes(stamps, mask), self.lanes(self.program_of, mask))

    def changed(self) -> None:
        """The clocks have moved."""
        self.stamps = None

    def count(self, addresses: Array, mask: Mask) -> None:
        """Count a memory access of the present instruction."""
        self.counts.access(self.here, self.spread(addresses, mask), mask)

    # Control flow.

    def run(self) -> None:
        """Run to the end.

        Raises:
            PtxError: what an instruction does wrong, with its program and thread.
        """
        self.groups: dict[int, Mask] = {0: None}
        self.waiting: dict[int, list[tuple[Array, int]]] = {}
        self.steps = 0
        with np.errstate(all="ignore"):
            while self.groups:
                start = min(self.groups, key=self.code.ranks.__getitem__)
                self.follow(start, self.groups.pop(start))
        if self.waiting:
            self.report_waiting()

    def follow(self, pc: int, mask: Mask) -> None:
        """Run lanes that are at one place until they part, end, or come to where others wait."""
        decoded, counts, ranked = self.code.decoded, self.counts, self.code.ranks
        limit = min((ranked[at] for at in self.groups), default=len(ranked))
        issued = counts.group(mask, self.shape)
        while ranked[pc] < limit:
            kind, guard, negated, step, target = decoded[pc]
            active = mask if guard < 0 else self.guarded(guard, negated, mask)
            self.here = pc
            counts.step(pc, issued, active, mask)
            self.steps += 1
            if kind == PLAIN:
                if active is mask or active is None or active.any():
                    try:
                        step(self, active)
                    except Fault as fault:
                        raise self.located(fault, active) from None
                pc += 1
            elif kind == BRANCH and active is mask:
                pc = target
            elif kind == BRANCH and not active.any():  # type: ignore[union-attr]
                pc += 1
            elif kind == BARRIER and active is None:
                self.clocks.barrier(self.programs)
                self.changed()
                pc += 1
            elif kind == WARP_BARRIER:
                self.warp_barrier(active)
                pc += 1
            else:
                self.part(kind, pc, target, mask, active)
                return
            if self.steps > MOST_STEPS:
                raise PtxError(f"{self.where()}: no end after {MOST_STEPS:,} instructions")
        self.join(pc, mask)

    def guarded(self, guard: int, negated: bool, mask: Mask) -> Mask:
        """The lanes of mask for which the guard holds; mask itself if all."""
        holds = self.registers[guard]
        if negated:
            holds = ~holds
        if holds.all():
            return mask
        if mask is None:
            return np.broadcast_to(holds, self.shape) if holds.shape != self.shape else holds
        active = mask & holds
        return mask if (active == mask).all() else active

    def join(self, pc: int, mask: Mask) -> None:
        """Put lanes where they go on, together with those that are there."""
        if mask is None or not mask.any():
            if mask is None:
                self.groups[pc] = None
            return
        others = self.groups.get(pc)
        both = mask if others is None else mask | others
        self.groups[pc] = None if both.all() else both

    def part(self, kind: int, pc: int, target: int, mask: Mask, active: Mask) -> None:
        """Lanes branch, end or wait at a barrier: the active ones, the others go on."""
        active = self.everyone if active is None else active
        rest = (self.everyone if mask is None else mask) & ~active
        self.join(pc + 1, rest)
        if kind == BRANCH:
            self.join(target, active)
        elif kind == BARRIER:
            self.arrive(pc, target, active)

    def arrive(self, pc: int, barrier: int, active: Array) -> None:
        """Warps wait at a barrier; those of programs that are complete go on."""
        self.whole_warps(active)
        there = self.waiting.setdefault(barrier, [])
        there.append((active, pc))
        arrived = np.logical_or.reduce([mask for mask, _ in there])
        complete: Array = arrived[:, 0].reshape(-1, self.warps).all(1)
        go = np.repeat(complete, self.warps)[:, None]
        if complete.any():
            self.clocks.barrier(self.programs[complete])
            self.changed()
        left = []
        for mask, at in there:
            self.join(at + 1, mask & go)
            if (mask & ~go).any():
                left.append((mask & ~go, at))
        if left:
            self.waiting[barrier] = left
        else:
            del self.waiting[barrier]

    def warp_barrier(self, active: Mask) -> None:
        """bar.warp.sync of whole warps."""
        active = self.everyone if active is None else active
        rows = self.whole_warps(active)
        self.clocks.warp_barrier(self.programs[rows // self.warps], rows % self.warps)
        self.changed()

    def whole_warps(self, active: Array) -> Array:
        """The warps that arrive at a barrier; raises PtxError for a part of one."""
        some = np.asarray(active.any(1))
        if (active != some[:, None]).any():
            row = int(np.flatnonzero(some & ~active.all(1))[0])
            raise PtxError(f"{self.where(row)}: only some lanes of a warp arrive at the barrier")
        return np.flatnonzero(some)

    def report_waiting(self) -> None:
        """Raise PtxError for warps that wait forever."""
        for there in self.waiting.values():
            for mask, at in there:
                self.here = at
                row = int(np.flatnonzero(mask.any(1))[0])
                program = row // self.warps
                arrived = np.logical_or.reduce([m for m, _ in there])[:, 0]
                mine = arrived.reshape(-1, self.warps)[program]
                missing = ", ".join(map(str, np.flatnonzero(~mine)))
                raise PtxError(
                    f"{self.where()}: program {self.programs[program]} waits forever: "
                    f"warp {missing} never reaches the barrier"
                )

    def where(self, row: int | None = None) -> str:
        """The present instruction, and the program of a warp."""
        program = self.code.program
        text = f"{program.name}: {program.instructions[self.here]}"
        return text if row is None else f"{text}: program {self.program_of[row, 0]}"

    def located(self, fault: Fault, active: Mask) -> PtxError:
        """A fault with its place, program and thread."""
        lanes = self.everyone if active is None else active
        row, lane = np.argwhere(lanes)[fault.index]
        return PtxError(f"{self.where(row)}, thread {self.thread[row, lane]}: {fault}")
