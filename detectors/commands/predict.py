"""`jol predict`: detections on images that nobody has annotated."""

import argparse
from typing import Any

from detectors.commands.options import (
    add_settings,
    checkpoint_option,
    find_device,
    share,
)
from detectors.commands.warnings import warn
from detectors.training.settings import SHARES, TrainSettings
from detectors.utils.argument_types import file_or_folder, folder_to_write, number
from detectors.utils.locks import claimed
from detectors.utils.parser import Parser
from detectors.utils.printable import counted

SHOWN = 0.5
"""Least score of a box that is drawn unless another is given."""


def add(subparsers: Any) -> None:
    """Declare `jol predict`."""
    command: Parser = subparsers.add_parser(
        "predict",
        help="detect on images that nobody has annotated",
        usage="jol predict IMAGE ... --checkpoint FILE --out DIR [OPTION ...]",
    )
    add = command.add_argument
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        type=file_or_folder,
        help="image file, or folder: the image files in it (not in folders below), by name",
    )
    checkpoint_option(command)
    add(
        "--out",
        metavar="DIR",
        required=True,
        type=folder_to_write,
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
        type=number(int, **SHARES),
        default=4,
        help="images of one size at a time (default: %(default)s)",
    )
    add_settings(
        command,
        TrainSettings,
        ["detections"],
        help="most detections of an image (default: as trained)",
    )
    add_settings(command, TrainSettings, ["device"])
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the detections and draw them.

    Raises:
        Unusable, RunError: before anything is written.
        PredictError: images that could not be decoded, after all others were done.
    """
    from detectors.inference.image_files import (
        count_skipped,
        find_images,
        image_sizes,
        refuse_used,
    )

    refuse_used(args.out)
    images = find_images(args.images)
    from detectors.inference import predict
    from detectors.inference.scale import image_scale, other_scale
    from detectors.training import checkpoints

    device = find_device(args.device)
    checkpoint = checkpoints.load(args.checkpoint)
    model = checkpoints.load_detector(checkpoint, args.checkpoint, args.detections).to(device)
    sizes = image_sizes(images)
    for difference in other_scale(image_scale(sizes) if sizes else {}, checkpoint.get("scale")):
        warn(difference)
    with claimed(args.out):
        refuse_used(args.out)  # again: another process may just have ended
        summary, bad = predict.predict(
            model,
            checkpoint["class_names"],
            checkpoint["category_ids"],
            images,
            args.out,
            batch_size=args.batch_size,
            device=device,
            threshold=args.score_threshold,
        )
    print(summary)
    skipped = count_skipped(args.images)
    if skipped:
        print(
            f"skipped: {counted(skipped, 'file')}, hidden, broken links or not named as images are"
        )
    if bad:
        raise predict.PredictError(f"{bad} of {len(images)} images could not be decoded")
