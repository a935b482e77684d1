"""`jol train`: a new run, an earlier one again (--config), or one that goes on (--resume)."""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detectors import errors
from detectors.commands import data_options
from detectors.commands.options import (
    check_device,
    count,
    count_or_none,
    default_device,
    on_off,
    one_of,
    positive,
    prior_options,
    rate,
    share,
    val_options,
)
from detectors.errors import Unusable
from detectors.evaluation.report import metrics_line
from detectors.models.presets import BACKBONES, DETECTORS, LOSSES, PRESETS
from detectors.training import checkpoints, loop, run_folder
from detectors.training.settings import (
    DEFAULTS,
    LENGTH,
    PRECISIONS,
    WITHOUT_PRESET,
    TrainSettings,
    resolve,
)
from detectors.utils.distributed import World, connected

SETTINGS = {*TrainSettings.__dataclass_fields__, *LENGTH}
SCORES = ("iou", "giou", "nwd", "simd", "dotd", "none")
CLASS_SCORES = ("probability", "none")


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say, which hold only those that were given.

    Raises:
        Unusable, DataError, RunError: before anything is written.
        engine.TrainingError: what ends a run; engine.Stopped among them.
    """
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    out: Path = args.out
    resumed = "resume" in args and run_folder.holds_run(out)
    if not resumed:
        run_folder.refuse_run(out)
    config = getattr(args, "config", None) or (out / run_folder.CONFIG if resumed else None)
    was, data_was = run_folder.read_config(config) if config else ({}, {})
    same_data = bool(data_was) and not data_options.names_data(args)
    if same_data:
        data_options.name_data(args, data_was)
    given.setdefault("device", was.get("device", default_device()))
    check_device(given["device"])
    train_data, val_data, data = data_options.training(args)
    data_options.refuse_other_classes(val_data, train_data.source, train_data.class_names)
    settings = resolve(given, len(train_data), data.get("dataset"), was)
    if settings.tensorboard:
        run_folder.summary_writer()
    data |= {
        "train_sha256": train_data.digest,
        "val_sha256": val_data.digest,
        "classes": train_data.class_names,
    }
    if resumed:
        run_folder.refuse_other(out, settings, data)
    elif same_data:
        run_folder.refuse_other_data(str(config), data_was, data)
    with connected(settings.device) as world, deterministic(settings.deterministic):
        if settings.batch_size % world.size:
            raise Unusable(
                f"--batch-size {settings.batch_size}: wanted a multiple of {world.size} processes"
            )
        checkpoint, problems = (
            checkpoints.load_last(out, dataclasses.asdict(settings)) if resumed else (None, [])
        )
        try:
            model = loop.make_model(
                settings,
                len(train_data.class_names),
                resumed=checkpoint is not None,
                world=world,
            )
        except (ValueError, NotImplementedError, OSError) as error:
            raise Unusable(str(error)) from error
        world.wait()  # until all have seen what was in the folder
        if world.leads:
            if not resumed:
                run_folder.start(out, settings, data)
            for dataset in (train_data, val_data):
                data_options.report_skipped(dataset)
            _tell_start(args, checkpoint, problems)
        with _told_before_any_ends(world):
            result = loop.train(
                settings,
                model,
                train_data,
                val_data,
                out,
                checkpoint=checkpoint,
                title=settings.loss,
                world=world,
            )
    if result is not None:
        _tell_end(result, settings, len(train_data), out)


@contextmanager
def _told_before_any_ends(world: World) -> Iterator[None]:
    """Rank 0 tells what all raise first: as soon as one has ended, torchrun ends the others."""
    try:
        yield
    except errors.TrainingError as error:
        if error.everywhere:
            if world.leads:
                print(f"jol train: {error}", file=sys.stderr)
            world.wait()
        raise


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, PyTorch takes algorithms that give the same bits each time, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _tell_start(
    args: argparse.Namespace, checkpoint: dict[str, Any] | None, problems: list[str]
) -> None:
    for problem in problems:
        print(f"jol train: {problem}; the one before is used", file=sys.stderr)
    if "resume" in args:
        step = 0 if checkpoint is None else checkpoint["step"]
        what = f"going on after step {step}" if step else "no checkpoint yet, beginning at step 1"
        print(f"jol train: {args.out}: {what}", file=sys.stderr)


def _tell_end(result: loop.TrainResult, settings: TrainSettings, images: int, out: Path) -> None:
    """The summary: final and best AP, time, where the files are."""
    print(metrics_line(result.evaluation))
    if not math.isnan(result.best):
        epoch = result.best_step * settings.batch_size / images
        print(f"best AP {100 * result.best:.1f} at step {result.best_step} (epoch {epoch:.1f})")
    if not math.isnan(result.seconds_per_step):
        speed = settings.batch_size / result.seconds_per_step
        print(f"{result.seconds_per_step:.3f} seconds a step, {speed:.1f} images a second")
    print(f"results in {out}")


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
