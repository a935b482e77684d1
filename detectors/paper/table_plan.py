"""Tables 2 to 9 as rows of the paper's numbers, and which runs belong to each row.

Tables 7 to 9 are of AI-TOD; 7 and 8 of Faster R-CNN, 9 of three detectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from detectors.paper.published_numbers import (
    COMPARISONS,
    COSTS,
    DATA_SETS,
    LAMBDAS,
    SCORES,
    Row,
)


@dataclass(frozen=True)
class Cell:
    """What a run must be to belong to a row; a base run has no weights, so the rest is JOL's.

    Attributes:
        assigner: None: the detector's own.
    """

    detector: str
    loss: str
    assigner: str | None = None
    lam: float = 2.0
    location_score: str | None = "iou"
    class_score: str | None = "probability"


@dataclass(frozen=True)
class Entry:
    """A row: its labels, its runs, and the paper's numbers by column.

    Attributes:
        reference: what the paper cites for its numbers; None: its own runs, or no numbers.
        gain: of AP over the method without JOL, as the paper prints it (see Row).
    """

    labels: tuple[str, ...]
    cell: Cell
    published: Mapping[str, float] = field(default_factory=dict)
    reference: int | None = None
    gain: float | None = None

    @property
    def method(self) -> tuple[str, str | None]:
        """Its detector and assigner."""
        return self.cell.detector, self.cell.assigner


@dataclass(frozen=True)
class Table:
    """One of Tables 2 to 9.

    Attributes:
        dataset: whose runs belong here.
        labels: names of the entries' labels.
        columns: those of the paper.
        others: rows of methods that this project does not train.
    """

    title: str
    dataset: str
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    columns: tuple[str, ...]
    others: tuple[Row, ...] = ()


PAPER_NAMES = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "Faster R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "detectors": "DetectoRS",
}
"""The detectors that the paper has, by our names; others have no place in its tables."""
METHODS: tuple[tuple[str, str | None], ...] = (
    *((name, None) for name in PAPER_NAMES),
    ("detectors", "simd"),
)
"""Detector and assigner of the rows of Tables 2 to 6."""
COST_COLUMNS = ("AP", "GFLOPs", "params M", "MB", "s/step")


def published_name(detector: str, assigner: str | None, loss: str) -> str:
    """What the paper calls a method, such as "DetectoRS w/ SimD + JOL"."""
    extras = ["SimD"] * (assigner == "simd") + ["JOL"] * (loss == "jol")
    return PAPER_NAMES[detector] + (f" w/ {' + '.join(extras)}" if extras else "")


def _heading(dataset: str) -> str:
    found = DATA_SETS[dataset]
    return f"{found.name}, trained on {found.trained}, tested on {found.tested}"


def _comparison(dataset: str, rows: tuple[Row, ...]) -> Table:
    """Base and JOL of every method on a data set, then the methods of others."""
    named = {row.method: row for row in rows}
    entries = []
    for detector, assigner in METHODS:
        label = f"{detector}+{assigner}" if assigner else detector
        for loss in ("base", "jol"):
            cell = Cell(detector, loss, assigner)
            row = named.pop(published_name(detector, assigner, loss), None)
            known = (row.numbers, row.reference, row.gain) if row else ()
            entries.append(Entry((label, loss), cell, *known))
    return Table(
        f"{_heading(dataset)}: AP in %",
        dataset,
        ("detector", "loss"),
        tuple(entries),
        tuple(rows[0].numbers),
        others=tuple(named.values()),
    )


def _scores() -> Table:
    """Both scores off: every weight is λ - 1 = 1, which is the base loss, cited as in Table 3."""
    base = Entry(("off", "off"), Cell("faster_rcnn", "base"), SCORES[False, False], reference=24)
    joint = {
        (True, False): Cell("faster_rcnn", "jol", class_score=None),
        (False, True): Cell("faster_rcnn", "jol", location_score=None),
        (True, True): Cell("faster_rcnn", "jol"),
    }
    words = {False: "off", True: "on"}
    entries = [Entry((words[a], words[b]), cell, SCORES[a, b]) for (a, b), cell in joint.items()]
    return Table(
        f"Scores on and off, Faster R-CNN. {_heading('aitod')}: AP in %",
        "aitod",
        ("S_loc", "S_cls"),
        (base, *entries),
        ("AP", "AP50", "AP75"),
    )


def _lambdas() -> Table:
    return Table(
        f"λ of the weights, Faster R-CNN. {_heading('aitod')}: AP in %",
        "aitod",
        ("lambda",),
        tuple(
            Entry((str(lam),), Cell("faster_rcnn", "jol", lam=float(lam)), {"AP": ap})
            for lam, ap in LAMBDAS.items()
        ),
        ("AP",),
    )


def _costs() -> Table:
    """The AP and the gains of Table 9 are those of Table 3."""
    rows = {row.method: row for row in COMPARISONS[3][1]}
    entries = []
    for name, cost in COSTS.items():
        same = (cost.gflops, cost.parameters, cost.megabytes)
        for loss, seconds in (("base", cost.base_seconds), ("jol", cost.jol_seconds)):
            row = rows[published_name(name, None, loss)]
            cells = (row.numbers["AP"], *same, seconds)
            numbers = dict(zip(COST_COLUMNS, cells, strict=True))
            entries.append(Entry((name, loss), Cell(name, loss), numbers, gain=row.gain))
    return Table(
        f"AP and cost. {_heading('aitod')}: AP in %",
        "aitod",
        ("detector", "loss"),
        tuple(entries),
        COST_COLUMNS,
    )


TABLES: dict[int, Table] = {
    **{number: _comparison(*one) for number, one in COMPARISONS.items()},
    7: _scores(),
    8: _lambdas(),
    9: _costs(),
}
