"""Which data the arguments name: a data set of the paper, or images and COCO JSON files."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors.commands.options import Options
from detectors.data.catalog import DATASETS, evaluation_data, read_split, training_data
from detectors.data.coco import fail
from detectors.data.coco_checks import Report
from detectors.errors import DataError, Unusable
from detectors.utils.argument_types import choice, file, folder, nonempty
from detectors.utils.names import listed
from detectors.utils.printable import printable_lines

if TYPE_CHECKING:
    from detectors.data.dataset import CocoDetection
    from detectors.data.published import Published

SKIPPED_SHOWN = 3
NAMED = ("--dataset", "--data-root")
EVALUATION = ("--val-images", "--val-annotations")
TRAINING = ("--train-images", "--train-annotations", *EVALUATION)


def add_dataset(options: Options, splits: str = "") -> None:
    """The options that name a data set of the paper; `splits`: also --split, by default these."""
    add = options.add_argument
    add("--dataset", **choice(DATASETS), help="a data set as its publisher made it")
    add(
        "--data-root",
        metavar="DIR",
        type=folder,
        help="with --dataset: folder that its archives were unpacked in",
    )
    if splits:
        add("--split", metavar="NAME", type=nonempty, help=f"of --dataset (default: {splits})")


def add_evaluation(options: Options) -> None:
    """The options that name images and annotations to evaluate on."""
    add = options.add_argument
    add(
        "--val-images",
        metavar="DIR",
        type=folder,
        help="without --dataset: folder of the images to evaluate on",
    )
    add("--val-annotations", metavar="FILE", type=file, help="their COCO JSON file")


def problems(args: argparse.Namespace, *paths: str) -> Iterator[str]:
    """What is wrong with the data that the arguments name.

    They have to name a data set by NAMED or files by all of the options `paths`, not both.
    """
    named = [name for name in NAMED if _value(args, name)]
    given = [name for name in paths if _value(args, name)]
    missing = [name for name in paths if name not in given]
    if named and given:
        yield f"{given[0]} with --dataset or --data-root, wanted one or the other"
    elif named:
        for name in NAMED:
            if name not in named:
                yield f"{name} is missing; wanted --dataset NAME --data-root DIR"
    elif missing or not paths:
        wanted = "--dataset NAME --data-root DIR" + (f" or {' '.join(paths)}" if paths else "")
        yield f"wanted {wanted}; missing {' '.join(missing) or '--dataset'}"
    elif _value(args, "--split"):
        yield "--split without --dataset"


def is_named(args: argparse.Namespace) -> bool:
    """Whether --dataset names the data."""
    return _value(args, "--dataset") is not None


def training(
    args: argparse.Namespace,
) -> tuple["CocoDetection", "CocoDetection", dict[str, Any]]:
    """The data to learn from and to evaluate on, and what config.json says of where they are.

    Raises:
        Unusable, DataError
    """
    from detectors.data.dataset import CocoDetection

    for problem in problems(args, *TRAINING):
        raise Unusable(problem)
    if is_named(args):
        root = os.path.abspath(args.data_root)
        data: dict[str, Any] = {"dataset": args.dataset, "data_root": root}
        train = training_data(args.dataset, args.data_root)
    else:
        data = {_key(name): os.path.abspath(str(_value(args, name))) for name in TRAINING}
        train = CocoDetection(args.train_images, args.train_annotations)
    val = evaluation(args)
    refuse_unfit(train, val)
    return train, val, data


def names_data(args: argparse.Namespace) -> bool:
    """Whether any argument names training data."""
    return any(_value(args, name) for name in (*NAMED, *TRAINING))


def name_data(args: argparse.Namespace, data: Mapping[str, Any], config: Path, *paths: str) -> None:
    """Put the data that a run's `config`, a config.json, names into the arguments.

    These are NAMED or the options `paths`.

    Raises:
        Unusable: they are not there, as on another machine.
    """
    for name in (*NAMED, *paths):
        value = data.get(_key(name))
        if value is not None:
            setattr(args, _key(name), value if name == "--dataset" else Path(value))
            if name != "--dataset" and not os.path.exists(value):
                raise Unusable(
                    f"{config}: the run's data are no longer at {value}; name them by "
                    f"{' '.join(NAMED if name in NAMED else paths)}"
                )


def evaluation(args: argparse.Namespace) -> "CocoDetection":
    """The data to evaluate on.

    Raises:
        DataError
    """
    from detectors.data.dataset import CocoDetection

    if is_named(args):
        return evaluation_data(args.dataset, args.data_root, _value(args, "--split"))
    return CocoDetection(args.val_images, args.val_annotations)


def splits(args: argparse.Namespace, report: Report = fail) -> list["Published"]:
    """The splits of the data set of the paper that --dataset and --split name.

    Raises:
        DataError: unusable data, by default also what otherwise goes to `report`.
    """
    root: Path = args.data_root
    names = args.split or DATASETS[args.dataset].counted
    return [read_split(args.dataset, root, split, report) for split in names]


def refuse_unfit(train: "CocoDetection", val: "CocoDetection") -> None:
    """Raise DataError where there is nothing to learn, or classes to find that are not learnt."""
    if not train.objects:
        raise DataError(f"{train.source}: no objects to learn from")
    refuse_other_classes(val, train.source, train.class_names, train.category_ids)


def refuse_other_classes(
    dataset: "CocoDetection", other: object, names: list[str], ids: list[int]
) -> None:
    """Let the data have the classes of `other`, or raise DataError where it has more.

    Args:
        dataset: may lack some of the classes, or have them in another order.
        other: what messages call the file that has these classes.
        names: label → name.
        ids: label → COCO category id.
    """
    if dataset.class_names == names:
        return
    used = {record["category_id"] for record in dataset.ground_truth["annotations"]}
    own = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    unknown = [name for number, name in own.items() if number in used and name not in names]
    if unknown:
        raise DataError(
            f"{dataset.source}: categories {listed(unknown)}, which {other} does not have; "
            f"it has {listed(names)}"
        )
    shared = len(set(names) & set(own.values()))
    dataset.take_classes(names, ids)
    dataset.remarks.append(
        f"has {shared:,} of the {len(names):,} classes of {other}, used as there"
    )


def report_skipped(dataset: "CocoDetection") -> None:
    """Print what is worth knowing about data, on standard error.

    How many annotations are to be ignored, how many were clipped or skipped with the first of them,
    and the remarks.
    """
    lines = []
    if dataset.ignored:
        lines.append(dataset.counts)
    if dataset.skipped:
        count = len(dataset.skipped)
        lines.append(f"{count} annotations clipped or skipped:")
        lines[-1] += "".join(f"\n  {line}" for line in dataset.skipped[:SKIPPED_SHOWN])
        if count > SKIPPED_SHOWN:
            lines[-1] += f"\n  and {count - SKIPPED_SHOWN} more"
    for line in [*lines, *dataset.remarks]:
        print(printable_lines(f"{dataset.source}: {line}"), file=sys.stderr)


def _key(option: str) -> str:
    """What argparse calls an option."""
    return option[2:].replace("-", "_")


def _value(args: argparse.Namespace, option: str) -> Any:
    """An argument, None where it was not given."""
    return getattr(args, _key(option), None)
