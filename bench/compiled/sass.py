"""SASS, the machine code of NVIDIA's GPUs, as a list of instructions in basic blocks.

Read from what nvdisasm prints, which comes with Triton. Opcodes are those of the tables in NVIDIA's
"CUDA Binary Utilities" (https://docs.nvidia.com/cuda/cuda-binary-utilities/).
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import triton.backends.nvidia

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"

OPCODES = {
    "FP32": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 FHADD FADD32I FMUL32I FFMA32I HADD2 HMUL2 HFMA2 "
    "HADD2_32I HMUL2_32I HFMA2_32I",
    "ALU": "IADD3 LOP3 ISETP SEL FSEL FMNMX FMNMX3 FSETP FSET SHF SHL SHR LEA MOV MOV32I PLOP3 "
    "P2R R2P VIADD VIADDMNMX VHMNMX VIMNMX VIMNMX3 IMNMX I2FP PRMT SGXT IABS LOP FCHK VOTE F2FP "
    "BMSK FLO POPC IADD ISCADD LEPC HMNMX2 HSETP2 HSET2 BREV CS2R PSETP MATCH I2IP F2IP",
    "IMAD": "IMAD IMUL IMAD32I",
    "MUFU": "MUFU F2F I2F F2I FRND",
    "FP64": "DADD DMUL DFMA DSETP",
    "shuffle": "SHFL REDUX CREDUX",
    "barrier": "BAR",
    "load": "LDG LD LDL",
    "store": "STG ST STL RED ATOM ATOMG REDG",
    "shared": "LDS STS LDSM STSM ATOMS",
    "constant": "LDC LDCU ULDC S2R S2UR",
    "control": "BRA BRX JMP EXIT BSSY BSYNC BREAK CALL RET WARPSYNC NOP YIELD NANOSLEEP MEMBAR "
    "ERRBAR CCTL DEPBAR LDGDEPBAR BMOV KILL CGAERRBAR FENCE ACQBULK PREEXIT PMTRIG ELECT "
    "SYNCS CCTLL ENDCOLLECTIVE",
    "uniform": "R2UR VOTEU",
}
"""Classes by the pipe that executes them; every opcode that begins with U is uniform, too."""
CLASS = {opcode: name for name, opcodes in OPCODES.items() for opcode in opcodes.split()}
CLASSES = tuple(OPCODES)
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
"""Bytes of a thread's access, by modifier."""

INSTRUCTION = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
LABEL = re.compile(r"([.$\w]+):$")
LINE = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
TARGET = re.compile(r"`\(([^)]+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate, such as @!P0, that a thread executes it under, or "".
        source: file and line of Python, innermost where functions were inlined.
    """

    address: int
    guard: str
    opcode: str
    operands: str
    source: tuple[str, int] | None

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        """The class of CLASSES; raises ValueError for an opcode that none has."""
        if self.name in CLASS:
            return CLASS[self.name]
        if self.name.startswith("U"):
            return "uniform"
        raise ValueError(f"SASS at {self.address:#x}: unknown opcode {self.opcode}")

    @property
    def width(self) -> int:
        """Bytes that a thread loads or stores."""
        return next((WIDTHS[m] for m in self.opcode.split(".") if m in WIDTHS), 4)

    @property
    def conditional(self) -> bool:
        """Whether some warp may go on to the next instruction after this branch or exit."""
        # BRA.DIV branches where lanes are missing.
        tests = self.guard or "DIV" in self.opcode.split(".")
        return bool(tests) or bool(re.match(r"!?U?P\d", self.operands))


@dataclass
class Block:
    """Instructions that are executed from the first to the last, `first` to `last` - 1.

    Attributes:
        successors: blocks that may follow.
        leaves: whether warps may end here, or a function return.
        calls: the block of a function that is always called at the end, or None.
    """

    first: int
    last: int
    successors: tuple[int, ...] = ()
    leaves: bool = False
    calls: int | None = None


@dataclass(frozen=True)
class Program:
    """A kernel and the functions it calls; the first block is where warps begin."""

    instructions: list[Instruction]
    blocks: list[Block]

    def of(self, block: Block) -> list[Instruction]:
        """The instructions of a block."""
        return self.instructions[block.first : block.last]


def tool(name: str, *options: str, cubin: bytes) -> str:
    """What one of the tools in Triton's package prints of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def disassemble(compiled: Any) -> Program:
    """The SASS of a kernel that Triton compiled for an NVIDIA GPU."""
    text = tool("nvdisasm", "--print-code", "--print-line-info-inline", cubin=compiled.asm["cubin"])
    return parse(text)


def parse(text: str) -> Program:
    """A kernel as nvdisasm prints it.

    Raises:
        ValueError: naming the instruction, for a branch to nowhere or an unknown opcode.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source: tuple[str, int] | None = None
    fresh = True
    for line in text.splitlines():
        if m := LINE.match(line):
            # Of a run of such lines the first is the innermost; the others are its callers.
            if fresh:
                source = m[1].rsplit("/", 1)[-1], int(m[2])
            fresh = False
        elif m := LABEL.match(line):
            labels[m[1]] = len(instructions)
        elif m := INSTRUCTION.match(line):
            instructions.append(Instruction(int(m[1], 16), m[2] or "", m[3], m[4], source))
            fresh = True
    for each in instructions:
        _ = each.kind
    return Program(instructions, list(blocks(instructions, labels)))


def blocks(instructions: list[Instruction], labels: dict[str, int]) -> Iterator[Block]:
    """Cut where branches lead and after them."""
    targets = {i: labels[name] for i, name in jumps(instructions) if name in labels}
    cuts = {0, len(instructions), *targets.values(), *(i + 1 for i in ends(instructions))}
    starts = sorted(cuts)
    at = {first: number for number, first in enumerate(starts[:-1])}
    for first, last in pairwise(starts):
        block, end = Block(first, last), instructions[last - 1]
        following = (at[last],) if last in at else ()
        if end.name in ("BRA", "JMP", "CALL"):
            if last - 1 not in targets:
                raise ValueError(f"SASS at {end.address:#x}: {end.opcode} {end.operands} to where?")
            target = at[targets[last - 1]]
            if end.name == "CALL" and returns(instructions, targets, targets[last - 1]):
                # Under a guard it is a rare path, which nothing that is counted lies on.
                block.calls, block.successors = None if end.guard else target, following
            else:  # ptxas also writes CALL for a far branch
                block.successors = (target, *(following if end.conditional else ()))
        elif end.name in ("EXIT", "RET"):
            block.leaves, block.successors = True, following if end.conditional else ()
        elif end.name == "BRX":
            raise ValueError(f"SASS at {end.address:#x}: a computed branch {end.operands}")
        else:
            block.successors = following
        yield block


def returns(instructions: list[Instruction], targets: dict[int, int], at: int) -> bool:
    """Whether what begins there ends with RET somewhere, as a function does."""
    seen, waiting = set(), [at]
    while waiting:
        i = waiting.pop()
        if i in seen or i >= len(instructions):
            continue
        seen.add(i)
        each = instructions[i]
        if each.name == "RET":
            return True
        if each.name in ("BRA", "JMP"):
            waiting += [targets[i], *([i + 1] if each.conditional else [])]
        elif each.name != "EXIT" or each.conditional:
            waiting.append(i + 1)
    return False


def jumps(instructions: Iterable[Instruction]) -> Iterator[tuple[int, str]]:
    """Branches and calls, with the label they lead to."""
    for i, each in enumerate(instructions):
        if each.name in ("BRA", "JMP", "CALL") and (m := TARGET.search(each.operands)):
            yield i, m[1]


def ends(instructions: Iterable[Instruction]) -> Iterator[int]:
    """Instructions after which a block ends."""
    for i, each in enumerate(instructions):
        if each.name in ("BRA", "JMP", "BRX", "CALL", "EXIT", "RET"):
            yield i
