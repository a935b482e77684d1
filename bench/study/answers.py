"""What the pairs of each comparison say: of each cell, and of all together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    cells: dict[Cell, dict[str, Effect]]
    """By metric."""
    means: dict[Cell, tuple[float, float]]
    """AP of the two losses."""
    pairs: Mapping[Cell, Mapping[int, tuple[Found, Found]]] = field(default_factory=dict)
    """By seed."""

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


def answer(comparison: Comparison, rows: Rows, backbone: str) -> Answer:
    """The answer of the rows."""
    cells, means, every = {}, {}, {}
    for cell in comparison.cells:
        seeds = grid.pairs(comparison, cell, rows, backbone)
        pairs = list(seeds.values())
        if pairs:
            every[cell] = seeds
            of_one_size = cell.data in SCENES  # whose AP by size says nothing more
            cells[cell] = {
                metric: effect(differences([] if of_one_size and metric != "AP" else pairs, metric))
                for metric in ("AP", *SIZES)
            }
            aps = [[found["AP"] for found in of_loss] for of_loss in zip(*pairs, strict=True)]
            means[cell] = (statistics.fmean(aps[0]), statistics.fmean(aps[1]))
    return Answer(comparison, cells, means, every)


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
