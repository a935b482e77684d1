"""The command `jol`: train, eval, predict, export, demo, data, table, figure, sweep, bench.

Exit status: 0 done, 1 failed while running, 2 unusable arguments or data. Everything that can be
checked is checked before a folder is made.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backend_bases import FigureCanvasBase

from detectors.arguments import parser
from detectors.commands import data_options, demo, sweep, train
from detectors.commands.options import check_device
from detectors.data.catalog import DATASETS
from detectors.errors import JolError, RunError, Unusable
from detectors.evaluation import model_evaluation
from detectors.evaluation.curves import pr_classes, pr_curves
from detectors.evaluation.report import class_table, read_results, write_results
from detectors.inference import export, predict
from detectors.paper import class_detections, figures, loss_samples, side_by_side, tables
from detectors.training import checkpoints
from detectors.training.settings import DEFAULTS
from detectors.utils import distributed
from detectors.utils.text_tables import render


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jol` with these arguments (None: the process's own) and return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["bench"]:
        from bench.__main__ import main as bench

        return bench(arguments[1:], prog="jol bench")
    common: list[str] = []  # what `jol sweep` hands to every `jol train`
    if arguments[:1] == ["sweep"] and "--" in arguments:
        cut = arguments.index("--")
        arguments, common = arguments[:cut], arguments[cut + 1 :]
    try:
        args = _parse(arguments)
    except SystemExit as stop:  # argparse has printed the help (0) or the error (2)
        return int(stop.code or 0)
    args.common = common
    try:
        command: Callable[[argparse.Namespace], None] = args.run
        command(args)
    except JolError as error:
        # Of unusable arguments and data all ranks of a machine read the same.
        if not error.everywhere and (error.exit_status == 1 or distributed.first_here()):
            print(f"jol {args.command}: {error}", file=sys.stderr)
        return error.exit_status
    except SystemExit as stop:  # so it did with the arguments that a sweep hands on
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print(f"jol {args.command}: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who read our output has seen enough, as in `jol data stats | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not error.filename:
            traceback.print_exc()
        else:
            print(f"jol {args.command}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    return parser(train.train, _eval, _demo, _table, _figure, _sweep, _predict, _export).parse_args(
        arguments
    )


def _eval(args: argparse.Namespace) -> None:
    check_device(args.device)
    checkpoint = checkpoints.load(args.checkpoint)
    dataset = data_options.evaluation(args)
    data_options.refuse_other_classes(dataset, args.checkpoint, checkpoint["class_names"])
    if args.out.exists() and not args.out.is_dir():
        raise RunError(f"{args.out}: is a file, wanted a folder")
    model = checkpoints.load_detector(checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)  # what cannot be made is an error before the work
    with distributed.connected(args.device) as world:
        model = model.to(args.device)
        if world.leads:
            data_options.report_skipped(dataset)
        protocol = _protocol(args, checkpoint["settings"].get("protocol"))
        evaluation = model_evaluation.evaluate_model(
            model, dataset, args.device, args.evaluator, protocol, world=world
        )
    if evaluation is not None:
        write_results(args.out, evaluation, checkpoint["settings"]["loss"])
        print(class_table(evaluation))
        print(f"results in {args.out}")


def _predict(args: argparse.Namespace) -> None:
    check_device(args.device)
    predict.refuse_used(args.out)
    images = predict.find_images(args.images)
    checkpoint = checkpoints.load(args.checkpoint)
    names = checkpoint["class_names"]
    summary, bad = predict.predict(
        checkpoints.load_detector(checkpoint).to(args.device),
        names,
        checkpoint.get("category_ids") or list(range(1, len(names) + 1)),
        images,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        threshold=args.score_threshold,
    )
    print(summary)
    if bad:
        raise predict.PredictError(f"{bad} of {len(images)} images could not be decoded")


def _export(args: argparse.Namespace) -> None:
    if args.out.suffix != ".pt2" or not args.out.parent.is_dir():
        raise Unusable(f"--out {args.out}: wanted a name in a folder that exists, ending in .pt2")
    checkpoint = checkpoints.load(args.checkpoint)
    model, detector = checkpoints.load_detector(checkpoint), checkpoint["settings"]["detector"]
    size = (args.image_size[0], args.image_size[1])
    program = export.export(model, size)
    count, apart = export.check(program, model, size)
    export.save(program, checkpoint["class_names"], args.out)
    print(
        f"{detector} for images of 3 x {size[0]} x {size[1]} in {args.out}; on a generated picture "
        f"its {count} detections are the detector's to {apart:.1g} pixels"
    )


def _demo(args: argparse.Namespace) -> None:
    demo.run(args.out, seed=args.seed)


def _table(args: argparse.Namespace) -> None:
    given = {name: [Path(file) for file in files] for name, *files in args.annotations}
    if given and (args.table != "1" or not all(given.values())):
        raise Unusable("--annotations: wanted a name and files, and table 1")
    grid, problems = tables.make_table(args.table, args.runs, given)
    print(render(grid, args.format), end="")
    for line in problems:
        print(f"left out: {line}", file=sys.stderr)


def _figure(args: argparse.Namespace) -> None:
    """Draw a figure; 6 and its curves by class from what the runs wrote, 1, 4 and 5 anew."""
    check_device(args.device)
    if not args.out.parent.is_dir():
        raise Unusable(f"--out {args.out}: no folder {args.out.parent}")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if args.out.suffix[1:].lower() not in kinds or args.out.is_dir():
        raise Unusable(f"--out {args.out}: wanted the name of a file, ending in .png")
    folders = {k: v for k, v in (("base", args.base), ("jol", args.jol)) if v is not None}
    if args.figure == 3:
        figures.loss_surfaces(args.out)
    elif not folders:
        raise Unusable("wanted --base DIR, --jol DIR or both")
    elif args.figure == 7 and len(folders) > 1:
        raise Unusable("figure 7 is of one run: wanted --base DIR or --jol DIR")
    elif args.figure == 6:
        found = {name: read_results(folder) for name, folder in folders.items()}
        classes = {name: list(one.per_class) for name, one in found.items()}
        if classes.get("base") != classes.get("jol") and len(classes) > 1:
            raise Unusable(f"runs of different classes: {classes}")
        pr_curves(found, args.out)
        pr_classes(found, args.out.with_name(f"{args.out.stem}-classes{args.out.suffix}"))
    else:
        _figure_of_models(args, folders)
    print(f"figure in {args.out}")


def _figure_of_models(args: argparse.Namespace, folders: dict[str, Path]) -> None:
    found = {k: checkpoints.load(v / checkpoints.BEST) for k, v in folders.items()}
    dataset = data_options.evaluation(args)
    models = {}
    for name, checkpoint in found.items():
        data_options.refuse_other_classes(dataset, folders[name], checkpoint["class_names"])
        if checkpoint["settings"]["loss"] != name:
            raise Unusable(f"--{name} {folders[name]}: trained with another loss")
        models[name] = checkpoints.load_detector(checkpoint).to(args.device)
    if args.figure == 1:
        collected = {
            name: loss_samples.collect(model, dataset, args.device, args.images or 100)
            for name, model in models.items()
        }
        figures.loss_by_size(collected, args.out)
    else:
        indices = side_by_side.crowded(dataset, args.images or 3)
        if args.figure == 7:
            (model,) = models.values()
            class_detections.class_detections(model, dataset, args.device, indices, args.out)
        else:
            side_by_side.detections(models, dataset, args.device, indices, args.out)


def _sweep(args: argparse.Namespace) -> None:
    planned = sweep.plan(args.table, args.seeds, args.common)
    sweep.sweep(planned, args.out, _training_arguments, dry=args.dry_run)


def _training_arguments(words: list[str]) -> dict[str, Any]:
    """What `jol train` makes of these words; it has to name its data."""
    args = _parse(words)
    data_options.is_named(args, *data_options.TRAINING)
    return vars(args)


def _protocol(args: argparse.Namespace, trained: str | None = None) -> str:
    """What was given, else the data set's, else what the run was evaluated by in training."""
    own = DATASETS[args.dataset].protocol if args.dataset else trained
    return args.protocol or own or str(DEFAULTS["protocol"])
