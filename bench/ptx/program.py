"""PTX text as a list of instructions.

Reads what Triton's LLVM writes for one kernel: a header with parameters, register declarations,
labels, guarded instructions, and `.loc` directives that say where each comes from. What the
opcodes mean is not known here. Sections are those of NVIDIA's "Parallel Thread Execution ISA",
release 9.0 (https://docs.nvidia.com/cuda/parallel-thread-execution/).
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.ptx.errors import PtxError


class Register(NamedTuple):
    """A register: its number in the program; bits 1 for a predicate (section 5.1)."""

    number: int
    bits: int


class Immediate(NamedTuple):
    """A constant (section 4.5): an integer, or the bits of a floating-point number."""

    value: int
    bits: int | None  # 32 for 0fXXXXXXXX, 64 for 0dXXXXXXXXXXXXXXXX, None for an integer


class Special(NamedTuple):
    """A special register such as %tid.x (section 10)."""

    name: str


class Symbol(NamedTuple):
    """A label, a parameter or a variable such as global_smem."""

    name: str


class Address(NamedTuple):
    """[base + offset] (section 6.4.1)."""

    base: "Register | Symbol | Immediate"
    offset: int


class Group(NamedTuple):
    """Several operands as one: {a, b} (section 6.4.2), or the two destinations of a|b."""

    items: tuple["Operand", ...]


Operand = Register | Immediate | Special | Symbol | Address | Group


class Place(NamedTuple):
    """A line of Python source."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    """One instruction; `source` has its line and those of the calls it was inlined through."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None  # executes only where this predicate is true,
    negated: bool  # or, negated, where it is false
    text: str
    line: int  # of the PTX
    source: tuple[Place, ...]  # innermost first, so that the last is in the kernel itself

    @property
    def parts(self) -> tuple[str, ...]:
        """The opcode and its modifiers."""
        return tuple(self.opcode.split("."))

    def __str__(self) -> str:
        where = f"{self.source[0].file}:{self.source[0].line}, " if self.source else ""
        return f"{where}PTX line {self.line}: {self.text}"


class Parameter(NamedTuple):
    """A parameter of the kernel: its name and size in bytes."""

    name: str
    size: int


@dataclass
class Program:
    """A kernel as text says it; labels are indices into `instructions`."""

    name: str = ""
    target: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    threads: int = 0  # .reqntid: threads a program
    registers: list[int] = field(default_factory=list)  # the bits of each
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
INSTRUCTION = re.compile(r"(?:@(!?)(\S+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?$")
LOCATION = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)  # section 11.5.3
PARAMETER = re.compile(
    r"\.param \.[a-z](\d+)(?: \.ptr(?: \.\w+)?(?: \.align \d+)?)? (\w+)"
)  # section 11.1.1
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([%\w]+)(?:<(\d+)>)?$")
Location = tuple[int, int, int]  # file, line, column


def parse(text: str) -> Program:
    """The kernel of some PTX.

    Raises:
        PtxError: naming the line of the PTX, for what this module does not know.
    """
    lines = [line.partition("//")[0].strip() for line in text.splitlines()]
    files = {
        int(m[1]): m[2].rsplit("/", 1)[-1]
        for line in lines
        if (m := re.match(r'\.file\s+(\d+)\s+"([^"]*)"', line))
    }
    starts = [i for i, line in enumerate(lines) if line.startswith(".visible .entry")]
    if len(starts) != 1:
        raise PtxError(f"the PTX has {len(starts)} kernels, wanted 1")
    opening = lines.index("{", starts[0])
    program = header(" ".join(lines[starts[0] : opening]))
    if m := re.search(r"\.target\s+(\w+)", text):
        program.target = m[1]
    Body(program, files).read(lines, opening)
    return program


def header(text: str) -> Program:
    """Name, parameters and threads of a kernel (sections 11.1 and 11.4)."""
    name = re.match(r"\.visible \.entry (\w+)", text)
    threads = re.search(r"\.reqntid (\d+)", text)
    if name is None or threads is None:
        raise PtxError("a kernel without a name or .reqntid")
    parameters = [Parameter(m[2], int(m[1]) // 8) for m in PARAMETER.finditer(text)]
    return Program(name=name[1], parameters=parameters, threads=int(threads[1]))


class Body:
    """Reads the braces of a kernel, statement by statement."""

    def __init__(self, program: Program, files: dict[int, str]) -> None:
        self.program, self.files = program, files
        self.scopes: list[dict[str, Register]] = []
        self.parents: dict[Location, Location | None] = {}
        self.here: Location | None = None

    def read(self, lines: list[str], opening: int) -> None:
        """All statements from the line with the opening brace to the closing one."""
        for number, line in enumerate(lines[opening:], opening + 1):
            rest = line
            while rest:
                rest = self.statement(rest, number).strip()
                if not self.scopes:
                    return
        raise PtxError(f"{self.program.name}: the kernel has no end")

    def statement(self, text: str, number: int) -> str:
        """Take one statement off the front of a line; returns what follows."""
        if text[0] == "{":
            self.scopes.append({})
            return text[1:]
        if text[0] == "}":
            self.scopes.pop()
            return text[1:].lstrip(";")
        if m := re.match(r"([$\w]+):", text):
            self.program.labels[m[1]] = len(self.program.instructions)
            return text[m.end() :]
        if m := LOCATION.match(text):
            self.locate(*m.groups())
            return ""
        if text.startswith((".file", ".section", ".pragma", ".local")):
            return ""
        statement, end, rest = text.partition(";")
        statement = " ".join(statement.split())
        if not end:
            raise PtxError(f"PTX line {number}: no end of {statement!r}")
        if m := REGISTERS.match(statement):
            self.declare(m[1], m[2], m[3])
        elif statement:
            self.program.instructions.append(self.instruction(statement, number))
        return rest

    def declare(self, kind: str, name: str, count: str | None) -> None:
        """A .reg directive (section 5.1.1): one register, or `count` numbered from 0."""
        bits = 1 if kind == "pred" else int(kind[1:])
        for each in [name] if count is None else [f"{name}{i}" for i in range(int(count))]:
            self.scopes[-1][each] = Register(len(self.program.registers), bits)
            self.program.registers.append(bits)

    def locate(self, *numbers: str | None) -> None:
        """A .loc: where the next instructions come from, and the call that was inlined."""
        file, line, column, *call = (int(n) if n else 0 for n in numbers)
        self.here = file, line, column
        self.parents[self.here] = (call[0], call[1], call[2]) if call[1] else None

    def source(self) -> tuple[Place, ...]:
        """The present place and the calls around it."""
        places: list[Place] = []
        at = self.here
        while at is not None and len(places) < 32:
            places.append(Place(self.files.get(at[0], "?"), at[1]))
            at = self.parents.get(at)
        return tuple(places)

    def instruction(self, text: str, number: int) -> Instruction:
        """A statement with an opcode."""
        m = INSTRUCTION.match(text)
        if m is None:
            raise PtxError(f"PTX line {number}: cannot read {text!r}")
        try:
            guard = self.operand(m[2]) if m[2] else None
            operands = tuple(self.operand(o.strip()) for o in OPERAND.findall(m[4] or ""))
        except ValueError as error:
            raise PtxError(f"PTX line {number}: unknown operand {error} in {text!r}") from None
        if guard is not None and not isinstance(guard, Register):
            raise PtxError(f"PTX line {number}: the guard of {text!r} is no predicate")
        return Instruction(m[3], operands, guard, m[1] == "!", text, number, self.source())

    def operand(self, text: str) -> Operand:
        """One operand; raises ValueError with its text."""
        if text[0] == "{":
            return Group(tuple(self.operand(t.strip()) for t in text[1:-1].split(",")))
        if "|" in text:
            return Group(tuple(self.operand(t) for t in text.split("|")))
        if text[0] == "[":
            m = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+)\s*)?\]", text)
            base = self.operand(m[1]) if m else None
            if m is None or not isinstance(base, Register | Symbol | Immediate):
                raise ValueError(repr(text))
            return Address(base, int(m[2] or 0))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
            return Immediate(int(text[2:], 16), 32)
        if re.fullmatch(r"0[dD][0-9A-Fa-f]{16}", text):
            return Immediate(int(text[2:], 16), 64)
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0), None)
        if re.fullmatch(r"%[a-z]\w*(\.[xyz])?", text) and not re.search(r"\d$", text):
            return Special(text)
        if re.fullmatch(r"[$A-Za-z_][$\w]*", text):
            return Symbol(text)
        raise ValueError(repr(text))
