"""A split of a data set as its publisher made it, and the reader of those that are COCO JSON."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.data.coco import CocoFile, check_coco, fail, read_json
from detectors.data.coco_checks import Report
from detectors.data.tiles import Box
from detectors.errors import DataError

IMAGE_KEYS = ("id", "file_name", "width", "height")


ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")


CATEGORY_KEYS = ("id", "name")


@dataclass(frozen=True)
class Published:
    """A split, read but not checked by the rules of `check_coco`.

    Attributes:
        source: what messages call it: the annotation file or folder.
        root: the folder that the images' file names begin in.
        content: COCO dict.
        skipped: what the reader skipped, in words → how many.
        regions: image id → the regions to ignore that its tiles show black.
    """

    source: str
    root: Path
    content: dict[str, Any]
    skipped: dict[str, int]
    regions: dict[int, list[Box]] = field(default_factory=dict)

    def check(self, report: Report = fail, *, files: bool = True, lost: bool = False) -> CocoFile:
        """By the rules of `check_coco`; files: also that every image is there."""
        folder = self.root if files else None
        return check_coco(self.content, self.source, folder, report, lost=lost)


def first_of(root: Path, tried: Sequence[str]) -> Path:
    """The first of these files or folders that is there.

    Raises:
        DataError: none is, or no folder `root`.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    for name in tried:
        if (root / name).exists():
            return root / name
    raise DataError(f"{root}: no {' or '.join(tried)} there")


def read_published_json(root: Path, annotations: Path, folders: Sequence[str]) -> Published:
    """A COCO JSON file whose images lie in one or more of `folders`, which begin in `root`.

    An image is in the first folder that has it. Keys that detection does not need are dropped:
    COCO's outlines alone are most of its file.

    Raises:
        DataError: no JSON object in the file.
    """
    content, _ = read_json(annotations)
    there = [folder for folder in folders if (root / folder).is_dir()] or list(folders[:1])
    for key, keys in (
        ("images", IMAGE_KEYS),
        ("annotations", ANNOTATION_KEYS),
        ("categories", CATEGORY_KEYS),
    ):
        if isinstance(content.get(key), list):
            content[key] = [_only(record, keys) for record in content[key]]
    for record in content["images"] if isinstance(content.get("images"), list) else []:
        name = record.get("file_name") if isinstance(record, dict) else None
        if isinstance(name, str) and name:
            record["file_name"] = _placed(root, there, name)
    return Published(str(annotations), root, content, {})


def _only(record: Any, keys: Sequence[str]) -> Any:
    """The record with these keys alone; what is no record stays for the checks to name."""
    return (
        {key: record[key] for key in keys if key in record} if isinstance(record, dict) else record
    )


def _placed(root: Path, folders: Sequence[str], name: str) -> str:
    """The file name seen from `root`."""
    for folder in folders:
        if os.path.isfile(os.path.join(root, folder, name)):
            return f"{folder}/{name}"
    return f"{folders[0]}/{name}"
