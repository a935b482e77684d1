"""What `jol reproduce` trains for a table of the paper, and the table that it ends with.

There are two kinds of settings. "paper": JOL as the paper says, base as the papers that its
numbers are cited from, as far as that is known and an option of `jol train`. "fair": base and JOL
alike, with anchors that fit the objects, at one or several learning rates. docs/paper.md says what
is known and what is not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from detectors.models.presets import find_detector
from detectors.paper.finished_runs import Run, mean, spread
from detectors.paper.published_numbers import DOI
from detectors.paper.table_plan import TABLES, Cell, Entry, Table
from detectors.paper.table_rows import NO_RUN, differences, number
from detectors.utils.text_tables import Grid

NUMBERS = {TABLES[number].dataset: number for number in range(2, 7)}
"""Data set → number of its table."""
KINDS = ("fair", "paper")
BEST = "fair, best rates"
"""The rows in which each loss has the rate at which its AP is highest."""
PRESET = "paper"
SMALLEST = {"visdrone": 16, "aitod": 8, "aitodv2": 8, "sodad": 8, "coco": 32}
"""Data set → side in pixels of the smallest anchor of fair settings.

The largest power of two at which an RPN has positives for objects of 8 to 16 pixels, of AI-TOD,
whose mean is 13 pixels, also for smaller ones (`jol data stats --positives`). SODA-D: its
benchmark's. COCO: preset paper's.
"""
CITED_SCALE = {"sodad": 2}
"""Data set → scale of the anchors of its benchmark's Faster R-CNN, where that is not 8."""
INTERVAL = 0.95


@dataclass(frozen=True)
class Settings:
    """Settings that a table is trained with.

    Attributes:
        kind: one of KINDS.
        rate: learning rate, in that of the preset.
    """

    kind: str
    rate: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.rate == 1 else f"{self.kind}, rate x {self.rate:g}"


def all_settings(kinds: Sequence[str], rates: Sequence[float] = (1.0,)) -> list[Settings]:
    """Settings of these kinds; fair ones at each of these rates, the paper's at its own."""
    return [
        Settings(kind, rate)
        for kind in kinds
        for rate in (dict.fromkeys(rates) if kind == "fair" else (1.0,))
    ]


@dataclass(frozen=True)
class Job:
    """Runs that differ in their seed alone.

    Attributes:
        cell: what they are.
        options: of `jol train` beyond the cell's and the preset: flag → value.
        settings: those that they are runs of, all with the same rate.
    """

    cell: Cell
    options: Mapping[str, str]
    settings: tuple[Settings, ...]

    @property
    def rate(self) -> float:
        """Learning rate, in that of the preset."""
        return self.settings[0].rate


def entries(table: Table, detectors: Sequence[str] = ()) -> list[tuple[Entry, Entry]]:
    """Base and JOL of each method that the table has numbers of; of these detectors, or of all."""
    pairs = zip(table.entries[::2], table.entries[1::2], strict=True)
    return [
        (base, joint)
        for base, joint in pairs
        if (base.published or joint.published)
        and (not detectors or base.cell.detector in detectors)
    ]


def options_of(kind: str, dataset: str, cell: Cell) -> dict[str, str]:
    """The options of `jol train` that make a cell's settings of this kind, beyond preset paper."""
    row = find_detector(cell.detector)
    if kind == "fair":
        scale = SMALLEST[dataset] / row.strides[PRESET][0]
        same = row.has_points or scale == row.scale[PRESET]
        return {} if same else {"--anchor-scale": f"{scale:g}"}
    cited = cell.loss == "base" and not cell.assigner and not row.one_stage
    known = cited and dataset in CITED_SCALE
    return {"--anchor-scale": str(CITED_SCALE[dataset])} if known else {}


def jobs(table: Table, settings: Sequence[Settings], detectors: Sequence[str] = ()) -> list[Job]:
    """What to train for a table; runs that several settings share are one job."""
    found: dict[tuple[Cell, tuple[tuple[str, str], ...], float], list[Settings]] = {}
    for pair in entries(table, detectors):
        for one in settings:
            for entry in pair:
                options = options_of(one.kind, table.dataset, entry.cell)
                key = entry.cell, tuple(options.items()), one.rate
                found.setdefault(key, []).append(one)
    return [Job(cell, dict(options), tuple(of)) for (cell, options, _), of in found.items()]


@dataclass(frozen=True)
class Trained:
    """What a job has come to.

    Attributes:
        job: the job.
        runs: seed → its finished run.
        whole: steps that the paper's length is.
    """

    job: Job
    whole: int
    runs: Mapping[int, Run] = field(default_factory=dict)

    def metric(self, name: str) -> dict[int, float]:
        """Seed → this metric in per cent, without NaN."""
        found = {seed: run.metrics.get(name, math.nan) for seed, run in self.runs.items()}
        return {seed: 100 * value for seed, value in found.items() if not math.isnan(value)}


HEADER = [
    *("detector", "settings", "metric", "pairs", "steps", "base", "JOL", "JOL-base", "from", "to"),
    *("paper:base", "paper:JOL", "paper:gain"),
]


def comparison(
    table: Table,
    settings: Sequence[Settings],
    trained: Sequence[Trained],
    notes: Sequence[str] = (),
    detectors: Sequence[str] = (),
) -> Grid:
    """Base, JOL and their difference for each row of a table, the paper's numbers beside them.

    Args:
        table: one of Tables 2 to 6.
        settings: those to show.
        trained: the jobs of `jobs`.
        notes: what else to say below it.
        detectors: as `jobs` was given.
    """
    rows: list[list[str]] = []
    short = False
    fair = [one for one in settings if one.kind == "fair"]
    shown = [(str(one), [one]) for one in settings]
    if len(fair) > 1:
        shown.insert(len(fair), (BEST, fair))
    for base, joint in entries(table, detectors):
        for name, of in shown:
            ours = [_best(trained, of, entry.cell) for entry in (base, joint)]
            steps = {
                (run.settings["steps"], one.whole) for one in ours for run in one.runs.values()
            }
            short = short or any(done < whole for done, whole in steps)
            lengths = " / ".join(length(*each) for each in sorted(steps)) or "-"
            for column in table.columns:
                label = (base.labels[0], name, column)
                published = [entry.published.get(column, math.nan) for entry in (base, joint)]
                rows.append([*label, *_ours(ours, column, lengths), *_published(*published)])
    cited = sorted({base.reference for base, _ in entries(table, detectors) if base.reference})
    return Grid(
        title=f"Table {NUMBERS[table.dataset]} reproduced. {table.title}",
        header=HEADER,
        rows=rows,
        labels=3,
        entry=3,
        notes=[
            *(["CUT SHORT: steps below the paper's length; not a reproduction."] if short else []),
            *_of_another_preset(trained),
            *_of_other_data(trained),
            *notes,
            f"paper: doi {DOI}; its base numbers are cited from its references "
            f"{', '.join(map(str, cited))}, not runs of its authors; -: not in its table."
            if cited
            else f"paper: doi {DOI}; -: not in its table.",
            *(f"{kind}: {_in_words(kind, table.dataset)}" for kind in _kinds(settings)),
            *_of_rates(fair),
            "base, JOL, JOL-base: means over pairs of one seed (without pairs: over seeds); "
            "from, to: the difference's 95 % interval by Student's t.",
        ],
    )


def _best(trained: Sequence[Trained], settings: Sequence[Settings], cell: Cell) -> Trained:
    """Of a cell's jobs with one of these settings that with the highest mean AP."""
    found = [
        one
        for one in trained
        if one.job.cell == cell and not set(settings).isdisjoint(one.job.settings)
    ]
    return max(found, key=lambda one: mean(one.metric("AP").values() or [-1.0]))


def _kinds(settings: Sequence[Settings]) -> Iterator[str]:
    yield from dict.fromkeys(one.kind for one in settings)


def _of_rates(fair: Sequence[Settings]) -> Iterator[str]:
    """What rows of other rates than the preset's are."""
    if any(one.rate != 1 for one in fair):
        yield "rate x F: both losses at F times the preset's learning rate."
    if len(fair) > 1:
        yield (
            f"{BEST}: each loss at the rate where its mean AP is highest. It was chosen on what is "
            "reported, so both are a little too high."
        )


def _of_another_preset(trained: Sequence[Trained]) -> Iterator[str]:
    """A preset that the runs were given instead of the paper's, of which the notes speak."""
    given = {run.settings["preset"] for one in trained for run in one.runs.values()} - {PRESET}
    if given:
        yield (
            f"PRESET {', '.join(sorted(given))}, not paper: what is said below of preset and "
            "anchors does not hold; not a reproduction."
        )


def _of_other_data(trained: Sequence[Trained]) -> Iterator[str]:
    """Runs that were finished before or after the data set changed."""
    names: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in trained:
        for run in one.runs.values():
            names.setdefault(tuple(sorted(run.data.items())), []).append(run.path.name)
    for other in sorted(names.values(), key=len)[:-1]:
        yield f"OTHER DATA than the other runs had: {', '.join(sorted(other))}; train these anew."


def length(steps: int, whole: int) -> str:
    """Steps, and of how many where that is not the paper's length."""
    return f"{steps:,}" if steps == whole else f"{steps:,} of {whole:,}"


def _ours(ours: Sequence[Trained], metric: str, lengths: str) -> Iterator[str]:
    base, joint = (one.metric(metric) for one in ours)
    pairs = differences(joint, base)
    yield str(len(pairs))
    yield lengths
    paired = base.keys() & joint.keys()
    for one, values in zip(ours, (base, joint), strict=True):
        counted = [values[seed] for seed in paired] or values.values()
        yield number(mean(counted), ".1f") if one.runs else NO_RUN
    yield number(mean(pairs), "+.1f")
    for end in interval(pairs):
        yield number(end, "+.1f")


def _published(base: float, joint: float) -> Iterator[str]:
    yield number(base, ".1f")
    yield number(joint, ".1f")
    yield number(joint - base, "+.1f")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; NaN of fewer than two values."""
    half = math.nan
    if len(values) > 1:
        from scipy.special import stdtrit  # here, so that help needs no NumPy

        quantile = float(stdtrit(len(values) - 1, (1 + INTERVAL) / 2))
        half = quantile * spread(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def _in_words(kind: str, dataset: str) -> str:
    """What settings of a kind are."""
    if kind == "fair":
        return (
            f"base and JOL alike, preset paper, smallest anchor {SMALLEST[dataset]} pixels; "
            "FCOS has no anchors."
        )
    if dataset not in CITED_SCALE:
        return "preset paper; the papers that base is cited from may have had other settings."
    return (
        f"preset paper; two-stage base (without SimD) has anchors of scale {CITED_SCALE[dataset]}, "
        "as in the data set's benchmark."
    )
