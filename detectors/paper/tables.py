"""`jol table`: the paper's numbers beside those of runs on disk, and a list of all runs."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from detectors.data.object_counts import read_pool, sizes
from detectors.paper import published_numbers
from detectors.paper.finished_runs import JOINT, Group, Run, find_runs, grouped
from detectors.paper.published_numbers import Entry, Table
from detectors.paper.table_rows import NO_RUN, Letters, Line, letter_groups, number, rows_of
from detectors.utils.progress import Progress
from detectors.utils.text_tables import Grid

Made = tuple[Grid, list[str]]
DEFAULT_ROOT = Path("runs")
SIZE = 800
"""Side of the images of Table 9."""
COUNTED = "GFLOPs: billions of multiply-accumulates of an image of 800 x 800"
TABLES = (*map(str, range(1, 10)), "runs")
WHAT = ("what", "runs")
"""Columns after the labels: paper, ours, spread or difference; and of how many runs."""
SPREAD = "± is the standard deviation over seeds, or over pairs of base and JOL of the same seed."
TOLD = tuple(f.name for f in dataclasses.fields(published_numbers.Cell))
"""Settings that the labels of Tables 2 to 9 tell."""
COSTS = {"GFLOPs": ".1f", "params M": ".1f", "s/step": ".3f", "MB": ".1f"}
DATA = {"images": ",.0f", "objects": ",.0f", "size px": ".1f", "relative": ".4f"}
"""Columns of Tables 9 and 1 and their formats."""


def make_table(name: str, root: Path | None, given: Mapping[str, Sequence[Path]]) -> Made:
    """One of TABLES, and a line for each folder below `root` that is no finished run.

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
        return cost_table(runs, _measure()), problems
    return results_table(int(name), runs), problems


def _measure() -> dict[str, tuple[float, float]]:
    """GFLOPs and millions of parameters of the detectors of Table 9, some seconds each."""
    from detectors.models.cost import build, gigamacs, parameters

    found = {}
    with Progress("counting", 0, len(published_numbers.COSTS), quiet=True) as progress:
        for step, name in enumerate(published_numbers.COSTS, start=1):
            model = build(name, "base", SIZE)
            found[name] = (gigamacs(model, SIZE), parameters(model))
            progress.step(step)
    return found


def results_table(number: int, runs: Sequence[Run]) -> Grid:
    """Table 2 to 8: rows for each entry, and JOL less base where the table has both."""
    table = published_numbers.TABLES[number]
    named = [run for run in runs if run.dataset and table.dataset in (None, run.dataset)]
    labels, entries = table.labels, list(_placed(table, named))
    if table.dataset is None:
        labels = ("data", "detector", *labels)
    groups: list[list[Group]] = []
    left_out: list[str] = []
    for dataset, entry in entries:
        mine = [run for run in named if run.dataset == dataset and run.is_of(entry.cell)]
        found, skipped = grouped(mine)
        groups.append(found)
        left_out += [line for line in skipped if line not in left_out]
    letters, notes = letter_groups((g.any for found in groups for g in found), TOLD)
    columns = _columns(table.columns, [g.any for found in groups for g in found])
    rows: list[list[str]] = []
    for index, ((_, entry), found) in enumerate(zip(entries, groups, strict=True)):
        lines = [
            Line(len(g.runs), letters(g.any), {c: g.metric(c).values() for c in columns})
            for g in found
        ]
        rows += rows_of(entry.labels, entry.published, lines, columns)
        if entry.labels[-1] == "jol":  # the base of the same method stands before it
            before = entries[index - 1][1]
            gains = {
                name: value - before.published[name]
                for name, value in entry.published.items()
                if name in before.published
            }
            lines = list(_gains(groups[index - 1], found, letters, columns))
            if gains or lines:
                rows += rows_of((*entry.labels[:-1], "jol-base"), gains, lines, columns, sign="+")
    return Grid(
        title=f"Table {number}. {table.title}",
        header=[*labels, *WHAT, *columns],
        rows=rows,
        labels=len(labels) + 1,
        entry=len(labels),
        notes=[f"paper: {table.source}", *notes, SPREAD, *left_out],
    )


def _placed(table: Table, runs: Sequence[Run]) -> Iterator[tuple[str | None, Entry]]:
    """Entries with their data set; where the table names none, those of each one that has runs.

    A data set and detector with base and JOL runs alone has rows only if no other has more: these
    runs are there for Tables 2 to 6.
    """
    if table.dataset is not None:
        yield from ((table.dataset, entry) for entry in table.entries)
        return
    usual = [e.cell for t in published_numbers.TABLES.values() if t.dataset for e in t.entries]
    wanted = [run for run in runs if any(run.is_of(entry.cell) for entry in table.entries)]
    special = [run for run in wanted if not any(run.is_of(cell) for cell in usual)]
    places = [(run.dataset, run.settings["detector"]) for run in special or wanted]
    for dataset, detector in dict.fromkeys(places) or [(None, "faster_rcnn")]:
        for entry in table.entries:
            cell = dataclasses.replace(entry.cell, detector=detector)
            labels = (dataset or "-", detector, *entry.labels)
            yield dataset, dataclasses.replace(entry, labels=labels, cell=cell)


def _columns(first: Sequence[str], runs: Iterable[Run]) -> dict[str, str]:
    """Metrics to show and their format: the given ones, then other AP of the runs."""
    more = [name for run in runs for name in run.metrics if name.startswith("AP")]
    return dict.fromkeys([*first, *more], ".1f")


def _gains(
    base: Sequence[Group], joint: Sequence[Group], letters: "Letters", columns: Iterable[str]
) -> Iterator[Line]:
    """JOL less base of the same settings, data and seed, for each group of JOL that has a base."""
    for group in joint:
        wanted = group.any.decides(["loss", *JOINT])
        for other in base:
            seeds = group.runs.keys() & other.runs.keys()
            if seeds and other.any.decides(["loss"]) == wanted:
                values = {c: _differences(group.metric(c), other.metric(c)) for c in columns}
                yield Line(len(seeds), letters(group.any), values)


def _differences(joint: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    return [joint[seed] - base[seed] for seed in sorted(joint.keys() & base.keys())]


def data_table(given: Mapping[str, Sequence[Path]]) -> Grid:
    """Table 1; given: data set → its COCO JSON files, counted together.

    Raises:
        DataError: an unusable file.
    """
    rows: list[list[str]] = []
    for name in dict.fromkeys([*published_numbers.DATA_SETS, *given]):
        known = dataclasses.asdict(
            published_numbers.DATA_SETS.get(name, published_numbers.DataRow())
        )
        numbers = zip(DATA, known.values(), strict=True)
        published = {column: float(v) for column, v in numbers if v is not None}
        lines = []
        if name in given:
            pool = read_pool(given[name])
            size, relative = sizes(pool)
            counts = (len(pool.images), len(size), size.mean().item(), relative.mean().item())
            lines = [Line(1, "", {c: [float(v)] for c, v in zip(DATA, counts, strict=True)})]
        for row in rows_of((name,), published, lines, DATA):
            cells = [row[0], row[1], *row[3:]]
            rows.append([cell.replace(NO_RUN, "not given") for cell in cells])
    return Grid(
        title="Table 1. Data sets: images, objects, mean sizes sqrt(w h) and sqrt(w h / (W H))",
        header=["data", "what", *DATA],
        rows=rows,
        labels=2,
        entry=1,
        notes=[
            f"paper: {published_numbers.DATA_SETS_SOURCE}",
            "ours: of the files given with --annotations",
            "relative size: the paper's numbers were not found",
        ],
    )


def cost_table(runs: Sequence[Run], measured: Mapping[str, tuple[float, float]]) -> Grid:
    """Table 9; measured: detector → GFLOPs and millions of parameters of our own.

    Seconds a step and the size of best.pt are those of runs with preset paper and ResNet-50, on
    any data.
    """
    model = ("paper", "resnet50")
    mine = [run for run in runs if (run.settings["preset"], run.settings["backbone"]) == model]
    rows: list[list[str]] = []
    groups = {
        (name, loss): grouped(
            (r for r in mine if r.is_of(published_numbers.Cell(name, loss))), ["device"]
        )[0]
        for name in published_numbers.COSTS
        for loss in ("base", "jol")
    }
    letters, notes = letter_groups((g.any for found in groups.values() for g in found), TOLD)
    for (name, loss), found in groups.items():
        own = dict(zip(COSTS, ([number] for number in measured[name]), strict=False))
        known = published_numbers.COSTS[name]
        published = {"GFLOPs": known.gflops, "params M": known.parameters} if loss == "base" else {}
        lines = [
            Line(
                len(group.runs),
                f"{letters(group.any)} {group.any.settings['device']}",
                {**own, "s/step": _seconds(group).values(), "MB": _megabytes(group)},
            )
            for group in found
        ]
        rows += rows_of((name, loss), published, lines or [Line(0, "", own)], COSTS)
        if not lines:
            rows[-1 - bool(published)][-2:] = [NO_RUN, ""]
        if loss == "jol":
            rows += _ratios(name, groups[name, "base"], found, letters)
    return Grid(
        title="Table 9. Cost: GFLOPs, parameters, seconds a step, size of best.pt",
        header=["detector", "loss", *WHAT, *COSTS],
        rows=rows,
        labels=3,
        entry=2,
        notes=[f"paper: {published_numbers.COSTS_SOURCE}", COUNTED, *notes, SPREAD],
    )


def _ratios(
    name: str, base: Sequence[Group], joint: Sequence[Group], letters: Letters
) -> Iterator[list[str]]:
    """JOL's step over base's, of the same settings, data, device and seed."""
    lines = []
    for group in joint:
        wanted, device = group.any.decides(["loss", *JOINT]), group.any.settings["device"]
        for other in base:
            if other.any.decides(["loss"]) == wanted and other.any.settings["device"] == device:
                slow, fast = _seconds(group), _seconds(other)
                ratios = [slow[s] / fast[s] for s in sorted(slow.keys() & fast.keys())]
                line = Line(len(ratios), f"{letters(group.any)} {device}", {"s/step": ratios})
                lines.append(line)
    if lines:
        yield from rows_of((name, "jol/base"), {}, lines, COSTS)


def _seconds(group: Group) -> dict[int, float]:
    found = {seed: run.seconds() for seed, run in group.runs.items()}
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def _megabytes(group: Group) -> list[float]:
    files = [run.path / "best.pt" for run in group.runs.values()]
    return [file.stat().st_size / 1e6 for file in files if file.exists()]


def runs_table(runs: Sequence[Run], root: Path) -> Grid:
    """Every run with its metrics, then JOL less base over pairs of the same settings and seed."""
    columns = _columns(["AP"], runs)
    groups, left_out = grouped(runs, ["steps"])
    letters, notes = letter_groups((g.any for g in groups), ("detector", "loss", "steps"))
    rows = []
    for run in runs:
        mine = run.settings
        values = [number(100 * run.metrics.get(c, math.nan), spec) for c, spec in columns.items()]
        name = str(run.path.relative_to(root))
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
    return Grid(title, header, rows, labels=at, entry=0, notes=[*notes, SPREAD, *left_out])


def _what(run: Run, loss: str) -> list[str]:
    return [run.dataset or "-", run.settings["detector"], loss]
