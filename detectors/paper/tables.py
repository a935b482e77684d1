"""`jol table`: the paper's numbers next to those of runs on disk, and a list of all runs."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from detectors.evaluation.protocols import METRICS
from detectors.paper import table_plan
from detectors.paper.cost_table import cost_table, measure
from detectors.paper.data_table import data_table
from detectors.paper.finished_runs import Group, Run, find_runs, grouped
from detectors.paper.published_numbers import DOI
from detectors.paper.table_plan import Table
from detectors.paper.table_rows import (
    GAIN,
    LABELLED,
    SPREAD,
    WHAT,
    Letters,
    Line,
    bases,
    differences,
    letter_groups,
    number,
    paper,
    rows_of,
)
from detectors.utils.text_tables import Grid

Made = tuple[Grid, list[str]]
DEFAULT_ROOT = Path("runs")


def make_table(name: str, root: Path | None, given: Mapping[str, Sequence[Path]]) -> Made:
    """Table 1 to 9 or runs, and a line for each folder below `root` that is no finished run.

    Args:
        name: "1" to "9" or "runs".
        root: where runs lie, at any depth; None: in "runs", if there is such a folder.
        given: for Table 1, data set → its COCO JSON files, counted together.

    Raises:
        RunError: `root` is no folder.
        DataError: an unusable annotation file.
    """
    if name == "1":
        return data_table(given), []
    root, found = root or DEFAULT_ROOT, (list[Run](), list[str]())
    if root.is_dir() or root != DEFAULT_ROOT:
        found = find_runs(root)
    runs, problems = found
    if name == "runs":
        return runs_table(runs, root), problems
    if name == "9":
        return cost_table(runs, measure()), problems
    return results_table(int(name), runs), problems


def results_table(which: int, runs: Sequence[Run]) -> Grid:
    """Table 2 to 8: rows for each entry, and JOL less base where the table has both.

    A method without numbers of the paper and without runs has no rows (Table 6 has one method).
    """
    table = table_plan.TABLES[which]
    mine = [run for run in runs if run.dataset == table.dataset]
    groups: list[list[Group]] = []
    skipped: list[str] = []
    for entry in table.entries:
        found, repeated = grouped(run for run in mine if run.is_of(entry.cell))
        groups.append(found)
        skipped += repeated
    letters, notes = letter_groups((g.any for found in groups for g in found), LABELLED)
    columns = _columns(table.columns, [g.any for found in groups for g in found])
    gains: dict[int, float] = {}  # number of the row → the gain that the paper prints
    rows: list[list[str]] = []
    pairs = list(zip(table.entries, groups, strict=True))
    shown = {entry.method for entry, found in pairs if entry.published or found}
    for index, (entry, found) in enumerate(pairs):
        if entry.method not in shown:
            continue
        lines = [
            Line(len(g.runs), letters(g.any), {c: g.metric(c).values() for c in columns})
            for g in found
        ]
        if entry.gain is not None:
            gains[len(rows)] = entry.gain
        rows += rows_of(entry.labels, entry.published, lines, columns, reference=entry.reference)
        if entry.labels[-1] == "jol":  # the base of the same method stands before it
            before = table.entries[index - 1]
            published = {
                name: value - before.published[name]
                for name, value in entry.published.items()
                if name in before.published
            }
            lines = list(_gains(groups[index - 1], found, letters, columns))
            if published or lines:
                labels = (*entry.labels[:-1], "jol-base")
                rows += rows_of(labels, published, lines, columns, sign="+")
    for row in table.others:
        cells = [number(row.numbers.get(c, math.nan), spec) for c, spec in columns.items()]
        rows.append([row.method.replace(" w/ ", "+"), "-", paper(row.reference), "", *cells])
    grid = Grid(
        title=f"Table {which}. {table.title}",
        header=[*table.labels, *WHAT, *columns],
        rows=rows,
        labels=len(table.labels) + 1,
        entry=len(table.labels),
        notes=[*_source(table), *notes, SPREAD, *skipped],
    )
    return _with_gains(grid, gains) if gains else grid


def _with_gains(grid: Grid, gains: Mapping[int, float]) -> Grid:
    """The table with the gains that the paper prints, next to its AP; number of the row → gain.

    A column of the paper alone: ours are in the rows jol-base.
    """
    at = grid.header.index("AP") + 1
    cells = [f"{gains[i]:.1f}" if i in gains else "" for i in range(len(grid.rows))]
    rows = [[*row[:at], cell, *row[at:]] for row, cell in zip(grid.rows, cells, strict=True)]
    header = [*grid.header[:at], GAIN, *grid.header[at:]]
    return dataclasses.replace(grid, header=header, rows=rows, spare=GAIN)


def _source(table: Table) -> list[str]:
    """Notes on where the paper's numbers come from."""
    notes = [f"paper: doi {DOI}; -: not in its table."]
    if any(entry.reference for entry in table.entries):
        notes.append("[n]: cited by the paper from its reference n, not a run of its authors.")
    if table.dataset == "sodad":
        notes.append("gain: as the paper prints it, that of DetectoRS over DetectoRS with SimD.")
    return notes


def _columns(first: Sequence[str], runs: Iterable[Run]) -> dict[str, str]:
    """Metrics to show and their format: the given ones and every AP of the runs."""
    more = [name for run in runs for name in run.metrics if name.startswith("AP")]
    names = dict.fromkeys([*first, *more])
    usual = [name for name in METRICS if name in names]
    return dict.fromkeys([*usual, *names], ".1f")


def _gains(
    base: Sequence[Group], joint: Sequence[Group], letters: "Letters", columns: Iterable[str]
) -> Iterator[Line]:
    """JOL less base of the same settings, data and seed, for each group of JOL that has a base."""
    for group in joint:
        for other in bases(group, base):
            seeds = group.runs.keys() & other.runs.keys()
            if seeds:
                values = {c: differences(group.metric(c), other.metric(c)) for c in columns}
                yield Line(len(seeds), letters(group.any), values)


def runs_table(runs: Sequence[Run], root: Path) -> Grid:
    """Every run with its metrics, then JOL less base over pairs of the same settings and seed."""
    columns = _columns(["AP"], runs)
    groups, skipped = grouped(runs, ["steps"])
    letters, notes = letter_groups((g.any for g in groups), ("detector", "loss", "steps"))
    rows = []
    for run in runs:
        mine = run.settings
        values = [number(100 * run.metrics.get(c, math.nan), spec) for c, spec in columns.items()]
        name = f"{run.path.relative_to(root)}{letters(run)}"
        rows.append([name, *_what(run, mine["loss"]), str(run.seed), f"{mine['steps']}", *values])
    base = [group for group in groups if group.any.settings["loss"] == "base"]
    joint = [group for group in groups if group.any.settings["loss"] == "jol"]
    for group in joint:
        for line in _gains(base, [group], letters, columns):
            what, steps = _what(group.any, "jol-base"), str(group.any.settings["steps"])
            _, *found = rows_of(what, {}, [line], columns, sign="+")
            pairs = f"mean of {line.runs} pair" + "s" * (line.runs > 1) + line.letter
            for name, row in zip([pairs, f"±{line.letter}"], found, strict=False):
                rows.append([name, *what, "", steps, *row[5:]])
    header = ["run", "data", "detector", "loss", "seed", "steps", *columns]
    title, named = f"Runs in {root}", {run.dataset for run in runs}
    if len(named) < 2:  # the same in all rows: no column for it
        title += "".join(f", all of {name}" for name in named if name)
        del header[1]
        rows = [[row[0], *row[2:]] for row in rows]
    at = header.index("seed")
    return Grid(title, header, rows, labels=at, entry=0, notes=[*notes, SPREAD, *skipped])


def _what(run: Run, loss: str) -> list[str]:
    return [run.dataset or "-", run.settings["detector"], loss]
