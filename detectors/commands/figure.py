"""`jol figure`: the paper's figures drawn from runs."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectors.commands import data_options
from detectors.commands.options import add_settings, find_device
from detectors.errors import Unusable
from detectors.training import run_folder
from detectors.training.settings import TrainSettings
from detectors.utils.argument_types import file_to_write, folder, positive
from detectors.utils.names import unlike_runs
from detectors.utils.parser import Parser

KINDS = (".png", ".pdf", ".svg", ".eps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def add(subparsers: Any) -> None:
    """Declare `jol figure`."""
    command: Parser = subparsers.add_parser(
        "figure",
        help="the paper's figures of a base and a JOL run",
        usage="jol figure 1|4|5 --out FILE [--base DIR] [--jol DIR] [DATA] [OPTION ...]\n"
        "       jol figure 7 --out FILE --base DIR|--jol DIR [DATA] [OPTION ...]\n"
        "       jol figure 6 --out FILE [--base DIR] [--jol DIR]\n"
        "       jol figure 3 --out FILE",
    )
    add = command.add_argument
    add(
        "figure",
        metavar="N",
        type=_number,
        help="1: each object's share of the loss; 3: loss surfaces; 4, 5: detections; 6: precision "
        "and recall; 7: detections of one run, a colour a class",
    )
    add("--base", metavar="DIR", type=folder, help="folder of a run with the base loss")
    add(
        "--jol",
        metavar="DIR",
        type=folder,
        help="folder of a run with JOL (figure 3 needs no runs)",
    )
    add("--out", metavar="FILE", type=_picture, required=True, help="PNG to write")
    add(
        "--images",
        metavar="N",
        type=positive,
        default=None,
        help="figure 1: the first N (default: 100); 4, 5, 7: the N with most objects (default: 3)",
    )
    add_settings(command, TrainSettings, ["device"])
    data = command.add_argument_group(
        "data",
        "DATA is a data set of the paper, or images and COCO JSON files (default: those that the "
        "run's config.json names).",
    )
    data_options.add_dataset(data, splits="the one the paper evaluates on")
    data_options.add_evaluation(data)
    command.check = _problems
    command.set_defaults(run=run)


def _number(text: str) -> int:
    """A figure of the paper that can be drawn."""
    if text not in ("1", "3", "4", "5", "6", "7"):
        raise argparse.ArgumentTypeError(f"no figure {text!r}; wanted 1 or 3 to 7")
    return int(text)


def _picture(text: str) -> Path:
    """Name of a picture to write, of a kind that matplotlib writes."""
    path = file_to_write(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no folder {path.parent}")
    if path.suffix.lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"{text}: wanted the name of a file, ending in .png")
    return path


def _problems(args: argparse.Namespace) -> Iterator[str]:
    if args.figure == 7 and bool(args.base) == bool(args.jol):
        yield "figure 7 is of one run: wanted --base DIR or --jol DIR"
    if args.figure in (1, 4, 5, 6) and not (args.base or args.jol):
        yield "wanted --base DIR, --jol DIR or both"
    runs = [run for run in (args.base, args.jol) if isinstance(run, Path)]  # as folders that are
    known = any((run / run_folder.CONFIG).is_file() for run in runs)
    if args.figure in (1, 4, 5, 7) and (_names_data(args) or not known):
        yield from data_options.problems(args, *data_options.EVALUATION)


def _names_data(args: argparse.Namespace) -> bool:
    return data_options.names_data(args) or args.split is not None


def _take_data(args: argparse.Namespace, folders: Iterable[Path]) -> None:
    """Put the data that the runs were evaluated on into the arguments.

    Raises:
        Unusable: their config.json do not say where they are, or are of different data.
        RunError: a config.json that cannot be read.
    """
    known = [(run, run_folder.read_config(run / run_folder.CONFIG)[1]) for run in folders]
    (first, data), *others = known
    for run, other in others:
        if other.get("val_sha256") != data.get("val_sha256"):
            raise Unusable(
                f"{first} and {run} were evaluated on different data; wanted --val-images and "
                "--val-annotations, or --dataset"
            )
    config = first / run_folder.CONFIG
    data_options.name_data(args, data, config, *data_options.EVALUATION)
    for problem in data_options.problems(args, *data_options.EVALUATION):
        raise Unusable(f"{config} does not say where the data are: {problem}")


def run(args: argparse.Namespace) -> None:
    """Draw a figure; 6 from what the runs wrote, 3 from the equations, the others from the models.

    Raises:
        Unusable, DataError, RunError
    """
    from detectors.evaluation.curves import pr_thresholds
    from detectors.evaluation.report import read_results
    from detectors.paper import figures

    folders = {k: v for k, v in (("base", args.base), ("jol", args.jol)) if v is not None}
    if args.figure == 3:
        figures.loss_surfaces(args.out)
    elif args.figure == 6:
        found = {name: read_results(folder) for name, folder in folders.items()}
        classes = {name: list(one.per_class) for name, one in found.items()}
        if len(classes) > 1 and classes["base"] != classes["jol"]:
            raise Unusable(f"runs of different classes: {unlike_runs(classes)}")
        pr_thresholds(found, args.out)
    else:
        _draw_from_models(args, folders)
    print(f"figure in {args.out}")


def _draw_from_models(args: argparse.Namespace, folders: dict[str, Path]) -> None:
    from detectors.paper import class_detections, figures, loss_samples, side_by_side
    from detectors.training import checkpoints

    device = find_device(args.device)
    if not _names_data(args):
        _take_data(args, folders.values())
    found = {k: checkpoints.load(v / checkpoints.BEST) for k, v in folders.items()}
    dataset = data_options.evaluation(args)
    models = {}
    for name, checkpoint in found.items():
        data_options.refuse_other_classes(
            dataset, folders[name], checkpoint["class_names"], checkpoint["category_ids"]
        )
        if checkpoint["settings"]["loss"] != name:
            raise Unusable(f"--{name} {folders[name]}: trained with another loss")
        models[name] = checkpoints.load_detector(checkpoint, folders[name]).to(device)
    if args.figure == 1:
        collected = {
            name: loss_samples.collect(model, dataset, device, args.images or 100)
            for name, model in models.items()
        }
        figures.loss_by_size(collected, args.out)
    else:
        indices = side_by_side.crowded(dataset, args.images or 3)
        if args.figure == 7:
            (model,) = models.values()
            class_detections.class_detections(model, dataset, device, indices, args.out)
        else:
            side_by_side.detections(models, dataset, device, indices, args.out)
