"""What `jol reproduce` looks at before it trains: data, weights, disk."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from detectors.commands.data_options import refuse_unfit
from detectors.data.catalog import DATASETS, evaluation_data, read_split, training_data
from detectors.data.coco import ZERO_SIZE, CocoFile
from detectors.errors import DataError
from detectors.paper.published_numbers import DATA_SETS
from detectors.training.settings import TrainSettings
from detectors.utils.printable import counted

if TYPE_CHECKING:
    from detectors.data.dataset import CocoDetection

SHOWN = 3
"""Problems of a split that are told one by one."""
COUNTS: dict[str, tuple[tuple[tuple[str, ...], int, int | None], ...]] = {
    "visdrone": (
        (("train",), 6_471, DATA_SETS["visdrone"].objects),
        (("val",), 548, 38_759),
    ),
    **{
        name: ((("trainval", "test"), DATA_SETS[name].images, DATA_SETS[name].objects),)
        for name in ("aitod", "aitodv2")
    },
    "sodad": ((("train", "val", "test"), DATA_SETS["sodad"].images, DATA_SETS["sodad"].objects),),
    "coco": ((("train",), 118_287, None), (("val",), 5_000, None)),
}
"""Data set → splits counted together, their images and objects: Table 1's or their publisher's.

Table 1 rounds COCO's, and gives VisDrone's images of four splits and objects of one.
"""


@dataclass
class Found:
    """What there is of a data set.

    Attributes:
        train, test: images (SODA-D: tiles) to train and to detect on; 0 where unusable.
        lines: what to say of it.
        problems: why it cannot be used.
        warnings: how it differs from the data set of the paper.
    """

    train: int = 0
    test: int = 0
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_data(name: str, root: Path) -> Found:
    """Read the splits that are trained and tested on, and see that every image file is there.

    Each is read twice: for all of its problems, then as `jol train` does.
    """
    dataset, found = DATASETS[name], Found()
    splits: dict[str, tuple[int, int]] = {}  # its images and objects
    for split in (dataset.train, dataset.test):
        coco, zero = _read(name, root, split, found.problems)
        if coco is not None:
            splits[split] = len(coco.images), coco.objects + zero
            found.lines.append(f"{split}: {coco.counts}")
    if found.problems:
        return found
    data: list[CocoDetection] = []
    for read in (training_data, evaluation_data):
        try:
            data.append(read(name, root))
        except DataError as error:
            found.problems.append(str(error))
    if not found.problems:
        found.train, found.test = map(len, data)
        if dataset.tiled:
            found.lines.append(f"tiles: {found.train:,} to train on, {found.test:,} to detect on")
        try:
            refuse_unfit(*data)
        except DataError as error:
            found.problems.append(str(error))
    found.warnings += _differences(name, root, splits)
    return found


def _read(
    name: str, root: Path, split: str, problems: list[str], *, files: bool = True
) -> tuple[CocoFile | None, int]:
    """A split, and how many of its objects have no size; None if it has problems, added here."""
    told: list[str] = []
    coco, zero = None, 0
    try:
        published = read_split(name, root, split, told.append)
        coco = published.check(told.append, files=files, lost=bool(told))
        zero = published.skipped.get(ZERO_SIZE, 0) + coco.checked.zero_size
    except DataError as error:
        told.append(str(error))
    problems += told[:SHOWN]
    if len(told) > SHOWN:
        problems.append(
            f"{split}: {counted(len(told) - SHOWN, 'more problem')}; all are told by "
            f"jol data check --dataset {name} --data-root {root} --split {split}"
        )
    return (None if told else coco), zero


def _differences(name: str, root: Path, splits: dict[str, tuple[int, int]]) -> Iterator[str]:
    """Where images and objects are not as many as in COUNTS."""
    for wanted, images, objects in COUNTS[name]:
        together = [splits.get(split) for split in wanted]
        for at, split in enumerate(wanted):
            if together[at] is None:  # SODA-D's val, which nothing needs but this count
                coco, zero = _read(name, root, split, [], files=False)
                together[at] = (len(coco.images), coco.objects + zero) if coco else None
        there = [counts for counts in together if counts]
        what = " and ".join(wanted)
        if len(there) < len(wanted):
            yield f"{what}: not all there, so not counted"
            continue
        have = [sum(column) for column in zip(*there, strict=True)]
        if have[0] != images or objects not in (None, have[1]):
            full = f"{images:,} images" + (f", {objects:,} objects" if objects else "")
            yield (
                f"not the paper's data: {what}: {counted(have[0], 'image')}, "
                f"{counted(have[1], 'object')}; the paper's data set has {full}"
            )


def check_weights(settings: Iterable[TrainSettings]) -> Iterator[str]:
    """Why backbone weights cannot be had; those of ImageNet are downloaded if they must be."""
    from detectors.models.backbones import resnet

    for name, weights, preset in dict.fromkeys(
        (one.backbone, one.backbone_weights, one.preset) for one in settings
    ):
        try:
            resnet(name, weights, preset)
        except ValueError as error:
            yield str(error)


def free_disk(out: Path) -> int:
    """Bytes that are free where the folder `out` is or will be."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free
