"""SODA-D: COCO JSON of large images, with regions to ignore, cut into tiles.

`read_sodad` reads the whole images, `write_tiles` writes the tiles a detector is trained and run
on, `TiledDetection` is the data set of those tiles, evaluated on the whole images.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from detectors.data.annotation_checks import ROUNDING, read_box
from detectors.data.coco import CocoFile, fail, read_json
from detectors.data.coco_checks import Report
from detectors.data.dataset import CocoDetection, Detection
from detectors.data.images import decode
from detectors.data.loading import map_images
from detectors.data.published import Published, read_published_json
from detectors.data.tiles import AREA_LEFT, SIZE, Box, clip, merge, starts
from detectors.errors import DataError
from detectors.utils.names import brief

IGNORE = "ignore"
"""The category of the regions to ignore."""


QUALITY = 95


Tile = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image record and its annotations."""


def read_sodad(
    root: Path, annotations: Path, folders: Sequence[str], report: Report = fail
) -> Published:
    """The whole images of a split; regions to ignore are skipped and counted.

    They are no objects, and nothing can be detected there: the tiles show them black.

    Raises:
        DataError: no JSON object in the file; by default also a region without a box or of
            no image, which otherwise goes to `report`.
    """
    published = read_published_json(root, annotations, folders)
    content = published.content
    ids = [
        record["id"]
        for record in _dicts(content, "categories")
        if record.get("name") == IGNORE and _is_number(record.get("id"))
    ]
    images = [record.get("id") for record in _dicts(content, "images")]
    regions: dict[int, list[Box]] = {number: [] for number in images if _is_number(number)}
    for record in _dicts(content, "annotations"):
        if record.get("category_id") in ids:
            where = f"{annotations}: annotation {brief(record.get('id'))}"
            box = read_box(record, f"{where}: a region without a box", report)
            if box is None:
                continue
            x, y, w, h = box
            image = record.get("image_id")
            if _is_number(image) and image in regions:
                regions[image].append((x, y, w, h))
            else:
                report(f"{where}: image {brief(image)} of a region is not among the images")
    for key, name in (("annotations", "category_id"), ("categories", "id")):
        if isinstance(content.get(key), list):
            content[key] = [
                record
                for record in content[key]
                if not isinstance(record, dict) or record.get(name) not in ids
            ]
    skipped = {"regions to ignore": sum(map(len, regions.values()))}
    return Published(published.source, root, content, skipped, regions)


def _is_number(value: Any) -> TypeGuard[int]:
    """Also 4.0, as the rules of ids have it."""
    return isinstance(value, int | float)


def _dicts(content: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The records of a list that may be anything yet."""
    records = content.get(key)
    for record in records if isinstance(records, list) else []:
        if isinstance(record, dict):
            yield record


def write_tiles(
    coco: CocoFile,
    regions: Mapping[int, Sequence[Box]],
    folder: Path,
    *,
    source: str,
    only_objects: bool,
    on_image: Callable[[int], None] = lambda done: None,
) -> dict[str, list[dict[str, Any]]]:
    """Write the tiles as JPEG files into `folder`, made if need be.

    A box cut to AREA_LEFT of its area or less is to be ignored there. Regions to ignore are black,
    and crowds of every class.

    Args:
        coco: the whole images.
        regions: image id → the regions to ignore, x y w h.
        folder: for the tiles; files of the same name are replaced.
        source: what messages call the annotations.
        only_objects: skip tiles without an object to learn.
        on_image: called with the number of images done.

    Returns:
        The COCO dict of the tiles. Their records also hold "whole", the id of the image, and
        "corner", the tile's [x, y] in it.

    Raises:
        DataError: an image that cannot be decoded. LoadingError: one that is not read in time.
    """
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco.images}
    for record in coco.annotations:
        of_image[record["image_id"]].append(record)
    for number, boxes in regions.items():
        of_image.get(number, []).extend(_ignored(boxes, number, coco.categories))
    folder.mkdir(parents=True, exist_ok=True)

    def cut(image: dict[str, Any], file: Path, where: str) -> list[Tile]:
        pixels = decode(file, (image["width"], image["height"]), where).numpy()
        paint(pixels, regions.get(image["id"], ()))
        tiles = cut_image(image, of_image[image["id"]])
        if only_objects:
            tiles = [tile for tile in tiles if not all(record["iscrowd"] for record in tile[1])]
        for record, _ in tiles:
            _save(pixels, record, folder)
        return tiles

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for done, tiles in enumerate(map_images(cut, coco.images, coco.files, source), start=1):
        for image, objects in tiles:
            image["id"] = len(images) + 1
            images.append(image)
            for record in objects:
                ids = {"id": len(annotations) + 1, "image_id": image["id"]}
                annotations.append({**record, **ids})
        on_image(done)
    return {"images": images, "annotations": annotations, "categories": coco.categories}


def _ignored(
    regions: Sequence[Box], image_id: int, categories: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Annotations that say of a region, for every class, that nothing is to be learnt there."""
    for box in regions:
        for category in categories:
            yield {
                "image_id": image_id,
                "category_id": category["id"],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 1,
            }


def paint(pixels: np.ndarray, regions: Sequence[Box]) -> None:
    """Make every pixel [3, H, W] that a region touches black."""
    for x, y, w, h in regions:
        top, bottom = (max(side, 0) for side in (math.floor(y), math.ceil(y + h)))
        left, right = (max(side, 0) for side in (math.floor(x), math.ceil(x + w)))
        pixels[:, top:bottom, left:right] = 0


def _save(pixels: np.ndarray, tile: dict[str, Any], folder: Path) -> None:
    left, top = tile["corner"]
    part = pixels[:, top : top + tile["height"], left : left + tile["width"]]
    picture = Image.fromarray(np.ascontiguousarray(part.transpose(1, 2, 0)))
    picture.save(folder / tile["file_name"], quality=QUALITY)


def cut_image(image: dict[str, Any], objects: Sequence[dict[str, Any]]) -> list[Tile]:
    """The tiles of an image, and the annotations on each; their ids are still to be given."""
    tiles = []
    for top in starts(image["height"]):
        for left in starts(image["width"]):
            width, height = min(SIZE, image["width"]), min(SIZE, image["height"])
            record = {
                "id": 0,
                "file_name": f"{image['id']:06}_{left}_{top}.jpg",
                "width": width,
                "height": height,
                "whole": image["id"],
                "corner": [left, top],
            }
            there = []
            for whole in objects:
                part = clip(tuple(whole["bbox"]), left, top, width, height)
                if part is None or min(part[0][2:]) <= ROUNDING:
                    continue
                box, share = part
                changes = {
                    "bbox": list(box),
                    "area": min(whole["area"], box[2] * box[3]),
                    "iscrowd": int(whole["iscrowd"] or share <= AREA_LEFT),
                }
                there.append({**whole, **changes})
            tiles.append((record, there))
    return tiles


class TiledDetection(CocoDetection):
    """Tiles from `write_tiles`, evaluated on the whole images.

    `ground_truth` is that of the whole images, and `assemble` merges what was detected on tiles.
    """

    def __init__(self, folder: Path, annotations: Path, whole: CocoFile) -> None:
        """Tiles in `folder` with their COCO JSON file, of the images of `whole`.

        Raises:
            DataError: unusable tiles, or not all tiles of these images, or of other classes.
        """
        content, _ = read_json(annotations)
        super().__init__(folder, content, str(annotations))
        if self.ground_truth["categories"] != whole.categories:
            raise DataError(f"{annotations}: other categories than those of the whole images")
        try:
            self._positions = {
                record["id"]: (record["whole"], *record["corner"]) for record in content["images"]
            }
            there = set(self._positions.values())
        except (KeyError, TypeError) as error:
            raise DataError(f"{annotations}: does not say where each tile is") from error
        wanted = {
            (image["id"], left, top)
            for image in whole.images
            for top in starts(image["height"])
            for left in starts(image["width"])
        }
        missing = len(wanted - there)
        if missing or len(wanted) != len(self._positions):
            raise DataError(
                f"{annotations}: {len(self._positions)} tiles, but the whole images have "
                f"{len(wanted)}, of which {missing} are missing here; write them again"
            )
        self.ground_truth = whole.content()

    def assemble(self, detections: list[Detection]) -> list[Detection]:
        """Detections on tiles, merged to detections on the whole images."""
        return merge(detections, self._positions)
