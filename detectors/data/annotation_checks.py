"""The rules that COCO-format annotations keep."""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectors.data.box_sanity import Box
from detectors.data.records import Report, integer, records_of
from detectors.utils.names import brief

# Coordinates are often rounded to two decimals: an extent of this many pixels or less counts as
# zero, and an overhang of this many pixels or less is cut off without a line in `skipped`.
ROUNDING = 0.01


def whole_boxes(
    content: dict[str, Any], images: Mapping[int, dict[str, Any] | None]
) -> Iterator[Box]:
    """The objects' boxes of positive size with their image's size, for box_sanity.py."""
    records = content.get("annotations")
    for record in records if isinstance(records, list) else []:
        if isinstance(record, dict) and isinstance(record.get("image_id"), int | float):
            image, box = images.get(record["image_id"]), record.get("bbox")
            if image is None or not isinstance(box, list) or len(box) != 4:
                continue
            x, y, w, h = map(_number, box)
            ignored = record.get("iscrowd") or record.get("ignore")
            if not ignored and w > 0 and h > 0 and math.isfinite(x + y + w + h):
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
    for record, where in records_of(content, source, "annotations", report):
        number = int(record["id"])
        image_id = _one_of(images, record, "image", "images", where, report)
        category_id = _one_of(category_ids, record, "category", "categories", where, report)
        if record.get("bbox") == []:
            found.skipped.append(f"annotation {number}: no box")
            found.boxless += 1
            continue
        box = read_box(record, where, report)
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
    report(f"{where}: {key} is {brief(value)}, wanted 0 or 1")
    return None


def _one_of(
    ids: Container[int], record: dict[str, Any], noun: str, nouns: str, where: str, report: Report
) -> int | None:
    number = integer(record, f"{noun}_id", where, report)
    if number is not None and number not in ids:
        report(f"{where}: {noun} {brief(number)} is not among the {nouns}")
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


def read_box(record: dict[str, Any], where: str, report: Report) -> list[float] | None:
    """x, y, w, h as the file has them."""
    value, outline = record.get("bbox"), record.get("segmentation")
    if value is None:  # exports.py has found no outline
        if outline:
            what = (
                f"segmentation is {brief(outline)}, wanted a polygon or a mask that covers pixels"
            )
        else:
            what = "no segmentation to take it from; wanted [x, y, w, h], or [] for no object"
        report(f"{where}: no bbox, and {what}")
        return None
    numbers = [_number(item) for item in value] if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        report(f"{where}: bbox is {brief(value)}, wanted four finite numbers [x, y, w, h]")
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
        report(f"{where}: area is {brief(record['area'])}, wanted a finite number")
        return None
    return min(area, full) if area > 0 else full  # some converters write 0 for "unknown"
