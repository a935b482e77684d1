"""The data sets of the paper by name: where their files lie, how they are read, trained, evaluated.

The paths are those of the publishers' archives, unpacked into one folder, the root. Where archives
differ, or people usually arrange them in another way, several paths are tried.

Schedules: section 4.2 of the paper. The rate falls to a tenth after 8 and 11 of 12 epochs, 16 and
22 of 24: the same parts of a run, and what runs do anyway.

The readers are imported when they read: the command line lists the names without torch.
"""

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from detectors.data.coco import fail
from detectors.data.coco_checks import Report
from detectors.errors import DataError
from detectors.utils.names import brief

if TYPE_CHECKING:
    from detectors.data.dataset import CocoDetection
    from detectors.data.published import Published


class _Read(Protocol):
    def __call__(self, root: Path, split: str, report: Report) -> "Published": ...


@dataclass(frozen=True)
class NamedDataset:
    """A data set of the paper.

    Attributes:
        read: (root, split, report) → the split; raises DataError where it is not there.
        splits: by name.
        train, test: the splits the paper trains on and gives results of.
        counted: the splits whose objects the paper's Table 1 describes.
        protocol: of evaluation.
        epochs: of training.
        image_size: the shorter side in pixels that images are resized to.
        tiled: trained and run on tiles, which `jol data convert --out-images` writes.
    """

    read: _Read
    splits: tuple[str, ...]
    train: str
    test: str
    counted: tuple[str, ...]
    protocol: str
    epochs: int = 12
    image_size: int = 800
    tiled: bool = False


def _visdrone(root: Path, split: str, report: Report) -> "Published":
    from detectors.data.published import first_of
    from detectors.data.visdrone import read_visdrone

    return read_visdrone(root, first_of(root, [f"VisDrone2019-DET-{split}", split]), report)


def _aitod(version: str, root: Path, split: str, report: Report) -> "Published":
    from detectors.data.published import first_of, read_published_json

    names = (f"aitod{version}_{split}_v1.json", f"aitod{version}_{split}.json")
    file = first_of(root, [f"{folder}{name}" for name in names for folder in ("annotations/", "")])
    # The images of trainval are also those of train and val.
    parts = (split, "train", "val") if split == "trainval" else (split, "trainval")
    folders = [
        folder for part in parts for folder in (f"{part}/images", f"images/{part}", f"{part}")
    ]
    return read_published_json(root, file, [*folders, "images"])


def _sodad(root: Path, split: str, report: Report) -> "Published":
    from detectors.data.published import first_of
    from detectors.data.sodad import read_sodad

    file = first_of(root, [f"{folder}/{split}.json" for folder in ("Annotations", "annotations")])
    folders = [f"{part}{end}" for part in ("Images", "images") for end in ("", f"/{split}")]
    return read_sodad(root, file, folders, report)


def _coco(root: Path, split: str, report: Report) -> "Published":
    from detectors.data.published import first_of, read_published_json

    file = first_of(root, [f"annotations/instances_{split}2017.json"])
    return read_published_json(root, file, [f"{split}2017", f"images/{split}2017"])


def _aitod_dataset(version: str) -> NamedDataset:
    return NamedDataset(
        read=partial(_aitod, version),
        splits=("train", "val", "trainval", "test"),
        train="trainval",
        test="test",
        counted=("trainval", "test"),
        protocol="aitod",
        epochs=24,
    )


DATASETS = {
    "visdrone": NamedDataset(
        read=_visdrone,
        splits=("train", "val", "test-dev"),
        train="train",
        test="val",
        counted=("train", "val"),
        protocol="aitod",
    ),
    "aitod": _aitod_dataset(""),
    "aitodv2": _aitod_dataset("v2"),
    "sodad": NamedDataset(
        read=_sodad,
        splits=("train", "val", "test"),
        train="train",
        test="test",
        counted=("train", "val", "test"),
        protocol="sodad",
        image_size=1200,
        tiled=True,
    ),
    "coco": NamedDataset(
        read=_coco,
        splits=("train", "val"),
        train="train",
        test="val",
        counted=("train", "val"),
        protocol="coco",
    ),
}


def read_split(name: str, root: Path, split: str, report: Report = fail) -> "Published":
    """A split of the data set `name` whose archives were unpacked in `root`.

    Raises:
        DataError: no such split, or its files are not there or unusable.
    """
    dataset = DATASETS[name]
    if split not in dataset.splits:
        raise DataError(
            f"{name} has no split {brief(split)}, wanted one of {', '.join(dataset.splits)}"
        )
    return dataset.read(root, split, report)


def training_data(name: str, root: Path) -> "CocoDetection":
    """The split that the paper trains on.

    Raises:
        DataError: unusable data, or SODA-D's tiles are not there.
    """
    from detectors.data.dataset import CocoDetection

    dataset = DATASETS[name]
    if dataset.tiled:
        return CocoDetection(*_tiles(name, root, dataset.train))
    published = read_split(name, root, dataset.train)
    return CocoDetection(root, published.content, published.source)


def evaluation_data(name: str, root: Path, split: str | None = None) -> "CocoDetection":
    """A split to evaluate on, by default the one whose results the paper gives.

    Raises:
        DataError: unusable data, or SODA-D's tiles are not there.
    """
    from detectors.data.dataset import CocoDetection
    from detectors.data.sodad import TiledDetection

    dataset = DATASETS[name]
    split = split or dataset.test
    published = read_split(name, root, split)
    if dataset.tiled:
        return TiledDetection(*_tiles(name, root, split), published.check(files=False))
    return CocoDetection(root, published.content, published.source)


def _tiles(name: str, root: Path, split: str) -> tuple[Path, Path]:
    """The folder of the tiles, and their COCO JSON file."""
    folder, file = root / "tiles" / split, root / "tiles" / f"{split}.json"
    if not file.is_file():
        words = ["--dataset", name, "--data-root", str(root), "--split", split]
        words += ["--out", str(file), "--out-images", str(folder)]
        raise DataError(
            f"{file}: no such file; write the tiles with "
            + shlex.join(["jol", "data", "convert", *words])
        )
    return folder, file
