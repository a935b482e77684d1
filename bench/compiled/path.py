"""How often each instruction of SASS is issued, from counts of its memory accesses and the like.

What executed the PTX of a kernel knows how often each of its instructions was issued, but ptxas
makes other blocks of it: it unrolls loops, turns branches into predicates and back, and has slow
paths of its own. It keeps accesses of global memory, stores to shared memory, shuffles, barriers
and atomics with their source lines, though. So the counts are those of the cheapest flow of warps
through the blocks of the SASS that issues each of these as often as the PTX did, and goes round no
loop more often each time it is entered: a linear program. Loads alone may be fewer, by a tenth,
since ptxas moves them to where their numbers are used. Where paths differ in nothing that was
counted, as the usual and the rare path of a division do, the shorter one is taken.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from bench.compiled.control_flow import Edge, innermost, loops
from bench.compiled.sass import Block, Instruction, Program

ANCHORS = {
    "LDG": "load",
    "LD": "load",
    "STG": "store",
    "ST": "store",
    "RED": "atomic",
    "REDG": "atomic",
    "ATOM": "atomic",
    "ATOMG": "atomic",
    "STS": "shared store",
    "STSM": "shared store",
    "SHFL": "shuffle",
    "BAR": "barrier",
}
"""What ptxas keeps, by opcode. Not loads from shared memory: it may load again what it would have
to keep in registers."""

Key = tuple[str, tuple[str, int]]
"""A kind of ANCHORS, and file and line of the innermost function."""
FEWER, PARTED, WRONG, IMPOSSIBLE = 1e4, 1e5, 1e6, 1e8
"""Instructions that a path would rather have than a load that is off by one, which ptxas may leave
out or do only where its number is used; than a warp of which some threads go one way and some
another, which issues both; than another count that is off by one; than warps from nowhere."""


MOSTLY = 0.9
"""So many loads of the PTX are on the path at least, or it is not explained."""


@dataclass(frozen=True)
class Count:
    """How often one instruction of the PTX was issued, by warps.

    Attributes:
        issued: with or without a thread whose guard was true.
        active: with one.
        guarded: whether it has a guard.
        trips: how often the innermost loop around it is gone round each time it is entered.
    """

    issued: float
    active: float
    guarded: bool
    trips: float = 1.0


@dataclass(frozen=True)
class Path:
    """How often warps issue each instruction.

    Attributes:
        counts: of `program.instructions`.
        missed: what was issued by the PTX more (or, negative, less) often than by this path; empty
            if the path explains every count.
        parted: how many warps go both ways at a branch.
        edges: how many warps go from one block to another.
    """

    program: Program
    counts: tuple[float, ...]
    missed: dict[Key, float]
    parted: float
    edges: dict[Edge, float]

    @property
    def issued(self) -> float:
        """Warp instructions in all."""
        return sum(self.counts)


def weighted(parts: Sequence[tuple[float, Path]]) -> Path:
    """A sum of paths through one program, each some times."""

    def add(dicts: Sequence[tuple[float, Mapping[Any, float]]]) -> dict[Any, float]:
        total: dict[Any, float] = defaultdict(float)
        for times, numbers in dicts:
            for key, number in numbers.items():
                total[key] += times * number
        return dict(total)

    counts = np.array([times for times, _ in parts]) @ np.array([path.counts for _, path in parts])
    return Path(
        parts[0][1].program,
        counts=tuple(np.maximum(counts, 0).tolist()),
        missed=add([(times, path.missed) for times, path in parts]),
        parted=sum(times * path.parted for times, path in parts),
        edges=add([(times, path.edges) for times, path in parts]),
    )


def anchor(instruction: Instruction) -> Key | None:
    """What the instruction is recognised by, if ptxas keeps it."""
    kind = ANCHORS.get(instruction.name)
    return None if kind is None or instruction.source is None else (kind, instruction.source)


def find(program: Program, warps: float, counted: Mapping[Key, Sequence[Count]]) -> Path:
    """The path of `warps` warps that `counted`, the PTX's instructions, took.

    Lines that are missing from `counted` are not looked at.
    """
    blocks = program.blocks
    edges = list(flow(blocks))
    trips = bounds(program, counted, [(a, b) for a, b, _ in edges])
    entering, leaving, calling = incidence(len(blocks), edges)
    parts, meets = (np.eye(len(blocks))[:, each.sum(1) > 1] for each in (leaving, entering))
    # The variables, as shares of the warps: flows of the edges; warps that part as they leave a
    # block; warps whose parts meet as they enter one; what a loop's trips are below their bound.
    counts = len(edges), parts.shape[1], meets.shape[1], len(trips)
    flows, parting, meeting, _ = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    entire = np.eye(sum(counts))
    visiting = entering @ entire[flows] - meets @ entire[meeting]  # and the first block once more
    known = list(equations(program, counted))
    accesses = np.array([each[1] for each in known]).reshape(len(known), len(blocks))
    totals = np.array([total / warps for _, _, total, _ in known]) - accesses[:, 0]
    calls = [number for number, block in enumerate(blocks) if block.calls is not None]
    conserved = np.vstack(
        [
            leaving @ entire[flows] - parts @ entire[parting] - visiting,
            (calling - leaving)[calls] @ entire[flows],
            entire[parting].sum(0) - entire[meeting].sum(0),
            np.hstack([trips, np.zeros((len(trips), counts[1] + counts[2])), np.eye(len(trips))]),
        ]
    )
    begins = np.zeros(len(conserved))
    begins[0] = 1
    sizes = np.array([block.last - block.first for block in blocks], np.float64)
    x = cheapest(
        sizes @ entering @ entire[flows] + PARTED * entire[parting].sum(0),
        np.vstack([accesses @ visiting, conserved]),
        np.concatenate([totals, begins]),
        np.array(
            [FEWER if key[0] == "load" else WRONG for key, *_ in known]
            + [IMPOSSIBLE] * len(conserved)
        ),
        visiting,
    )
    visits = visiting @ x
    visits[0] += 1
    missed = {}
    issued = warps * (accesses @ visits)
    loads = [(least, seen) for (key, *_, least), seen in zip(known, issued, strict=True)
             if key[0] == "load"]  # fmt: skip
    sunk = sum(seen for _, seen in loads) >= MOSTLY * sum(least for least, _ in loads)
    for (key, _, most, least), seen in zip(known, issued, strict=True):
        fewer = 0 if sunk and key[0] == "load" else least - seen
        off = float(max(fewer, 0) - max(seen - most, 0))
        if abs(off) > 1e-6 * warps:
            missed[key] = off
    taken: dict[Edge, float] = defaultdict(float)
    for (a, b, _), share in zip(edges, x, strict=False):
        if b is not None:
            taken[a, b] += float(warps * share)
    return Path(
        program,
        counts=tuple(np.repeat(warps * visits, sizes.astype(int)).tolist()),
        missed=missed,
        parted=float(warps * x[parting].sum()),
        edges=dict(taken),
    )


def cheapest(
    costs: NDArray[np.float64],
    matrix: NDArray[np.float64],
    values: NDArray[np.float64],
    penalties: NDArray[np.float64],
    positive: NDArray[np.float64],
) -> NDArray[np.float64]:
    """x >= 0 with matrix @ x = values that makes costs @ x least; a unit off costs the penalty.

    positive @ x is >= 0, too.
    """
    unit = np.eye(len(values))
    rest = np.zeros((len(positive), 2 * len(values)))
    found = linprog(
        np.concatenate([costs, penalties, penalties]),
        A_eq=np.hstack([matrix, unit, -unit]),
        b_eq=values,
        A_ub=np.hstack([-positive, rest]),
        b_ub=np.zeros(len(positive)),
        method="highs",
    )
    return np.asarray(found.x)[: len(costs)]


def flow(blocks: list[Block]) -> Iterator[tuple[int, int | None, bool]]:
    """(from, to, whether it is a call); to None where warps end or functions return."""
    for number, block in enumerate(blocks):
        yield from ((number, to, False) for to in block.successors)
        if block.calls is not None:
            yield number, block.calls, True
        if block.leaves:
            yield number, None, False


def incidence(
    blocks: int, edges: list[tuple[int, int | None, bool]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Which edges enter, leave and call from each block, [blocks, edges] each."""
    entering, leaving, calling = np.zeros((3, blocks, len(edges)))
    for i, (source, to, call) in enumerate(edges):
        (calling if call else leaving)[source, i] = 1
        if to is not None:
            entering[to, i] = 1
    return entering, leaving, calling


def bounds(
    program: Program, counted: Mapping[Key, Sequence[Count]], edges: list[tuple[int, int | None]]
) -> NDArray[np.float64]:
    """Factors of the edges, a row for each loop with a known number of trips; each sum is <= 0."""
    found = loops([block.successors for block in program.blocks])
    rows = []
    for loop in found:
        # In an unrolled loop each instruction of the PTX has become several.
        copies: Counter[Key] = Counter()
        for number in loop.body:
            if innermost(found, number) == loop:
                copies.update(filter(None, map(anchor, program.of(program.blocks[number]))))
        seen = {key: {count.trips for count in counted[key]} for key in copies if counted.get(key)}
        # A line that is in several loops says less than one that is in this alone.
        single = {key: trips for key, trips in seen.items() if len(trips) == 1} or seen
        trips = [
            max(each) * min(1.0, len(counted[key]) / copies[key]) for key, each in single.items()
        ]
        if trips:
            again = max(0.0, max(trips) - 1)
            rows.append([(e in loop.backs) - again * (e in loop.entries) for e in edges])
    return np.array(rows, np.float64).reshape(len(rows), len(edges))


def equations(
    program: Program, counted: Mapping[Key, Sequence[Count]]
) -> Iterator[tuple[Key, NDArray[np.float64], float, float]]:
    """(key, a factor of each block's visits, their sum, the least it may be) for known lines.

    Where ptxas branches around an instruction that had a guard, it is issued by the active warps
    alone. It does so for certain if the instruction has no guard any more.
    """
    found: dict[Key, list[tuple[int, Instruction]]] = defaultdict(list)
    for number, block in enumerate(program.blocks):
        for each in program.of(block):
            if key := anchor(each):
                found[key].append((number, each))
    for key, places in found.items():
        counts = counted.get(key, ())
        if not counts:
            continue
        least = [c.active if c.guarded else c.issued for c in counts]
        guarded = any(each.guard for _, each in places)
        most = [c.issued for c in counts] if guarded else least
        factors = np.zeros(len(program.blocks))
        at = [number for number, _ in places]
        np.add.at(factors, at, 1.0)
        # If they are fewer, some have become one, or repeated what was done before.
        total, needed = (sum(sorted(each)[-len(at) :]) for each in (most, least))
        yield key, factors, total, needed
