"""The objects of annotation files counted: sizes, classes, what was not counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detectors.data.coco import BOXLESS, ZERO_SIZE, CocoFile, read_coco
from detectors.data.object_sizes import box_sizes
from detectors.errors import DataError
from detectors.utils.names import listed

Image = tuple[Tensor, tuple[int, int]]
"""boxes [G, 4], x1 y1 x2 y2 in native pixels, and the image's (height, width)."""


@dataclass(frozen=True)
class Pool:
    """The counted objects of one or more annotation files.

    Attributes:
        images: of all files; boxes float64.
        classes: name → objects, in the order of the categories' ids.
        crowd: objects not counted because they are crowds or to be ignored.
        zero_size: objects not counted because their box has no width or no height.
        others: what else was not counted, in words → how many.
    """

    images: list[Image]
    classes: dict[str, int]
    crowd: int
    zero_size: int
    others: dict[str, int]


def read_pool(sources: Sequence[Path]) -> Pool:
    """`make_pool` of COCO JSON files; no image is looked for.

    Raises:
        DataError: as make_pool, or an unusable file.
    """
    return make_pool([(str(source), read_coco(source, None)) for source in sources])


def make_pool(
    files: Sequence[tuple[str, CocoFile]], skipped: Mapping[str, int] | None = None
) -> Pool:
    """Count the objects of data with the classes of the first; an ignored region counts once.

    Args:
        files: what messages call each, and its content.
        skipped: what was skipped before, in words → how many.

    Raises:
        DataError: annotations of a class that the first does not have, or no objects at all.
    """
    images: list[Image] = []
    classes: dict[str, int] = {}
    others = dict(skipped or {})
    zero_size, crowd = others.pop(ZERO_SIZE, 0), 0
    for source, file in files:
        names = {category["id"]: category["name"] for category in file.categories}
        if not classes:
            classes = dict.fromkeys(names.values(), 0)
        used = {record["category_id"] for record in file.annotations}
        unknown = [name for number, name in names.items() if number in used and name not in classes]
        if unknown:
            raise DataError(
                f"{source}: categories {listed(unknown)}, which {files[0][0]} does not have"
            )
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in file.images}
        for record in file.annotations:
            if record["iscrowd"]:
                continue
            classes[names[record["category_id"]]] += 1
            x, y, w, h = record["bbox"]
            boxes[record["image_id"]].append([x, y, x + w, y + h])
        for image in file.images:
            found = torch.tensor(boxes[image["id"]], dtype=torch.float64).reshape(-1, 4)
            images.append((found, (image["height"], image["width"])))
        zero_size += file.checked.zero_size
        if file.checked.boxless:
            others[BOXLESS] = others.get(BOXLESS, 0) + file.checked.boxless
        crowd += file.ignored
    pool = Pool(images, classes, crowd, zero_size, others)
    if not sum(classes.values()):
        sources = ", ".join(source for source, _ in files)
        raise DataError(f"{sources}: no objects to count; {not_counted(pool)}")
    return pool


def sizes(pool: Pool) -> tuple[Tensor, Tensor]:
    """Of each object [N] sqrt(w h) in pixels, and sqrt(w h / (W H)) of its W x H image."""
    boxes = torch.cat([boxes for boxes, _ in pool.images])
    area = torch.cat([boxes.new_full((len(boxes),), h * w) for boxes, (h, w) in pool.images])
    size = box_sizes(boxes)
    return size, size / area.sqrt()


def not_counted(pool: Pool) -> str:
    """What make_pool did not count, in words with its numbers."""
    counts = {"crowd or ignored": pool.crowd, ZERO_SIZE: pool.zero_size, **pool.others}
    return "skipped: " + ", ".join(f"{number:,} {what}" for what, number in counts.items())
