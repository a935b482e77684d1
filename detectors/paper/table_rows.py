"""The rows of a table: the paper's numbers, then those of runs, their spread, the difference."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from detectors.paper.finished_runs import JOINT, Group, Run, mean, spread
from detectors.paper.table_plan import Cell
from detectors.training import settings

NO_RUN = "no run"
WHAT = ("what", "runs")
"""Columns after the labels: paper, ours, spread or difference; and of how many runs."""
SPREAD = "± is the standard deviation over seeds, or over pairs of base and JOL of the same seed."
LABELLED = tuple(f.name for f in dataclasses.fields(Cell))
"""Settings that the labels of Tables 2 to 9 name."""
GAIN = "gain"
"""Column of the gains of AP that the paper prints."""
USUAL = {"image_size": None, "crop": None, **settings.DEFAULTS, **settings.USUAL}
"""Settings that need no word in a note."""


@dataclass(frozen=True)
class Line:
    """What a group of runs has for a row.

    Attributes:
        runs: how many.
        letter: of their settings, after a space, or nothing.
        values: column → numbers, one a run.
    """

    runs: int
    letter: str
    values: Mapping[str, Iterable[float]]


def rows_of(
    labels: Sequence[str],
    published: Mapping[str, float],
    lines: Sequence[Line],
    columns: Mapping[str, str],
    *,
    sign: str = "",
    reference: int | None = None,
) -> Iterator[list[str]]:
    """The rows of an entry: the paper's, then each group's, its spread, and the difference.

    Args:
        labels: of the entry.
        published: column → the paper's number.
        lines: one for each group of runs.
        columns: name → format.
        sign: before the format, such as "+" for gains.
        reference: what the paper cites for its numbers.
    """

    def row(what: str, runs: str, values: Mapping[str, float], sign: str = "") -> list[str]:
        cells = [number(values.get(c, math.nan), sign + spec) for c, spec in columns.items()]
        return [*labels, what, runs, *cells]

    yield row(paper(reference), "", published, sign)
    if not lines:
        yield [*labels, "ours", "0", NO_RUN, *[""] * (len(columns) - 1)]
    for line in lines:
        ours = {c: mean(values) for c, values in line.values.items()}
        yield row(f"ours{line.letter}", str(line.runs), ours, sign)
        if line.runs > 1:
            spreads = {c: spread(values) for c, values in line.values.items()}
            yield row(f"±{line.letter}", "", spreads)
        if published:
            off = {c: ours.get(c, math.nan) - value for c, value in published.items()}
            yield row(f"ours{line.letter} - paper", "", off, "+")


def paper(reference: int | None) -> str:
    """Of a row of the paper's: "paper", or "paper [24]" where it cites its reference 24."""
    return "paper" if reference is None else f"paper [{reference}]"


def number(value: float, spec: str) -> str:
    """The number in this format, NaN as a dash, and no minus before a zero."""
    if math.isnan(value):
        return "-"
    text = format(value, spec)
    return text.replace("-", "+") if not text.strip("-0.") else text


class Letters:
    """Gives runs of the same settings the same letter, and none where all are the same.

    Args:
        runs: all that the table shows.
        labelled: settings that its labels name.
    """

    def __init__(self, runs: Iterable[Run], labelled: Iterable[str]) -> None:
        runs, self._labelled = list(runs), tuple(labelled)
        self._several = len({tuple(run.data.items()) for run in runs}) > 1
        self.words = list(dict.fromkeys(map(self._words, runs)))

    def __call__(self, run: Run) -> str:
        """The run's letter after a space, or nothing."""
        if len(self.words) < 2:
            return ""
        return f" {self.letter(self.words.index(self._words(run)))}"

    def letter(self, number: int) -> str:
        """a to z, then a1 and so on."""
        return chr(ord("a") + number % 26) + (str(number // 26) if number > 25 else "")

    def _words(self, run: Run) -> str:
        mine = run.decides(self._labelled)
        del mine["data"]
        words = [f"preset {mine.pop('preset')}", str(mine.pop("backbone"))]
        if "steps" in mine:
            words.append(f"{mine.pop('steps'):,} steps")
        words += [f"batch {mine.pop('batch_size')}", f"lr {mine.pop('lr'):g}"]
        words += [f"{k} {v}" for k, v in mine.items() if k not in USUAL or USUAL[k] != v]
        if run.settings["assigner"] == "iou" and "assigner" in self._labelled:
            words.append("assigner iou")  # by the labels the same as none given
        if self._several:
            words += [f"{name[:-7]} {digest[:8]}" for name, digest in run.data.items()]
        return ", ".join(words)


def letter_groups(runs: Iterable[Run], labelled: Iterable[str]) -> tuple[Letters, list[str]]:
    """Letters for these runs, and the notes that say what they stand for."""
    letters = Letters(runs, labelled)
    if len(letters.words) < 2:
        return letters, [f"ours: {words}" for words in letters.words]
    return letters, [f"{letters.letter(i)}: {words}" for i, words in enumerate(letters.words)]


def bases(joint: Group, base: Iterable[Group], also: Sequence[str] = ()) -> Iterator[Group]:
    """The base runs of JOL's settings and data, and of the same settings `also`."""
    mine = joint.any
    wanted = mine.decides(["loss", *JOINT])
    for group in base:
        other = group.any
        same = all(other.settings[name] == mine.settings[name] for name in also)
        if same and other.decides(["loss"]) == wanted:
            yield group


def differences(joint: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """JOL less base of each seed that both have; seed → value."""
    return [joint[seed] - base[seed] for seed in sorted(joint.keys() & base.keys())]
