"""Records of a COCO dict one by one, and what every rule for them needs."""

from collections.abc import Callable, Iterator
from typing import Any

from detectors.utils.names import brief

Report = Callable[[str], object]
"""Takes a problem in words. Where it returns, what has the problem is skipped."""

LARGEST_ID = 2**64
"""Some tools write hashes."""


def records_of(
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
        number = integer(record, "id", where, report)
        if number is None:
            continue
        if abs(number) > LARGEST_ID:
            report(f"{where}: id is {brief(number)}, wanted one of at most 64 bits")
            continue
        where = f"{source}: {noun} {number}"
        if number in seen:
            report(f"{where} appears twice; ids must be unique")
            continue
        seen.add(number)
        yield record, where


def integer(record: dict[str, Any], key: str, where: str, report: Report) -> int | None:
    """The record's whole number `key`; None, and a report, where it has none."""
    if key not in record:
        report(f"{where}: no key {key!r}")
        return None
    value = record[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        report(f"{where}: {key} is {brief(value)}, wanted an integer")
        return None
    return value


def is_text(value: object) -> bool:
    """Whether it is a text, and one that can be written: JSON allows half a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False
