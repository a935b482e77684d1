"""The rules that COCO-format categories and images keep.

Each function takes the whole content, after exports.py, and what messages call it, reports every
record that breaks a rule, skips it, and returns the others.
"""

from pathlib import Path
from typing import Any

from detectors.data.exports import Notes
from detectors.data.image_names import find_image
from detectors.data.records import Report as Report
from detectors.data.records import integer, is_text, records_of
from detectors.utils.names import brief
from detectors.utils.printable import printable

LONGEST_SIDE = 2**31 - 1  # pixels; beyond it sizes leave what floats and Pillow can hold


def check_categories(
    content: dict[str, Any], source: str, report: Report
) -> tuple[list[dict[str, Any]], set[int]]:
    """The categories, ascending by id, and all ids, those of faulty ones too."""
    found: dict[str, int] = {}
    ids = set()
    for record, where in records_of(content, source, "categories", report):
        ids.add(int(record["id"]))
        name: Any = record.get("name")
        if not is_text(name):
            report(f"{where}: name is {brief(name)}, wanted a text")
        elif printable(name) != name:
            report(f"{where}: name is {brief(name)}, wanted one without control characters")
        elif name in found:
            report(f"{where}: category {found[name]} has the name {brief(name)} too")
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
    for record, where in records_of(content, source, "images", report):
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
    width = integer(record, "width", where, report)
    height = integer(record, "height", where, report)
    if width is None or height is None:
        return None
    if min(width, height) < 1 or max(width, height) > LONGEST_SIDE:
        size = f"{brief(width)}x{brief(height)}"
        report(f"{where}: size {size}, wanted sides of 1 to {LONGEST_SIDE} pixels")
        return None
    return width, height


def _size_of(
    file: Path | None, folder: Path | None, where: str, report: Report, notes: Notes
) -> tuple[int, int] | None:
    """(width, height) of an image whose record has neither, from its file."""
    from detectors.data.images import UNREADABLE, displayed_size, reason  # imports torch

    if folder is None:
        report(f"{where}: no width and height; wanted both where the images are not read")
    if file is None:
        return None
    try:
        size = displayed_size(file)
    except UNREADABLE as error:
        report(f"{where}: no width and height, and {file} cannot be opened: {reason(error)}")
        return None
    notes["images without width and height, taken from their files"] += 1
    return size


def _find(folder: Path, name: Any, where: str, report: Report, notes: Notes) -> Path | None:
    """The file of an image; find_image has the rule."""
    if not is_text(name):
        report(f"{where}: file_name is {brief(name)}, wanted a text")
        return None
    try:
        file, other = find_image(folder, name)
    except ValueError as error:
        report(f"{where}: {error}")
        return None
    if other is not None:
        notes[other] += 1
    return file
