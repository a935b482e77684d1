"""The paper's Tables 1 to 9: their rows, the runs these need, and the numbers we could look up.

Shi, Fang, Xu, "Joint Optimization Loss Function for Tiny Object Detection in Remote Sensing
Images", Remote Sens. 2025, 17, 1476, https://www.mdpi.com/2072-4292/17/8/1476. Its tables could
not be read when this was written: the numbers are those of its section 4.1 and of notes taken of
it earlier. Every other is absent here and shown as a dash, and each table says where its numbers
come from. Rows are the methods that this project trains, not those of other authors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from detectors.models.presets import DETECTORS

NAMES = {
    "visdrone": "VisDrone2019",
    "aitod": "AI-TOD",
    "aitodv2": "AI-TODv2",
    "sodad": "SODA-D",
    "coco": "MS COCO 2017",
}
"""Named data sets and the paper's names for them, in the order of its section 4.1."""


@dataclass(frozen=True)
class Cell:
    """What a run must be to belong to a row; a base run has no weights, so the rest is JOL's.

    Attributes:
        detector: None: any one.
        assigner: None: the detector's own.
    """

    detector: str | None
    loss: str
    assigner: str | None = None
    lam: float = 2.0
    location_score: str | None = "iou"
    class_score: str | None = "probability"


@dataclass(frozen=True)
class Entry:
    """A row: its labels, its runs, and the paper's metrics in per cent."""

    labels: tuple[str, ...]
    cell: Cell
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One of Tables 2 to 8.

    Attributes:
        dataset: whose runs belong here; None: those of any named data set, each for itself.
        labels: names of the entries' labels.
        columns: metrics to show; those that runs have beside these follow.
        source: where the published numbers come from.
    """

    title: str
    dataset: str | None
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    columns: tuple[str, ...]
    source: str


AP = ("AP", "AP50", "AP75")
TINY = (*AP, "AP_vt", "AP_t", "AP_s", "AP_m")
METHODS: tuple[tuple[str, str | None], ...] = (
    *((name, None) for name in DETECTORS),
    ("detectors", "simd"),
)
"""Detector and assigner of the rows of Tables 2 to 6."""
ORDER = "Tables 2 to 6 are numbered here in the order in which section 4.1 names the data sets."


def _comparison(
    dataset: str,
    columns: tuple[str, ...] = TINY,
    published: Mapping[tuple[str, str], Mapping[str, float]] | None = None,
    source: str = "none of its numbers was found.",
) -> Table:
    """Base and JOL of every method on a data set; published: (detector, loss) → metrics."""
    entries = []
    for detector, assigner in METHODS:
        label = f"{detector}+{assigner}" if assigner else detector
        for loss in ("base", "jol"):
            numbers = {} if assigner else (published or {}).get((detector, loss), {})
            entries.append(Entry((label, loss), Cell(detector, loss, assigner), numbers))
    title = f"{NAMES[dataset]}: AP in per cent"
    return Table(title, dataset, ("detector", "loss"), tuple(entries), columns, f"{source} {ORDER}")


def _scores() -> tuple[Entry, ...]:
    """Both scores off: every weight is λ − 1 = 1, which is the base loss."""
    return (
        Entry(("off", "off"), Cell(None, "base")),
        Entry(("on", "off"), Cell(None, "jol", class_score=None)),
        Entry(("off", "on"), Cell(None, "jol", location_score=None)),
        Entry(("on", "on"), Cell(None, "jol")),
    )


UNKNOWN = "none of its numbers was found, nor on which data set and detector they were measured."
TABLES: dict[int, Table] = {
    2: _comparison(
        "visdrone",
        published={("faster_rcnn", "base"): {"AP": 22.3}, ("faster_rcnn", "jol"): {"AP": 26.9}},
        source="AP of Faster R-CNN, 22.3 and with JOL 26.9, by notes; the others were not found.",
    ),
    3: _comparison(
        "aitod",
        published={("faster_rcnn", "base"): {"AP": 11.1}, ("faster_rcnn", "jol"): {"AP": 24.7}},
        source="AP of Faster R-CNN, 11.1 and with JOL 13.6 more, by notes; others were not found.",
    ),
    4: _comparison("aitodv2"),
    5: _comparison("sodad", AP),
    6: _comparison("coco", (*AP, "AP_s", "AP_m", "AP_l")),
    7: Table(
        "Scores on and off: AP in per cent", None, ("S_loc", "S_cls"), _scores(), TINY, UNKNOWN
    ),
    8: Table(
        "λ of the weights: AP in per cent",
        None,
        ("lambda",),
        tuple(Entry((str(lam),), Cell(None, "jol", lam=float(lam))) for lam in range(1, 6)),
        TINY,
        UNKNOWN,
    ),
}


@dataclass(frozen=True)
class DataRow:
    """A row of Table 1; size: mean of sqrt(w h) in pixels, relative: of sqrt(w h / (W H))."""

    images: int | None = None
    objects: int | None = None
    size: float | None = None
    relative: float | None = None


DATA_SETS = {
    "visdrone": DataRow(10_209, 343_205, 35.8),
    "aitod": DataRow(None, 700_621, 12.8),
    "aitodv2": DataRow(),
    "sodad": DataRow(None, 278_433),
    "coco": DataRow(118_000, 860_000),
}
DATA_SETS_SOURCE = (
    "VisDrone2019 its Table 1, by notes (images of all four splits, objects of train, size of "
    "train and val); AI-TOD, SODA-D and COCO (over so many images and objects) its section 4.1."
)


@dataclass(frozen=True)
class Cost:
    """A row of Table 9: billions of multiply-accumulates, millions of parameters."""

    gflops: float
    parameters: float


COSTS = {
    "retinanet": Cost(129.8, 36.5),
    "fcos": Cost(123.3, 32.1),
    "faster_rcnn": Cost(134.5, 41.4),
}
"""Table 9, base detectors."""
COSTS_SOURCE = (
    "its Table 9, by notes. Its JOL steps take 1.08 and 1.09 of base steps; of which detectors, "
    "and its model sizes, were not found."
)
