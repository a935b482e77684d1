"""VisDrone-DET: a folder of images and a folder of txt files, one an image.

A line is an object: x,y,w,h,score,category,truncation,occlusion, in pixels; some lines end with a
comma. Score 0 means "do not count". Category 0 is a region to ignore whatever the class, 1 to 10
are the classes, 11 is other objects.

Source: README of github.com/VisDrone/VisDrone2018-DET-toolkit.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectors.data.coco import ZERO_SIZE, fail, refuse_all_skipped
from detectors.data.coco_checks import Report
from detectors.data.images import UNREADABLE, displayed_size, reason
from detectors.data.published import Published
from detectors.errors import DataError
from detectors.utils.files import read_bytes
from detectors.utils.names import brief

CLASSES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
"""The classes 1 to 10."""


REGION, OTHERS = 0, 11


SUFFIXES = (".jpg", ".jpeg", ".png")


def read_visdrone(root: Path, folder: Path, report: Report = fail) -> Published:
    """The split in `folder`, such as VisDrone2019-DET-train, with images/ and annotations/ in it.

    What is to be ignored becomes `iscrowd` annotations: of its class for score 0, of every class
    for an ignored region. Objects of category 11 and boxes of zero size are skipped and counted;
    a region of zero size says nothing and is not counted.

    Raises:
        DataError: no images and annotations there; by default also a line, an image or a pair of
            files that cannot be used, which otherwise go to `report`.
    """
    for part in ("images", "annotations"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder / part}: no such folder")
    pictures: dict[str, Path] = {}
    for file in sorted(_shown(folder / "images")):
        if file.suffix.lower() in SUFFIXES and pictures.setdefault(file.stem, file) != file:
            report(f"{file}: {pictures[file.stem].name} has the same {file.stem}.txt")
    texts = {file.stem: file for file in _shown(folder / "annotations") if file.suffix == ".txt"}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    skipped = Counter({ZERO_SIZE: 0, "of category others": 0})
    for stem in sorted(pictures.keys() | texts.keys()):
        if stem not in pictures:
            report(f"{texts[stem]}: no image {stem} in {folder / 'images'}")
            continue
        picture = pictures[stem]
        if stem not in texts:
            report(f"{picture}: no {stem}.txt in {folder / 'annotations'}")
            continue
        size = _size(picture, report)
        if size is None:
            continue
        name = picture.relative_to(root).as_posix()
        number = len(images) + 1
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for row in _rows(texts[stem], size, report):
            annotations += _annotations(row, number, len(annotations) + 1, skipped)
    if all(record["iscrowd"] for record in annotations):
        refuse_all_skipped(str(folder), skipped, report)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return Published(str(folder), root, content, dict(skipped))


def _shown(folder: Path) -> Iterator[Path]:
    """The files that are not hidden; macOS puts a hidden one next to each that it copies."""
    return (file for file in folder.iterdir() if not file.name.startswith("."))


def _size(picture: Path, report: Report) -> tuple[int, int] | None:
    """(width, height) as displayed."""
    try:
        return displayed_size(picture)
    except UNREADABLE as error:
        report(f"{picture}: cannot be opened: {reason(error)}")
        return None


def _rows(file: Path, size: tuple[int, int], report: Report) -> Iterator[list[int]]:
    """The lines of a txt file as eight numbers each; size: of its image."""
    try:
        text = read_bytes(file).decode("utf-8-sig")  # Windows' editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        report(f"{file}: cannot be read: {getattr(error, 'strerror', 'no text in UTF-8')}")
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = [int(value) for value in line.strip().rstrip(",").split(",")]
        except ValueError:
            row = []
        if len(row) != 8 or row[4] not in (0, 1) or not REGION <= row[5] <= OTHERS:
            report(
                f"{file} line {number}: {brief(line)}, wanted eight whole numbers "
                f"x,y,w,h,score,category,truncation,occlusion, score 0 or 1, category 0 to 11"
            )
            continue
        x, y, w, h = row[:4]
        problem = None
        if min(w, h) < 0:
            problem = "has a negative size"
        elif min(w, h) > 0 and not (-w < x < size[0] and -h < y < size[1]):
            problem = f"lies outside its image ({size[0]}x{size[1]})"
        if problem:
            box = ",".join(map(brief, row[:4]))
            report(f"{file} line {number}: box {box} {problem}")
            continue
        yield row


def _annotations(
    row: list[int], image_id: int, number: int, skipped: Counter[str]
) -> list[dict[str, Any]]:
    """The COCO annotations of a line, with ids from `number`."""
    x, y, w, h, score, category, *_ = row
    if category == OTHERS:
        skipped["of category others"] += 1
        return []
    if w <= 0 or h <= 0:
        skipped[ZERO_SIZE] += category != REGION
        return []
    classes = range(1, len(CLASSES) + 1) if category == REGION else (category,)
    return [
        {
            "id": number + k,
            "image_id": image_id,
            "category_id": one,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": int(category == REGION or score == 0),
        }
        for k, one in enumerate(classes)
    ]
