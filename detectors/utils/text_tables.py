"""Tables of strings as text, Markdown or CSV."""

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from detectors.utils.printable import csv_cell, printable

WIDTH = 100
"""Of text, in characters."""
FORMATS = ("text", "markdown", "csv")


@dataclass(frozen=True)
class Grid:
    """A table of strings.

    Attributes:
        title: one line.
        header: names of the columns.
        rows: cells, as many as columns.
        labels: the first N columns hold words; the others hold numbers.
        entry: rows that share the first N columns are an entry; text says these once, and has a
            blank line where another of them than the last changes, but not between two rows that
            stand alone.
        notes: lines below the table.
        spare: a column that text skips where its lines would be longer than WIDTH.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    entry: int
    notes: list[str]
    spare: str | None = None


def render(grid: Grid, style: str) -> str:
    """The table in one of FORMATS; CSV without title and notes, for programs."""
    return {"text": _text, "markdown": _markdown, "csv": _csv}[style](grid)


def aligned(rows: Iterable[Sequence[str]], labels: int = 1) -> list[str]:
    """A line a row, their cells below each other; all rows have the same number of them.

    Args:
        rows: the cells, those of the header among them.
        labels: the first N columns hold words and stand at the left of their column; the others
            hold numbers and stand at the right.
    """
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(_padded(row, widths, labels)).rstrip() for row in table]


def _padded(row: Sequence[str], widths: Sequence[int], labels: int) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if i < labels else cell.rjust(width)


def markdown(
    header: Sequence[str], rows: Iterable[Sequence[str]], labels: int = 1
) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its row is there; `labels` as in aligned."""
    yield _cells(header)
    yield "|" + "---|" * labels + "---:|" * (len(header) - labels)
    yield from map(_cells, rows)


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |"


def _text(grid: Grid) -> str:
    """Words to the left, numbers to the right; an entry says once what it is."""
    rows = [grid.header, *grid.rows]
    same = [
        [before[: i + 1] == row[: i + 1] for i in range(grid.entry)]
        for before, row in pairwise(rows)
    ]
    starts = [not all(each[:-1]) for each in same]
    single = [a and b for a, b in pairwise([*starts, True])]
    shown = [
        ["" if i < grid.entry and each[i] else cell for i, cell in enumerate(row)]
        for each, row in zip(same, grid.rows, strict=True)
    ]
    cells = [grid.header, *shown]
    header, *table = aligned(cells, grid.labels)
    if grid.spare and max(map(len, [header, *table])) > WIDTH:
        at = grid.header.index(grid.spare)
        header, *table = aligned([[*row[:at], *row[at + 1 :]] for row in cells], grid.labels)
    lines = [grid.title, "", header]
    for i, line in enumerate(table):
        if starts[i] and not (single[i] and single[i - 1]):
            lines.append("")
        lines.append(line)
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in grid.notes]
    return "\n".join([*lines, "", *notes]).rstrip("\n") + "\n"


def _markdown(grid: Grid) -> str:
    table = markdown(grid.header, grid.rows, grid.labels)
    notes = [f"- {note}" for note in grid.notes]
    return "\n".join([f"**{grid.title}**", "", *table, "", *notes]).rstrip("\n") + "\n"


def _csv(grid: Grid) -> str:
    out = io.StringIO()
    at = grid.labels
    rows = [[*row[:at], *(cell.replace(",", "") for cell in row[at:])] for row in grid.rows]
    cells = ([csv_cell(cell) for cell in row] for row in [grid.header, *rows])
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()
