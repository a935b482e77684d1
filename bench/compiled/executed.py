"""What an execution of a kernel's PTX (bench/ptx) says of the path of its SASS."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from bench.compiled.control_flow import innermost, loops
from bench.compiled.path import Count, Key
from bench.ptx.counts import Counts, Line, access_width
from bench.ptx.program import Address, Group, Instruction, Operand, Program, Register, Symbol
from bench.ptx.runs import Compiled, argument, passed
from jolkernels.kernels.launch import Launch


def kind(instruction: Instruction) -> str | None:
    """The kind of bench.compiled.path.ANCHORS that ptxas makes of an instruction, if any."""
    name, *modifiers = instruction.parts
    shared = {"shared", "shared::cta"} & set(modifiers)
    if name in ("ld", "st") and "global" in modifiers:
        return "load" if name == "ld" else "store"
    found = {
        "st": "shared store" if shared else None,
        "stmatrix": "shared store",
        "atom": "atomic",
        "red": "atomic",
        "shfl": "shuffle",
        "bar": "barrier",
        "barrier": "barrier",
    }.get(name)
    return None if "warp" in modifiers else found


def counted(counts: Counts) -> Mapping[Key, Sequence[Count]]:
    """The counts of a run, by what ptxas keeps."""
    lines = list(counts)
    trips = trips_around(counts.program, lines)
    found: dict[Key, list[Count]] = defaultdict(list)
    for line, rounds in zip(lines, trips, strict=True):
        which, source = kind(line.instruction), line.instruction.source
        if which is not None and source:
            guarded = line.instruction.guard is not None
            active = line.requests if guarded else line.warps
            key = which, (source[0].file, source[0].line)
            found[key].append(Count(line.warps, active, guarded, rounds))
    # Of lanes that add to one number ptxas makes one, by shuffles of its own.
    atomic = {place for which, place in found if which == "atomic"}
    return {
        key: counts
        for key, counts in found.items()
        if key not in {("shuffle", place) for place in atomic}
    }


def trips_around(program: Program, lines: Sequence[Line]) -> list[float]:
    """For each instruction how often lanes go round the innermost loop each time they enter it."""
    cuts = {0, *program.labels.values(), *after_branches(program)}
    starts = sorted(cuts - {len(lines)})
    at = {first: number for number, first in enumerate(starts)}
    blocks = list(pairwise([*starts, len(lines)]))
    successors = []
    for _, last in blocks:
        end = lines[last - 1].instruction
        name, following = end.parts[0], [at[last]] if last in at else []
        targets = [at[program.labels[o.name]] for o in end.operands if isinstance(o, Symbol)
                   and o.name in program.labels] if name == "bra" else []  # fmt: skip
        ends = name in ("bra", "ret", "exit") and end.guard is None
        successors.append([*targets, *(() if ends else following)])
    found = loops(successors)
    rounds = {}
    for loop in found:
        into = lanes(lines[slice(*blocks[loop.header])])
        back = sum(follow(lines[slice(*blocks[a])], program.labels, blocks[b][0])
                   for a, b in loop.backs)  # fmt: skip
        rounds[loop.header] = into / (into - back) if into > back else 1.0
    trips = []
    for number, (first, last) in enumerate(blocks):
        around = innermost(found, number)
        trips += [1.0 if around is None else rounds[around.header]] * (last - first)
    return trips


def follow(block: Sequence[Line], labels: Mapping[str, int], to: int) -> int:
    """Lanes that go on from the end of a block to an instruction."""
    end = block[-1]
    if end.instruction.guard is None:
        return end.lanes
    if any(isinstance(o, Symbol) and labels.get(o.name) == to for o in end.instruction.operands):
        return end.lanes
    return lanes(block) - end.lanes


def lanes(block: Sequence[Line]) -> int:
    """Lanes that reach a block, of which its guarded instructions say nothing."""
    entire = [line.lanes for line in block if line.instruction.guard is None]
    return entire[0] if entire else 32 * block[-1].warps


def after_branches(program: Program) -> set[int]:
    """Where instructions follow one after which control may be elsewhere."""
    return {
        i + 1
        for i, each in enumerate(program.instructions)
        if each.parts[0] in ("bra", "ret", "exit")
    }


def widest(made: Compiled, call: Launch, wanted: str, access: str) -> int | None:
    """Bytes a lane of the widest "load" or "store" of a tensor argument; None without any.

    Of a tuple it is that of all its tensors.
    """
    program = made.code.program
    parameters = {
        parameter.name
        for (name, value, _), parameter in zip(passed(made, call), program.parameters, strict=False)
        if argument(name) == wanted and isinstance(value, Tensor)
    }
    # Registers that hold addresses within the tensors: all that is computed from the parameters.
    derived: set[int] = set()
    size = -1
    while size != len(derived):
        size = len(derived)
        for each in program.instructions:
            if not each.operands:
                continue
            to, *sources = each.operands
            if each.parts[:2] == ("ld", "param"):
                depends = any(parameters & symbols(o) for o in sources)
            elif each.parts[0] in ("ld", "st", "atom", "red"):
                depends = False
            else:
                depends = any(derived & registers(o) for o in sources)
            if depends:
                derived |= registers(to)
    at = -1 if access == "load" else 0
    widths = [
        access_width(each)
        for each in program.instructions
        if kind(each) == access and derived & registers(each.operands[at])
    ]
    return max(widths, default=None)


def registers(operand: Operand) -> set[int]:
    """The registers of an operand."""
    if isinstance(operand, Register):
        number, _ = operand
        return {number}
    if isinstance(operand, Address):
        return registers(operand.base)
    if isinstance(operand, Group):
        return {index for each in operand.items for index in registers(each)}
    return set()


def symbols(operand: Operand) -> set[str]:
    """The names in an operand."""
    if isinstance(operand, Symbol):
        return {operand.name}
    return symbols(operand.base) if isinstance(operand, Address) else set()
