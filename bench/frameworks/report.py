"""What a run over models found, as tables that people read."""

import math
from collections.abc import Sequence

from bench.frameworks.cases import Name
from bench.loss.report import TIME, Row, marked, number, table

TITLES = {Name.BASE: "base", Name.OURS: "JOL"}
WHAT = """
From a model's outputs to their gradients: base, the model's own loss, and JOL in its place. N rows
and C columns of classes, all heads together.
"""
TIMES = """
## Milliseconds, forward and backward

Medians of rounds in which both take a turn, and the quantiles around them. Off: by how much the
loss and its gradients without weighting differ from base, relatively.

"""
COUNTS = """
## Calls of operators, and times the host waits for a GPU, forward and backward

Dispatched operators but views and allocations, ours as one a pass. Those of the assigner, which
both losses call, come on top.

"""


class Found:
    """The rows of a run by what they are."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(r.case, r.provider, r.measure, r.unit): r for r in rows}
        self.places = {r.case: r for r in rows}

    def median(self, case: str, provider: str, measure: str, unit: str = "") -> float:
        """A number; NaN if it was not measured."""
        row = self.rows.get((case, provider, measure, unit))
        return row.median if row else math.nan

    def time(self, case: str, provider: str) -> list[str]:
        """Milliseconds, and the quantiles around them."""
        row = self.rows.get((case, provider, "both, clock", TIME))
        if row is None:
            return ["wrong" if self.median(case, Name.NONE, "agrees") == 0 else "-", "-"]
        return [marked(number(row.median), row), f"{number(row.low)} to {number(row.high)}"]


def report(
    rows: Sequence[Row], about: dict[str, str], missing: Sequence[str], skipped: Sequence[str]
) -> str:
    """All tables of a run, as Markdown."""
    words = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "commit"))
    text = f"# Losses of frameworks' models on {about['machine']}\n\n"
    text += f"`python -m bench frameworks`, {about['date']}, {words}; {about['frameworks']}.\n"
    found = Found(rows)
    text += WHAT + TIMES + times(found) + COUNTS + counts(found)
    for what in ("waits", "calls"):
        text += f"\n## {what.capitalize()} by operator\n\n{operators(rows, what)}\n"
    for title, names in (("Not installed", missing), ("Not measured, out of time", skipped)):
        text += f"\n{title}: {', '.join(names)}.\n" if names else ""
    return text


def times(found: Found) -> str:
    """Milliseconds, and the check."""
    head = ["model", "N", "C", "base, ms", "20 to 80 %", "JOL, ms", "20 to 80 %", "JOL / base"]
    head += ["assigner in base, ms", "loss off by", "gradients off by"]
    lines = []
    for case, place in found.places.items():
        base, ours = (found.median(case, loss, "both, clock", TIME) for loss in TITLES)
        assigner = found.median(case, Name.BASE, "assigner", TIME)
        off = (
            found.median(case, Name.NONE, f"error of the {what}", "relative")
            for what in ("loss", "gradients")
        )
        line = [case, f"{place.rows:,}", f"{place.columns:,}"]
        line += [cell for loss in TITLES for cell in found.time(case, loss)]
        lines.append([*line, f"{ours / base:.2f}", number(assigner), *(f"{x:.0e}" for x in off)])
    return table(head, lines)


def counts(found: Found) -> str:
    """Calls and waits."""
    head = ["model", "calls: base", "JOL", "JOL / base", "assigner"]
    head += ["waits: base", "JOL", "assigner"]
    lines = []
    for case in found.places:
        line = [case]
        for what in ("calls", "waits"):
            base, ours = (found.median(case, loss, what) for loss in TITLES)
            line += [number(base), number(ours)]
            line += [f"{ours / base:.2f}"] if what == "calls" else []
            line.append(number(found.median(case, Name.BASE, f"assigner {what}")))
        lines.append(line)
    return table(head, lines)


def operators(rows: Sequence[Row], what: str) -> str:
    """A line for a model's loss, one for JOL and one for the assigner: the operators of each."""
    prefixes = {f"{what}: ": TITLES, f"assigner {what}: ": {Name.BASE: "assigner"}}
    found: dict[str, list[str]] = {}
    for r in rows:
        for prefix, titles in prefixes.items():
            if r.measure.startswith(prefix) and r.provider in titles:
                names = found.setdefault(f"{r.case}, {titles[Name(r.provider)]}", [])
                names.append(f"{r.measure.removeprefix(prefix)} {number(r.median)}")
    return "\n".join(f"- {whose}: {', '.join(names)}" for whose, names in found.items())
