"""`jol reproduce`: a table of the paper from its data set, in one command.

It checks data, weights and disk, says how long it will take, trains base and JOL of the table's
rows as `jol sweep` does, and writes our numbers beside the paper's.
"""

import dataclasses
import json
import math
import os
import shlex
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.commands import sweep, train
from detectors.commands.options import find_device
from detectors.commands.warnings import warn
from detectors.errors import RunError, Unusable
from detectors.models.presets import DETECTORS
from detectors.paper import reproduction
from detectors.paper.reproduction import Job, Settings, Trained
from detectors.paper.table_plan import TABLES, Table
from detectors.training import timing
from detectors.training.settings import LENGTH, TrainSettings, resolve
from detectors.training.timing import Speed
from detectors.utils import files
from detectors.utils.argument_types import choice, count, folder, folder_to_write, number, within
from detectors.utils.locks import claimed
from detectors.utils.parser import Parser
from detectors.utils.printable import counted, printable_lines
from detectors.utils.text_tables import aligned, render

OWN = (
    *sweep.OWN,
    *("--config", "--detector", "--loss", "--assigner", "--dataset", "--data-root"),
    *("--anchor-scale", "--detections"),
)
"""Arguments of train that this command gives itself, or that would undo what it gives."""
DEFAULTS = {"--preset": reproduction.PRESET, "--eval-every": "0", "--workers": "4"}
"""Arguments of every run unless others are given: one evaluation, at the end; loaders as the paper
has them."""
SPEED = "speed.json"
"""What was measured, in the folder of the runs, by machine and arguments."""
HOUR, GIGA = 3600, 1e9


def add(subparsers: Any) -> None:
    """Declare `jol reproduce`; what follows -- is for `jol train`."""
    command: Parser = subparsers.add_parser(
        "reproduce",
        help="train a table of the paper, base and JOL, and compare",
        usage="jol reproduce NAME --data-root DIR [--out DIR] [OPTION ...] [-- ARGUMENT ...]",
        epilog="What follows -- goes to every `jol train`, such as --amp bf16 or --workers 8. "
        "The same command goes on with what was interrupted.",
    )
    add = command.add_argument
    add(
        "dataset",
        **{**choice(reproduction.NUMBERS), "metavar": "NAME"},
        help="visdrone (Table 2), aitod (3), aitodv2 (4), sodad (5) or coco (6)",
    )
    add(
        "--data-root",
        metavar="DIR",
        type=folder,
        required=True,
        help="folder that its archives were unpacked in",
    )
    add(
        "--out",
        metavar="DIR",
        type=folder_to_write,
        help="folder of the runs and of table.md, table.csv (default: runs/reproduce-NAME)",
    )
    add("--seeds", metavar="N", nargs="+", type=count, default=[0, 1, 2], help="default: 0 1 2")
    add(
        "--detectors",
        **choice(DETECTORS),
        nargs="+",
        default=[],
        help="the table's rows of these alone (default: all)",
    )
    add(
        "--settings",
        **choice((*reproduction.KINDS, "both")),
        default="both",
        help="fair: base and JOL alike, with anchors that fit the objects; paper: the paper's, and "
        "for base those of the papers that it cites (default: %(default)s)",
    )
    add(
        "--rates",
        metavar="F",
        nargs="+",
        type=number(float, above=0),
        default=[1.0],
        help="fair settings at F times the preset's learning rate, both losses; of several each "
        "loss's best is compared too (default: 1)",
    )
    add("--dry-run", action="store_true", help="check, measure and print the plan; write nothing")
    command.split = sweep.before_dashes
    command.set_defaults(run=run)


@dataclass(frozen=True)
class Runs:
    """The runs of a job, one a seed.

    Attributes:
        name: of their folders, before the seed.
        words: arguments of `jol train` without the seed.
        settings: of each of them but for the seed.
        whole: steps of the paper's length.
        epoch: steps of an epoch.
    """

    job: Job
    name: str
    words: list[str]
    settings: TrainSettings
    whole: int
    epoch: int

    def planned(self, seed: int) -> sweep.Planned:
        """The run of a seed."""
        return sweep.Planned(f"{self.name}-seed{seed}", [*self.words, "--seed", str(seed)])


def run(args: Namespace) -> None:
    """Check, plan, train what is not trained, and write the table.

    Raises:
        Unusable: arguments, data, weights or a disk that cannot be used, each told before.
        RunError: --out holds other runs, or damaged ones, after the table of the rest.
        SweepError: runs that failed, likewise.
    """
    from detectors.commands.reproduce_checks import check_data, check_weights, free_disk

    table = TABLES[reproduction.NUMBERS[args.dataset]]
    kinds = reproduction.KINDS if args.settings == "both" else (args.settings,)
    if "fair" not in kinds and args.rates != [1.0]:
        raise Unusable(f"--rates: only of fair settings, got --settings {args.settings}")
    settings = reproduction.all_settings(kinds, args.rates)
    out = args.out or Path("runs", f"reproduce-{args.dataset}")
    common, seeds = args.rest[1:], list(dict.fromkeys(args.seeds))
    jobs = reproduction.jobs(table, settings, args.detectors)
    for name in args.detectors:
        if all(job.cell.detector != name for job in jobs):
            raise Unusable(f"--detectors: table {reproduction.NUMBERS[args.dataset]} has no {name}")
    runs = _runs(jobs, args, common, images=1)  # before the data are read: wrong arguments first
    planned = [one.planned(seed) for seed in seeds for one in runs]
    sweep.refuse_others(planned, out)

    print(f"Table {reproduction.NUMBERS[args.dataset]}: {table.title}", flush=True)
    data = check_data(args.dataset, args.data_root)
    weights = check_weights(one.settings for one in runs)
    problems = list(dict.fromkeys([*data.problems, *weights]))
    _say(f"data: {line}" for line in data.lines)
    _refuse(problems)
    runs = _runs(jobs, args, common, data.train)
    folders = {one.name: [out / one.planned(seed).name for seed in seeds] for one in runs}
    undone = {
        name: [folder for folder in mine if sweep.state_of(folder) != "done"]
        for name, mine in folders.items()
    }
    left = {name: len(mine) for name, mine in undone.items()}
    speeds = _speeds(runs, left, args, out)
    _say(_plan(runs, speeds, len(seeds), left, data.test))
    wanted, free = _disk(runs, speeds, undone), free_disk(out)
    print(f"{wanted / GIGA:,.1f} GB to write, {free / GIGA:,.0f} GB free in {out}", flush=True)
    if wanted > free:
        raise Unusable(f"{out}: not enough disk; give another --out, or fewer --seeds")
    preset = runs[0].settings.preset
    if runs[0].settings.device == "cpu" and preset != "slim":
        warn(f"no GPU is used, and preset {preset} is not made for a CPU")
    for warning in data.warnings:
        warn(warning)
    if args.dry_run:
        return
    notes = list(data.warnings)
    notes += [f"trained with {shlex.join(common)}"] if common else []
    failed: sweep.SweepError | None = None
    damaged = 0
    try:
        sweep.sweep(planned, out, dry=False)
    except sweep.SweepError as error:
        failed = error
    try:
        damaged = _write_table(table, settings, runs, seeds, out, notes, args.detectors)
    except OSError as error:
        if not failed:
            raise
        warn(f"{error.filename}: {error.strerror}")
    if failed:
        raise failed
    if damaged:
        which = counted(damaged, "finished run")
        raise RunError(f"{which} not read, see above; without results.json it is trained anew")


def _runs(jobs: Sequence[Job], args: Namespace, common: Sequence[str], images: int) -> list[Runs]:
    """Name, arguments and settings of each job's runs on so many training images."""
    for flag in OWN:
        if sweep.value_of(common, flag) is not None:
            raise RunError(f"{flag} after --: this command gives it itself")
    shared = ["--dataset", args.dataset, "--data-root", os.path.abspath(args.data_root)]
    for flag, value in DEFAULTS.items():
        shared += [flag, value] if sweep.value_of(common, flag) is None else []
    flags = dict(sweep.cells(reproduction.NUMBERS[args.dataset]))
    found = []
    for job in jobs:
        pairs = (*flags[job.cell].items(), *job.options.items())
        words = [*(word for pair in pairs for word in pair), *shared, *common]
        given = train.given_settings(Namespace(**train.parse([*words, "--out", "x"])))
        if job.rate != 1:
            lr = f"{resolve(given, images, args.dataset, {}).lr * job.rate:g}"
            given["lr"] = float(lr)
            words += ["--lr", lr]
        given["device"] = find_device(given.get("device"))
        usual = {name: value for name, value in given.items() if name not in LENGTH}
        now, whole = (resolve(g, images, args.dataset, {}) for g in (given, usual))
        parts = [f"{flag[2:].replace('-', '_')}{value}" for flag, value in job.options.items()]
        parts += [f"rate{job.rate:g}"] if job.rate != 1 else []
        name = "-".join([sweep.name_of(job.cell), *parts])
        epoch = math.ceil(images / now.batch_size)
        found.append(Runs(job, name, words, now, whole.steps, epoch))
    return found


def _refuse(problems: Sequence[str]) -> None:
    """Print every problem and end, if there are any."""
    if problems:
        for line in problems:
            print(printable_lines(f"jol reproduce: {line}"), file=sys.stderr)
        raise Unusable(f"{counted(len(problems), 'problem')}; nothing was trained")


def _say(lines: Iterator[str]) -> None:
    for line in lines:
        print(printable_lines(line), flush=True)


def _speeds(
    runs: Sequence[Runs], left: Mapping[str, int], args: Namespace, out: Path
) -> dict[str, Speed]:
    """Detector and assigner → its speed, as measured before in `out`, else now; of runs left.

    Base and JOL are taken to be equally fast, and settings of both kinds: its first run is timed.
    """
    wanted = {_method(one) for one in runs if left[one.name]}
    first = {_method(one): one for one in reversed(runs) if _method(one) in wanted}
    keys = {
        name: f"{one.settings.device} of {socket.gethostname()}: {shlex.join(one.words)}"
        for name, one in first.items()
    }
    before = _read_speeds(out)
    missing = [name for name in first if keys[name] not in before]
    if missing:
        print(f"timing {', '.join(reversed(missing))} ...", flush=True)
        settings = [first[name].settings for name in missing]
        measured = timing.measure(settings, args.dataset, args.data_root)
        before |= {keys[name]: speed for name, speed in zip(missing, measured, strict=True)}
        if not args.dry_run:
            with claimed(out):
                content = {key: dataclasses.asdict(speed) for key, speed in before.items()}
                files.write_json(out / SPEED, content)
    return {name: before[keys[name]] for name in first}


def _read_speeds(out: Path) -> dict[str, Speed]:
    """What an earlier call measured; nothing where that is not there or not as it was written."""
    try:
        content = json.loads(files.read_bytes(out / SPEED))
        speeds = {key: Speed(**values) for key, values in content.items()}
        good = all(within(x, least=0) for speed in speeds.values() for x in speed.numbers)
        return speeds if good else {}
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return {}


def _method(one: Runs) -> str:
    cell = one.job.cell
    return f"{cell.detector}+{cell.assigner}" if cell.assigner else cell.detector


def _seconds(one: Runs, speed: Speed, images: int) -> float:
    """Of one run: its steps, and detecting on the test split as often as it is evaluated."""
    settings = one.settings
    every = settings.eval_every * one.epoch
    evaluations = math.ceil(settings.steps / every) if every else 1
    return settings.steps * speed.step + evaluations * images * speed.image


def _plan(
    runs: Sequence[Runs],
    speeds: Mapping[str, Speed],
    seeds: int,
    left: Mapping[str, int],
    images: int,
) -> Iterator[str]:
    """The plan as a table, and how long it takes.

    Args:
        runs: all of them.
        speeds: detector and assigner → speed; of those with runs left.
        seeds: how many.
        left: name → how many of its runs are not done.
        images: to detect on.
    """
    rows = [["run", "settings", "seeds", "done", "steps", "s a step", "hours"]]
    total = 0.0
    for one in runs:
        mine = left[one.name]
        cells = [str(seeds), str(seeds - mine), reproduction.length(one.settings.steps, one.whole)]
        if mine:
            speed = speeds[_method(one)]
            hours = mine * _seconds(one, speed, images) / HOUR
            total += hours
            cells += [f"{speed.step:.3f}", f"{hours:,.1f}"]
        rows.append(
            [one.name, " and ".join(map(str, one.job.settings)), *cells, *[""] * (5 - len(cells))]
        )
    yield from ("", *aligned(rows, labels=2), "")
    yield f"{sum(left.values())} of {len(runs) * seeds} runs are left"
    if speeds:
        device = next(iter(speeds.values())).device
        yield (
            f"about {total:,.1f} hours on {device}: an estimate from a few steps and images of "
            "untrained detectors, in which a run under way counts whole"
        )


def _disk(
    runs: Sequence[Runs], speeds: Mapping[str, Speed], undone: Mapping[str, Sequence[Path]]
) -> int:
    """Bytes that the runs that are not done will add, with one checkpoint under way.

    `undone`: name → the folders of these.
    """
    more = max((speed.checkpoint for speed in speeds.values()), default=0)
    for one in runs:
        for place in undone[one.name]:
            speed = speeds[_method(one)]
            there = sum(file.stat().st_size for file in place.glob("*.pt"))
            more += max(0, 2 * speed.checkpoint + speed.weights - there)
    return more


def _write_table(
    table: Table,
    settings: Sequence[Settings],
    runs: Sequence[Runs],
    seeds: Sequence[int],
    out: Path,
    notes: Sequence[str],
    detectors: Sequence[str],
) -> int:
    """Print the table of the runs that are done, and write it as table.md and table.csv.

    Returns:
        How many of them cannot be read.
    """
    from detectors.paper.finished_runs import read_run

    trained, damaged = [], []
    for one in runs:
        done = {}
        for seed in seeds:
            folder = out / one.planned(seed).name
            if sweep.state_of(folder) == "done":
                try:
                    done[seed] = read_run(folder)
                except RunError as error:
                    damaged.append(f"left out, {error}")
                    warn(damaged[-1])
        trained.append(Trained(one.job, one.whole, done))
    if not any(one.runs for one in trained):
        return len(damaged)
    grid = reproduction.comparison(table, settings, trained, [*notes, *damaged], detectors)
    print(f"\n{render(grid, 'text')}", flush=True)
    with claimed(out):
        for name, style in (("table.md", "markdown"), ("table.csv", "csv")):
            _replace(out / name, render(grid, style))
    print(f"{out / 'table.md'}, {out / 'table.csv'}", flush=True)
    return len(damaged)


def _replace(path: Path, text: str) -> None:
    files.replace(path, lambda file: file.write(text.encode()))
