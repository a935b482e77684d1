"""The order in which lanes that have branched apart take turns, so that they meet again.

Compilers let lanes meet where every path from the branch leads; but the text may have that place
before some of the paths. So blocks are ranked: a block comes after all that lead to it, and what
leaves a loop after all of the loop. Running the lowest rank first, lanes meet as early as they can.
"""

from bench.ptx.program import Program, Symbol

Edges = dict[int, set[int]]
BRANCHES, ENDS = ("bra", "bra.uni"), ("ret", "exit")
BARRIERS = ("bar.sync", "barrier.sync")


def ranks(program: Program) -> dict[int, int]:
    """The rank of each block, by its first instruction; a barrier ends a block."""
    edges = blocks(program)
    order: list[int] = []
    arrange(set(edges), edges, 0, order)
    return {block: rank for rank, block in enumerate(order)}


def blocks(program: Program) -> Edges:
    """The first instruction of each block, and of those that may follow it."""
    code = program.instructions
    cuts = {i for i, at in enumerate(code, 1) if at.opcode in (*BRANCHES, *ENDS, *BARRIERS)}
    starts = sorted({0, *program.labels.values(), *cuts} & set(range(len(code))))
    edges: Edges = {}
    for start, end in zip(starts, [*starts[1:], len(code)], strict=True):
        last = code[end - 1]
        edges[start] = set()
        if last.opcode in BRANCHES and isinstance(last.operands[0], Symbol):
            edges[start].add(program.labels[last.operands[0].name])
        falls = last.guard is not None or last.opcode not in (*BRANCHES, *ENDS)
        if falls and end < len(code):
            edges[start].add(end)
    return edges


def arrange(nodes: set[int], edges: Edges, entry: int, order: list[int]) -> None:
    """Append the nodes, each loop in one piece."""
    for component in reversed(components(nodes, edges, entry)):
        if len(component) == 1:
            order += component
            continue
        outside = nodes - component
        heads = [n for n in component if n == entry or any(n in edges[o] for o in outside)]
        head = min(heads or component)
        inner = {n: edges[n] - {head} for n in component}
        arrange(component, inner, head, order)


def components(nodes: set[int], edges: Edges, entry: int) -> list[set[int]]:
    """The strongly connected components, each after those that it leads to (Tarjan, 1972)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    found: list[set[int]] = []
    for root in [entry, *sorted(nodes - {entry})]:
        if root in index:
            continue
        work = [(root, iter(sorted(edges[root] & nodes)))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, rest = work[-1]
            after = next(rest, None)
            if after is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    found.append(set(stack[at:]))
                    del stack[at:]
            elif after not in index:
                index[after] = low[after] = len(index)
                stack.append(after)
                work.append((after, iter(sorted(edges[after] & nodes))))
            elif after in stack:
                low[node] = min(low[node], index[after])
    return found
