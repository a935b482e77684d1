"""The arguments of `jol`, its help, and their first checks."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from detectors.commands.data import add_data_commands
from detectors.commands.options import count, device_option, positive, share, val_options
from detectors.commands.sweep import TABLES as SWEPT
from detectors.commands.train import train_options
from detectors.paper.side_by_side import SHOWN
from detectors.paper.tables import TABLES
from detectors.utils.text_tables import FORMATS

Command = Callable[[argparse.Namespace], None]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in two lines, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists the options\n")


def parser(
    train: Command,
    evaluate: Command,
    demo: Command,
    table: Command,
    figure: Command,
    sweep: Command,
    predict: Command,
    export: Command,
) -> argparse.ArgumentParser:
    """The parser of `jol`; its result's `run` is the function given here for the command."""
    jol = _Parser(
        prog="jol",
        description="Detectors of tiny objects with the Joint Optimization Loss and without.",
        allow_abbrev=False,
    )
    commands = jol.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "train",
        help="train a detector",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # settings.resolve knows the defaults
    )
    train_options(command)
    command.set_defaults(run=train)
    command = commands.add_parser("eval", help="evaluate a checkpoint", allow_abbrev=False)
    _eval_options(command)
    command.set_defaults(run=evaluate)
    command = commands.add_parser(
        "predict", help="detect on images that nobody has annotated", allow_abbrev=False
    )
    _predict_options(command)
    command.set_defaults(run=predict)
    command = commands.add_parser(
        "export", help="write a detector as a program of torch.export", allow_abbrev=False
    )
    _export_options(command)
    command.set_defaults(run=export)
    command = commands.add_parser(
        "demo",
        help="train base and JOL side by side on generated tiny objects, on the CPU, in minutes",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("runs/demo"),
        help="folder for data, runs and pictures",
    )
    add(
        "--seed",
        metavar="N",
        type=count,
        default=0,
        help="seed of scenes, initial weights and data order",
    )
    command.set_defaults(run=demo)
    commands.add_parser("bench", help="measure the loss against what people would use instead")
    add_data_commands(commands)
    command = commands.add_parser(
        "table", help="the paper's tables with the numbers of runs on disk", allow_abbrev=False
    )
    _table_options(command)
    command.set_defaults(run=table)
    command = commands.add_parser(
        "figure", help="the paper's figures of a base and a JOL run", allow_abbrev=False
    )
    _figure_options(command)
    command.set_defaults(run=figure)
    command = commands.add_parser(
        "sweep",
        help="train what a table of the paper needs",
        usage="jol sweep N --out DIR [--seeds N ...] [--dry-run] -- ARGUMENT ...",
        epilog="What follows -- goes to every `jol train`, such as the data; --preset is paper "
        "unless given there, and --detector or --loss there keep those runs alone.",
        allow_abbrev=False,
    )
    _sweep_options(command)
    command.set_defaults(run=sweep)
    return jol


def _table_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("table", metavar="N", choices=TABLES, help="1 to 9, or runs: a list of all runs")
    add("--runs", metavar="DIR", type=Path, help="where runs lie, at any depth (default: runs)")
    add("--format", choices=FORMATS, default="text", help="how to print (default: text)")
    add(
        "--annotations",
        metavar=("NAME", "FILE"),
        nargs="+",
        action="append",
        default=[],
        help="for table 1: a data set's name and its COCO JSON files, counted together; repeatable",
    )


def _sweep_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("table", metavar="N", type=int, choices=SWEPT, help="table, 2 to 9 (9: steps only)")
    add("--out", metavar="DIR", required=True, type=Path, help="folder of the runs' folders")
    add("--seeds", metavar="N", nargs="+", type=count, default=[0, 1, 2], help="default: 0 1 2")
    add("--dry-run", action="store_true", help="print the commands, run nothing")


def _figure(text: str) -> int:
    """A figure of the paper that can be drawn."""
    if text not in ("1", "3", "4", "5", "6", "7"):
        raise argparse.ArgumentTypeError(f"no figure {text!r}; wanted 1 or 3 to 7")
    return int(text)


def _figure_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "figure",
        metavar="N",
        type=_figure,
        help="1: who gets the loss, by size; 3: loss surfaces; 4, 5: detections; 6: precision and "
        "recall; 7: detections of one run by class",
    )
    add("--base", metavar="DIR", type=Path, help="folder of a run with the base loss")
    add("--jol", metavar="DIR", type=Path, help="folder of a run with JOL (figure 3 needs no runs)")
    add("--out", metavar="FILE", type=Path, required=True, help="PNG to write")
    add(
        "--images",
        metavar="N",
        type=positive,
        default=None,
        help="figure 1: the first N (default: 100); 4, 5, 7: the N with most objects (default: 3)",
    )
    add("--split", metavar="NAME", help="of --dataset (default: the one the paper evaluates on)")
    val_options(command)  # fmt: skip


def _eval_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--checkpoint", metavar="FILE", required=True, type=Path, help="last.pt or best.pt of a run"
    )
    add(
        "--out",
        metavar="DIR",
        required=True,
        type=Path,
        help="folder for results.json and pr_curves.png",
    )
    add("--split", metavar="NAME", help="of --dataset (default: the one the paper evaluates on)")
    val_options(command)


def _predict_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        type=Path,
        help="image file, or folder: the image files in it (not in folders below), by name",
    )
    add(
        "--checkpoint", metavar="FILE", required=True, type=Path, help="last.pt or best.pt of a run"
    )
    add(
        "--out",
        metavar="DIR",
        required=True,
        type=Path,
        help="new or empty folder for detections.json, images.json and pictures",
    )
    add(
        "--score-threshold",
        metavar="X",
        type=share,
        default=SHOWN,
        help=f"least score of a drawn box; detections.json has them all (default: {SHOWN:g})",
    )
    add(
        "--batch-size",
        metavar="N",
        type=positive,
        default=4,
        help="images of one size at a time (default: 4)",
    )
    device_option(command)


def _export_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--checkpoint", metavar="FILE", required=True, type=Path, help="last.pt or best.pt of a run"
    )
    add("--out", metavar="FILE", required=True, type=Path, help="file to write, *.pt2")
    add(
        "--image-size",
        metavar=("H", "W"),
        nargs=2,
        type=positive,
        default=[800, 800],
        help="height and width of the image that it takes (default: 800 800)",
    )
