"""Which data the arguments name: a data set of the paper, or images and COCO JSON files."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectors.data.catalog import DATASETS, evaluation_data, read_split, training_data
from detectors.data.coco import fail
from detectors.data.coco_checks import Report
from detectors.data.dataset import CocoDetection
from detectors.data.published import Published
from detectors.errors import DataError, Unusable

SKIPPED_SHOWN = 3


def is_named(args: argparse.Namespace, *paths: str) -> bool:
    """Whether --dataset names the data, and not the options `paths`, all of which are needed.

    Raises:
        Unusable: neither, not all, or both.
    """
    given = [name for name in paths if _value(args, name)]
    if not any(_value(args, name) for name in NAMED):
        missing = [name for name in paths if name not in given]
        if missing or not paths:
            wanted = "--dataset NAME --data-root DIR"
            if paths:
                wanted += f" or {' '.join(paths)}"
            raise Unusable(f"wanted {wanted}; missing {' '.join(missing) or '--dataset'}")
        return False
    if given:
        raise Unusable(f"{given[0]} with --dataset or --data-root, wanted one or the other")
    for name in NAMED:
        if not _value(args, name):
            raise Unusable(f"{name} is missing; wanted --dataset NAME --data-root DIR")
    return True


NAMED = ("--dataset", "--data-root")
TRAINING = ("--train-images", "--train-annotations", "--val-images", "--val-annotations")


def training(args: argparse.Namespace) -> tuple[CocoDetection, CocoDetection, dict[str, Any]]:
    """The data to learn from and to evaluate on, and what config.json says of where they are.

    Raises:
        Unusable, DataError
    """
    if is_named(args, *TRAINING):
        root = os.path.abspath(args.data_root)
        data: dict[str, Any] = {"dataset": args.dataset, "data_root": root}
        train = training_data(args.dataset, args.data_root)
        return train, evaluation_data(args.dataset, args.data_root), data
    data = {_key(name): os.path.abspath(str(_value(args, name))) for name in TRAINING}
    train = CocoDetection(args.train_images, args.train_annotations)
    return train, CocoDetection(args.val_images, args.val_annotations), data


def names_data(args: argparse.Namespace) -> bool:
    """Whether any argument names training data."""
    return any(_value(args, name) for name in (*NAMED, *TRAINING))


def name_data(args: argparse.Namespace, data: Mapping[str, Any]) -> None:
    """Put the data that a run's config.json names into the arguments."""
    for name in (*NAMED, *TRAINING):
        value = data.get(_key(name))
        if value is not None:
            setattr(args, _key(name), value if name == "--dataset" else Path(value))


def evaluation(args: argparse.Namespace) -> CocoDetection:
    """The data to evaluate on.

    Raises:
        Unusable, DataError
    """
    if is_named(args, "--val-images", "--val-annotations"):
        return evaluation_data(args.dataset, args.data_root, args.split)
    refuse_split(args)
    return CocoDetection(args.val_images, args.val_annotations)


def refuse_split(args: argparse.Namespace) -> None:
    """Raise Unusable if there is a --split of no --dataset."""
    if args.split:
        raise Unusable("--split without --dataset")


def splits(args: argparse.Namespace, report: Report = fail) -> list[Published]:
    """The splits of the data set of the paper that --dataset and --split name.

    Raises:
        DataError: unusable data, by default also what otherwise `report` is told.
    """
    root: Path = args.data_root
    names = args.split or DATASETS[args.dataset].counted
    return [read_split(args.dataset, root, split, report) for split in names]


def refuse_other_classes(dataset: CocoDetection, other: object, names: list[str]) -> None:
    """Raise DataError unless the data have these classes, which `other` has."""
    if dataset.class_names != names:
        raise DataError(
            f"{dataset.source}: categories {dataset.class_names}, but {other} has {names}"
        )


def report_skipped(dataset: CocoDetection) -> None:
    """Name what was left out of the data, its first lines."""
    if dataset.skipped:
        count = len(dataset.skipped)
        print(f"{dataset.source}: {count} annotations clipped or left out:", file=sys.stderr)
        for line in dataset.skipped[:SKIPPED_SHOWN]:
            print(f"  {line}", file=sys.stderr)
        if count > SKIPPED_SHOWN:
            print(f"  and {count - SKIPPED_SHOWN} more", file=sys.stderr)


def _key(option: str) -> str:
    """What argparse calls an option."""
    return option[2:].replace("-", "_")


def _value(args: argparse.Namespace, option: str) -> Any:
    """An argument, None where it was not given."""
    return getattr(args, _key(option), None)
