"""Runs a program: many at once, every lane of which is an element of numpy arrays.

The programs of a chunk go through the code together. Lanes that branch apart take turns in the
order of flow.py, until they meet again; a warp that arrives at a barrier waits until all warps of
its program have.
"""

import numpy as np

from bench.ptx.chunk import Chunk, Mask
from bench.ptx.decode import BARRIER, BRANCH, PLAIN, WARP_BARRIER, Code
from bench.ptx.errors import PtxError
from bench.ptx.faults import Fault
from bench.ptx.floats import Array

MOST_STEPS = 3_000_000  # instructions of a chunk; a loop that waits for another program never ends


class Machine:
    """Takes a chunk through its code."""

    def __init__(self, code: Code, chunk: Chunk) -> None:
        self.code, self.chunk = code, chunk

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
        decoded, counts, ranked = self.code.decoded, self.chunk.counts, self.code.ranks
        limit = min((ranked[at] for at in self.groups), default=len(ranked))
        issued = counts.group(mask, self.chunk.shape)
        while ranked[pc] < limit:
            kind, guard, negated, step, target = decoded[pc]
            active = mask if guard < 0 else self.guarded(guard, negated, mask)
            self.chunk.here = pc
            counts.step(pc, issued, active, mask)
            self.steps += 1
            if kind == PLAIN:
                if active is mask or active is None or active.any():
                    try:
                        step(self.chunk, active)
                    except Fault as fault:
                        raise self.located(fault, active) from None
                pc += 1
            elif kind == BRANCH and active is mask:
                pc = target
            elif kind == BRANCH and not active.any():  # type: ignore[union-attr]
                pc += 1
            elif kind == BARRIER and active is None:
                self.chunk.clocks.barrier(self.chunk.programs)
                self.chunk.changed()
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
        holds = self.chunk.registers[guard]
        if negated:
            holds = ~holds
        if holds.all():
            return mask
        if mask is None:
            return (
                np.broadcast_to(holds, self.chunk.shape)
                if holds.shape != self.chunk.shape
                else holds
            )
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
        active = self.chunk.everyone if active is None else active
        rest = (self.chunk.everyone if mask is None else mask) & ~active
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
        complete: Array = arrived[:, 0].reshape(-1, self.chunk.warps).all(1)
        go = np.repeat(complete, self.chunk.warps)[:, None]
        if complete.any():
            self.chunk.clocks.barrier(self.chunk.programs[complete])
            self.chunk.changed()
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
        active = self.chunk.everyone if active is None else active
        rows = self.whole_warps(active)
        self.chunk.clocks.warp_barrier(
            self.chunk.programs[rows // self.chunk.warps], rows % self.chunk.warps
        )
        self.chunk.changed()

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
                self.chunk.here = at
                row = int(np.flatnonzero(mask.any(1))[0])
                program = row // self.chunk.warps
                arrived = np.logical_or.reduce([m for m, _ in there])[:, 0]
                mine = arrived.reshape(-1, self.chunk.warps)[program]
                missing = ", ".join(map(str, np.flatnonzero(~mine)))
                raise PtxError(
                    f"{self.where()}: program {self.chunk.programs[program]} waits forever: "
                    f"warp {missing} never reaches the barrier"
                )

    def where(self, row: int | None = None) -> str:
        """The present instruction, and the program of a warp."""
        program = self.code.program
        text = f"{program.name}: {program.instructions[self.chunk.here]}"
        return text if row is None else f"{text}: program {self.chunk.program_of[row, 0]}"

    def located(self, fault: Fault, active: Mask) -> PtxError:
        """A fault with its place, program and thread."""
        lanes = self.chunk.everyone if active is None else active
        row, lane = np.argwhere(lanes)[fault.index]
        return PtxError(f"{self.where(row)}, thread {self.chunk.thread[row, lane]}: {fault}")
