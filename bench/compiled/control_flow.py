"""The loops of a control-flow graph."""

from collections.abc import Sequence
from dataclasses import dataclass

Edge = tuple[int, int]


@dataclass(frozen=True)
class Loop:
    """A natural loop: its header dominates its body.

    Attributes:
        header: where it is entered.
        body: its blocks, the header among them.
        backs: the edges from the body to the header.
        entries: the others that lead there.
    """

    header: int
    body: frozenset[int]
    backs: tuple[Edge, ...]
    entries: tuple[Edge, ...]


def loops(successors: Sequence[Sequence[int]]) -> list[Loop]:
    """The loops of a graph whose blocks are entered at block 0; loops of one header are one."""
    dominated_by = dominators(successors)
    edges = [(a, b) for a, following in enumerate(successors) for b in following]
    found = []
    for header in sorted({b for a, b in edges if b in dominated_by[a]}):
        into = [(a, b) for a, b in edges if b == header and dominated_by[a]]
        backs = tuple(edge for edge in into if header in dominated_by[edge[0]])
        body, waiting = {header}, [a for a, _ in backs]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += [a for a, b in edges if b == block and dominated_by[a]]
        entries = tuple(edge for edge in into if edge not in backs)
        found.append(Loop(header, frozenset(body), backs, entries))
    return found


def dominators(successors: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """For each block those that every way to it leads through, itself among them; none: no way."""
    n = len(successors)
    predecessors: list[list[int]] = [[] for _ in range(n)]
    for a, following in enumerate(successors):
        for b in following:
            predecessors[b].append(a)
    found: list[frozenset[int]] = [frozenset() for _ in range(n)]
    found[0] = frozenset([0])
    changed = True
    while changed:
        changed = False
        for block in range(1, n):
            known = [found[a] for a in predecessors[block] if found[a]]
            new = frozenset.intersection(*known) | {block} if known else frozenset()
            changed |= new != found[block]
            found[block] = new
    return found


def innermost(found: Sequence[Loop], block: int) -> Loop | None:
    """The smallest loop that has the block in its body."""
    around = [loop for loop in found if block in loop.body]
    return min(around, key=lambda loop: len(loop.body), default=None)
