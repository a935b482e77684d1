"""`jol eval`: what a checkpoint's detections of a data set are worth."""

import argparse
from collections.abc import Mapping
from typing import Any

from detectors.commands import data_options
from detectors.commands.options import add_settings, checkpoint_option, find_device
from detectors.commands.warnings import warn, warn_of_crowds
from detectors.data.catalog import DATASETS
from detectors.training.settings import DEFAULTS, TrainSettings, usual_detections
from detectors.utils.argument_types import folder_to_write
from detectors.utils.parser import Parser


def add(subparsers: Any) -> None:
    """Declare `jol eval`."""
    command: Parser = subparsers.add_parser(
        "eval",
        help="evaluate a checkpoint",
        usage="jol eval --checkpoint FILE --out DIR DATA [OPTION ...]",
    )
    checkpoint_option(command)
    command.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        type=folder_to_write,
        help="folder for results.json and pr_curves.png",
    )
    data = command.add_argument_group(
        "data", "DATA is a data set of the paper, or images and COCO JSON files."
    )
    data_options.add_dataset(data, splits="the one the paper evaluates on")
    data_options.add_evaluation(data)
    options = command.add_argument_group("evaluation")
    add_settings(
        options,
        TrainSettings,
        ["protocol"],
        help="size ranges and detection limits of the evaluation (default: the data set's, else "
        f"the run's, else {DEFAULTS['protocol']})",
    )
    add_settings(
        options,
        TrainSettings,
        ["detections"],
        help="most detections of an image, and of a class that count (default: as trained, but at "
        "least what --protocol counts)",
    )
    add_settings(options, TrainSettings, ["evaluator"], default=DEFAULTS["evaluator"])
    add_settings(options, TrainSettings, ["device"])
    command.check = lambda args: data_options.problems(args, *data_options.EVALUATION)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate a checkpoint and write what `jol train` writes of its last evaluation.

    Raises:
        Unusable, DataError, RunError
    """
    from detectors.data.images import black_images
    from detectors.evaluation import model_evaluation
    from detectors.evaluation.report import about_ap, class_table, write_results
    from detectors.inference.scale import other_scale, scale_of
    from detectors.models.build import detections_of
    from detectors.training import checkpoints
    from detectors.utils import distributed

    device = find_device(args.device)
    checkpoint = checkpoints.load(args.checkpoint)
    dataset = data_options.evaluation(args)
    data_options.refuse_other_classes(
        dataset, args.checkpoint, checkpoint["class_names"], checkpoint["category_ids"]
    )
    protocol = _protocol(args, checkpoint["settings"].get("protocol"))
    detections, counted = _limits(args.detections, protocol, checkpoint["settings"])
    model = checkpoints.load_detector(checkpoint, args.checkpoint, detections)
    with distributed.connected(device) as world, world.claimed(args.out):
        model = model.to(device)
        if world.leads:
            data_options.report_skipped(dataset)
            warn_of_crowds(dataset, detections_of(model), protocol, counted)
            scale = scale_of(dataset, checkpoint["settings"], training=False)
            for difference in other_scale(scale, checkpoint.get("scale")):
                warn(f"{dataset.source}: {difference}")
        evaluation = model_evaluation.evaluate_model(
            model, dataset, device, args.evaluator, protocol, counted=counted, world=world
        )
        if world.leads and dataset.black:
            warn(f"{dataset.source}: {black_images(len(dataset.black))}")
        if evaluation is not None:
            write_results(args.out, evaluation, checkpoint["settings"]["loss"])
            print(class_table(evaluation))
            print(about_ap(evaluation))
            print(f"results in {args.out}")


def _protocol(args: argparse.Namespace, trained: str | None) -> str:
    """What was given, else the data set's, else what the run was evaluated by in training."""
    own = DATASETS[args.dataset].protocol if args.dataset else trained
    return args.protocol or own or str(DEFAULTS["protocol"])


def _limits(
    given: int | None, protocol: str, settings: Mapping[str, Any]
) -> tuple[int | None, int | None]:
    """Most detections of an image, and of a class that count; None: as trained, as the protocol.

    Nothing follows the protocol in a checkpoint of an earlier version, which does not name them.
    """
    trained = settings.get("detections")
    if given or not trained:
        return given, given
    if trained == usual_detections(**settings):
        return usual_detections(**{**settings, "protocol": protocol}), None
    return trained, trained
