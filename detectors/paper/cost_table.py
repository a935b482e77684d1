"""Table 9: what the detectors reach and what they cost, with base and with JOL."""

import math
from collections.abc import Iterator, Mapping, Sequence

from detectors.paper import published_numbers, table_plan
from detectors.paper.finished_runs import Group, Run, grouped
from detectors.paper.published_numbers import DOI
from detectors.paper.table_rows import (
    GAIN,
    LABELLED,
    NO_RUN,
    SPREAD,
    WHAT,
    Letters,
    Line,
    bases,
    differences,
    letter_groups,
    rows_of,
)
from detectors.utils.progress import Progress
from detectors.utils.text_tables import Grid

SIZE = 800
"""Side of the images of Table 9."""
UNITS = (
    "GFLOPs: billions of multiply-accumulates of an image of 800 x 800; MB: weights and momentum; "
    "s/step: median seconds of a training step."
)
TIMING = (
    "gain: AP of JOL less base. Our AP is that of the runs that were timed: after few steps it is "
    "not comparable with the paper's."
)
BYTES = 8
"""Of a parameter and its momentum, in float32."""
COSTS = {
    **{"AP": ".1f", GAIN: ".1f"},
    **{"GFLOPs": ".1f", "params M": ".1f", "MB": ".1f", "s/step": ".3f"},
}
"""Columns of Table 9 and their formats."""


def measure() -> dict[str, tuple[float, float]]:
    """GFLOPs and millions of parameters of the detectors of Table 9, some seconds each."""
    from detectors.models.cost import build, gigamacs, parameters

    found = {}
    with Progress("counting", 0, len(published_numbers.COSTS), quiet=True) as progress:
        for step, name in enumerate(published_numbers.COSTS, start=1):
            model = build(name, "base", SIZE)
            found[name] = (gigamacs(model, SIZE), parameters(model))
            progress.step(step)
    return found


def cost_table(runs: Sequence[Run], measured: Mapping[str, tuple[float, float]]) -> Grid:
    """Table 9; measured: detector → GFLOPs and millions of parameters of our own.

    AP and seconds a step are those of runs on AI-TOD with preset paper and ResNet-50. The size
    is computed, as a saved file may hold more or less than weights and momentum.
    """
    table = table_plan.TABLES[9]
    wanted = (table.dataset, "paper", "resnet50")
    mine = [r for r in runs if (r.dataset, r.settings["preset"], r.settings["backbone"]) == wanted]
    groups = [
        grouped((r for r in mine if r.is_of(entry.cell)), ["device"])[0] for entry in table.entries
    ]
    letters, notes = letter_groups((g.any for found in groups for g in found), LABELLED)
    rows: list[list[str]] = []
    for index, (entry, found) in enumerate(zip(table.entries, groups, strict=True)):
        gflops, parameters = measured[entry.cell.detector]
        own = {"GFLOPs": [gflops], "params M": [parameters], "MB": [BYTES * parameters]}
        joint = entry.cell.loss == "jol"  # the base of the same detector stands before it
        lines = [
            Line(
                len(group.runs),
                f"{letters(group.any)} {group.any.settings['device']}",
                {
                    **own,
                    "AP": group.metric("AP").values(),
                    GAIN: _gain(group, groups[index - 1] if joint else []),
                    "s/step": _seconds(group).values(),
                },
            )
            for group in found
        ]
        published = {**entry.published, **({GAIN: entry.gain} if entry.gain is not None else {})}
        rows += rows_of(entry.labels, published, lines or [Line(0, "", own)], COSTS)
        if not lines:  # the last row is the difference from the paper's
            for name in ("AP", "s/step"):
                rows[-2][list(COSTS).index(name) - len(COSTS)] = NO_RUN
        if joint:
            before = table.entries[index - 1]
            ratio = entry.published["s/step"] / before.published["s/step"]
            rows += _ratios(entry.cell.detector, ratio, groups[index - 1], found, letters)
    return Grid(
        title=f"Table 9. {table.title}",
        header=[*table.labels, *WHAT, *COSTS],
        rows=rows,
        labels=3,
        entry=2,
        notes=[f"paper: doi {DOI}, one RTX A6000, batch 2", UNITS, TIMING, *notes, SPREAD],
    )


def _gain(joint: Group, base: Sequence[Group]) -> list[float]:
    """AP of JOL less base, of the same settings, data, device and seed."""
    return [
        difference
        for group in bases(joint, base, ["device"])
        for difference in differences(joint.metric("AP"), group.metric("AP"))
    ]


def _ratios(
    name: str,
    published: float,
    base: Sequence[Group],
    joint: Sequence[Group],
    letters: Letters,
) -> Iterator[list[str]]:
    """JOL's step over base's, of the same settings, data, device and seed."""
    lines = []
    for group in joint:
        for other in bases(group, base, ["device"]):
            slow, fast = _seconds(group), _seconds(other)
            ratios = [slow[s] / fast[s] for s in sorted(slow.keys() & fast.keys())]
            letter = f"{letters(group.any)} {group.any.settings['device']}"
            lines.append(Line(len(ratios), letter, {"s/step": ratios}))
    if lines:
        yield from rows_of((name, "jol/base"), {"s/step": published}, lines, COSTS)


def _seconds(group: Group) -> dict[int, float]:
    found = {seed: run.seconds() for seed, run in group.runs.items()}
    return {seed: value for seed, value in found.items() if not math.isnan(value)}
