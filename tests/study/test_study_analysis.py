"""Intervals hold as often as they say, on rows whose effect is known."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.study import grid
from bench.study.analysis import Effect, by_seed, difference, differences, effect, together
from bench.study.grid import Cell, Comparison

DRAWS = 1000


def share(found: int) -> bool:
    """Whether of DRAWS intervals of 95 % so many may hold: 4 standard errors about 950."""
    return abs(found - 0.95 * DRAWS) < 4 * (DRAWS * 0.95 * 0.05) ** 0.5


def pairs(random, seeds, gain, spread, of_seed=3.0):
    """AP of both losses: what a seed does to both is far larger than what is asked for."""
    common = 30 + of_seed * random.standard_normal(seeds)
    first = common + gain + spread * random.standard_normal(seeds)
    return [({"AP": a}, {"AP": b}) for a, b in zip(first, common, strict=True)]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("gain", [0.0, 0.7])
def test_the_interval_covers_a_known_effect(seeds, gain):
    random = np.random.default_rng(0)
    held = clear = 0
    for _ in range(DRAWS):
        found = effect(differences(pairs(random, seeds, gain, 0.5), "AP"))
        low, high = found.interval()
        held += low <= gain <= high
        clear += found.is_clear()
    assert share(held)
    if gain == 0:  # a null gives a null, 19 times in 20
        assert share(DRAWS - clear)
    elif seeds == 5:  # and an effect is found: unpaired, 3 points a seed would drown it
        assert clear > 0.5 * DRAWS


def test_the_mean_over_cells_covers_though_their_spreads_differ():
    random = np.random.default_rng(1)
    gains, spreads = (0.2, -0.4, 1.1), (0.2, 1.5, 0.6)
    held = 0
    for _ in range(DRAWS):
        cells = [
            effect(differences(pairs(random, 5, gain, spread), "AP"))
            for gain, spread in zip(gains, spreads, strict=True)
        ]
        low, high = together(cells).interval()
        held += low <= sum(gains) / 3 <= high
    # Satterthwaite's is an approximation: a little wide or narrow, not wrong.
    assert 0.93 * DRAWS < held < 0.98 * DRAWS


def test_seeds_that_do_the_same_to_all_cells_are_allowed_for():
    random = np.random.default_rng(5)
    held = as_if_independent = 0
    for _ in range(DRAWS):
        of_seed = random.standard_normal(5)
        found = 0.4 + of_seed + 0.5 * random.standard_normal((6, 5))
        low, high = by_seed([dict(enumerate(cell)) for cell in found]).interval()
        held += low <= 0.4 <= high
        low, high = together([effect(cell) for cell in found]).interval()
        as_if_independent += low <= 0.4 <= high
    assert share(held) and as_if_independent < 0.8 * DRAWS


def test_seeds_that_not_all_cells_have_do_not_count():
    found = by_seed([{0: 1.0, 1: 2.0, 2: 9.0}, {1: 4.0, 0: 1.0}, {0: 50.0}])
    assert found == effect([1.0, 3.0])
    assert (
        by_seed([{0: 1.0}]).pairs == 0 and by_seed([{0: 1.0, 1: 2.0}, {2: 1.0, 3: 1.0}]).pairs == 0
    )


def test_all_intervals_of_a_family_hold_together():
    random = np.random.default_rng(2)
    all_held = single = 0
    for _ in range(DRAWS):
        found = [effect(differences(pairs(random, 5, 0.0, 0.5), "AP")) for _ in range(10)]
        all_held += not any(e.is_clear(10) for e in found)
        single += not any(e.is_clear() for e in found)
    assert share(all_held) or all_held > 0.95 * DRAWS
    assert single < 0.7 * DRAWS  # uncorrected, four in ten families have a false alarm


def test_a_difference_of_effects_covers():
    random = np.random.default_rng(3)
    held = 0
    for _ in range(DRAWS):
        many, few = (
            effect(differences(pairs(random, 5, *x), "AP")) for x in ((1.0, 0.4), (0.3, 1.0))
        )
        low, high = difference(many, few).interval()
        held += low <= 0.7 <= high
    assert 0.93 * DRAWS < held < 0.98 * DRAWS


def test_a_cell_is_a_paired_t_test():
    random = np.random.default_rng(4)
    given = pairs(random, 5, 0.5, 0.4)
    first, second = ([x[i]["AP"] for x in given] for i in (0, 1))
    wanted = stats.ttest_rel(first, second)
    found = effect(differences(given, "AP"))
    assert found.interval() == pytest.approx(wanted.confidence_interval(0.95))
    assert found.is_clear() == (wanted.pvalue < 0.05)
    assert (found.freedom, found.pairs) == (4, 5)


def test_one_pair_says_nothing():
    alone = effect([0.4])
    assert alone.mean == 0.4 and alone.interval() == (-math.inf, math.inf) and not alone.is_clear()
    assert effect([]).pairs == 0 and math.isnan(effect([]).mean)
    assert effect([1.0, math.nan, 2.0]) == effect([1.0, 2.0])
    assert together([alone, effect([1.0, 2.0])]).pairs == 2
    assert together([alone]).pairs == 0


def test_equal_pairs_have_an_interval_of_no_width():
    assert effect([0.5] * 4).interval() == (0.5, 0.5)
    assert together([effect([0.5] * 4)] * 2) == Effect(0.5, 0.0, 6, 8)


def rows_of(comparison, gains, seeds):
    """Rows of the grid: JOL's AP is the base's of its seed and a gain, at rates of its own."""
    rows: dict = {}
    while wanted := [r for r in dict.fromkeys(grid.pending(rows)) if r.seed in (*seeds, 100)]:
        for run in wanted:
            best = 0.01 if run.loss == "jol" else 0.02
            gain = gains[run.data] if run.loss == "jol" else 0.0
            rows[run] = {"AP": 30 + run.seed + gain - 100 * abs(run.lr - best)}
    return rows


def test_pairs_are_of_one_seed_and_each_loss_at_its_own_choice(monkeypatch):
    cells = tuple(Cell(data, "fcos") for data in ("scenes-4-8", "scenes-8-16"))
    comparison = Comparison("", "jol", "base", cells)
    monkeypatch.setattr(grid, "PASSES", (((comparison,), 5),))
    rows = rows_of(comparison, {"scenes-4-8": 0.25, "scenes-8-16": -0.5}, range(5))
    for cell, gain in zip(cells, (0.25, -0.5), strict=True):
        found = list(grid.pairs(comparison, cell, rows).values())
        assert differences(found, "AP") == pytest.approx([gain] * 5)
    # A run that is missing takes its pair along, and no other.
    lost = next(r for r in rows if (r.loss, r.seed, r.data) == ("jol", 3, "scenes-4-8"))
    del rows[lost]
    assert len(grid.pairs(comparison, cells[0], rows)) == 4
    # Without all of the tuning, nothing is known of either.
    del rows[next(r for r in rows if r.part == "tune" and r.data == "scenes-8-16")]
    assert grid.pairs(comparison, cells[1], rows) == {}
