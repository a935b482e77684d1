"""An evaluation on disk and in print.

results.json     the metrics by name, null where no class has such objects
per_class.csv    the same of each class, a cell empty where there are no such objects
pr_curves.npz    precision [T, R, K] with its IoU thresholds [T] and recall points [R]
pr_curves.png    precision and recall, mean over classes; pr_classes.png: of each class
"""

import csv
import io
import json
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from detectors import errors
from detectors.evaluation.average_precision import Evaluation
from detectors.evaluation.curves import pr_classes, pr_curves
from detectors.utils import files
from detectors.utils.printable import csv_cell, from_csv_cell
from detectors.utils.text_tables import aligned

ARRAYS = ("precision", "recall_points", "iou_thresholds")
BROKEN = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, csv.Error),
)
"""What reading results that something else wrote may raise."""


def write_results(out: Path, evaluation: Evaluation, name: str) -> None:
    """The files above, in the folder `out`; `name` stands for the run in the figures."""
    path = out / "per_class.csv"
    with files.naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class", *evaluation.metrics])
        for label, metrics in evaluation.per_class.items():
            rows.writerow(
                [csv_cell(label), *("" if math.isnan(v) else v for v in metrics.values())]
            )
    arrays = {array: getattr(evaluation, array) for array in ARRAYS}
    path = out / "pr_curves.npz"
    with files.naming(path):
        np.savez(path, **arrays)
    for path, draw in ((out / "pr_curves.png", pr_curves), (out / "pr_classes.png", pr_classes)):
        with files.naming(path):
            draw({name: evaluation}, path)
    files.write_json(out / "results.json", evaluation.metrics)  # last: it says that all is there


def read_results(out: Path) -> Evaluation:
    """What write_results wrote: so one figure can show runs that were evaluated apart.

    Raises:
        RunError: a file that is missing or broken.
    """
    try:
        path = out / "results.json"
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
        per_class = {
            from_csv_cell(label): dict(
                zip(metrics, (float(v or "nan") for v in values), strict=True)
            )
            for label, *values in rows
        }
        if head != ["class", *metrics] or len(per_class) != arrays["precision"].shape[2]:
            raise ValueError("not the file that belongs to the others")
    except BROKEN as error:
        raise errors.RunError(f"{path}: missing or broken, no results of an evaluation") from error
    return Evaluation(
        metrics={k: math.nan if v is None else v for k, v in metrics.items()},
        per_class=per_class,
        **arrays,
    )


def metrics_line(evaluation: Evaluation) -> str:
    """The metrics in per cent on one line; a dash where there are no objects of that size."""
    values = (f"{name} {_percent(value)}" for name, value in evaluation.metrics.items())
    return "  ".join(values)


def class_table(evaluation: Evaluation) -> str:
    """The metrics of each class and of all in per cent, a line each, under a head."""
    table = [["", *evaluation.metrics]]
    for name, metrics in [*evaluation.per_class.items(), ("all", evaluation.metrics)]:
        table.append([name, *map(_percent, metrics.values())])
    return "\n".join(aligned(table))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
