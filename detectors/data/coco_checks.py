"""The rules that COCO-format images, annotations and categories keep.

Each function takes the whole content, after exports.py, and what messages call it, reports every
record that breaks a rule, skips it, and returns the others.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.data.box_sanity import Box
from detectors.data.exports import Notes
from detectors.data.image_names import find_image
from detectors.utils.printable import printable

# Coordinates are often rounded to two decimals: an extent of this many pixels or less counts as
# zero, and an overhang of this many pixels or less is cut off without a line in `skipped`.
ROUNDING = 0.01


LONGEST_SIDE = 2**31 - 1  # pixels; beyond it sizes leave what floats and Pillow can hold


Report = Callable[[str], object]
"""Takes a problem in words. Where it returns, what has the problem is skipped."""


def _records(
    content: dict[str, Any], source: str, key: str, report: Report
) -> Iterator[tuple[dict, str]]:
    """Each record of `content[key]` with the words that name it; their ids are unique."""
    if key not in content:
        wanted = "images, annotations and categories"
        if "shapes" in content:
            wanted += (
                ": this is LabelMe's file of one image, to be converted to COCO with the others"
            )
        report(f"{source}: no key {key!r}; wanted {wanted}")
        return
    if not isinstance(content[key], list):
        report(f"{source}: {key!r} is a {type(content[key]).__name__}, wanted a list")
        return
    seen = set()
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for position, record in enumerate(content[key]):
        where = f"{source}: {key}[{position}]"
        if not isinstance(record, dict):
            report(f"{where} is a {type(record).__name__}, wanted an object")
            continue
        number = _integer(record, "id", where, report)
        if number is None:
            continue
        where = f"{source}: {noun} {number}"
        if number in seen:
            report(f"{where} appears twice; ids must be unique")
            continue
        seen.add(number)
        yield record, where


def _integer(record: dict[str, Any], key: str, where: str, report: Report) -> int | None:
    if key not in record:
        report(f"{where}: no key {key!r}")
        return None
    value = record[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        report(f"{where}: {key} is {value!r}, wanted an integer")
        return None
    return value


def check_categories(
    content: dict[str, Any], source: str, report: Report
) -> tuple[list[dict[str, Any]], set[int]]:
    """The categories, ascending by id, and all ids, those of faulty ones too."""
    found: dict[str, int] = {}
    ids = set()
    for record, where in _records(content, source, "categories", report):
        ids.add(int(record["id"]))
        name: Any = record.get("name")
        if not _is_text(name):
            report(f"{where}: name is {name!r}, wanted a text")
        elif printable(name) != name:
            report(f"{where}: name is {name!r}, wanted one without control characters")
        elif name in found:
            report(f"{where}: category {found[name]} has the name {name!r} too")
        else:
            found[name] = int(record["id"])
    if content.get("categories") == []:
        report(f"{source}: no categories")
    by_id = sorted((number, name) for name, number in found.items())
    return [{"id": number, "name": name} for number, name in by_id], ids


def check_images(
    content: dict[str, Any], source: str, folder: Path | None, report: Report, notes: Notes
) -> tuple[list[dict[str, Any]], list[Path], dict[int, dict[str, Any] | None]]:
    """The image records, in a folder the file of each, and all by id, None for one of no size.

    `notes` gets what had to be done to find files and sizes.
    """
    records, files = [], []
    owner: dict[Path, int] = {}
    known: dict[int, dict[str, Any] | None] = {}
    for record, where in _records(content, source, "images", report):
        number, name = int(record["id"]), record.get("file_name")
        known[number] = None
        unsized = record.get("width") is None and record.get("height") is None
        size = None if unsized else _size(record, where, report)
        if size is None and not unsized:
            continue
        file = None if folder is None else _find(folder, name, where, report, notes)
        if unsized:
            size = _size_of(file, folder, where, report, notes)
        if size is None:
            continue
        known[number] = {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        if folder is not None:
            if file is None:
                continue
            if file in owner:
                report(f"{where}: {file} is the file of image {owner[file]} too")
                continue
            owner[file] = number
            files.append(file)
        records.append(known[number])
    if content.get("images") == []:
        report(f"{source}: no images")
    return [record for record in records if record], files, known


def _size(record: dict[str, Any], where: str, report: Report) -> tuple[int, int] | None:
    """(width, height) of an image."""
    width = _integer(record, "width", where, report)
    height = _integer(record, "height", where, report)
    if width is None or height is None:
        return None
    if min(width, height) < 1 or max(width, height) > LONGEST_SIDE:
        report(f"{where}: size {width}x{height}, wanted sides of 1 to {LONGEST_SIDE} pixels")
        return None
    return width, height


def _size_of(
    file: Path | None, folder: Path | None, where: str, report: Report, notes: Notes
) -> tuple[int, int] | None:
    """(width, height) of an image whose record has neither, from its file."""
    from detectors.data.images import UNREADABLE, displayed_size  # imports torch

    if folder is None:
        report(f"{where}: no width and height; wanted both where the images are not read")
    if file is None:
        return None
    try:
        size = displayed_size(file)
    except UNREADABLE as error:
        report(f"{where}: no width and height, and {file} cannot be opened: {error}")
        return None
    notes["images without width and height, taken from their files"] += 1
    return size


def _is_text(value: object) -> bool:
    """Whether it is a text, and one that can be written: JSON allows half a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _find(folder: Path, name: Any, where: str, report: Report, notes: Notes) -> Path | None:
    """The file of an image; find_image has the rule."""
    if not _is_text(name):
        report(f"{where}: file_name is {name!r}, wanted a text")
        return None
    try:
        file, other = find_image(folder, name)
    except ValueError as error:
        report(f"{where}: {error}")
        return None
    if other is not None:
        notes[other] += 1
    return file


def whole_boxes(
    content: dict[str, Any], images: Mapping[int, dict[str, Any] | None]
) -> Iterator[Box]:
    """The objects' boxes of positive size with their image's size, for box_sanity.py."""
    records = content.get("annotations")
    for record in records if isinstance(records, list) else []:
        if isinstance(record, dict) and isinstance(record.get("image_id"), int | float):
            image, box = images.get(record["image_id"]), record.get("bbox")
            numbers = [_number(n) for n in box] if isinstance(box, list) else []
            if image and len(numbers) == 4 and all(map(math.isfinite, numbers)):
                x, y, w, h = numbers
                if min(w, h) > 0 and not (record.get("iscrowd") or record.get("ignore")):
                    yield x, y, w, h, image["width"], image["height"]


@dataclass
class Checked:
    """The annotations as used, and what was done with the others.

    Attributes:
        kept: the annotations.
        skipped: a line for each that was skipped or clipped.
        zero_size: how many had no width or height.
        boxless: how many had an empty list for a box and no outline.
        clipped: how many were cut at the border of their image; a crowd of several classes counts
            once.
        repeated: how many objects have the image, class and box of an earlier one.
    """

    kept: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    zero_size: int = 0
    boxless: int = 0
    clipped: int = 0
    repeated: int = 0


def check_annotations(
    content: dict[str, Any],
    source: str,
    images: dict[int, dict[str, Any] | None],
    category_ids: set[int],
    report: Report,
) -> Checked:
    """The annotations as used, with boxes inside their image."""
    found = Checked()
    cut = set()  # a crowd of several classes is cut once
    seen = set()
    for record, where in _records(content, source, "annotations", report):
        number = int(record["id"])
        image_id = _one_of(images, record, "image", "images", where, report)
        category_id = _one_of(category_ids, record, "category", "categories", where, report)
        if record.get("bbox") == []:
            found.skipped.append(f"annotation {number}: no box")
            found.boxless += 1
            continue
        box = _four_numbers(record.get("bbox"), where, report)
        if box is None:
            continue
        if min(box[2:]) <= ROUNDING:
            side = f"width {box[2]:g}" if box[2] <= ROUNDING else f"height {box[3]:g}"
            found.skipped.append(f"annotation {number}: {side}")
            found.zero_size += 1
            continue
        image = None if image_id is None else images[image_id]
        if image is None or category_id is None:
            continue
        inside = _clip(box, image, where, report)
        if inside is None:
            continue
        box, clipped = inside
        area = _area(record, box, where, report)
        if area is None:
            continue
        if clipped:
            found.skipped.append(f"annotation {number}: clipped to its image")
        marks = [_mark(record, key, where, report) for key in ("iscrowd", "ignore")]
        if None in marks:
            continue
        crowd = any(marks)
        if clipped:
            cut.add((image_id, *box) if crowd else number)
        if not crowd:
            same = (image_id, category_id, *box)
            found.repeated += same in seen
            seen.add(same)
        found.kept.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
        )
    found.clipped = len(cut)
    return found


def _mark(record: dict[str, Any], key: str, where: str, report: Report) -> bool | None:
    """Whether an annotation has this mark; None where it says something else."""
    value = record.get(key)
    if value is None:
        return False
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    report(f"{where}: {key} is {value!r}, wanted 0 or 1")
    return None


def _one_of(
    ids: Container[int], record: dict[str, Any], noun: str, nouns: str, where: str, report: Report
) -> int | None:
    number = _integer(record, f"{noun}_id", where, report)
    if number is not None and number not in ids:
        report(f"{where}: {noun} {number} is not among the {nouns}")
        return None
    return number


def _number(value: object) -> float:
    """`value` as a float; NaN where it is no number, infinity where it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _four_numbers(value: object, where: str, report: Report) -> list[float] | None:
    numbers = [_number(item) for item in value] if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        text = repr(value)
        text = text if len(text) <= 80 else text[:77] + "..."
        report(f"{where}: bbox is {text}, wanted four finite numbers [x, y, w, h]")
        return None
    if min(numbers[2:]) < -ROUNDING:
        side = "width" if numbers[2] < -ROUNDING else "height"
        text = ", ".join(f"{number:g}" for number in numbers)
        report(
            f"{where}: bbox [{text}] has a negative {side}, wanted [x, y, w, h] from the upper left"
        )
        return None
    return numbers


def _clip(
    box: list[float], image: dict[str, Any], where: str, report: Report
) -> tuple[list[float], bool] | None:
    """The part of `box` (x y w h) inside its image, and whether that cut off anything."""
    x, y, w, h = box
    width, height = image["width"], image["height"]
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if x2 - x1 <= ROUNDING or y2 - y1 <= ROUNDING:
        size = f"image {image['id']} ({width}x{height})"
        report(f"{where}: bbox [{x:g}, {y:g}, {w:g}, {h:g}] lies outside {size}")
        return None
    overhang = max(-x, -y, x + w - width, y + h - height)
    if overhang <= 0:
        return [x, y, w, h], False
    return [x1, y1, x2 - x1, y2 - y1], overhang > ROUNDING


def _area(record: dict[str, Any], box: list[float], where: str, report: Report) -> float | None:
    """The object's area for the size buckets: the file's own, at most the (clipped) box's."""
    full = box[2] * box[3]
    if record.get("area") is None:
        return full
    area = _number(record["area"])
    if not math.isfinite(area):
        report(f"{where}: area is {record['area']!r}, wanted a finite number")
        return None
    return min(area, full) if area > 0 else full  # some converters write 0 for "unknown"
