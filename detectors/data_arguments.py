"""The arguments of `jol data`, and those that train, eval and data share."""

import argparse
from pathlib import Path
from typing import Any

from detectors import data_commands
from detectors.assigners import ASSIGNERS
from detectors.datasets.named import DATASETS
from detectors.models import DETECTORS
from detectors.values import positive, rate, setting


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


def dataset_options(command: argparse.ArgumentParser) -> None:
    """What says which data set of the paper."""
    add = command.add_argument
    add("--dataset", choices=tuple(DATASETS), help="a data set as its publisher made it")
    add(
        "--data-root",
        metavar="DIR",
        type=Path,
        help="with --dataset: folder that its archives were unpacked in",
    )


def _splits_options(command: argparse.ArgumentParser) -> None:
    dataset_options(command)
    command.add_argument(
        "--split",
        metavar="NAME",
        nargs="+",
        help="of --dataset (default: those that the paper's Table 1 counts objects of)",
    )


def prior_options(command: argparse.ArgumentParser) -> None:
    """What train and data stats share."""
    add = command.add_argument
    add(
        "--assigner",
        choices=ASSIGNERS,
        help="of the RPN or RetinaNet (default: by IoU), or of FCOS: atss, rfla (default: its own)",
    )
    add(
        "--assigner-settings",
        metavar="NAME=X",
        nargs="+",
        type=setting,
        help="of the assigner, such as m=6.13 n=4.59 for simd",
    )
    add(
        "--anchor-scale",
        metavar="X",
        type=rate,
        help="side of the anchors in strides (default: 8, retinanet 4, slim 6 to 180 pixels by "
        "level; tiny objects want 2 to 4)",
    )
    add(
        "--anchor-ratios",
        metavar="X",
        nargs="+",
        type=rate,
        help="height over width of the anchors of a location (default: 0.5 1 2)",
    )
    add(
        "--strides",
        metavar="N",
        nargs="+",
        type=positive,
        help="of the pyramid's levels (default: 4 8 16 32 64, retinanet and fcos 8 16 32 64 128; "
        "slim 4 8 16 32, retinanet and fcos 4 8 16)",
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
