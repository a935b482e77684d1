"""Instructions made ready: each opcode with its function, each operand with how it is read."""

from collections.abc import Callable
from typing import NamedTuple

from bench.ptx import access, operands, warps
from bench.ptx.arithmetic import operation
from bench.ptx.chunk import WARP, Chunk, Mask
from bench.ptx.errors import PtxError
from bench.ptx.flow import BRANCHES, ENDS, ranks
from bench.ptx.operands import Read, Step, Write, reader, writer
from bench.ptx.program import Group, Immediate, Instruction, Program, Symbol
from bench.ptx.types import TYPES, Operation

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
        last = program.instructions[-1]
        if last.guard is not None or last.opcode not in (*ENDS, *BRANCHES):
            raise PtxError(f"{program.name}: {last}: the code goes on beyond its end")
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


def nothing(chunk: Chunk, mask: Mask) -> None:
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
        if instruction.parts[1] not in TYPES:
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

    def step(chunk: Chunk, mask: Mask) -> None:
        write(chunk, mask, function(*[read(chunk) for read in reads]))

    return step


def two_predicates(
    instruction: Instruction, writes: list[Write], reads: list[Read], made: Operation
) -> Step:
    """Setp with p|q: of two halves their results, else the result and its opposite."""
    if instruction.parts[0] != "setp" or len(writes) != 2:
        raise PtxError(f"unknown operands of {instruction.opcode}")
    halves = instruction.parts[-1].endswith("x2")

    def step(chunk: Chunk, mask: Mask) -> None:
        found = made.function(*[read(chunk) for read in reads])
        both = (found[..., 0], found[..., 1]) if halves else (found, ~found)
        for write, value in zip(writes, both, strict=True):
            write(chunk, mask, value)

    return step
