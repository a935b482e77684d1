"""Does JOL help, and when? Runs in pairs, and what their differences say.

    python -m bench study run --minutes M [--nuclei DIR] [--jobs N] [--backbone NAME] ...
    python -m bench study report

The first does as many runs of the grid (bench/study/grid.py) as it can in that time, skips those
whose rows are there, and adds a row to --rows as each ends; stopped at any point, it goes on where
it was. The second writes tables and figures of all rows. docs/study.md has what came of it.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from detectors.errors import JolError
from detectors.models.presets import BACKBONES
from detectors.utils.argument_types import (
    file_to_write,
    folder,
    folder_to_write,
    number,
    one_of,
    positive,
)
from detectors.utils.parser import Parser

ROWS = "bench/results/study.csv"


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog=prog, description=__doc__.split("\n")[0])
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do runs of the grid that are not done")
    report = commands.add_parser("report", help="tables and figures of the runs that are done")
    for command in (run, report):
        command.add_argument(
            "--rows",
            metavar="FILE",
            type=file_to_write,
            default=Path(ROWS),
            help=f"CSV file with a row a run (default: {ROWS}); others lie beside it",
        )
        command.add_argument(
            "--backbone",
            type=one_of({name: name for name in BACKBONES}),
            metavar="NAME",
            default="resnet18",
            help=f"{', '.join(BACKBONES)} (default: %(default)s)",
        )
    add = run.add_argument
    add("--minutes", type=number(float, above=0), metavar="M", required=True, help="to spend")
    add("--nuclei", type=folder, metavar="DIR", help="folder of nuclei, which are left out without")
    add("--jobs", type=positive, metavar="N", help="runs at a time (default: as many as cores)")
    add(
        "--work",
        type=folder_to_write,
        metavar="DIR",
        default=Path("runs/study"),
        help="folder of generated data (default: %(default)s)",
    )
    return made


def main(arguments: Sequence[str] | None = None, prog: str = "python -m bench study") -> int:
    """Run or report; 0 done, 1 runs or writing failed, 2 unusable arguments, 130 interrupted."""
    options = parser(prog).parse_args(arguments)
    try:
        return run(options, prog) if options.command == "run" else report(options)
    except JolError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, prog: str) -> int:
    """Do runs in the time that is given."""
    import torch

    from bench.loss.report import machine
    from bench.study.runner import Study
    from detectors.utils.locks import claimed
    from detectors.utils.signals import with_errors

    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    about = machine(torch.device(device))
    with ExitStack() as held:
        for folder in {options.work.resolve(), options.rows.parent.resolve()}:
            held.enter_context(claimed(folder))
        study = Study(
            options.rows,
            samples_file(options.rows),
            options.work,
            options.nuclei,
            device,
            options.backbone,
            {name: about[name] for name in ("commit", "machine")},
            began + 60 * options.minutes,
        )
        try:
            with_errors(lambda: study.run(options.jobs or os.cpu_count() or 1))
        except KeyboardInterrupt:
            print(f"{prog}: interrupted; {study.done} runs were done", file=sys.stderr)
            return 130
    print(f"{study.done} runs done, {len(study.failed)} failed; rows in {options.rows}")
    return 1 if study.failed else 0


def report(options: argparse.Namespace) -> int:
    """Write tables and figures beside the rows, and print the tables."""
    from bench.study.report import write

    print(write(options.rows, samples_file(options.rows), options.backbone))
    return 0


def samples_file(rows: Path) -> Path:
    """The file of what the loss saw, beside that of the rows."""
    return rows.with_name(f"{rows.stem}-samples.csv")
