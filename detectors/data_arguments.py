"""The arguments of `jol data`."""

import argparse
from pathlib import Path
from typing import Any

from detectors import data_commands
from detectors.models.anchor_plans import DETECTORS
from detectors.shared_arguments import dataset_options, prior_options
from detectors.values import positive


def add_data_commands(commands: Any) -> None:
    """Add `data` with its own commands to the commands of a parser."""
    data = commands.add_parser("data", help="look into data sets", allow_abbrev=False)
    actions = data.add_subparsers(required=True, metavar="COMMAND")
    for name, options, run, text in (
        (
            "stats",
            _stats_options,
            data_commands.stats,
            "count objects by size and class; with --positives: what an assigner gives them",
        ),
        (
            "check",
            _check_options,
            data_commands.check,
            "name every problem of a data set; exit status 2 if there is one",
        ),
        (
            "convert",
            _convert_options,
            data_commands.convert,
            "write a data set of the paper as COCO JSON, SODA-D also as tiles",
        ),
    ):
        command = actions.add_parser(name, help=text, allow_abbrev=False)
        options(command)
        command.set_defaults(run=run, command=f"data {name}")


def _splits_options(command: argparse.ArgumentParser) -> None:
    dataset_options(command)
    command.add_argument(
        "--split",
        metavar="NAME",
        nargs="+",
        help="of --dataset (default: those that the paper's Table 1 counts objects of)",
    )


def _stats_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--annotations",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="COCO JSON files, counted together, such as train and val; needs no images",
    )
    _splits_options(command)
    add(
        "--detector",
        metavar="NAME",
        default="faster_rcnn",
        help=f"whose anchors, with preset paper: {', '.join(DETECTORS)} (default: faster_rcnn)",
    )
    prior_options(command)
    add(
        "--image-size",
        metavar="S",
        type=positive,
        help="resize the shorter side to so many pixels (default: 800, longer side at most 1333)",
    )
    add(
        "--positives",
        action="store_true",
        help="count the positives that the assigner gives to objects of each size",
    )
    add(
        "--every",
        metavar="N",
        type=positive,
        default=1,
        help="with --positives: assign on every N-th image only (default: 1, all)",
    )


def _check_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--images", metavar="DIR", type=Path, help="without --dataset: folder of the images")
    add("--annotations", metavar="FILE", type=Path, help="their COCO JSON file")
    _splits_options(command)


def _convert_options(command: argparse.ArgumentParser) -> None:
    dataset_options(command)
    add = command.add_argument
    add("--split", metavar="NAME", required=True, help="such as train")
    add("--out", metavar="FILE", required=True, type=Path, help="COCO JSON file to write")
    add(
        "--out-images",
        metavar="DIR",
        type=Path,
        help="with sodad: write tiles there, and --out for them; train and eval look for "
        "tiles/SPLIT and tiles/SPLIT.json in --data-root",
    )
