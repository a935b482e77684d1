"""The arguments of `jol`, its help, and their first checks."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from detectors.data_arguments import add_data_commands, dataset_options, prior_options
from detectors.evaluation import PROTOCOLS
from detectors.grids import FORMATS
from detectors.models import BACKBONES, DETECTORS, LOSSES, PRESETS
from detectors.paper_figures import SHOWN
from detectors.settings import DEFAULTS, PRECISIONS, WITHOUT_PRESET
from detectors.sweep import TABLES as SWEPT
from detectors.tables import TABLES
from detectors.values import (
    count,
    count_or_none,
    default_device,
    on_off,
    one_of,
    positive,
    rate,
    share,
)

SCORES = ("iou", "giou", "nwd", "simd", "dotd", "none")
CLASS_SCORES = ("probability", "none")

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
    _train_options(command)
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


def _train_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--detector", metavar="NAME", help=", ".join(DETECTORS))
    add("--loss", choices=LOSSES, help="the detector's own loss, or JOL")
    add("--out", metavar="DIR", required=True, type=Path, help="folder of the run")
    add(
        "--config",
        metavar="FILE",
        type=Path,
        help="config.json of a run to repeat: its data and settings, but for what is given here",
    )
    add(
        "--train-images",
        metavar="DIR",
        type=Path,
        help="without --dataset: folder of the training images",
    )
    add("--train-annotations", metavar="FILE", type=Path, help="their COCO JSON file")
    _val_options(command)
    add(
        "--preset",
        choices=PRESETS,
        help="torchvision: stock ResNet-50 (default); paper: the paper's settings (default with "
        "--dataset); slim: small, for a CPU and random weights",
    )
    prior_options(command)
    add(
        "--score-threshold",
        metavar="X",
        type=share,
        help="least score of a detection (default: 0.05, torchvision's fcos 0.2)",
    )
    add(
        "--centreness-weights",
        metavar="on|off",
        type=on_off,
        help="fcos: weigh box losses by centreness, as MMDetection (default: with preset paper)",
    )
    add("--backbone", choices=BACKBONES, help="default: resnet50; slim resnet18, detectors 14")
    add(
        "--backbone-weights",
        metavar="imagenet|none|FILE",
        help="weights to start from (default: imagenet, or none with slim)",
    )
    add(
        "--epochs",
        metavar="N",
        type=positive,
        help="passes over the training images (default: 12; --dataset aitod, aitodv2: 24)",
    )
    add(
        "--decay-epochs",
        metavar="N",
        nargs="+",
        type=positive,
        help="epochs after which the learning rate falls to a tenth "
        "(default: at 8/12 and 11/12 of the run)",
    )
    add(
        "--max-steps",
        metavar="N",
        type=positive,
        help="at most so many steps; alone: as many",
    )
    add(
        "--batch-size",
        metavar="N",
        type=positive,
        help="images a step, over all processes (default: 2, or 4 with slim)",
    )
    add(
        "--lr",
        metavar="X",
        type=rate,
        help="learning rate (default: two-stage 0.005, retinanet and fcos 0.001; slim 0.02)",
    )
    add(
        "--image-size",
        metavar="S",
        nargs="+",
        type=positive,
        help="resize the shorter side to so many pixels; of several one is drawn for each training "
        "image, the largest is for evaluation "
        "(default: 800, longer side at most 1333; --dataset sodad 1200; slim: not resized)",
    )
    add(
        "--crop",
        metavar="S",
        type=count_or_none,
        help="train on random crops of so many pixels, 0: whole images "
        "(default: 0, or 192 with slim)",
    )
    add(
        "--seed",
        metavar="N",
        type=count,
        help=f"seed of weights, data order and draws (default: {WITHOUT_PRESET['seed']})",
    )
    add(
        "--lam",
        metavar="X",
        type=float,
        help=f"λ of the weights, at least 1 (default: {WITHOUT_PRESET['lam']:g})",
    )
    add(
        "--location-score",
        metavar="|".join(SCORES),
        type=partial(one_of, SCORES),
        help=f"S_loc (default: {WITHOUT_PRESET['location_score']})",
    )
    add(
        "--class-score",
        metavar="|".join(CLASS_SCORES),
        type=partial(one_of, CLASS_SCORES),
        help=f"S_cls (default: {WITHOUT_PRESET['class_score']})",
    )
    add("--detach-weights", action="store_true", help="no gradient through the weights")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, whose settings and data hold; begin it if there is none",
    )
    add(
        "--eval-every",
        metavar="N",
        type=count,
        help="evaluate every so many epochs, 0: at the end only "
        f"(default: {DEFAULTS['eval_every']})",
    )
    add(
        "--workers",
        metavar="N",
        type=count,
        help=f"processes that load images, for each process that trains "
        f"(default: {DEFAULTS['workers']})",
    )
    add(
        "--clip",
        metavar="X",
        type=rate,
        help=f"largest norm of the gradient, which is scaled down to it "
        f"(default: {DEFAULTS['clip']:g})",
    )
    add(
        "--amp",
        choices=PRECISIONS,
        help="forward pass in half precision; losses stay in fp32, fp16 scales them "
        f"(default: {DEFAULTS['amp']})",
    )
    add(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory order of images and weights (default: channels last)",
    )
    add("--compile", action="store_true", help="torch.compile backbone and dense heads")
    add(
        "--deterministic",
        action="store_true",
        help="the same bits each time on a GPU too, at a price; on a CPU they are anyway",
    )
    add(
        "--max-bad-steps",
        metavar="N",
        type=count,
        help="leave out up to so many steps in a row whose loss is not finite or whose image "
        "cannot be read, restart loading processes that die so often, instead of stopping "
        f"(default: {DEFAULTS['max_bad_steps']})",
    )
    add("--tensorboard", action="store_true", help="write for TensorBoard beside metrics.jsonl")


def _figure(text: str) -> int:
    """A figure of the paper that can be drawn."""
    if text not in ("1", "3", "4", "5", "6"):
        why = ": what the paper's shows was not found, nor is it guessed here" * (text == "7")
        raise argparse.ArgumentTypeError(f"no figure {text!r}{why}; wanted 1, 3, 4, 5 or 6")
    return int(text)


def _figure_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "figure",
        metavar="N",
        type=_figure,
        help="1: who gets the loss, by size; 3: loss surfaces; 4, 5: detections; 6: precision and "
        "recall",
    )
    add("--base", metavar="DIR", type=Path, help="folder of a run with the base loss")
    add("--jol", metavar="DIR", type=Path, help="folder of a run with JOL (figure 3 needs no runs)")
    add("--out", metavar="FILE", type=Path, required=True, help="PNG to write")
    add(
        "--images",
        metavar="N",
        type=positive,
        default=None,
        help="figure 1: the first N (default: 100); 4, 5: the N with most objects (default: 3)",
    )
    add("--split", metavar="NAME", help="of --dataset (default: the one the paper evaluates on)")
    _val_options(command)  # fmt: skip


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
    _val_options(command)


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
    _device_option(command)


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


def _device_option(command: argparse.ArgumentParser) -> None:
    # A default given to train would hide an earlier run's.
    suppressed = command.argument_default == argparse.SUPPRESS
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default=argparse.SUPPRESS if suppressed else default_device(),
        help="where to compute (default: cuda where there is a GPU)",
    )


def _val_options(command: argparse.ArgumentParser) -> None:
    """What train and eval share."""
    dataset_options(command)
    add = command.add_argument
    add(
        "--val-images",
        metavar="DIR",
        type=Path,
        help="without --dataset: folder of the images to evaluate on",
    )
    add("--val-annotations", metavar="FILE", type=Path, help="their COCO JSON file")
    add(
        "--protocol",
        choices=tuple(PROTOCOLS),
        help="size ranges and detection limits of the evaluation "
        "(default: the data set's; eval: else the run's; else aitod)",
    )
    _device_option(command)
    suppressed = command.argument_default == argparse.SUPPRESS
    add(
        "--evaluator",
        choices=("faster", "pycocotools"),
        default=argparse.SUPPRESS if suppressed else DEFAULTS["evaluator"],
        help="library that computes AP: faster-coco-eval (default) or pycocotools",
    )
