"""`jol sweep`: the runs that a table of the paper needs, each `jol train` in a process of its own.

A finished run is skipped, an interrupted one resumed, one that another process is writing passed
over; one that fails does not end the sweep.
sweep.json in the sweep's folder keeps the arguments of each run, so that a run of other arguments
is never taken for this one.
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.commands import train
from detectors.errors import JolError, RunError
from detectors.paper import table_plan
from detectors.paper.table_plan import Cell
from detectors.training.settings import MAY_CHANGE
from detectors.utils import files
from detectors.utils.argument_types import choice, count, folder_to_write
from detectors.utils.locks import claimed, writer
from detectors.utils.parser import Parser
from detectors.utils.signals import Stopping

TABLES = tuple(range(2, 10))
OWN = ("--seed", "--out", "--resume")
"""Arguments of train that the sweep gives itself."""
PRESET = "paper"
"""Where the common arguments name none."""
TIMED = ("--max-steps", "60", "--eval-every", "0")
"""For Table 9, where the common arguments say no length: three lines of metrics.jsonl."""
RECORD = "sweep.json"
FREE = MAY_CHANGE | {"data_root", "out", "resume", "run", "command"}
"""Arguments that do not decide what a run is; a named data set may move."""
POLL = 0.2
"""Seconds between looks for a signal while a run is under way."""
Launch = Callable[[list[str]], int]


class SweepError(JolError, RuntimeError):
    """Runs of a sweep that failed or that other processes are writing, by name."""


def add(subparsers: Any) -> None:
    """Declare `jol sweep`; what follows -- is for `jol train`."""
    command: Parser = subparsers.add_parser(
        "sweep",
        help="train what a table of the paper needs",
        usage="jol sweep N --out DIR [--seeds N ...] [--dry-run] -- ARGUMENT ...",
        epilog="What follows -- goes to every `jol train`, such as the data; --preset is paper "
        "unless given there, and --detector or --loss there keep those runs alone.",
    )
    add = command.add_argument
    add("table", **{**choice(TABLES), "metavar": "N"}, help="table, 2 to 9 (9: steps only)")
    add(
        "--out",
        metavar="DIR",
        required=True,
        type=folder_to_write,
        help="folder of the runs' folders",
    )
    add("--seeds", metavar="N", nargs="+", type=count, default=[0, 1, 2], help="default: 0 1 2")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    command.split = before_dashes
    command.set_defaults(run=run)


def before_dashes(words: Sequence[str]) -> int:
    """How many of the words come before --, after which they are for `jol train`."""
    return words.index("--") if "--" in words else len(words)


def run(args: argparse.Namespace) -> None:
    """Do the runs of a table that are not done yet.

    Raises:
        RunError: arguments that do not go with the table, or an --out of other runs.
        SweepError: runs that failed, after all others were done.
    """
    sweep(plan(args.table, args.seeds, args.rest[1:]), args.out, dry=args.dry_run)


@dataclass(frozen=True)
class Planned:
    """A run: its folder's name, and its arguments of `jol train` without --out and --resume."""

    name: str
    arguments: list[str]


def plan(table: int, seeds: Sequence[int], common: Sequence[str]) -> list[Planned]:
    """The runs of a table, seed after seed, so that a sweep cut short has every cell.

    A common argument that a table varies, such as --detector, keeps the cells that agree with it.

    Raises:
        RunError: common arguments that do not go with the table.
    """
    for flag in OWN:
        if value_of(common, flag) is not None:
            raise RunError(f"{flag} after --: the sweep gives it itself")
    wanted, dataset = table_plan.TABLES[table].dataset, value_of(common, "--dataset")
    if dataset not in (None, wanted):
        raise RunError(f"--dataset: got {dataset!r}, table {table} is of {wanted}")
    kept = [
        (cell, flags)
        for cell, flags in cells(table)
        if all(value_of(common, flag) in (None, value) for flag, value in flags.items())
    ]
    if not kept:
        raise RunError(f"no run of table {table} agrees with {shlex.join(common)}")
    extra = [] if value_of(common, "--preset") else ["--preset", PRESET]
    if table == 9 and not (value_of(common, "--max-steps") or value_of(common, "--epochs")):
        extra += TIMED
    planned = []
    for seed in dict.fromkeys(seeds):
        for cell, flags in kept:
            own = [
                word for pair in flags.items() if value_of(common, pair[0]) is None for word in pair
            ]
            words = [*own, *extra, *common, "--seed", str(seed)]
            planned.append(Planned(f"{name_of(cell)}-seed{seed}", words))
    return planned


def cells(table: int) -> Iterator[tuple[Cell, dict[str, str]]]:
    """The cells of a table and the arguments of train that make them."""
    for entry in table_plan.TABLES[table].entries:
        cell = entry.cell
        flags = {"--detector": cell.detector, "--loss": cell.loss}
        if cell.assigner:
            flags["--assigner"] = cell.assigner
        if cell.loss == "jol" and table in (7, 8):
            flags["--lam"] = f"{cell.lam:g}"
            flags["--location-score"] = cell.location_score or "none"
            flags["--class-score"] = cell.class_score or "none"
        yield cell, flags


def name_of(cell: Cell) -> str:
    """Such as faster_rcnn-jol or faster_rcnn-jol-lam3: the same for the same run of any table."""
    words = [cell.detector, *([cell.assigner] if cell.assigner else []), cell.loss]
    for field in dataclasses.fields(cell)[3:]:
        value = getattr(cell, field.name)
        if value != field.default:
            words.append(f"lam{value:g}" if field.name == "lam" else f"no_{field.name}")
    return "-".join(words)


def value_of(words: Sequence[str], flag: str) -> str | None:
    """The value of an option among arguments, "" for one without; None: not there."""
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word == flag:
            return value
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def sweep(
    planned: Sequence[Planned], out: Path, *, dry: bool, launch: Launch | None = None
) -> None:
    """Do the runs that are not done, or print their commands.

    Args:
        planned: what to run.
        out: the sweep's folder, which holds a folder for each run.
        dry: print only.
        launch: runs `jol train` with these arguments and returns its exit status.

    Raises:
        RunError: `out` is a file, or holds runs of the same names and other arguments.
        SweepError: runs that failed, after all others were done.
    """
    launch = launch or _launch
    values = refuse_others(planned, out)
    failed: list[str] = []
    busy: list[str] = []
    for number, run in enumerate(planned, start=1):
        folder, words = out / run.name, _command(run, out)
        state = state_of(folder)
        if dry:
            print(f"# {run.name} is done" if state == "done" else shlex.join(["jol", *words]))
            continue
        who = writer(folder) if state != "done" else ""
        if who:
            state = f"under way, {who} is writing there; passed over"
            busy.append(run.name)
        print(f"[{number}/{len(planned)}] {run.name}: {state}", flush=True)
        if state == "done" or who:
            continue
        with claimed(out):  # and read anew: a sweep of other seeds may write here too
            files.write_json(out / RECORD, {**_read_record(out), run.name: values[run.name]})
        status = launch(words)
        if status or state_of(folder) != "done":
            failed.append(f"{run.name} (status {status})")
    problems = [
        f"{len(names)} of {len(planned)} runs {what}: {', '.join(names)}"
        for what, names in (("failed", failed), ("are under way", busy))
        if names
    ]
    if problems:
        raise SweepError("; ".join(problems))


def refuse_others(planned: Sequence[Planned], out: Path) -> dict[str, dict[str, str]]:
    """The arguments of each run as the record keeps them, by name.

    Raises:
        RunError: `out` is a file, or holds runs of the same names and other arguments.
    """
    record = _read_record(out)
    values = {p.name: _values(train.parse(_command(p, out)[1:])) for p in planned}
    for name, now in values.items():
        was = record.get(name, now)
        for key in (name for name in dict.fromkeys([*now, *was]) if name not in FREE):
            told = [values.get(key, "not given") for values in (was, now)]
            if told[0] != told[1] and (out / name / "config.json").exists():
                raise RunError(
                    f"{out / name}: {key} was {told[0]}, is now {told[1]}; give another --out"
                )
    return values


def _command(run: Planned, out: Path) -> list[str]:
    """With --resume, which begins a run where there is none."""
    return ["train", *run.arguments, "--out", str(out / run.name), "--resume"]


def _values(parsed: dict[str, Any]) -> dict[str, str]:
    """The arguments that decide what a run is, as text."""
    return {name: str(value) for name, value in parsed.items() if name not in FREE}


def state_of(folder: Path) -> str:
    """What is left to do: done, resume or start."""
    if (folder / "results.json").exists():
        return "done"
    return "resume" if (folder / "config.json").exists() else "start"


def _read_record(out: Path) -> dict[str, dict[str, str]]:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file, wanted a folder")
    try:
        record = json.loads(files.read_bytes(out / RECORD))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not all(isinstance(run, dict) for run in record.values()):
        raise RunError(f"{out / RECORD}: is not what a sweep writes")
    return record


def _launch(words: list[str]) -> int:
    """The exit status of `jol train`, which hears of a signal and is waited for.

    Raises:
        SweepError: a signal came; the run has written a checkpoint if it had begun.
    """
    with (
        Stopping() as stopping,
        subprocess.Popen([sys.executable, "-m", "detectors", *words]) as run,
    ):
        told = False
        while run.poll() is None:
            try:
                run.wait(POLL)
            except subprocess.TimeoutExpired:
                if stopping.asked and not told:  # Ctrl-C reaches both, `kill` the sweep alone
                    told = True
                    run.terminate()
    if stopping.asked:
        raise SweepError(f"stopped by {stopping.asked}; the same command goes on with it")
    return run.returncode
