"""`jol train`: a new run, an earlier one again (--config), or one that is resumed (--resume).

Its options are the fields of TrainSettings (detectors/training/settings.py) and a few of its own.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors import errors
from detectors.commands import data_options
from detectors.commands.options import Options, add_settings, find_device
from detectors.commands.warnings import warn_of_crowds, warn_of_slow_bfloat16
from detectors.errors import Unusable
from detectors.models.compatibility import misfits
from detectors.training import run_folder
from detectors.training.defaults_in_words import of_datasets
from detectors.training.settings import (
    EPOCHS,
    EVALUATION,
    FIELDS,
    LENGTH,
    LOSS,
    MODEL,
    PASSES,
    TRAINING,
    TrainSettings,
    resolve,
    usual_preset,
)
from detectors.utils.argument_types import file, folder, folder_to_write, number, positive
from detectors.utils.parser import Parser
from detectors.utils.printable import printable_lines

if TYPE_CHECKING:
    from detectors.training.loop import TrainResult
    from detectors.utils.distributed import World


def add(subparsers: Any) -> None:
    """Declare `jol train`; what is not given is not in its arguments, for `resolve` to decide."""
    command: Parser = subparsers.add_parser(
        "train",
        help="train a detector",
        usage="jol train --out DIR --detector NAME --loss base|jol DATA [OPTION ...]\n"
        "       jol train --out DIR --config FILE [OPTION ...]\n"
        "       jol train --out DIR --resume [OPTION ...]",
        argument_default=argparse.SUPPRESS,
    )
    _add_options(command)
    command.set_defaults(run=run)
    command.check = lambda args: _problems(args, command.wrong)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The arguments that `jol train` makes of these words, which name the data.

    Raises:
        Unusable: they name no data.
        SystemExit: other words that it cannot take, after they were printed.
    """
    parser = Parser(prog="jol")
    add(parser.add_subparsers(prog="jol", dest="command"))
    args = parser.parse_args(["train", *words])
    for problem in data_options.problems(args, *data_options.TRAINING):
        raise Unusable(problem)
    return vars(args)


def _problems(args: argparse.Namespace, wrong: Set[str]) -> Iterator[str]:
    """What is missing, but for runs that have it from a config.json."""
    out = getattr(args, "out", None)
    goes_on = "resume" in args and isinstance(out, Path) and run_folder.holds_run(out)
    if "config" in args or goes_on:
        if data_options.names_data(args):
            yield from data_options.problems(args, *data_options.TRAINING)
        return
    missing = [f"--{name}" for name in ("detector", "loss") if name not in args]
    if missing:
        yield f"missing {' and '.join(missing)}, or --config of an earlier run"
    right = {name: value for name, value in given_settings(args).items() if name not in wrong}
    if "detector" in right:
        preset = usual_preset(right, getattr(args, "dataset", None))
        yield from misfits(**{**right, "preset": preset})
    yield from data_options.problems(args, *data_options.TRAINING)


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say, which hold only those that were given.

    Raises:
        Unusable, DataError, RunError: before anything is written.
        TrainingError: what ends a run, Stopped among them.
    """
    given = given_settings(args)
    out: Path = args.out
    resumed = "resume" in args and run_folder.holds_run(out)
    if not resumed:
        run_folder.refuse_run(out)
    config = getattr(args, "config", None) or (out / run_folder.CONFIG if resumed else None)
    was, data_was = run_folder.read_config(config) if config else ({}, {})
    same_data = bool(data_was) and not data_options.names_data(args)
    if same_data and config:
        data_options.name_data(args, data_was, config, *data_options.TRAINING)
    # Here and not above, so that wrong arguments are reported without torch.
    from detectors.inference.scale import scale_of
    from detectors.models.build import detections_of
    from detectors.training import checkpoints, loop
    from detectors.utils.distributed import connected

    given["device"] = find_device(given.get("device", was.get("device")))
    train_data, val_data, data = data_options.training(args)
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
    with (
        connected(settings.device) as world,
        deterministic(settings.deterministic),
        ExitStack() as held,
    ):
        if settings.batch_size % world.size:
            raise Unusable(
                f"--batch-size {settings.batch_size}: wanted a multiple of {world.size} processes"
            )
        if resumed:  # before its checkpoints are read, which no other process may replace
            held.enter_context(world.claimed(out))
        begun = resumed and checkpoints.exist(out)
        try:
            model = loop.make_model(
                settings, len(train_data.class_names), resumed=begun, world=world
            )
        except (ValueError, NotImplementedError, OSError) as error:
            raise Unusable(str(error)) from error
        checkpoint, problems, by_name = None, list[str](), dataclasses.asdict(settings)
        if begun:
            checkpoint, problems = checkpoints.load_last(out, by_name, model, val_data.class_names)
        if not resumed:  # after everything that may be refused, as it makes the folder
            held.enter_context(world.claimed(out))
        world.wait()  # until all have seen what was in the folder
        if world.leads:
            if not resumed:
                scale = {"scale": scale_of(train_data, by_name, training=True)}
                run_folder.start(out, settings, data | scale)
            files = {dataset.digest: dataset for dataset in (val_data, train_data)}  # often one
            for dataset in reversed(files.values()):
                data_options.report_skipped(dataset)
                warn_of_crowds(dataset, detections_of(model), settings.protocol, settings.counted)
            warn_of_slow_bfloat16(settings.amp, settings.device)
            _report_start(args, checkpoint, problems)
        with _reported_before_any_ends(world):
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
        _report_end(result, settings, len(train_data), out)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are settings or the length of a run, by name."""
    names = {*FIELDS, *LENGTH}
    return {name: value for name, value in vars(args).items() if name in names}


@contextmanager
def _reported_before_any_ends(world: "World") -> Iterator[None]:
    """Rank 0 reports what all raise first: as soon as one has ended, torchrun ends the others."""
    try:
        yield
    except errors.TrainingError as error:
        if error.everywhere:
            if world.leads:
                print(printable_lines(f"jol train: {error}"), file=sys.stderr)
            world.wait()
        raise


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, PyTorch takes algorithms that give the same bits each time, if that is wanted."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _report_start(
    args: argparse.Namespace, checkpoint: dict[str, Any] | None, problems: list[str]
) -> None:
    for problem in problems:
        print(f"jol train: {problem}; using the previous one", file=sys.stderr)
    if "resume" in args:
        step = 0 if checkpoint is None else checkpoint["step"]
        what = f"resuming after step {step}" if step else "no checkpoint yet, starting at step 1"
        print(f"jol train: {args.out}: {what}", file=sys.stderr)


def _report_end(result: "TrainResult", settings: TrainSettings, images: int, out: Path) -> None:
    """The summary: AP of each class and of all, best AP, time, where the files are."""
    from detectors.evaluation.report import about_ap, class_table

    print(class_table(result.evaluation, narrow=True))
    print(about_ap(result.evaluation))
    if not math.isnan(result.best):
        epoch = result.best_step * settings.batch_size / images
        print(f"best AP {100 * result.best:.1f} at step {result.best_step} (epoch {epoch:.1f})")
    if not math.isnan(result.seconds_per_step):
        speed = settings.batch_size / result.seconds_per_step
        print(f"{result.seconds_per_step:.3f} seconds a step, {speed:.1f} images a second")
    print(f"results in {out}")


def _add_options(command: Parser) -> None:
    add = command.add_argument
    add("--out", metavar="DIR", required=True, type=folder_to_write, help="folder of the run")
    add(
        "--config",
        metavar="FILE",
        type=file,
        help="config.json of a run to repeat: its data and settings, but for what is given here",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run in --out with its settings and data; start it if there is none",
    )
    data = command.add_argument_group(
        "data", "DATA is a data set of the paper, or images and COCO JSON files."
    )
    data_options.add_dataset(data)
    data.add_argument(
        "--train-images",
        metavar="DIR",
        type=folder,
        help="without --dataset: folder of the training images",
    )
    data.add_argument("--train-annotations", metavar="FILE", type=file, help="their COCO JSON file")
    data_options.add_evaluation(data)
    for group in (MODEL, LOSS, TRAINING, EVALUATION):
        options = command.add_argument_group(group)
        if group == TRAINING:
            _add_length(options)
        fields = dataclasses.fields(TrainSettings)
        names = [field.name for field in fields if field.metadata.get("group") == group]
        add_settings(options, TrainSettings, names)


def _add_length(options: Options) -> None:
    """Options that are no settings: they become steps when the number of images is known."""
    add = options.add_argument
    add(
        "--epochs",
        metavar="N",
        type=number(int, **PASSES),
        help=f"passes over the training images (default: {of_datasets(EPOCHS, 'epochs')})",
    )
    add(
        "--decay-epochs",
        metavar="N",
        nargs="+",
        type=number(int, **PASSES),
        help="epochs after which the learning rate falls to a tenth "
        "(default: at 8/12 and 11/12 of the run)",
    )
    add(
        "--max-steps",
        metavar="N",
        type=positive,
        help="at most N steps; without --epochs: N steps",
    )
