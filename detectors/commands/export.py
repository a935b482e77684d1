"""`jol export`: a detector as a program of torch.export."""

import argparse
from pathlib import Path
from typing import Any

from detectors.commands.options import checkpoint_option
from detectors.training.settings import SIDES
from detectors.utils.argument_types import file_to_write, number
from detectors.utils.parser import Parser


def add(subparsers: Any) -> None:
    """Declare `jol export`."""
    command: Parser = subparsers.add_parser(
        "export",
        help="write a detector as a program of torch.export",
        usage="jol export --checkpoint FILE --out FILE [--image-size H W]",
    )
    checkpoint_option(command)
    add = command.add_argument
    add("--out", metavar="FILE", required=True, type=_program, help="file to write, *.pt2")
    add(
        "--image-size",
        metavar=("H", "W"),
        nargs=2,
        type=number(int, **SIDES),
        default=[800, 800],
        help="height and width of the image that it takes (default: 800 800)",
    )
    command.set_defaults(run=run)


def _program(text: str) -> Path:
    """Name of a program to write."""
    path = file_to_write(text)
    if path.suffix != ".pt2" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: wanted a name in a folder that exists, ending in .pt2"
        )
    return path


def run(args: argparse.Namespace) -> None:
    """Export a checkpoint's detector, compare it on a generated picture, and write it.

    Raises:
        Unusable, RunError
    """
    from detectors.inference import export
    from detectors.training import checkpoints

    checkpoint = checkpoints.load(args.checkpoint)
    model = checkpoints.load_detector(checkpoint, args.checkpoint)
    detector = checkpoint["settings"]["detector"]
    size = (args.image_size[0], args.image_size[1])
    program = export.export(model, size)
    count, apart = export.check(program, model, size)
    export.save(program, checkpoint["class_names"], args.out)
    print(
        f"{detector} for images of 3 x {size[0]} x {size[1]} in {args.out}; on a generated picture "
        f"its {count} detections are the detector's to {apart:.1g} pixels"
    )
