"""`jol bench`: the benchmarks of the loss and of whole training steps (see bench/__main__.py)."""

import argparse
from typing import Any

from detectors.utils.parser import Parser


def add(subparsers: Any) -> None:
    """Declare `jol bench`, whose arguments bench reads itself."""
    command: Parser = subparsers.add_parser(
        "bench", help="measure the loss against what people would use instead", add_help=False
    )
    command.split = lambda words: 0
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Hand the arguments on, and return the exit status."""
    from bench.__main__ import main

    return main(args.rest, prog="jol bench")
