"""A table of strings as text, Markdown or CSV."""

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH = 100
"""Of the notes below a table, in characters."""


FORMATS = ("text", "markdown", "csv")


@dataclass(frozen=True)
class Grid:
    """A table of strings.

    Attributes:
        title: one line.
        header: names of the columns.
        rows: cells, as many as columns.
        labels: the first so many columns hold words; the others hold numbers.
        entry: rows that share the first so many columns are an entry; text says these once, and
            has a blank line where another of them than the last changes, but not between two
            rows that stand alone.
        notes: lines to stand below.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    entry: int
    notes: list[str]


def render(grid: Grid, style: str) -> str:
    """The table in one of FORMATS; CSV without title and notes, for programs."""
    return {"text": _text, "markdown": _markdown, "csv": _csv}[style](grid)


def _text(grid: Grid) -> str:
    """Words to the left, numbers to the right; an entry says once what it is."""
    table = [grid.header, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    alike = [
        [before[: i + 1] == row[: i + 1] for i in range(grid.entry)]
        for before, row in pairwise(table)
    ]
    starts = [not all(same[:-1]) for same in alike]
    single = [a and b for a, b in pairwise([*starts, True])]
    lines = [grid.title, "", _line(grid.header, widths, grid.labels)]
    for i, row in enumerate(grid.rows):
        if starts[i] and not (single[i] and single[i - 1]):
            lines.append("")
        shown = ["" if same else cell for same, cell in zip(alike[i], row, strict=False)]
        lines.append(_line([*shown, *row[grid.entry :]], widths, grid.labels))
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in grid.notes]
    return "\n".join([*lines, "", *notes]).rstrip("\n") + "\n"


def _line(row: Sequence[str], widths: Sequence[int], labels: int) -> str:
    cells = [
        cell.ljust(width) if i < labels else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _markdown(grid: Grid) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    ruler = "|" + "---|" * grid.labels + "---:|" * (len(grid.header) - grid.labels)
    notes = [f"- {note}" for note in grid.notes]
    lines = [f"**{grid.title}**", "", line(grid.header), ruler, *map(line, grid.rows), "", *notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _csv(grid: Grid) -> str:
    out = io.StringIO()
    at = grid.labels
    rows = [[*row[:at], *(cell.replace(",", "") for cell in row[at:])] for row in grid.rows]
    csv.writer(out, lineterminator="\n").writerows([grid.header, *rows])
    return out.getvalue()
