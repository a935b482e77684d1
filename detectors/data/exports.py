"""The habits of annotation tools, put into plain COCO before its rules are checked.

| habit | tools | what is done |
|---|---|---|
| a category that is only the supercategory of the others | Roboflow | no class |
| "_background_" without annotations | LabelMe's script | no class |
| numbers in quotes, ids too | several | read as numbers |
| image and annotation ids that are names | several | numbered in the order of the file |
| annotations without ids | several | numbered |
| a segmentation and no box | LabelMe, Label Studio | the box around it |
| a box and its rotation | CVAT | the upright box around the rotated one |
| no file_name but a coco_url | LVIS | the last two parts of that |

Each adds to the counts that become one line on what was done. What is no record, or breaks another
rule, passes through for the checks to name.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from detectors.data.outlines import is_finite, outline_box
from detectors.utils.names import brief

Record = dict[str, Any]
Notes = Counter[str]
"""What was done, in words → how often."""

_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,18}(\.\d{1,18})?", re.ASCII)
_OF_IMAGES, _OF_ANNOTATIONS = ("width", "height"), ("bbox", "area", "iscrowd", "ignore")
"""Their numbers but for ids."""
_NO_PARENT = (None, "", "none")


def plain_coco(content: Record) -> tuple[Record, Notes]:
    """The same data as plain COCO, and what had to be done; `content` is not changed."""
    notes: Notes = Counter()
    lists = {
        key: content[key]
        for key in ("images", "annotations", "categories")
        if isinstance(content.get(key), list)
    }
    numbers = _numbers_of_names(lists.get("images", []), notes)
    next_id = _after([r.get("id") for r in _dicts(lists.get("annotations", []))])

    def image(record: Record) -> Record:
        record = _unquoted(_with_number(record, "id", numbers, notes), _OF_IMAGES, notes)
        return _with_file_name(record, notes)

    def annotation(record: Record) -> Record:
        nonlocal next_id
        if _is_plain(record):
            return record
        number = record.get("id")
        if number is None or (isinstance(number, str) and _whole(number) is None):
            record = {**record, "id": next_id}
            next_id += 1
            what = "annotations without id" if number is None else "annotation ids that are names"
            notes[f"{what}, numbered"] += 1
        record = _with_number(record, "id", {}, notes)
        record = _with_number(record, "image_id", numbers, notes)
        record = _with_number(record, "category_id", {}, notes)
        record = _unquoted(record, _OF_ANNOTATIONS, notes)
        return _upright(_with_box(record, notes), notes)

    def category(record: Record) -> Record:
        return _with_number(record, "id", {}, notes)

    changes: dict[str, Callable[[Record], Record]] = {
        "images": image,
        "annotations": annotation,
        "categories": category,
    }
    lists = {
        key: [changes[key](record) if isinstance(record, dict) else record for record in records]
        for key, records in lists.items()
    }
    if "categories" in lists:
        lists["categories"] = _classes(lists["categories"], lists.get("annotations", []), notes)
    return {**content, **lists}, notes


def _is_plain(record: Record) -> bool:
    """Whether an annotation needs nothing, as nearly all of them: they are many."""
    return (
        type(record.get("id")) is int
        and type(record.get("image_id")) is int
        and type(record.get("category_id")) is int
        and isinstance(record.get("bbox"), list)
        and bool(record["bbox"])
        and "attributes" not in record
        and str not in map(type, (*map(record.get, _OF_ANNOTATIONS), *record["bbox"]))
    )


def _dicts(records: list[Any]) -> Iterator[Record]:
    return (record for record in records if isinstance(record, dict))


def _after(ids: list[Any]) -> int:
    """The first number after all of these that are numbers."""
    numbers = [_whole(value) for value in ids]
    return max((number for number in numbers if number is not None), default=0) + 1


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int else None


def _numbers_of_names(images: list[Any], notes: Notes) -> dict[str, int]:
    """Numbers for the image ids that are names, in the order of the file."""
    ids = [record.get("id") for record in _dicts(images)]
    names = dict.fromkeys(i for i in ids if isinstance(i, str) and _whole(i) is None)
    if names:
        notes["image ids that are names, numbered"] = len(names)
    return {name: number for number, name in enumerate(names, start=_after(ids))}


def _with_number(record: Record, key: str, numbers: Mapping[str, int], notes: Notes) -> Record:
    value = record.get(key)
    if not isinstance(value, str):
        return record
    number = _whole(value)
    if number is None:
        return {**record, key: numbers[value]} if value in numbers else record
    notes["ids in quotes, read as numbers"] += 1
    return {**record, key: number}


def _unquoted(record: Record, keys: Iterable[str], notes: Notes) -> Record:
    """The record with numbers and lists of numbers where these keys have them in quotes."""
    for key in keys:
        value = record.get(key)
        given = value if isinstance(value, list) else [value]
        bare = [_bare(item) for item in given]
        changed = sum(type(a) is not type(b) for a, b in zip(given, bare, strict=True))
        if changed:
            notes["numbers in quotes, read as numbers"] += changed
            record = {**record, key: bare if isinstance(value, list) else bare[0]}
    return record


def _bare(value: Any) -> Any:
    """The number that is in quotes; any other value as it is."""
    if not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        return value
    return float(value) if "." in value else int(value)


def _with_file_name(record: Record, notes: Notes) -> Record:
    address = record.get("coco_url")
    if record.get("file_name") is not None or not isinstance(address, str):
        return record
    notes["file names taken from coco_url"] += 1
    return {**record, "file_name": "/".join(address.split("/")[-2:])}


def _with_box(record: Record, notes: Notes) -> Record:
    if record.get("bbox") not in (None, []):
        return record
    box = outline_box(record.get("segmentation"))
    if box is None:
        return record
    notes["boxes taken from outlines"] += 1
    return {**record, "bbox": box}


def _upright(record: Record, notes: Notes) -> Record:
    """CVAT writes the box before its rotation around its centre, by degrees."""
    attributes, box = record.get("attributes"), record.get("bbox")
    turn = _bare(attributes.get("rotation")) if isinstance(attributes, dict) else None
    if not is_finite(turn) or turn % 360 == 0:
        return record
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
        return record
    x, y, w, h = box
    cosine, sine = (abs(f(math.radians(turn))) for f in (math.cos, math.sin))
    wide, high = w * cosine + h * sine, w * sine + h * cosine
    notes["rotated boxes, each replaced by the upright box around it"] += 1
    return {**record, "bbox": [x + (w - wide) / 2, y + (h - high) / 2, wide, high]}


def _classes(categories: list[Any], annotations: list[Any], notes: Notes) -> list[Any]:
    """The categories without those that only group others or are the background."""
    used = {_hashable(record.get("category_id")) for record in _dicts(annotations)}
    kept = []
    for category in categories:
        if isinstance(category, dict) and _hashable(category.get("id")) not in used:
            name = category.get("name")
            if name == "_background_":
                notes["no class: category '_background_' without annotations"] += 1
                continue
            others = [other for other in _dicts(categories) if other is not category]
            if _is_root(category, others):
                notes[f"no class: category {brief(name)}, the supercategory of the others"] += 1
                continue
        kept.append(category)
    return kept


def _is_root(category: Record, others: list[Record]) -> bool:
    """Whether the other categories are its parts, as far as they say whose parts they are.

    Where none of them says anything it has to be Roboflow's: id 0, supercategory "none".
    """
    name = category.get("name")
    parents = [other.get("supercategory") for other in others]
    if not others or category.get("supercategory") not in (*_NO_PARENT, name):
        return False
    if not all(parent == name or parent in (None, "") for parent in parents):
        return False
    marked = category.get("supercategory") == "none" and category.get("id") == 0
    return name in parents or marked


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else None
