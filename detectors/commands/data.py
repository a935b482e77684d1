"""`jol data`: what a data set holds, what is wrong in it, and other formats of it."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detectors.commands.data_options import add_dataset, is_named, problems, splits
from detectors.commands.options import PRIORS, add_settings
from detectors.data.catalog import DATASETS, read_split
from detectors.data.coco import (
    BOXLESS,
    ZERO_SIZE,
    CocoFile,
    count_ignored,
    counts,
    read_coco,
    to_json,
)
from detectors.data.coco_checks import Report
from detectors.errors import DataError, Unusable
from detectors.models.anchor_plans import plan_layout
from detectors.models.compatibility import misfits_of_loss, refuse
from detectors.training.settings import FIELDS, TrainSettings, resolve
from detectors.utils.argument_types import (
    file,
    file_to_write,
    folder_to_write,
    nonempty,
    path,
    positive,
)
from detectors.utils.files import replace
from detectors.utils.parser import Parser
from detectors.utils.printable import counted, printable

SIZES = ("anchor_scale", "anchor_ratios", "strides", "image_size", "crop")
"""Settings that decide how priors lie and how large objects are."""
AS_TRAINED = ("preset", "image_size", "crop", "classification", "regression")
"""Settings of `jol data stats` that the detector decides where they are not given."""


def add(subparsers: Any) -> None:
    """Declare `jol data` and its own commands."""
    data: Parser = subparsers.add_parser(
        "data", help="look into data sets", usage="jol data COMMAND ..."
    )
    actions = data.add_subparsers(
        prog="jol data", required=True, metavar="COMMAND", title="commands"
    )
    _add_stats(actions)
    _add_check(actions)
    _add_convert(actions)


def _add(
    actions: Any, name: str, run: Callable[[argparse.Namespace], None], **settings: Any
) -> Parser:
    command: Parser = actions.add_parser(name, **settings)
    command.set_defaults(run=run, command=f"data {name}")
    return command


def _add_splits(command: Parser) -> None:
    add_dataset(command)
    command.add_argument(
        "--split",
        metavar="NAME",
        nargs="+",
        type=nonempty,
        help="of --dataset (default: those that the paper's Table 1 counts objects of)",
    )


def _add_stats(actions: Any) -> None:
    command = _add(
        actions,
        "stats",
        stats,
        help="count objects by size and class; with --positives: what an assigner gives them",
        usage="jol data stats --annotations FILE ... [OPTION ...]\n"
        "       jol data stats --dataset NAME --data-root DIR [OPTION ...]",
    )
    add = command.add_argument
    add(
        "--annotations",
        metavar="FILE",
        nargs="+",
        type=file,
        help="COCO JSON files, counted together, such as train and val; needs no images",
    )
    _add_splits(command)
    add_settings(
        command,
        TrainSettings,
        ["detector"],
        default="faster_rcnn",
        help="detector whose anchors are looked at (default: %(default)s)",
    )
    add_settings(command, TrainSettings, PRIORS)
    for name in AS_TRAINED:  # in the namespace only where they are given
        add_settings(command, TrainSettings, [name], default=argparse.SUPPRESS)
    add(
        "--positives",
        action="store_true",
        help="count the positives that the assigner gives to objects of each size",
    )
    add(
        "--every",
        metavar="N",
        type=positive,
        default=1,
        help="with --positives: assign on every N-th image only (default: 1, all)",
    )
    command.check = lambda args: problems(args, "--annotations")


def _add_check(actions: Any) -> None:
    command = _add(
        actions,
        "check",
        check,
        help="name every problem of a data set; exit status 2 if there is one",
        usage="jol data check --images DIR --annotations FILE\n"
        "       jol data check --dataset NAME --data-root DIR [--split NAME ...]",
    )
    add = command.add_argument
    add("--images", metavar="DIR", type=path, help="without --dataset: folder of the images")
    add("--annotations", metavar="FILE", type=file, help="their COCO JSON file")
    _add_splits(command)
    command.check = lambda args: problems(args, "--images", "--annotations")


def _add_convert(actions: Any) -> None:
    command = _add(
        actions,
        "convert",
        convert,
        help="write a data set of the paper as COCO JSON, SODA-D also as tiles",
        usage="jol data convert --dataset NAME --data-root DIR --split NAME --out FILE\n"
        "                        [--out-images DIR]",
    )
    add_dataset(command)
    add = command.add_argument
    add("--split", metavar="NAME", required=True, type=nonempty, help="such as train")
    add("--out", metavar="FILE", required=True, type=file_to_write, help="COCO JSON file to write")
    add(
        "--out-images",
        metavar="DIR",
        type=folder_to_write,
        help="with sodad: write tiles there, and --out for them; train and eval look for "
        "tiles/SPLIT and tiles/SPLIT.json in --data-root",
    )
    command.check = _problems_of_convert


def _problems_of_convert(args: argparse.Namespace) -> Iterator[str]:
    yield from problems(args)
    dataset = DATASETS.get(str(args.dataset))
    if args.out_images and dataset and not dataset.tiled:
        yield f"--out-images: {args.dataset} is not cut into tiles"


def stats(args: argparse.Namespace) -> None:
    """Print what the data set holds, SimD's constants, and what an assigner gives its objects."""
    from detectors.commands import data_stats
    from detectors.data import object_counts

    given = {name: value for name, value in vars(args).items() if name in FIELDS}
    settings = resolve({**given, "loss": "base", "assigner_settings": {}}, 1, args.dataset, {})
    preset, sizes = settings.preset, {name: getattr(settings, name) for name in SIZES}
    try:
        refuse(misfits_of_loss(args.detector, settings.classification))
        anchors = plan_layout(args.detector, preset, **sizes)
        layout = plan_layout(args.detector, preset, args.assigner, **sizes)
        name, assign = data_stats.pick_assigner(
            args.detector, args.assigner, dict(args.assigner_settings or []), preset
        )
    except ValueError as error:
        raise Unusable(str(error)) from error
    if is_named(args):
        published = splits(args)
        read = [(split.source, split.check(files=False)) for split in published]
        skipped = sum((Counter(split.skipped) for split in published), Counter())
    else:
        read = [(str(file), read_coco(file, None)) for file in args.annotations]
        skipped = Counter()
    pool = object_counts.make_pool(read, skipped)
    for source, coco in read:
        for remark in coco.remarks:
            print(printable(f"{source}: {remark}"), file=sys.stderr)
    print("\n".join(data_stats.describe(pool)))
    print("\n" + "\n".join(data_stats.describe_simd(pool, settings, anchors)), flush=True)
    if args.positives:
        table = data_stats.describe_positives(pool, settings, name, assign, layout, args.every)
        print("\n" + "\n".join(table))


def check(args: argparse.Namespace) -> None:
    """Print every problem of a data set, and what would be skipped of it.

    Raises:
        Unusable: there are problems.
    """
    count = 0

    def report(problem: str) -> None:
        nonlocal count
        count += 1
        print(printable(problem), flush=True)

    if is_named(args):
        dataset = DATASETS[args.dataset]
        for name in args.split or dataset.counted:
            before = count
            try:
                split = read_split(args.dataset, args.data_root, name, report)
            except DataError as error:
                report(str(error))
            else:
                coco = split.check(report, lost=count > before)
                _check_one(split.source, coco, split.skipped, report)
    else:
        try:
            coco = read_coco(args.annotations, args.images, report)
        except DataError as error:
            report(str(error))
        else:
            _check_one(str(args.annotations), coco, {}, report)
    if count:
        raise Unusable(f"{count:,} problems" if count > 1 else "1 problem")


def _check_one(source: str, coco: CocoFile, before: Mapping[str, int], report: Report) -> None:
    """Decode every image, and print what of the data would be used."""
    from detectors.utils.progress import Progress

    seen: Counter[str] = Counter()
    with Progress(f"images of {source}", 0, len(coco.files), quiet=True) as progress:
        for done, (problem, traits) in enumerate(decoded(coco, source), start=1):
            if problem:
                report(problem)
            seen.update(traits)
            progress.step(done)
    remarks = [*coco.remarks, *(f"{counted(n, 'image')} {what}" for what, n in seen.items())]
    for remark in remarks:
        print(printable(f"{source}: {remark}"))
    skipped = ", ".join(f"{number:,} {what}" for what, number in _skipped(before, coco).items())
    print(
        printable(f"{source}: {coco.counts}; {coco.checked.clipped:,} clipped; skipped: {skipped}")
    )


def _skipped(before: Mapping[str, int], coco: CocoFile) -> dict[str, int]:
    """What the reader skipped, in words → how many, and then what the rules skip."""
    counts = {**before, ZERO_SIZE: before.get(ZERO_SIZE, 0) + coco.checked.zero_size}
    return counts | ({BOXLESS: coco.checked.boxless} if coco.checked.boxless else {})


def decoded(coco: CocoFile, source: str) -> Iterator[tuple[str | None, list[str]]]:
    """For each image what is wrong with its file, None if nothing is, and what it is like.

    That is in words that follow a number of images.
    """
    from detectors.data.images import read_picture, traits
    from detectors.data.loading import map_images

    def look(image: dict[str, Any], file: Path, where: str) -> tuple[str | None, list[str]]:
        try:
            return None, traits(read_picture(file, (image["width"], image["height"]), where))
        except DataError as error:
            return str(error), []

    return map_images(look, coco.images, coco.files, source)


def convert(args: argparse.Namespace) -> None:
    """Write a split as COCO JSON, or as tiles with theirs.

    File names begin at --data-root, those of tiles at --out-images.
    """
    from detectors.data.sodad import write_tiles
    from detectors.utils.progress import Progress

    dataset = DATASETS[args.dataset]
    split = read_split(args.dataset, args.data_root, args.split)
    coco = split.check()
    content = coco.content()
    if args.out_images:
        with Progress("tiles", 0, len(coco.images), quiet=True) as progress:
            content = write_tiles(
                coco,
                split.regions,
                args.out_images,
                source=split.source,
                only_objects=args.split == dataset.train,
                on_image=lambda done: progress.step(done),
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace(args.out, lambda file: file.write(to_json(**content)))
    for what, number in _skipped(split.skipped, coco).items():
        print(f"skipped: {number:,} {what}")
    written = content["annotations"]
    objects = sum(not record["iscrowd"] for record in written)
    held = counts(len(content["images"]), objects, count_ignored(written))
    print(printable(f"{held} in {args.out}"))
