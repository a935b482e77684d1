"""Runs a program: many at once, every lane of which is an element of numpy arrays.

The programs of a chunk go through the code together. Lanes that branch apart take turns in
the order of flow.py, until they meet again; a warp that arrives at a barrier waits until all warps
of its program have.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bench.ptx import access, operands, warps
from bench.ptx.arithmetic import Operation, operation
from bench.ptx.counts import Counts
from bench.ptx.errors import PtxError
from bench.ptx.floats import Array
from bench.ptx.flow import ranks
from bench.ptx.memory import Fault, GlobalMemory, SharedMemory
from bench.ptx.operands import Mask, Read, Step, Write, reader, writer
from bench.ptx.program import Group, Immediate, Instruction, Program, Symbol
from bench.ptx.races import Now

WARP = 32
MOST_STEPS = 10_000_000  # instructions of a chunk; a loop that waits for another program never ends
BRANCH, EXIT, BARRIER, WARP_BARRIER, PLAIN = range(5)
CONTROL = {"bra": BRANCH, "bra.uni": BRANCH, "ret": EXIT, "exit": EXIT, "bar.sync": BARRIER,
           "barrier.sync": BARRIER, "bar.warp.sync": WARP_BARRIER}  # fmt: skip


class Decoded(NamedTuple):
    """An instruction made ready: what it is, what it does, where it branches to."""

    kind: int
    guard: int  # the register, or -1
    negated: bool
    step: Step
    target: int  # of a branch; the number of a barrier


class Code:
    """A program whose every opcode is known.

    Raises:
        PtxError: naming the first opcode, operand or label that is not, and its line.
    """

    def __init__(self, program: Program, *, float_atomics: bool = False) -> None:
        self.program = program
        if program.threads % WARP or not 0 < program.threads <= 1024:
            raise PtxError(f"{program.threads} threads a program, wanted whole warps, at most 32")
        self.decoded = []
        for instruction in program.instructions:
            try:
                self.decoded.append(decode(instruction, program, float_atomics))
            except PtxError as error:
                raise PtxError(f"{program.name}: {instruction}: {error}") from None
        by_block = ranks(program)
        self.ranks = [by_block.get(i, -1) for i in range(len(self.decoded))]
        self.shared_cell = min(
            (1 << 4, *(shared_width(i) for i in program.instructions if is_shared(i)))
        )


def is_shared(instruction: Instruction) -> bool:
    """Whether it accesses shared memory."""
    kinds = ("ld", "st", "ldmatrix", "stmatrix")
    shared = {"shared", "shared::cta"} & set(instruction.parts)
    return instruction.parts[0] in kinds and bool(shared)


def shared_width(instruction: Instruction) -> int:
    """Bytes of the numbers it moves."""
    return int(instruction.parts[-1][1:]) // 8


def decode(instruction: Instruction, program: Program, float_atomics: bool) -> Decoded:
    """An instruction made ready."""
    guard = instruction.guard
    if guard is not None and guard.bits != 1:
        raise PtxError("the guard is no predicate")
    kind, target = PLAIN, -1
    step: Step = nothing
    if instruction.opcode in CONTROL:
        kind = CONTROL[instruction.opcode]
        target = control_target(instruction, kind, program)
    else:
        step = step_of(instruction, program, float_atomics)
    return Decoded(kind, -1 if guard is None else guard.number, instruction.negated, step, target)


def nothing(chunk: "Chunk", mask: Mask) -> None:
    """What control flow does to registers."""


def control_target(instruction: Instruction, kind: int, program: Program) -> int:
    """Where a branch goes; which barrier it is."""
    given = instruction.operands
    if kind == BRANCH and len(given) == 1 and isinstance(given[0], Symbol):
        if given[0].name not in program.labels:
            raise PtxError(f"no label {given[0].name}")
        return program.labels[given[0].name]
    if kind == BARRIER and len(given) == 1 and isinstance(given[0], Immediate):
        return given[0].value
    if kind == WARP_BARRIER and given == (Immediate(-1, None),):
        return -1
    if kind == EXIT and not given:
        return -1
    raise PtxError(f"unknown operands of {instruction.opcode}")


def step_of(instruction: Instruction, program: Program, float_atomics: bool) -> Step:
    """What an instruction without control flow does."""
    kind = instruction.parts[0]
    if kind == "mov" and len(instruction.parts) == 2 and len(instruction.operands) == 2:
        if instruction.parts[1] not in operands.TYPES:
            raise PtxError(f"unknown opcode {instruction.opcode}")
        return operands.move(instruction.operands, instruction.parts[1])
    if kind == "ld":
        return access.load(instruction, program)
    if kind in ("atom", "red"):
        return access.update(instruction, float_atomics)
    if instruction.opcode in access.FENCES:
        return access.fence(instruction)
    others: dict[str, Callable[[Instruction], Step]] = {
        "st": access.store, "shfl": warps.shuffle, "redux": warps.reduction, "vote": warps.vote,
        "ldmatrix": warps.matrix, "stmatrix": warps.matrix,
    }  # fmt: skip
    return others.get(kind, arithmetic)(instruction)


def arithmetic(instruction: Instruction) -> Step:
    """An instruction of arithmetic.py."""
    to, *sources = instruction.operands
    made = operation(instruction.opcode, len(sources))
    function = made.function
    wider = instruction.parts[0] == "cvt"
    reads = [reader(o, t, wider=wider) for o, t in zip(sources, made.operands, strict=True)]
    if isinstance(to, Group):
        return two_predicates(instruction, [writer(o, made.result) for o in to.items], reads, made)
    write = writer(to, made.result, wider=wider)

    def step(chunk: "Chunk", mask: Mask) -> None:
        write(chunk, mask, function(*[read(chunk) for read in reads]))

    return step


def two_predicates(
    instruction: Instruction, writes: list[Write], reads: list[Read], made: Operation
) -> Step:
    """Setp with p|q: of two halves their results, else the result and its opposite."""
    if instruction.parts[0] != "setp" or len(writes) != 2:
        raise PtxError(f"unknown operands of {instruction.opcode}")
    halves = instruction.parts[-1].endswith("x2")

    def step(chunk: "Chunk", mask: Mask) -> None:
        found = made.function(*[read(chunk) for read in reads])
        both = (found[..., 0], found[..., 1]) if halves else (found, ~found)
        for write, value in zip(writes, both, strict=True):
            write(chunk, mask, value)

    return step


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
            return values.reshape(self.shape)
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
        some = np.asarray(active.any(1))
        if (active != some[:, None]).any():
            lane = int(np.flatnonzero(some & ~active.all(1))[0])
            raise PtxError(f"{self.where(lane)}: only some lanes of a warp arrive at the barrier")
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
        some = np.asarray(active.any(1))
        if (active != some[:, None]).any():
            lane = int(np.flatnonzero(some & ~active.all(1))[0])
            raise PtxError(f"{self.where(lane)}: only some lanes of a warp arrive at the barrier")
        rows = np.flatnonzero(some)
        self.clocks.warp_barrier(self.programs[rows // self.warps], rows % self.warps)
        self.changed()

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
