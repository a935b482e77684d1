"""Reading and checking COCO-format annotations.

Each problem that coco_checks.py finds goes to a `Report` in words that name the file and the
annotation, image or category: `fail`, the default, raises it as a `DataError`, so that data are
accepted whole or not at all; `jol data check` prints them all. Records are dicts with COCO's keys.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from detectors.data.coco_checks import Report, check_annotations, check_categories, check_images
from detectors.errors import DataError
from detectors.utils.regular_files import open_regular


def fail(problem: str) -> NoReturn:
    """The `Report` that raises the first problem as a DataError."""
    raise DataError(problem)


@dataclass(frozen=True)
class CocoFile:
    """What annotations say, checked.

    Attributes:
        images: records with id, file_name, width, height, in the order of the file.
        annotations: records with id, image_id, category_id, bbox, area, iscrowd; boxes inside
            their image; iscrowd 1 for crowd and ignored ones.
        categories: records with id and name, ascending by id.
        files: the image file of each of `images`; none where read without a folder.
        skipped: a line for each annotation skipped, clipped, or crowd or ignored.
        zero_size: how many annotations of no width or height were skipped.
        clipped: how many annotations were cut off at the border of their image; a crowd of several
            classes counts once.
        sha256: of the file, hexadecimal; None where there is none.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    files: list[Path]
    skipped: list[str]
    zero_size: int
    clipped: int
    sha256: str | None

    @property
    def digest(self) -> str:
        """sha256 of the file, or of what `to_json` writes where there is none."""
        return self.sha256 or hashlib.sha256(to_json(**self.content())).hexdigest()

    @property
    def ignored(self) -> int:
        """How many crowds and regions to ignore there are; one of several classes counts once."""
        boxes = ((a["image_id"], *a["bbox"]) for a in self.annotations if a["iscrowd"])
        return len(set(boxes))

    def content(self) -> dict[str, Any]:
        """The COCO dict of images, annotations and categories."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }


def read_coco(source: Path, folder: Path | None, report: Report = fail) -> CocoFile:
    """Read the annotation file `source`, whose images lie in `folder`; None: no images needed.

    A `file_name` is looked up in `folder`. Where the last folders of `folder` are the first ones
    of `file_name` they count once: "images/a.jpg" is found in .../train as well as in
    .../train/images.

    Raises:
        DataError: a file that cannot be read, or is not JSON; by default also unusable ids,
            categories, boxes or images, which otherwise go to `report`.
    """
    if folder is not None:
        folder = _existing(folder, report)
    content, digest = read_json(source)
    return check_coco(content, str(source), folder, report, digest)


def check_coco(
    content: dict[str, Any],
    source: str,
    folder: Path | None,
    report: Report = fail,
    digest: str | None = None,
) -> CocoFile:
    """`read_coco` of a COCO dict; `source` is what messages call it."""
    categories, category_ids = check_categories(content, source, report)
    images, files, known = check_images(content, source, folder, report)
    annotations, skipped, zero_size, clipped = check_annotations(
        content, source, known, category_ids, report
    )
    return CocoFile(images, annotations, categories, files, skipped, zero_size, clipped, digest)


def to_json(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> bytes:
    """The text of a COCO file."""
    content = {"images": images, "annotations": annotations, "categories": categories}
    return (json.dumps(content) + "\n").encode()


def read_json(source: Path) -> tuple[dict[str, Any], str]:
    """A JSON file's object and the file's sha256.

    Raises:
        DataError: no such file, or no JSON object in it.
    """
    try:
        with open_regular(source) as file:
            raw = file.read()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{source}: not valid JSON: {error.msg} at {at}") from error
    except (ValueError, RecursionError) as error:  # not text, or a number or nesting too long
        raise DataError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{source}: a JSON {type(content).__name__}, wanted an object")
    return content, hashlib.sha256(raw).hexdigest()


def _existing(folder: Path, report: Report) -> Path | None:
    if folder.is_dir():
        return folder
    report(f"{folder}: no such folder of images")
    return None
