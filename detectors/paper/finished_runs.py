"""Finished runs on disk, read back: what they were, what they reached, how long a step took.

Runs are compared by what decides their numbers: the settings but the seed, without those that
change nothing (settings.MAY_CHANGE, and JOL's in a base run), and the digests of their data.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.errors import RunError
from detectors.models.presets import find_detector
from detectors.paper.table_plan import Cell
from detectors.training import run_folder
from detectors.training.settings import DEFAULTS, FIELDS, MAY_CHANGE, TrainSettings
from detectors.utils import files
from detectors.utils.argument_types import within
from detectors.utils.names import brief
from jolkernels.registry import resolve

JOINT = ("lam", "location_score", "class_score", "detach_weights")
"""Settings of JOL, without meaning in a base run."""
NEEDED = tuple(f.name for f in dataclasses.fields(TrainSettings) if f.name not in DEFAULTS)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        settings: by TrainSettings' names, with the defaults of those that its file lacks.
        dataset: the named data set; None: files of the user's own.
        data: digests of its data by name.
        metrics: by name, 0 to 1; NaN where there are no objects of that size.
    """

    path: Path
    settings: dict[str, Any]
    dataset: str | None
    data: dict[str, str]
    metrics: dict[str, float]

    @property
    def seed(self) -> int:
        """The seed of weights and data order."""
        return int(self.settings["seed"])

    def is_of(self, cell: Cell) -> bool:
        """Whether detector, losses, assigner, λ and scores are the cell's."""
        mine, base = self.settings, cell.loss == "base"
        return (
            cell.detector == mine["detector"]
            and self._has_own_losses()
            and cell.loss == mine["loss"]
            and (cell.assigner or "iou") == (mine["assigner"] or "iou")
            and (base or (cell.lam, cell.location_score, cell.class_score) == self._scores())
        )

    def _has_own_losses(self) -> bool:
        """Whether class and box loss are the detector's own, as in the paper."""
        mine = self.settings
        return all(
            mine[name] is None or resolve(name, mine[name]) == resolve(name, own)
            for name, own in find_detector(mine["detector"]).losses(mine["preset"]).items()
        )

    def _scores(self) -> tuple[float, str | None, str | None]:
        mine = self.settings
        return mine["lam"], mine["location_score"], mine["class_score"]

    def decides(self, without: Iterable[str] = ()) -> dict[str, Any]:
        """What decides its numbers besides the seed, without the settings in `without`."""
        drop = {"seed", *MAY_CHANGE, *without}
        if self.settings["loss"] == "base":
            drop.update(JOINT)
        kept = {name: value for name, value in self.settings.items() if name not in drop}
        return {**kept, "data": self.data}

    def seconds(self) -> float:
        """Median time of a step over the lines of metrics.jsonl but the first, or NaN."""
        file = self.path / run_folder.METRICS
        try:
            lines = files.read_bytes(file).splitlines()
        except OSError:
            return math.nan
        records = [record for line in lines if (record := run_folder.read_record(line))]
        values = [record.get("seconds") for record in records]
        logged = [float(value) for value in values if value is not None and within(value, least=0)]
        return statistics.median(logged[1:] or logged) if logged else math.nan


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """All finished runs below `root`, by path, and a line for each folder that is none.

    Raises:
        RunError: no such folder.
    """
    if not root.is_dir():
        raise RunError(f"{root}: no such folder of runs")
    found: list[Run] = []
    problems: list[str] = []
    for config in sorted(root.rglob("config.json")):
        try:
            found.append(read_run(config.parent))
        except RunError as error:
            problems.append(str(error))
    return found, problems


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        RunError: a file that is missing or does not hold what a run writes.
    """
    config = _json(folder / "config.json")
    settings, data = config.get("settings"), config.get("data")
    if not isinstance(settings, dict) or not isinstance(data, dict):
        raise RunError(f"{folder}: config.json holds no settings and data of a run")
    missing = [name for name in NEEDED if name not in settings]
    if missing:
        raise RunError(f"{folder}: config.json lacks the settings {', '.join(missing)}")
    try:
        TrainSettings.read({name: settings[name] for name in settings.keys() & FIELDS.keys()})
    except ValueError as error:
        raise RunError(f"{folder}: config.json: {error}") from error
    if not (folder / "results.json").exists():
        raise RunError(f"{folder}: not finished, it has no results.json")
    results = _json(folder / "results.json")
    for name, value in results.items():
        good = isinstance(value, int | float) and within(value, least=0) and value <= 1
        if value is not None and not good:
            got = f"{brief(name)}: got {brief(value)}"
            raise RunError(f"{folder}: results.json: {got}, wanted a number from 0 to 1")
    if "AP" not in results:
        raise RunError(f"{folder}: results.json holds no AP")
    return Run(
        path=folder,
        settings={**DEFAULTS, **settings},
        dataset=None if data.get("dataset") is None else str(data["dataset"]),
        data={name: str(value) for name, value in data.items() if name.endswith("sha256")},
        metrics={k: math.nan if v is None else float(v) for k, v in results.items()},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(files.read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path.parent}: {path.name} cannot be read") from error
    if not isinstance(content, dict):
        raise RunError(f"{path.parent}: {path.name} holds {type(content).__name__}, wanted object")
    return content


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, seed → run."""

    runs: Mapping[int, Run]

    @property
    def any(self) -> Run:
        """One of them, for what they share."""
        return next(iter(self.runs.values()))

    def metric(self, name: str) -> dict[int, float]:
        """Seed → this metric in per cent, without NaN."""
        values = {seed: run.metrics.get(name, math.nan) for seed, run in self.runs.items()}
        return {seed: 100 * value for seed, value in values.items() if not math.isnan(value)}


def grouped(runs: Iterable[Run], also: Sequence[str] = ()) -> tuple[list[Group], list[str]]:
    """Groups in the order of their first run, and a line for each run that counts nowhere.

    A group's runs share what decides their numbers, and the settings `also`.
    Of runs with the same settings and seed the first counts, and of groups that differ in nothing
    but their number of steps the one with the most: short runs are for timing and trials.
    """
    groups: dict[str, dict[int, dict[int, Run]]] = {}
    skipped: list[str] = []
    for run in runs:
        shared = {**run.decides(["steps"]), **{name: run.settings[name] for name in also}}
        key = json.dumps(shared, sort_keys=True)
        by_seed = groups.setdefault(key, {}).setdefault(run.settings["steps"], {})
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            skipped.append(f"{run.path}: skipped, a repetition of {first.path}")
    for by_steps in groups.values():
        most = max(by_steps)
        skipped += [
            f"{run.path}: skipped, {steps} steps, others {most}"
            for steps, by_seed in by_steps.items()
            for run in by_seed.values()
            if steps < most
        ]
    return [Group(by_steps[max(by_steps)]) for by_steps in groups.values()], skipped


def mean(values: Iterable[float]) -> float:
    """The mean, NaN of nothing."""
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def spread(values: Iterable[float]) -> float:
    """The sample standard deviation, NaN of fewer than two."""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else math.nan
