"""The command `jol`: the list of its commands, and the exit statuses.

Exit status: 0 done, 1 failed while running, 2 unusable arguments or data. Everything that can be
checked is checked before a folder is made. A command imports torch when it runs: help and wrong
arguments are answered without.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata

from detectors.commands import (
    bench,
    data,
    demo,
    eval,
    export,
    figure,
    predict,
    reproduce,
    sweep,
    table,
    train,
)
from detectors.errors import JolError, means_no_memory, out_of_memory
from detectors.utils.parser import Parser, speaks_for_its_machine
from detectors.utils.printable import printable, printable_lines
from detectors.utils.signals import Terminated, with_errors

COMMANDS = (train, eval, predict, export, demo, bench, data, table, figure, sweep, reproduce)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jol` with these words (None: the process's own) and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    name = "jol"
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # it may lack the letters of a table
    try:
        args = make_parser().parse_args(words or ["--help"])
        name = f"jol {args.command}"
        return int(with_errors(lambda: args.run(args)) or 0)
    except SystemExit as stop:  # argparse has printed the help (0) or the problems (2)
        return int(stop.code or 0)
    except JolError as error:
        if _reports(error):
            _say(printable_lines(f"{name}: {error}"))
        return error.exit_status
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, KeyboardInterrupt):
            by = "ended by SIGTERM" if isinstance(error, Terminated) else "interrupted"
            _say(f"{name}: {by}")
        else:
            _drop_output()
        return 1
    except Exception as error:
        if means_no_memory(error):
            _say(f"{name}: {out_of_memory(name.removeprefix('jol '))}")
        elif isinstance(error, OSError) and error.errno:
            file = f"{error.filename}: " if error.filename else ""
            _say(printable(f"{name}: {file}{error.strerror}"))
        else:
            traceback.print_exc()
        return 1


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="jol",
        usage="jol COMMAND ...",
        description="Detectors of tiny objects, trained with or without the Joint Optimization "
        "Loss.",
        epilog="jol COMMAND --help lists the options of a command.",
    )
    parser.add_argument(
        "--version", action="version", version=_version(), help="show the version and exit"
    )
    subparsers = parser.add_subparsers(
        prog="jol", dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for command in COMMANDS:
        command.add(subparsers)
    return parser


def _say(problem: str) -> None:
    """Print it for people; where it cannot be, the exit status still says it."""
    with suppress(OSError):
        print(problem, file=sys.stderr)


def _drop_output() -> None:
    """Whoever reads our output has seen enough, as in `jol data stats | head`."""
    # a caller's own stream may have no number
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _version() -> str:
    try:
        return f"jol {metadata.version('jolkernels')}"
    except metadata.PackageNotFoundError:
        return "jol, not installed"


def _reports(error: JolError) -> bool:
    """Whether this process is the one to print it, of those that torchrun started."""
    if error.everywhere:
        return False
    # Unusable arguments and data are the same for every process of a machine.
    return error.exit_status == 1 or speaks_for_its_machine()
