"""A training run on disk: the files in its folder.

config.json     all settings, versions, where the data are and their digests
metrics.jsonl   a line every logged step and every evaluation
last.pt         everything needed to resume, previous.pt: the one before; best.pt: the weights with
                the best AP so far; see checkpoints
results.json    the final metrics by name; per_class.csv, pr_curves.npz, pr_curves.png and
                pr_classes.png next to it: see detectors.evaluation.report
tensorboard/    what metrics.jsonl holds, for TensorBoard, where that was asked for
run.lock        while a process writes: see detectors.utils.locks

New versions of files are written next to the old ones and renamed: a run that dies leaves whole
files.
"""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detectors.data.catalog import DATASETS
from detectors.errors import RunError, Unusable
from detectors.training.settings import DEFAULTS, MAY_CHANGE, TrainSettings
from detectors.utils import files
from detectors.utils.files import finite, write_json
from detectors.utils.names import brief, changed

PACKAGES = ("torch", "torchvision", "triton", "numpy", "pycocotools", "faster-coco-eval")
PATHS = frozenset(
    {"data_root", "train_images", "train_annotations", "val_images", "val_annotations"}
)
"""Paths of the data in config.json; the data may move."""
CONFIG, METRICS, BOARD = "config.json", "metrics.jsonl", "tensorboard"


def start(out: Path, settings: TrainSettings, data: Mapping[str, Any]) -> None:
    """Make the folder of a new run and write its config.json.

    Raises:
        RunError: the folder holds a run already, or cannot be made.
    """
    refuse_run(out)
    config = {"settings": dataclasses.asdict(settings), "data": dict(data), "versions": versions()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / CONFIG, config)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error


def holds_run(out: Path) -> bool:
    """Whether there is a run in `out`, whole or not."""
    return any((out / name).exists() for name in (CONFIG, METRICS))


def refuse_run(out: Path) -> None:
    """Raise RunError if `out` holds a run or is no folder."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file, wanted a folder")
    if holds_run(out):
        raise RunError(f"{out}: holds a run already; give --resume to continue it")


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings (by TrainSettings' names) and data of the config.json of a run.

    Raises:
        RunError: no such file, or not one that `start` wrote.
    """
    try:
        config = files.parse_json(files.read_bytes(path))
        if not isinstance(config, dict) or not all(
            isinstance(config.get(name), dict) for name in ("settings", "data")
        ):
            raise ValueError("wanted an object with the objects settings and data")
        settings = TrainSettings.read(config["settings"])
        _check_data(config["data"])
    except OSError as error:
        raise RunError(f"{path}: missing or broken, cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise RunError(f"{path}: no settings of a run: nested too deeply") from error
    except ValueError as error:
        raise RunError(f"{path}: missing or broken, no settings of a run: {error}") from error
    return dataclasses.asdict(settings), config["data"]


def _check_data(data: Mapping[str, Any]) -> None:
    """Raise ValueError unless the paths and the name of the data in config.json can be used."""
    for name in PATHS | {"dataset"}:
        value = data.get(name)
        if value is not None and not _is_path(value):
            raise ValueError(f"{name}: got {brief(value)}, wanted a path")
    dataset = data.get("dataset")
    if dataset is not None and dataset not in DATASETS:
        raise ValueError(f"dataset: got {brief(dataset)}, wanted one of {', '.join(DATASETS)}")


def _is_path(value: object) -> bool:
    """Whether it is a text that the system takes; JSON allows any half of a surrogate pair."""
    try:
        return isinstance(value, str) and bool(os.fsencode(value)) and "\0" not in value
    except UnicodeEncodeError:
        return False


def refuse_other(out: Path, settings: TrainSettings, data: Mapping[str, Any]) -> None:
    """Raise RunError unless the run in `out` has these settings and data."""
    was, data_was = read_config(out / CONFIG)
    refuse_other_settings(f"{out}: cannot resume", was, dataclasses.asdict(settings))
    refuse_other_data(f"{out}: cannot resume", data_was, data)


def refuse_other_settings(where: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunError unless settings are the same, those aside that may change.

    Those that are missing, as in files of an older version, were the defaults.
    """
    for name, value in now.items():
        before = was.get(name, DEFAULTS.get(name))
        if name not in MAY_CHANGE and before != value:
            raise RunError(f"{where}: {changed(name, before, value)}")


def refuse_other_data(where: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunError unless data are the same, wherever they lie."""
    for name, value in now.items():
        if name not in PATHS and was.get(name) != value:
            raise RunError(f"{where}: {changed(name, was.get(name), value)}")


class MetricsLog:
    """metrics.jsonl of a run; a context manager.

    Args:
        out: the run's folder.
        step: lines that came after it are dropped, which a resumed run writes again: those of
            later steps, and of evaluations from this step on.
        tensorboard: write the numbers for TensorBoard as well.

    Raises:
        Unusable: there is no package tensorboard.
    """

    def __init__(self, out: Path, step: int, *, tensorboard: bool = False) -> None:
        self._path = out / METRICS
        self._board: Any = None
        kept = _drop_lines_after(self._path, step) if self._path.exists() else []
        if tensorboard:
            self._board = summary_writer()(str(out / BOARD), purge_step=step)
            for record in kept:
                if record["step"] == step:  # purged with the evaluation, which comes again
                    self._write_to_board(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line: "step", and numbers by name or, at "evaluation", metrics by name."""
        with files.naming(self._path), self._path.open("a") as file:
            file.write(json.dumps(finite(record)) + "\n")
        if self._board is not None:
            with files.naming(self._path.with_name(BOARD)):
                self._write_to_board(record)

    def _write_to_board(self, record: Mapping[str, Any]) -> None:
        evaluation = record.get("evaluation", {})
        numbers = {f"evaluation/{name}": value for name, value in evaluation.items()}
        numbers |= {f"train/{k}": v for k, v in record.items() if k not in ("step", "evaluation")}
        for name, value in numbers.items():
            if value is not None and math.isfinite(value):
                self._board.add_scalar(name, value, record["step"])
        self._board.flush()


def summary_writer() -> Any:
    """torch's SummaryWriter.

    Raises:
        Unusable: there is no package tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Unusable("--tensorboard: the package tensorboard is not installed") from error
    return SummaryWriter


def read_record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl: "step" and numbers by name, None for NaN; None if it is no such."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    evaluation = record.get("evaluation", {})
    if not isinstance(evaluation, dict):
        return None
    numbers = [v for k, v in record.items() if k != "evaluation"] + list(evaluation.values())
    good = all(v is None or isinstance(v, int | float) for v in numbers)
    return record if good else None


def _drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """The records that stay."""
    kept: list[dict[str, Any]] = []
    for line in files.read_bytes(path).splitlines():
        record = read_record(line)
        if record is None:
            break  # the line a dying run was writing, or what a dying machine left of it
        if record["step"] < step or (record["step"] == step and "evaluation" not in record):
            kept.append(record)
    text = "".join(json.dumps(record) + "\n" for record in kept)
    files.replace(path, lambda file: file.write(text.encode()))
    return kept


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
