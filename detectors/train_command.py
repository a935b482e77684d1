"""`jol train`: a new run, an earlier one again (--config), or one that goes on (--resume)."""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detectors import errors, sources
from detectors.errors import Unusable
from detectors.evaluation.report import metrics_line
from detectors.training import checkpoints, loop, run_folder
from detectors.training.settings import LENGTH, TrainSettings, resolve
from detectors.utils.distributed import World, connected
from detectors.values import check_device, default_device

SETTINGS = {*TrainSettings.__dataclass_fields__, *LENGTH}


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
    same_data = bool(data_was) and not sources.names_data(args)
    if same_data:
        sources.name_data(args, data_was)
    given.setdefault("device", was.get("device", default_device()))
    check_device(given["device"])
    train_data, val_data, data = sources.training(args)
    sources.refuse_other_classes(val_data, train_data.source, train_data.class_names)
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
                sources.report_skipped(dataset)
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
