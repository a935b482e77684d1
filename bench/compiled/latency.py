"""Cycles of one warp that has a scheduler to itself, along its executed path.

Instructions issue in order, one a cycle, each when the registers that it reads are there.
"""

import re
from collections.abc import Sequence

from bench.compiled.control_flow import Loop, innermost, loops
from bench.compiled.path import Path
from bench.compiled.sass import Instruction

DRAM, L2 = 650, 280
"""Cycles of a load; a load that hits L1 counts as one of these, too."""
CYCLES = {
    "FP32": 4,
    "ALU": 5,
    "IMAD": 5,
    "MUFU": 20,
    "FP64": 8,
    "shuffle": 23,
    "barrier": 30,
    "shared": 30,
    "constant": 30,
    "uniform": 10,
    "control": 10,
}
"""Until the result of an instruction can be read: assumptions, which nobody measured here."""

REGISTER = re.compile(r"(?<![\w.])(U?[RP])(\d+)(\.64)?\b")


def alone(path: Path, read_cycles: int, *, last: bool = False) -> float:
    """Cycles of the path of a mean warp whose loads take `read_cycles`.

    Or of the last one: outside of loops, it goes where any warp goes.
    """
    return Warp(path, read_cycles, last).run()


class Warp:
    """A clock, and when each register can be read."""

    def __init__(self, path: Path, read_cycles: int, last: bool) -> None:
        self.last = last
        self.blocks = path.program.blocks
        self.instructions = path.program.instructions
        self.cycles = CYCLES | {"load": read_cycles, "store": L2}  # of atomics, which return
        self.entered, self.edges = path.counts[0], path.edges
        self.visits = [path.counts[block.first] / self.entered for block in self.blocks]
        self.loops = loops([block.successors for block in self.blocks])
        self.clock = 0.0
        self.ready: dict[str, float] = {}

    def run(self) -> float:
        """The clock at the end, when what was loaded and stored has arrived."""
        self.region(range(len(self.blocks)), None)
        return max(self.clock, *self.ready.values(), 0.0)

    def region(self, numbers: Sequence[int], loop: Loop | None) -> None:
        """Blocks of a loop or, None, of no loop, and in their midst the loops within."""
        done: set[int] = set()
        for number in numbers:
            if number in done or self.visits[number] < 1e-9:
                continue
            inner = self.within(number, loop)
            if inner is None:
                self.block(number, loop)
            else:
                done |= inner.body
                self.rounds(inner, loop)

    def within(self, number: int, loop: Loop | None) -> Loop | None:
        """The outermost loop inside `loop` that has the block."""
        inner = innermost(self.loops, number)
        while inner is not None and inner != loop:
            body = inner.body
            rest = [other for other in self.loops if body < other.body]
            outer = innermost(rest, number)
            if outer == loop:
                return inner
            inner = outer
        return None

    def rounds(self, loop: Loop, outer: Loop | None) -> None:
        """A loop: two rounds, and as many more like the second as it takes."""
        entries = sum(self.edges[edge] for edge in loop.entries) / self.entered
        # Part of a warp may come from where the rest of it goes on.
        trips = self.visits[loop.header] / entries if entries > 1e-9 else 1.0
        body, began = sorted(loop.body), self.clock
        self.region(body, loop)
        if trips > 1:
            before = self.clock
            self.region(body, loop)
            self.skip((trips - 2) * (self.clock - before))
        self.shorten(began, entries, outer)

    def shorten(self, began: float, visits: float, loop: Loop | None) -> None:
        """Leave only a share of the time since then, if few warps come to this part of a loop."""
        if loop is None and self.last:
            return
        around = 1.0 if loop is None else self.visits[loop.header]
        share = min(1.0, visits / max(around, 1e-9))
        if share < 1:
            self.skip((share - 1) * (self.clock - began))

    def skip(self, cycles: float) -> None:
        """Let time pass in which as much happens as in the last."""
        self.clock += cycles
        self.ready = {name: at + cycles for name, at in self.ready.items()}

    def block(self, number: int, loop: Loop | None) -> None:
        """The instructions of a block."""
        began = self.clock
        block = self.blocks[number]
        for instruction in self.instructions[block.first : block.last]:
            self.issue(instruction)
        self.shorten(began, self.visits[number], loop)

    def issue(self, instruction: Instruction) -> None:
        """One instruction."""
        written, read = registers(instruction)
        self.clock = max([self.clock + 1, *(self.ready.get(name, 0.0) for name in read)])
        cycles = self.cycles[instruction.kind]
        if instruction.kind == "load" and "STRONG" in instruction.opcode:
            cycles = L2  # what another program has just written
        if instruction.kind == "barrier":
            self.clock += cycles
        self.ready.update(dict.fromkeys(written, self.clock + cycles))


def registers(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Names of the registers an instruction writes, and of those it reads."""
    operands = [operand.strip() for operand in instruction.operands.split(",")]
    count = destinations(instruction, operands)
    written = []
    for operand in operands[:count]:
        if m := REGISTER.match(operand):  # not RZ or PT
            many = wide(instruction) if m[1].endswith("R") else 1
            written += [f"{m[1]}{int(m[2]) + i}" for i in range(many)]
    read = []
    for kind, number, pair in REGISTER.findall(f"{instruction.guard} {operands[count:]}"):
        read += [f"{kind}{int(number) + i}" for i in range(2 if pair else 1)]
    return written, read


def destinations(instruction: Instruction, operands: Sequence[str]) -> int:
    """How many operands are written: predicates, one register unless it compares, carries."""
    stores = instruction.kind == "store" and not instruction.name.startswith("ATOM")
    if stores or instruction.kind in ("barrier", "control") or instruction.name in ("STS", "STSM"):
        return 0
    general = "SETP" in instruction.name or "PLOP3" in instruction.name
    for count, operand in enumerate(operands):
        if re.fullmatch(r"U?R(\d+|Z)(\.\w+)*", operand) and not general:
            general = True
        elif not re.fullmatch(r"U?P[\dT]", operand):
            return count
    return len(operands)


def wide(instruction: Instruction) -> int:
    """Registers of a result."""
    if re.search(r"\.128\b", instruction.opcode):
        return 4
    pair = re.search(r"\.(64|WIDE|F64)\b", instruction.opcode)
    return 2 if pair or instruction.name in ("DADD", "DMUL", "DFMA", "CS2R") else 1
