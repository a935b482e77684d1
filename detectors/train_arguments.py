"""The arguments of `jol train`, without defaults: settings.resolve knows them."""

import argparse
from functools import partial
from pathlib import Path

from detectors.models.anchor_plans import DETECTORS
from detectors.models.backbones import BACKBONES
from detectors.models.presets import LOSSES, PRESETS
from detectors.shared_arguments import prior_options, val_options
from detectors.training.settings import DEFAULTS, PRECISIONS, WITHOUT_PRESET
from detectors.values import count, count_or_none, on_off, one_of, positive, rate, share

SCORES = ("iou", "giou", "nwd", "simd", "dotd", "none")
CLASS_SCORES = ("probability", "none")


def train_options(command: argparse.ArgumentParser) -> None:
    """All of them; `command` suppresses defaults, so that what is not given is not there."""
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
    val_options(command)
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
