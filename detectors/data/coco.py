"""Reading and checking COCO-format annotations.

Each problem that is found goes to a `Report` in words that name the file and the
annotation, image or category: `fail`, the default, raises it as a `DataError`, so that data are
accepted whole or not at all; `jol data check` prints them all. Records are dicts with COCO's keys.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from detectors.data import box_sanity
from detectors.data.annotation_checks import Checked, check_annotations, whole_boxes
from detectors.data.coco_checks import Report, check_categories, check_images
from detectors.data.exports import Notes, plain_coco
from detectors.errors import DataError
from detectors.utils.files import parse_json, read_bytes
from detectors.utils.printable import counted

ZERO_SIZE, BOXLESS = "of zero size", "without a box"


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
        checked: what was skipped, clipped and counted of the annotations.
        remarks: in words, what had to be done to read the file, and what is odd about it.
        sha256: of the file, hexadecimal; None where there is none.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    files: list[Path]
    checked: Checked
    remarks: list[str]
    sha256: str | None

    @property
    def digest(self) -> str:
        """sha256 of the file, or of what `to_json` writes where there is none."""
        return self.sha256 or hashlib.sha256(to_json(**self.content())).hexdigest()

    @property
    def ignored(self) -> int:
        """How many crowds and regions to ignore there are; one of several classes counts once."""
        return count_ignored(self.annotations)

    @property
    def objects(self) -> int:
        """How many objects there are to learn or find."""
        return sum(not record["iscrowd"] for record in self.annotations)

    @property
    def counts(self) -> str:
        """Images, objects, and crowds and regions to ignore, in words."""
        return counts(len(self.images), self.objects, self.ignored)

    def content(self) -> dict[str, Any]:
        """The COCO dict of images, annotations and categories."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }


def read_coco(source: Path, folder: Path | None, report: Report = fail) -> CocoFile:
    """Read the annotation file `source`, whose images lie in `folder`; None: no images needed.

    exports.py says which habits of annotation tools are understood, image_names.py how the file of
    an image is found.

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
    *,
    lost: bool = False,
) -> CocoFile:
    """`read_coco` of a COCO dict; `source` is what messages call it.

    `lost`: its reader has reported problems, which may be why there are no objects.
    """
    content, notes = plain_coco(content)
    given = content.get("annotations")
    categories, category_ids = check_categories(content, source, report)
    images, files, known = check_images(content, source, folder, report, notes)
    boxes = list(whole_boxes(content, known))
    fault = box_sanity.fault(boxes)
    if fault:  # of one cause, so that one message is enough
        report(f"{source}: {fault}")
        content = {**content, "annotations": []}
    checked = check_annotations(content, source, known, category_ids, report)
    remarks = list(_remarks(notes, checked))
    doubt = None if fault else box_sanity.doubt(boxes)
    remarks += [doubt] if doubt else []
    if all(record["iscrowd"] for record in checked.kept):
        skipped = {ZERO_SIZE: checked.zero_size, BOXLESS: checked.boxless}
        refuse_all_skipped(source, skipped, report)
        all_kept = isinstance(given, list) and len(given) == len(checked.kept)
        if all_kept and content.get("images") and not lost:  # else it has been said
            remarks.append("no objects: nothing to learn, and AP is not defined")
    return CocoFile(images, checked.kept, categories, files, checked, remarks, digest)


def count_ignored(annotations: Iterable[dict[str, Any]]) -> int:
    """How many crowds and regions to ignore there are; one of several classes counts once."""
    return len(
        {(record["image_id"], *record["bbox"]) for record in annotations if record["iscrowd"]}
    )


def counts(images: int, objects: int, ignored: int) -> str:
    """The words for what a data set holds."""
    return f"{counted(images, 'image')}, {counted(objects, 'object')}, {ignored:,} crowd or ignored"


def refuse_all_skipped(source: str, skipped: Mapping[str, int], report: Report) -> None:
    """Report that no object is left because of what was skipped, in words → how many."""
    if any(skipped.values()):
        reasons = ", ".join(f"{number:,} {what}" for what, number in skipped.items() if number)
        report(f"{source}: none of its objects can be used: {reasons}")


def _remarks(notes: Notes, checked: Checked) -> Iterator[str]:
    if notes:
        done = "; ".join(f"{what} ({number:,})" for what, number in notes.items())
        yield f"read as its tool wrote it: {done}"
    if checked.repeated:
        repeated = counted(checked.repeated, "object")
        yield f"{repeated} with the image, class and box of an earlier one, learnt and counted too"


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
        raw = read_bytes(source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    if not isinstance(content, dict):
        wanted = "an object with images, annotations and categories, as COCO exports have them"
        raise DataError(f"{source}: a JSON {type(content).__name__}, wanted {wanted}")
    return content, hashlib.sha256(raw).hexdigest()


def _existing(folder: Path, report: Report) -> Path | None:
    if folder.is_dir():
        return folder
    report(f"{folder}: no such folder of images")
    return None
