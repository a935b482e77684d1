"""Table 1: the data sets, their objects and sizes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectors.data.object_counts import Pool, read_pool, sizes
from detectors.paper.finished_runs import mean
from detectors.paper.published_numbers import DATA_SETS, DOI
from detectors.paper.table_rows import NO_RUN, Line, rows_of
from detectors.utils.text_tables import Grid

DATA = {
    "classes": ",.0f",
    "images": ",.0f",
    "objects": ",.0f",
    "image px": ",.0f",
    "size px": ".1f",
    "relative": ".3f",
}
"""Columns and their formats."""


def data_table(given: Mapping[str, Sequence[Path]]) -> Grid:
    """Table 1; given: data set → its COCO JSON files, counted together.

    Raises:
        DataError: an unusable file.
    """
    rows: list[list[str]] = []
    for name in dict.fromkeys([*DATA_SETS, *given]):
        published = dict(zip(DATA, _published(name), strict=False))
        lines = []
        if name in given:
            counts = zip(DATA, _counted(read_pool(given[name])), strict=True)
            lines = [Line(1, "", {column: [value] for column, value in counts})]
        for row in rows_of((name,), published, lines, DATA):
            cells = [row[0], row[1], *row[3:]]
            rows.append([cell.replace(NO_RUN, "not given") for cell in cells])
    return Grid(
        title="Table 1. Data sets and the mean size of their objects",
        header=["data", "what", *DATA],
        rows=rows,
        labels=2,
        entry=1,
        notes=[
            f"paper: doi {DOI}",
            "ours: of the files given with --annotations",
            "image px: mean of sqrt(W H); size px: mean of sqrt(w h); relative: size px / image px",
        ],
    )


def _published(name: str) -> list[float]:
    """The paper's numbers in the order of DATA; none of a data set that it does not have."""
    if name not in DATA_SETS:
        return []
    row = DATA_SETS[name]
    return [row.categories, row.images, row.objects, row.image_size, row.size, row.relative]


def _counted(pool: Pool) -> list[float]:
    """The same of annotation files."""
    size = sizes(pool)[0]
    side = mean(math.sqrt(height * width) for _, (height, width) in pool.images)
    average = float(size.mean())
    return [len(pool.classes), len(pool.images), len(size), side, average, average / side]
