"""What pairs of runs say: differences with intervals, over seeds, cells and sizes.

A pair is two runs with the same seed; its difference is one observation. In a cell the mean of
its pairs has Student's t interval. Over the cells of a comparison the mean of the cells' means is
the effect, and its variance the mean of theirs over the number of cells, with Satterthwaite's
degrees of freedom (Biometrics Bulletin 2 (6), 1946): the cells are those that were chosen, not a
sample of others, so that nothing is said of data that is not among them. Their pairs are taken as
independent, which by_seed does without. Simultaneous intervals are Bonferroni's: all of a family
hold together with 95 %.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """A mean difference.

    Attributes:
        mean: in the observations' unit; NaN without any.
        error: its standard error; NaN of a single pair.
        freedom: degrees of freedom.
        pairs: how many.
    """

    mean: float
    error: float
    freedom: float
    pairs: int

    def interval(self, family: int = 1) -> tuple[float, float]:
        """Where the mean lies with 95 %, simultaneously with those of a family of so many."""
        if not self.freedom > 0:
            return -math.inf, math.inf
        half = self.error * float(student.ppf(1 - (1 - LEVEL) / 2 / family, self.freedom))
        return self.mean - half, self.mean + half

    def is_clear(self, family: int = 1) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval(family)
        return low > 0 or high < 0


def effect(differences: Sequence[float]) -> Effect:
    """The mean difference of pairs; those that are NaN do not count."""
    values = [x for x in differences if not math.isnan(x)]
    n = len(values)
    if n < 2:
        return Effect(values[0] if values else math.nan, math.nan, 0, n)
    return Effect(statistics.fmean(values), statistics.stdev(values) / n**0.5, n - 1, n)


def together(effects: Sequence[Effect]) -> Effect:
    """The mean of the means of cells, each counting as much; cells without error are left out."""
    used = [e for e in effects if e.freedom > 0]
    if not used:
        return Effect(math.nan, math.nan, 0, 0)
    variances = [e.error**2 for e in used]
    total = sum(variances)
    parts = sum(v**2 / e.freedom for v, e in zip(variances, used, strict=True))
    return Effect(
        statistics.fmean(e.mean for e in used),
        total**0.5 / len(used),
        total**2 / parts if parts > 0 else sum(e.freedom for e in used),
        sum(e.pairs for e in used),
    )


def by_seed(cells: Sequence[Mapping[int, float]]) -> Effect:
    """The mean over cells, of seeds that all have, each seed's mean over the cells one observation.

    `together` takes cells as independent. A seed's weights and batches may do the same to several,
    which this allows for, with the degrees of freedom of the seeds alone. `cells`: by seed; those
    with a single one are left out.
    """
    used = [cell for cell in cells if len(cell) > 1]
    seeds = set.intersection(*map(set, used)) if used else set()
    return effect([statistics.fmean(cell[seed] for cell in used) for seed in sorted(seeds)])


def difference(one: Effect, other: Effect) -> Effect:
    """How much larger one effect is than another, of other runs; Welch's."""
    if not (one.freedom > 0 and other.freedom > 0):
        return Effect(one.mean - other.mean, math.nan, 0, min(one.pairs, other.pairs))
    a, b = one.error**2, other.error**2
    parts = a**2 / one.freedom + b**2 / other.freedom
    freedom = (a + b) ** 2 / parts if parts > 0 else one.freedom + other.freedom
    return Effect(one.mean - other.mean, (a + b) ** 0.5, freedom, one.pairs + other.pairs)


def differences(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], metric: str
) -> list[float]:
    """First less second of each pair."""
    return [one[metric] - other[metric] for one, other in pairs]


def in_words(e: Effect, form: str = "+.1f") -> str:
    """A mean and its own interval; "" of nothing."""
    if not e.pairs:
        return ""
    if not e.freedom > 0:
        return f"{e.mean:{form}}"
    low, high = e.interval()
    return f"{e.mean:{form}} ({low:{form}} to {high:{form}})"
