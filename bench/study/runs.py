"""A run of the study, and finished ones as rows of a CSV file."""

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from detectors.errors import RunError
from detectors.evaluation.protocols import METRICS

FOUND = (*METRICS, "loss_cls", "loss_box", "weight", "problem", "seconds", "commit", "machine")
"""What a run has found: AP in per cent, means of the last tenth of its steps, what went wrong."""


@dataclass(frozen=True)
class Run:
    """What decides a run's numbers.

    Attributes:
        data: one of data.DATA.
        part: on which it is evaluated.
        detector: of detectors.models.presets.
        loss: one of losses.LOSSES.
        assigner: "": the detector's own.
        anchor_scale: side of the anchors in strides; 0: there are none, or the assigner's.
        lr: learning rate.
        seed: of weights, data order and draws.
        steps: how long it trains.
        crop: side of the training images in pixels; 0: whole.
        batch_size: images of a step.
        backbone: of the detector.
    """

    data: str
    part: str
    detector: str
    loss: str
    assigner: str
    anchor_scale: float
    lr: float
    seed: int
    steps: int
    crop: int
    batch_size: int = 4
    backbone: str = "resnet18"


Found = Mapping[str, Any]
Rows = Mapping[Run, Found]
COLUMNS = (*(field.name for field in fields(Run)), *FOUND)


def read(path: Path) -> dict[Run, dict[str, Any]]:
    """The rows of a file; none if there is no file. A line that a dying process cut is left out.

    Raises:
        RunError: other columns, or a value of another kind.
    """
    rows: dict[Run, dict[str, Any]] = {}
    for number, line in enumerate(lines_of(path), start=2):
        if set(line) != set(COLUMNS):
            raise RunError(f"{path}: got columns {', '.join(map(str, line))}, wanted {COLUMNS}")
        if None in line.values():
            continue
        try:
            run = Run(**{field.name: field.type(line[field.name]) for field in fields(Run)})  # type: ignore[operator]
            values = {name: float(line[name] or math.nan) for name in FOUND[:-4]}
            rest = {"problem": line["problem"], "seconds": float(line["seconds"])}
        except ValueError as error:
            raise RunError(f"{path}: line {number}: {error}") from error
        rows[run] = values | rest | {name: line[name] for name in FOUND[-2:]}
    return rows


def lines_of(path: Path) -> list[dict[str, str]]:
    """The finished lines of a file by column, none if there is no file."""
    if not path.exists():
        return []
    text = _finished(path.read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _finished(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def append(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = COLUMNS) -> None:
    """Add rows to a file, which is made if it is not there; an unfinished last line is removed."""
    columns = list(columns)
    if path.exists():
        os.truncate(path, len(_finished(path.read_bytes())))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(map(_written, rows))


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _text(x) if isinstance(x, float) else x for name, x in row.items()}


def _text(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.6g}"


def row_of(run: Run, found: Found) -> dict[str, Any]:
    """A line of the file."""
    return asdict(run) | dict(found)


def matching(rows: Rows, **wanted: Any) -> Iterator[tuple[Run, Found]]:
    """Rows whose runs have these values."""
    for run, found in rows.items():
        if all(getattr(run, name) == value for name, value in wanted.items()):
            yield run, found
