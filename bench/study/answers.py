"""What the pairs of each comparison say: of each cell, and of all together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.study import grid
from bench.study.analysis import Effect, by_seed, difference, differences, effect, together
from bench.study.data import SCENES
from bench.study.grid import COMPARISONS, MAIN, MATCHED, Cell, Comparison
from bench.study.runs import Found, Rows

SIZES = ("AP_vt", "AP_t", "AP_s")


@dataclass(frozen=True)
class Answer:
    """What the pairs of a comparison say: of each cell that has any, and of all together."""

    comparison: Comparison
    pairs: Mapping[Cell, Mapping[int, tuple[Found, Found]]]
    """By seed, of each cell that has any."""

    @cached_property
    def cells(self) -> dict[Cell, dict[str, Effect]]:
        """The effects of each cell, by metric."""
        return {cell: _effects(cell, list(pairs.values())) for cell, pairs in self.pairs.items()}

    @property
    def detectors(self) -> "dict[str, Answer]":
        """The answer of each detector that has several cells, if there are several detectors."""
        own: dict[str, dict[Cell, Mapping[int, tuple[Found, Found]]]] = {}
        for cell, pairs in self.pairs.items():
            own.setdefault(cell.detector, {})[cell] = pairs
        if len(own) == 1:
            return {}
        return {d: Answer(self.comparison, cells) for d, cells in own.items() if len(cells) > 1}

    def means(self, cell: Cell) -> tuple[float, float]:
        """AP of the two losses in a cell."""
        first, second = zip(*self.pairs[cell].values(), strict=True)
        return statistics.fmean(x["AP"] for x in first), statistics.fmean(x["AP"] for x in second)

    def overall(self, metric: str = "AP") -> Effect:
        """The mean over the cells in which there are objects for this metric."""
        return together([effects[metric] for effects in self.cells.values()])

    def by_cell(self) -> Effect:
        """The mean over the cells in AP, as if they were a sample of others."""
        return effect([effects["AP"].mean for effects in self.cells.values()])

    def by_seed(self) -> Effect:
        """The mean over the cells in AP, whatever a seed does to several of them alike."""
        cells = [
            dict(zip(pairs, differences(list(pairs.values()), "AP"), strict=True))
            for pairs in self.pairs.values()
        ]
        return by_seed(cells)


def _effects(cell: Cell, pairs: Sequence[tuple[Found, Found]]) -> dict[str, Effect]:
    """Those by size are of no pairs on scenes, whose objects are all of one."""
    known = ("AP",) if cell.data in SCENES else ("AP", *SIZES)
    return {
        metric: effect(differences(pairs if metric in known else [], metric))
        for metric in ("AP", *SIZES)
    }


def answer(comparison: Comparison, rows: Rows, backbone: str) -> Answer:
    """The answer of the rows."""
    every = {cell: grid.pairs(comparison, cell, rows, backbone) for cell in comparison.cells}
    return Answer(comparison, {cell: pairs for cell, pairs in every.items() if pairs})


def contrasts(answers: Sequence[Answer]) -> list[tuple[Cell, Effect]]:
    """Cells with many positives, and how much more JOL gains in their like with few."""
    gains = {
        cell: effects["AP"]
        for a in answers
        if (a.comparison.loss, a.comparison.other) == (MAIN.loss, MAIN.other)
        for cell, effects in a.cells.items()
    }
    both = [(Cell(many.data, many.detector), many) for many in MATCHED]
    return [
        (many, difference(gains[few], gains[many]))
        for few, many in both
        if few in gains and many in gains
    ]


def family() -> int:
    """How many intervals of AP hold together: of each question, and of few and many positives."""
    return len(COMPARISONS) + len(MATCHED)
