"""`jol table`: the paper's tables with the numbers of runs on disk."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectors.utils.argument_types import choice, file, folder, nonempty
from detectors.utils.parser import Parser
from detectors.utils.text_tables import FORMATS, render

TABLES = (*map(str, range(1, 10)), "runs")


def add(subparsers: Any) -> None:
    """Declare `jol table`."""
    command: Parser = subparsers.add_parser(
        "table",
        help="the paper's tables with the numbers of runs on disk",
        usage="jol table N [--runs DIR] [--format text|markdown|csv]\n"
        "       jol table 1 [--annotations NAME FILE ...]",
    )
    add = command.add_argument
    add("table", **{**choice(TABLES), "metavar": "N"}, help="1 to 9, or runs: a list of all runs")
    add("--runs", metavar="DIR", type=folder, help="where runs lie, at any depth (default: runs)")
    add("--format", **choice(FORMATS), default="text", help="how to print (default: %(default)s)")
    add(
        "--annotations",
        metavar=("NAME", "FILE"),
        nargs="+",
        action="append",
        default=[],
        help="for table 1: a data set's name and its COCO JSON files, counted together; repeatable",
    )
    command.check = _problems
    command.set_defaults(run=run)


def _problems(args: argparse.Namespace) -> Iterator[str]:
    if args.annotations and (args.table != "1" or not all(words[1:] for words in args.annotations)):
        yield "--annotations: wanted a name and files, and table 1"
    for words in args.annotations:
        for kind, word in zip([nonempty, *[file] * (len(words) - 1)], words, strict=True):
            try:
                kind(word)
            except argparse.ArgumentTypeError as error:
                yield f"--annotations: {error}"


def run(args: argparse.Namespace) -> None:
    """Print a table, and on stderr the folders that hold no finished run.

    Raises:
        RunError, DataError
    """
    from detectors.paper import tables

    given = {name: [Path(file) for file in files] for name, *files in args.annotations}
    grid, problems = tables.make_table(args.table, args.runs, given)
    print(render(grid, args.format), end="")
    for line in problems:
        print(f"skipped: {line}", file=sys.stderr)
