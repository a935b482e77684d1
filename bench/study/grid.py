"""The declared grid: what is compared, on which data and detectors, and which runs that takes.

Within a pair of runs everything is equal but what is compared, and what is chosen for each loss on
its own: first the learning rate, then the scale of the anchors, by AP on the part tune with a seed
that no reported run has. What is best at an end of the values tried is not trusted: the next beyond
it is tried as well. Mixtures and other settings of JOL choose a rate, and take JOL's anchors.
All scales have as many anchors, so that detectors of a pair begin with the same weights.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench.study.data import DATA
from bench.study.runs import Found, Rows, Run
from detectors.models.presets import DETECTORS


@dataclass(frozen=True)
class Tried:
    """The values of a setting out of which one is chosen.

    Attributes:
        first: those that are tried always, ascending.
        least: while the best is the smallest, half of it is tried too, as far as this.
        most: likewise twice the largest.
    """

    first: tuple[float, ...]
    least: float
    most: float


RATES = Tried((0.005, 0.01, 0.02, 0.04), 0.00125, 0.16)
SCALES = Tried((1.0, 2.0, 4.0), 0.5, 8.0)
"""Sides of anchors in strides."""
USUAL_SCALE = 2.0
"""At which rates are chosen."""
TUNING_SEED = 100
FULL: dict[str, Any] = {"crop": 0, "batch_size": 8, "steps": 1500}
"""Of runs with a larger backbone than slim's, which want a GPU: whole images, and longer."""


@dataclass(frozen=True)
class Cell:
    """Where two losses are compared: data, detector and assigner, "" for the detector's own."""

    data: str
    detector: str
    assigner: str = ""

    @property
    def method(self) -> str:
        """Detector and assigner."""
        return f"{self.detector} {self.assigner}".strip()

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.data, self.detector, self.assigner)))


@dataclass(frozen=True)
class Comparison:
    """A question: what changes in AP from one loss to another, in some cells.

    Attributes:
        question: in words.
        loss: one of losses.LOSSES, against `other`.
        other: likewise.
        cells: where.
    """

    question: str
    loss: str
    other: str
    cells: tuple[Cell, ...]


def _cells(*detectors: str) -> tuple[Cell, ...]:
    return tuple(Cell(data, detector) for detector in detectors for data in DATA)


FEW = (Cell("nuclei-half", "faster_rcnn"), Cell("scenes-8-16", "faster_rcnn"))
"""Where the parts of JOL are taken apart."""
GAINING = _cells("retinanet")
"""Where JOL had gained in MAIN, when these were added."""
MATCHED = tuple(
    Cell(data, "retinanet", assigner)
    for data in ("nuclei-half", "scenes-8-16")
    for assigner in ("nwd-rka", "rfla")
)
"""Cells with many positives; their like with few, matched by IoU, are those without assigner."""

MAIN = Comparison(
    "JOL or the base loss?", "jol", "base", _cells("faster_rcnn", "fcos", "retinanet")
)
COMPARISONS = (
    MAIN,
    Comparison("Weights, or only a larger loss?", "jol", "constant", FEW),
    Comparison("The same, where JOL gains?", "jol", "constant", GAINING),
    Comparison("Weights, or only earlier clipping?", "jol", "base-clip-5", GAINING),
    Comparison("No gradient through the weights?", "detached", "jol", FEW),
    Comparison("Negatives at weight 1?", "negatives-at-one", "jol", FEW),
    Comparison("Weights in the class loss alone?", "classification-alone", "jol", FEW),
    Comparison("Weights in the box loss alone?", "boxes-alone", "jol", FEW),
    Comparison("S_loc alone?", "s-loc-alone", "jol", FEW),
    Comparison("S_cls alone?", "s-cls-alone", "jol", FEW),
    Comparison("λ = 1?", "lam-1", "jol", FEW),
    Comparison("λ = 3?", "lam-3", "jol", FEW),
    Comparison("λ = 4?", "lam-4", "jol", FEW),
    Comparison("λ = 5?", "lam-5", "jol", FEW),
    Comparison("S_loc by NWD?", "nwd", "jol", FEW),
    Comparison("S_loc by SimD?", "simd", "jol", FEW),
    Comparison("JOL or the base loss, with many positives?", "jol", "base", MATCHED),
)
PASSES = ((COMPARISONS[:1], 3), (COMPARISONS, 3), (COMPARISONS, 5))
"""What is done first: comparisons, with that many seeds."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a loss in a cell."""

    lr: float
    anchor_scale: float


def run(cell: Cell, loss: str, choice: Choice, part: str, seed: int, backbone: str) -> Run:
    """The run of a cell with a loss."""
    data = DATA[cell.data]
    slim = Run(
        cell.data,
        part,
        cell.detector,
        loss,
        cell.assigner,
        choice.anchor_scale,
        choice.lr,
        seed,
        data.steps,
        data.crop,
    )
    return slim if backbone == slim.backbone else replace(slim, backbone=backbone, **FULL)


def choose(cell: Cell, loss: str, rows: Rows, backbone: str) -> Choice | list[Run]:
    """What is chosen for a loss in a cell, or the runs that have to be done before."""
    has_scales = not DETECTORS[cell.detector].has_points and cell.assigner != "rfla"
    own_scale = has_scales and loss in (MAIN.loss, MAIN.other)
    scale = USUAL_SCALE if has_scales else 0.0
    if not own_scale and has_scales:
        like = choose(cell, MAIN.loss, rows, backbone)
        if isinstance(like, list):
            return like
        scale = like.anchor_scale
    chosen = _best(cell, loss, RATES, lambda lr: Choice(lr, scale), rows, backbone)
    if isinstance(chosen, list) or not own_scale:
        return chosen
    lr = chosen.lr
    return _best(cell, loss, SCALES, lambda scale: Choice(lr, scale), rows, backbone)


def _best(
    cell: Cell,
    loss: str,
    tried: Tried,
    choice: Callable[[float], Choice],
    rows: Rows,
    backbone: str,
) -> Choice | list[Run]:
    """The choice with the highest AP, the first of equals; or the runs that are missing."""
    values = list(tried.first)
    while True:
        runs = {v: run(cell, loss, choice(v), "tune", TUNING_SEED, backbone) for v in values}
        missing = [r for r in runs.values() if r not in rows]
        if missing:
            return missing
        best = max(values, key=lambda v: rows[runs[v]]["AP"])
        if best == values[0] > tried.least:
            values.insert(0, best / 2)
        elif best == values[-1] < tried.most:
            values.append(best * 2)
        else:
            return choice(best)


def pending(
    rows: Rows, backbone: str = "resnet18", data: Container[str] = tuple(DATA)
) -> Iterator[Run]:
    """The runs on these data that can be done next, the most wanted first; some come repeatedly."""
    for comparisons, seeds in PASSES:
        for comparison in comparisons:
            for cell in comparison.cells:
                if cell.data not in data:
                    continue
                losses = (comparison.other, comparison.loss)
                choices = [choose(cell, loss, rows, backbone) for loss in losses]
                for choice in choices:
                    if isinstance(choice, list):
                        yield from choice
                for seed in range(seeds):
                    for loss, choice in zip(losses, choices, strict=True):
                        if isinstance(choice, Choice):
                            wanted = run(cell, loss, choice, "report", seed, backbone)
                            if wanted not in rows:
                                yield wanted


def pairs(
    comparison: Comparison, cell: Cell, rows: Rows, backbone: str = "resnet18"
) -> dict[int, tuple[Found, Found]]:
    """Seed → what its runs of the two losses found, if both are done."""
    found = {}
    choices = [choose(cell, loss, rows, backbone) for loss in (comparison.loss, comparison.other)]
    if any(isinstance(choice, list) for choice in choices):
        return {}
    for seed in range(max(seeds for _, seeds in PASSES)):
        both = [
            rows.get(run(cell, loss, choice, "report", seed, backbone))  # type: ignore[arg-type]
            for loss, choice in zip((comparison.loss, comparison.other), choices, strict=True)
        ]
        if both[0] is not None and both[1] is not None:
            found[seed] = both[0], both[1]
    return found
