"""Arguments that several commands share."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from detectors.assigners.names import ASSIGNERS
from detectors.data.catalog import DATASETS
from detectors.errors import Unusable
from detectors.evaluation.average_precision import EVALUATORS, PROTOCOLS
from detectors.training.settings import DEFAULTS


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


def count(text: str) -> int:
    """0, 1, 2, ..."""
    return int(_number(text, text.isdecimal(), "a whole number of 0 or more"))


def count_or_none(text: str) -> int | None:
    """1, 2, 3, ...; None for 0."""
    return count(text) or None


def on_off(text: str) -> bool:
    """Whether it is "on" and not "off"."""
    return one_of(("on", "off"), text) == "on"


def one_of(known: Sequence[str], text: str) -> str | None:
    """The text, one of those known; None for "none"."""
    _number(text, text in known, f"one of {', '.join(known)}")
    return None if text == "none" else text


def default_device() -> str:
    """Where to compute if nothing is said."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise Unusable if there is no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda: PyTorch finds no GPU here")


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    return int(_number(text, text.isdecimal() and int(text) > 0, "a whole number of 1 or more"))


def rate(text: str) -> float:
    """A positive number."""
    return float(_number(text, 0 < _parsed(text) < math.inf, "a positive number"))


def share(text: str) -> float:
    """A number from 0 to below 1."""
    return float(_number(text, 0 <= _parsed(text) < 1, "a number from 0 to below 1"))


def _parsed(text: str) -> float:
    """The number in the text, NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def setting(text: str) -> tuple[str, float | None]:
    """NAME=NUMBER, or NAME=none."""
    name, _, value = text.partition("=")
    if value == "none":
        return name, None
    try:
        return name, int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted NAME=NUMBER") from None


def _number(text: str, good: bool, wanted: str) -> str:
    if not good:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
    return text
