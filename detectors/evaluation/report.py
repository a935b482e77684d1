"""An evaluation on disk and in print.

results.json     the metrics by name, null where no class has such objects
per_class.csv    the same of each class and how many objects it has, a cell empty where there are no
                 such objects
pr_curves.npz    precision [T, R, K] with its IoU thresholds [T] and recall points [R]
pr_curves.png    precision and recall, mean over classes; pr_classes.png: of the classes with the
                 most objects
"""

import csv
import io
import json
import math
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from detectors import errors
from detectors.evaluation.average_precision import Evaluation
from detectors.evaluation.curves import pr_classes, pr_curves
from detectors.utils import files
from detectors.utils.names import listed, shortened
from detectors.utils.printable import csv_cell, from_csv_cell
from detectors.utils.text_tables import aligned

RESULTS = "results.json"
ARRAYS = ("precision", "recall_points", "iou_thresholds")
BROKEN = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, csv.Error),
)
"""What reading results that something else wrote may raise."""
OBJECTS = "objects"
"""Column of per_class.csv, which files of earlier versions lack."""
FEW = 10
"""AP of a class of fewer objects says little."""
COLUMNS = 80
"""Characters of a printed line."""


def write_results(
    out: Path,
    evaluation: Evaluation,
    name: str,
    *,
    at_once: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """The files above, the numbers before the pictures, in the folder `out`.

    `name` stands for the run in the pictures, which are drawn within `at_once()`: they may take
    seconds, and whoever stops them loses nothing else.
    """
    (out / RESULTS).unlink(missing_ok=True)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", *evaluation.metrics, OBJECTS])
    for label, metrics in evaluation.per_class.items():
        cells = ("" if math.isnan(v) else v for v in metrics.values())
        rows.writerow([csv_cell(label), *cells, evaluation.objects.get(label, "")])
    files.replace(out / "per_class.csv", lambda file: file.write(text.getvalue().encode()))
    arrays = {array: getattr(evaluation, array) for array in ARRAYS}
    files.replace(out / "pr_curves.npz", lambda file: np.savez(file, **arrays))
    files.write_json(out / RESULTS, evaluation.metrics)  # it says that all is there
    for path, draw in ((out / "pr_curves.png", pr_curves), (out / "pr_classes.png", pr_classes)):
        with at_once():
            draw({name: evaluation}, path)


def read_results(out: Path) -> Evaluation:
    """What write_results wrote: so one figure can show runs that were evaluated apart.

    Raises:
        RunError: a file that is missing or broken.
    """
    try:
        path = out / RESULTS
        metrics = json.loads(files.read_bytes(path))
        if not isinstance(metrics, dict) or not all(
            value is None or isinstance(value, int | float) for value in metrics.values()
        ):
            raise ValueError("not numbers by name")
        path = out / "pr_curves.npz"
        files.refuse_endless(path)
        with np.load(path) as stored:
            arrays = {array: np.asarray(stored[array], dtype=float) for array in ARRAYS}
        shape = (arrays["iou_thresholds"].size, arrays["recall_points"].size)
        if arrays["precision"].ndim != 3 or arrays["precision"].shape[:2] != shape:
            raise ValueError("not curves at these thresholds and points")
        path = out / "per_class.csv"
        head, *rows = csv.reader(io.StringIO(files.read_bytes(path).decode(), newline=""))
        counted = head[-1:] == [OBJECTS]
        objects = {
            from_csv_cell(label): int(count) for label, *_, count in rows if counted and count
        }
        per_class = {
            from_csv_cell(label): dict(
                zip(metrics, (float(v or "nan") for v in values), strict=True)
            )
            for label, *values in (row[:-1] if counted else row for row in rows)
        }
        known = ["class", *metrics] + [OBJECTS] * counted
        if head != known or len(per_class) != arrays["precision"].shape[2]:
            raise ValueError("not the file that belongs to the others")
    except BROKEN as error:
        raise errors.RunError(f"{path}: missing or broken, no results of an evaluation") from error
    return Evaluation(
        metrics={k: math.nan if v is None else v for k, v in metrics.items()},
        per_class=per_class,
        objects=objects,
        **arrays,
    )


def metrics_line(evaluation: Evaluation, before: str = "") -> str:
    """The metrics in per cent; a dash where there are no objects of that size.

    Broken between two metrics where a line that begins with `before`, which is not returned, would
    be longer than COLUMNS.
    """
    glued = "  ".join(f"{name}\0{_percent(value)}" for name, value in evaluation.metrics.items())
    lines = _wrapped(f"{'.' * len(before)}{glued}")
    return lines[len(before) :].replace("\0", " ")


def class_table(evaluation: Evaluation, *, narrow: bool = False) -> str:
    """Objects and metrics in per cent of each class and of all, a line each, under a head.

    Names are cut off after COLUMNS; `narrow`: the whole table is, with AP alone.
    """
    shown = [name for name in evaluation.metrics if name.startswith("AP") or not narrow]
    table = [["", OBJECTS, *shown]]
    counts = evaluation.objects
    rows = [(name, counts.get(name), found) for name, found in evaluation.per_class.items()]
    rows.append(("all", sum(counts.values()) if counts else None, evaluation.metrics))
    for name, count, found in rows:
        number = "-" if count is None else f"{count:,}"
        table.append([name, number, *(_percent(found[metric]) for metric in shown)])
    room = COLUMNS
    if narrow:
        room -= 2 + len(aligned([cells for _, *cells in table], labels=0)[0])
    return "\n".join(aligned([[shortened(name, room), *cells] for name, *cells in table]))


def about_ap(evaluation: Evaluation) -> str:
    """Over which classes AP is a mean, and which of them have few objects, in lines of COLUMNS."""
    return "\n".join(map(_wrapped, _about_ap(evaluation)))


def _about_ap(evaluation: Evaluation) -> Iterator[str]:
    counts = evaluation.objects
    known = [name for name, found in evaluation.per_class.items() if not math.isnan(found["AP"])]
    without = [name for name in evaluation.per_class if name not in set(known)]
    over = f"{len(known):,}" + (f" of {len(evaluation.per_class):,}" if without else "")
    text = f"AP is the mean over {over} class{'es' * (len(evaluation.per_class) != 1)}."
    if without:
        text += f" Without objects: {listed(without)}."
    yield text
    few = [f"{name} ({counts[name]})" for name in known if counts.get(name, FEW) < FEW]
    if few:
        yield f"Fewer than {FEW} objects, so that AP says little: {listed(few)}."


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
