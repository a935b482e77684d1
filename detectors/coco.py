"""Reading and checking a COCO-format annotation file.

`read_coco` accepts a file whole or not at all: what is wrong is reported as a `DataError` that
names the file and the annotation, image or category. Records are dicts with COCO's keys.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

# Coordinates are often rounded to two decimals: an extent of this many pixels or less counts as
# zero, and an overhang of this many pixels or less is cut off without a line in `skipped`.
ROUNDING = 0.01


class DataError(ValueError):
    """Unusable data. The message names the file, the annotation or image id, and the fault."""


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says, checked.

    Attributes:
        images: records with id, file_name, width, height, in the order of the file.
        annotations: records with id, image_id, category_id, bbox, area, iscrowd; boxes inside
            their image; iscrowd 1 for crowd and ignored ones.
        categories: records with id and name, ascending by id.
        files: the image file of each of `images`; none where read without a folder.
        skipped: a line for each annotation left out, clipped, or crowd or ignored.
        zero_size: how many annotations of no width or height were left out.
        digest: sha256 of the file, hexadecimal.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    files: list[Path]
    skipped: list[str]
    zero_size: int
    digest: str


def read_coco(source: Path, folder: Path | None) -> CocoFile:
    """Read the annotation file `source`, whose images lie in `folder`; None: no images needed.

    A `file_name` is looked up in `folder`. Where the last folders of `folder` are the first ones
    of `file_name` they count once: "images/a.jpg" is found in .../train as well as in
    .../train/images.

    Raises:
        DataError: unusable files, ids, categories, boxes or images.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    content, digest = _read(source)
    categories = _check_categories(content, source)
    images, files = _check_images(content, source, folder)
    annotations, skipped, zero_size = _check_annotations(
        content,
        source,
        {image["id"]: image for image in images},
        {category["id"] for category in categories},
    )
    return CocoFile(images, annotations, categories, files, skipped, zero_size, digest)


def _read(source: Path) -> tuple[dict[str, Any], str]:
    """The annotation file's content and sha256."""
    try:
        raw = source.read_bytes()
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


def _records(content: dict[str, Any], source: Path, key: str) -> Iterator[tuple[dict, str]]:
    """Each record of `content[key]` with the words that name it; checks that ids are unique."""
    if key not in content:
        raise DataError(f"{source}: no key {key!r}; wanted images, annotations and categories")
    if not isinstance(content[key], list):
        raise DataError(f"{source}: {key!r} is a {type(content[key]).__name__}, wanted a list")
    seen = set()
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for position, record in enumerate(content[key]):
        where = f"{source}: {key}[{position}]"
        if not isinstance(record, dict):
            raise DataError(f"{where} is a {type(record).__name__}, wanted an object")
        number = _integer(record, "id", where)
        where = f"{source}: {noun} {number}"
        if number in seen:
            raise DataError(f"{where} appears twice; ids must be unique")
        seen.add(number)
        yield record, where


def _integer(record: dict[str, Any], key: str, where: str) -> int:
    if key not in record:
        raise DataError(f"{where}: no key {key!r}")
    value = record[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: {key} is {value!r}, wanted an integer")
    return value


def _check_categories(content: dict[str, Any], source: Path) -> list[dict[str, Any]]:
    """The categories, ascending by id."""
    found: dict[str, int] = {}
    for record, where in _records(content, source, "categories"):
        name = record.get("name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: name is {name!r}, wanted a text")
        if name in found:
            raise DataError(f"{where}: category {found[name]} has the name {name!r} too")
        found[name] = int(record["id"])
    if not found:
        raise DataError(f"{source}: no categories")
    by_id = sorted((number, name) for name, number in found.items())
    return [{"id": number, "name": name} for number, name in by_id]


def _check_images(
    content: dict[str, Any], source: Path, folder: Path | None
) -> tuple[list[dict[str, Any]], list[Path]]:
    """The image records, and in a folder the file of each."""
    records, files = [], []
    owner: dict[Path, int] = {}
    for record, where in _records(content, source, "images"):
        width, height = _integer(record, "width", where), _integer(record, "height", where)
        if width < 1 or height < 1:
            raise DataError(f"{where}: size {width}x{height}, wanted at least 1x1")
        number, name = int(record["id"]), record.get("file_name")
        records.append({"id": number, "file_name": name, "width": width, "height": height})
        if folder is None:
            continue
        file = _find(folder, name, where)
        if file in owner:
            raise DataError(f"{where}: {file} is the file of image {owner[file]} too")
        owner[file] = number
        files.append(file)
    if not records:
        raise DataError(f"{source}: no images")
    return records, files


def _find(folder: Path, name: object, where: str) -> Path:
    """The file of an image; see read_coco for the rule."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: file_name is {name!r}, wanted a text")
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts:
        raise DataError(f"{where}: file_name {name!r} leaves the images folder")
    tail = Path(os.path.abspath(folder)).parts  # without '..', links not followed
    shared = [k for k in range(1, len(parts)) if tail[-k:] == parts[:k]]
    tried = [folder.joinpath(*parts[k:]) for k in [0, *shared]]
    for file in tried:
        if os.path.isfile(file):  # unlike Path.is_file, never raises on a strange name
            return file
    raise DataError(f"{where}: no file {' or '.join(map(str, tried))}")


def _check_annotations(
    content: dict[str, Any],
    source: Path,
    images: dict[int, dict[str, Any]],
    category_ids: set[int],
) -> tuple[list[dict[str, Any]], list[str], int]:
    """The annotations as used, a line for each not used as it stands, how many have no size."""
    kept, skipped, zero_size = [], [], 0
    for record, where in _records(content, source, "annotations"):
        number = int(record["id"])
        image_id = _integer(record, "image_id", where)
        category_id = _integer(record, "category_id", where)
        if image_id not in images:
            raise DataError(f"{where}: image {image_id} is not among the images")
        if category_id not in category_ids:
            raise DataError(f"{where}: category {category_id} is not among the categories")
        x, y, w, h = _four_numbers(record.get("bbox"), where)
        if w <= ROUNDING or h <= ROUNDING:
            side = f"width {w:g}" if w <= ROUNDING else f"height {h:g}"
            skipped.append(f"annotation {number}: {side}")
            zero_size += 1
            continue
        box, clipped = _clip((x, y, w, h), images[image_id], where)
        if clipped:
            skipped.append(f"annotation {number}: clipped to its image")
        crowd = bool(record.get("iscrowd")) or bool(record.get("ignore"))
        if crowd:
            skipped.append(f"annotation {number}: crowd or ignored, not a target")
        kept.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": _area(record, box, where),
                "iscrowd": int(crowd),
            }
        )
    return kept, skipped, zero_size


def _number(value: object) -> float:
    """`value` as a float; NaN where it is no number, infinity where it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _four_numbers(value: object, where: str) -> list[float]:
    numbers = [_number(item) for item in value] if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        text = repr(value)
        text = text if len(text) <= 80 else text[:77] + "..."
        raise DataError(f"{where}: bbox is {text}, wanted four finite numbers [x, y, w, h]")
    return numbers


def _clip(
    box: tuple[float, float, float, float], image: dict[str, Any], where: str
) -> tuple[list[float], bool]:
    """The part of `box` (x y w h) inside its image, and whether that cut off anything."""
    x, y, w, h = box
    width, height = image["width"], image["height"]
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if x2 - x1 <= ROUNDING or y2 - y1 <= ROUNDING:
        size = f"image {image['id']} ({width}x{height})"
        raise DataError(f"{where}: bbox [{x:g}, {y:g}, {w:g}, {h:g}] lies outside {size}")
    overhang = max(-x, -y, x + w - width, y + h - height)
    if overhang <= 0:
        return [x, y, w, h], False
    return [x1, y1, x2 - x1, y2 - y1], overhang > ROUNDING


def _area(record: dict[str, Any], box: list[float], where: str) -> float:
    """The object's area for the size buckets: the file's own, at most the (clipped) box's."""
    full = box[2] * box[3]
    if record.get("area") is None:
        return full
    area = _number(record["area"])
    if not math.isfinite(area):
        raise DataError(f"{where}: area is {record['area']!r}, wanted a finite number")
    return min(area, full) if area > 0 else full  # some converters write 0 for "unknown"
