"""Which data the arguments name: a data set of the paper, or images and COCO JSON files."""

import argparse
from pathlib import Path
from typing import Any

from detectors.coco import fail
from detectors.coco_rules import Report
from detectors.data import CocoDetection
from detectors.datasets.named import DATASETS, evaluation_data, read_split, training_data
from detectors.datasets.published import Published
from detectors.values import Unusable


def is_named(args: argparse.Namespace, *paths: str) -> bool:
    """Whether --dataset names the data, and not the options `paths`, all of which are needed.

    Raises:
        Unusable: neither, not all, or both.
    """
    given = [name for name in paths if _value(args, name)]
    if args.dataset is None and args.data_root is None:
        missing = [name for name in paths if name not in given]
        if missing or not paths:
            wanted = "--dataset NAME --data-root DIR"
            if paths:
                wanted += f" or {' '.join(paths)}"
            raise Unusable(f"wanted {wanted}; missing {' '.join(missing) or '--dataset'}")
        return False
    if given:
        raise Unusable(f"{given[0]} with --dataset or --data-root, wanted one or the other")
    for name in ("--dataset", "--data-root"):
        if not _value(args, name):
            raise Unusable(f"{name} is missing; wanted --dataset NAME --data-root DIR")
    return True


TRAINING = ("--train-images", "--train-annotations", "--val-images", "--val-annotations")


def training(args: argparse.Namespace) -> tuple[CocoDetection, CocoDetection, dict[str, Any]]:
    """The data to learn from and to evaluate on, and what config.json says of where they are.

    Raises:
        Unusable, DataError
    """
    if is_named(args, *TRAINING):
        data: dict[str, Any] = {"dataset": args.dataset, "data_root": str(args.data_root)}
        train = training_data(args.dataset, args.data_root)
        return train, evaluation_data(args.dataset, args.data_root), data
    data = {name[2:].replace("-", "_"): str(_value(args, name)) for name in TRAINING}
    train = CocoDetection(args.train_images, args.train_annotations)
    return train, CocoDetection(args.val_images, args.val_annotations), data


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


def _value(args: argparse.Namespace, option: str) -> object:
    return getattr(args, option[2:].replace("-", "_"))
