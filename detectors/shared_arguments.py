"""Arguments that several commands share."""

import argparse
from pathlib import Path

from detectors.assigners.make import ASSIGNERS
from detectors.data.catalog import DATASETS
from detectors.evaluation.average_precision import EVALUATORS, PROTOCOLS
from detectors.training.settings import DEFAULTS
from detectors.values import default_device, positive, rate, setting


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


def device_option(command: argparse.ArgumentParser) -> None:
    """Where to compute."""
    # A default given to train would hide an earlier run's.
    suppressed = command.argument_default == argparse.SUPPRESS
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default=argparse.SUPPRESS if suppressed else default_device(),
        help="where to compute (default: cuda where there is a GPU)",
    )


def val_options(command: argparse.ArgumentParser) -> None:
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
    device_option(command)
    suppressed = command.argument_default == argparse.SUPPRESS
    add(
        "--evaluator",
        choices=EVALUATORS,
        default=argparse.SUPPRESS if suppressed else DEFAULTS["evaluator"],
        help="library that computes AP: faster-coco-eval (default) or pycocotools",
    )
