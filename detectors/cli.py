"""The command `jol`: train, eval, predict, export, demo, data, table, figure, sweep, bench.

Exit status: 0 done, 1 failed while running, 2 unusable arguments or data. Everything that can be
checked is checked before a folder is made.
"""

import argparse
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from detectors import (
    demo,
    engine,
    export,
    paper_figures,
    predict,
    runs,
    samples,
    sources,
    sweep,
    tables,
)
from detectors.arguments import parser
from detectors.data import CocoDetection, DataError
from detectors.datasets.named import DATASETS
from detectors.figures import pr_classes, pr_curves
from detectors.grids import render
from detectors.models import TWO_STAGE, WEIGHTS, default_backbone
from detectors.results import class_table, read_results
from detectors.runs import RunError, TrainSettings
from detectors.values import Unusable

BATCHES = {"torchvision": 2, "paper": 2, "slim": 4}
SKIPPED_SHOWN = 3
CROPS = {"torchvision": 0, "paper": 0, "slim": 192}


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
    except (DataError, RunError, Unusable) as error:
        print(f"jol {args.command}: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # so it did with the arguments that a sweep hands on
        return int(stop.code or 0)
    except (
        engine.TrainingError,
        sweep.SweepError,
        predict.PredictError,
        export.ExportError,
    ) as error:
        print(f"jol {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"jol {args.command}: interrupted", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    return parser(_train, _eval, _demo, _table, _figure, _sweep, _predict, _export).parse_args(
        arguments
    )


def _train(args: argparse.Namespace) -> None:
    _check_common(args)
    train_data, val_data, data = sources.training(args)
    _refuse_other_classes(val_data, train_data.source, train_data.class_names)
    settings = _settings(args, len(train_data))
    data |= {
        "train_sha256": train_data.digest,
        "val_sha256": val_data.digest,
        "classes": train_data.class_names,
    }
    if not args.resume:
        runs.refuse_run(args.out)
    checkpoint = runs.resume(args.out, settings, data) if args.resume else None
    try:
        model = engine.make_model(settings, len(train_data.class_names), resumed=args.resume)
    except (ValueError, NotImplementedError, OSError) as error:
        raise Unusable(str(error)) from error
    if checkpoint is None:
        runs.start(args.out, settings, data)
    for dataset in (train_data, val_data):
        _report_skipped(dataset)
    result = engine.train(
        settings, model, train_data, val_data, args.out, checkpoint=checkpoint, title=args.loss
    )
    print(engine.metrics_line(result.evaluation))
    if not math.isnan(result.seconds_per_step):
        print(f"{result.seconds_per_step:.3f} seconds a step")
    print(f"results in {args.out}")


def _eval(args: argparse.Namespace) -> None:
    _check_common(args)
    checkpoint = runs.load_checkpoint(args.checkpoint)
    dataset = sources.evaluation(args)
    _refuse_other_classes(dataset, args.checkpoint, checkpoint["class_names"])
    model = engine.load_detector(checkpoint).to(args.device)
    if args.out.exists() and not args.out.is_dir():
        raise RunError(f"{args.out}: is a file, wanted a folder")
    _report_skipped(dataset)
    evaluation = engine.evaluate_model(
        model,
        dataset,
        args.device,
        args.evaluator,
        protocol=_protocol(args, checkpoint["settings"].get("protocol")),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    engine.write_results(args.out, evaluation, checkpoint["settings"]["loss"])
    print(class_table(evaluation))
    print(f"results in {args.out}")


def _predict(args: argparse.Namespace) -> None:
    _check_common(args)
    predict.refuse_used(args.out)
    images = predict.find_images(args.images)
    checkpoint = runs.load_checkpoint(args.checkpoint)
    names = checkpoint["class_names"]
    summary, bad = predict.predict(
        engine.load_detector(checkpoint).to(args.device),
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
    checkpoint = runs.load_checkpoint(args.checkpoint)
    model, detector = engine.load_detector(checkpoint), checkpoint["settings"]["detector"]
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
    _check_common(args)
    if not args.out.parent.is_dir():
        raise Unusable(f"--out {args.out}: no folder {args.out.parent}")
    folders = {k: v for k, v in (("base", args.base), ("jol", args.jol)) if v is not None}
    if args.figure == 3:
        paper_figures.loss_surfaces(args.out)
    elif not folders:
        raise Unusable("wanted --base DIR, --jol DIR or both")
    elif args.figure == 6:
        found = {name: read_results(folder) for name, folder in folders.items()}
        pr_curves(found, args.out)
        pr_classes(found, args.out.with_name(f"{args.out.stem}-classes{args.out.suffix}"))
    else:
        _figure_of_models(args, folders)
    print(f"figure in {args.out}")


def _figure_of_models(args: argparse.Namespace, folders: dict[str, Path]) -> None:
    checkpoints = {k: runs.load_checkpoint(v / "best.pt") for k, v in folders.items()}
    dataset = sources.evaluation(args)
    models = {}
    for name, checkpoint in checkpoints.items():
        _refuse_other_classes(dataset, folders[name], checkpoint["class_names"])
        if checkpoint["settings"]["loss"] != name:
            raise Unusable(f"--{name} {folders[name]}: trained with another loss")
        models[name] = engine.load_detector(checkpoint).to(args.device)
    if args.figure == 1:
        collected = {
            name: samples.collect(model, dataset, args.device, args.images or 100)
            for name, model in models.items()
        }
        paper_figures.loss_by_size(collected, args.out)
    else:
        indices = paper_figures.crowded(dataset, args.images or 3)
        paper_figures.detections(models, dataset, args.device, indices, args.out)


def _sweep(args: argparse.Namespace) -> None:
    planned = sweep.plan(args.table, args.seeds, args.common)
    sweep.sweep(planned, args.out, _training_arguments, dry=args.dry_run)


def _training_arguments(words: list[str]) -> dict[str, Any]:
    """What `jol train` makes of these words; it has to name its data."""
    args = _parse(words)
    sources.is_named(args, *sources.TRAINING)
    return vars(args)


def _check_common(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda: PyTorch finds no GPU here")


def _refuse_other_classes(dataset: CocoDetection, other: object, names: list[str]) -> None:
    if dataset.class_names != names:
        raise DataError(
            f"{dataset.source}: categories {dataset.class_names}, but {other} has {names}"
        )


def _report_skipped(dataset: CocoDetection) -> None:
    """Name what was left out of the data, its first lines."""
    if dataset.skipped:
        count = len(dataset.skipped)
        print(f"{dataset.source}: {count} annotations clipped or left out:", file=sys.stderr)
        for line in dataset.skipped[:SKIPPED_SHOWN]:
            print(f"  {line}", file=sys.stderr)
        if count > SKIPPED_SHOWN:
            print(f"  and {count - SKIPPED_SHOWN} more", file=sys.stderr)


def _protocol(args: argparse.Namespace, trained: str | None = None) -> str:
    """What was given, else the data set's, else what the run was evaluated by in training."""
    own = DATASETS[args.dataset].protocol if args.dataset else trained
    return args.protocol or own or "aitod"


def _rate(detector: str, preset: str) -> float:
    """The learning rate for batches of BATCHES images: the paper's, and what suits preset slim."""
    if preset == "slim":
        return 0.02
    return 0.005 if detector in TWO_STAGE else 0.001


def _settings(args: argparse.Namespace, images: int) -> TrainSettings:
    """The run's settings: what was given, else the data set's and the preset's."""
    dataset = DATASETS.get(args.dataset)
    preset = args.preset or ("paper" if dataset else "torchvision")
    batch_size = args.batch_size or BATCHES[preset]
    epochs = args.epochs
    if epochs is None and args.max_steps is None:
        epochs = dataset.epochs if dataset else 12
    image_size = args.image_size
    if image_size and len(image_size) == 1:
        image_size = image_size[0]
    if image_size is None and dataset and preset != "slim":
        image_size = dataset.image_size
    steps = args.max_steps if epochs is None else math.ceil(epochs * images / batch_size)
    decays = [math.ceil(epoch * images / batch_size) for epoch in args.decay_epochs or []]
    crop = CROPS[preset] if args.crop is None else args.crop
    return TrainSettings(
        detector=args.detector,
        loss=args.loss,
        preset=preset,
        backbone=args.backbone or default_backbone(args.detector, preset),
        backbone_weights=args.backbone_weights or WEIGHTS[preset],
        image_size=image_size,
        assigner=args.assigner,
        assigner_settings=dict(args.assigner_settings),
        anchor_scale=args.anchor_scale,
        anchor_ratios=args.anchor_ratios,
        strides=args.strides,
        centreness_weights=(
            None if args.centreness_weights is None else args.centreness_weights == "on"
        ),
        score_threshold=args.score_threshold,
        lam=args.lam,
        location_score=None if args.location_score == "none" else args.location_score,
        class_score=None if args.class_score == "none" else args.class_score,
        detach_weights=args.detach_weights,
        steps=min(steps, args.max_steps or steps),
        batch_size=batch_size,
        lr=args.lr or _rate(args.detector, preset),
        decay_steps=decays or None,
        crop=crop or None,
        seed=args.seed,
        device=args.device,
        workers=args.workers,
        evaluator=args.evaluator,
        protocol=_protocol(args),
        eval_every=args.eval_every,
    )
