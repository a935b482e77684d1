"""The study's data: nuclei, these at half their size, and scenes with objects of three sizes.

Each has three parts: train; tune, on which rates and anchors are chosen; report, from which nothing
is chosen.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from detectors.data.synthetic import write_scenes
from detectors.errors import DataError

PARTS = ("train", "tune", "report")
CLASSES = ("car", "ship", "tank")
IMAGES = {"train": 300, "tune": 80, "report": 160}
"""Scenes of each part."""


@dataclass(frozen=True)
class Data:
    """A data set and how long detectors train on it.

    Attributes:
        write: writes images and PART.json into a folder, from the folder of nuclei.
        crop: side of the training images in pixels.
        steps: of a run.
    """

    write: Callable[[Path, Path], None]
    crop: int
    steps: int


def write_nuclei(folder: Path, nuclei: Path, shrink: int = 1) -> None:
    """Link nuclei's images, or write them 1/shrink as large, and split its validation part in two.

    Tiles of one picture stay together. Neighbours in the order of kind and name take turns.
    """
    train = _read(nuclei / "train" / "train.json")
    val = _read(nuclei / "val" / "val.json")
    sources = sorted({(image["domain"], image["source"]) for image in val["images"]})
    halves = {source: PARTS[1 + i % 2] for i, (_, source) in enumerate(sources)}
    parts = {image["id"]: halves[image["source"]] for image in val["images"]}
    for part in PARTS:
        content = train if part == "train" else _part(val, parts, part)
        where = nuclei / ("train" if part == "train" else "val")
        if shrink == 1:
            (folder / part).symlink_to(where.resolve())
        else:
            _shrink(content, where, folder / part, shrink)
        (folder / f"{part}.json").write_text(json.dumps(content))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read; wanted nuclei's annotations") from error
    return content


def _part(content: dict[str, Any], parts: dict[int, str], part: str) -> dict[str, Any]:
    """The images of this part, by the part of each image's id, and what is on them."""
    return content | {
        "images": [x for x in content["images"] if parts[x["id"]] == part],
        "annotations": [x for x in content["annotations"] if parts[x["image_id"]] == part],
    }


def _shrink(content: dict[str, Any], images: Path, folder: Path, by: int) -> None:
    """Write images 1/by as large, means of by x by pixels, and change their records to fit."""
    for record in content["images"]:
        name = Path(record["file_name"]).with_suffix(".png")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(images / record["file_name"]) as image:
            small = image.convert("RGB").reduce(by)
        small.save(folder / name, compress_level=1)
        record |= {"file_name": str(name), "width": small.width, "height": small.height}
    for box in content["annotations"]:
        box["bbox"] = [x / by for x in box["bbox"]]
        box["area"] = box["area"] / by**2


def write_sized_scenes(folder: Path, _: Path, objects: tuple[float, float]) -> None:
    """Write scenes with objects of these sizes, in pixels."""
    for seed, part in enumerate(PARTS):
        scenes = write_scenes(
            folder / part,
            images=IMAGES[part],
            seed=seed,
            size=160,
            classes=CLASSES,
            objects=objects,
        )
        scenes[1].rename(folder / f"{part}.json")
        for image in scenes[0].iterdir():
            image.rename(folder / part / image.name)
        scenes[0].rmdir()


SCENES = {f"scenes-{low}-{high}": (low, high) for low, high in ((4, 8), (8, 16), (16, 32))}
"""Name → sizes of the objects, in pixels."""
DATA = {
    "nuclei-half": Data(partial(write_nuclei, shrink=2), crop=96, steps=500),
    **{
        name: Data(partial(write_sized_scenes, objects=objects), crop=96, steps=400)
        for name, objects in SCENES.items()
    },
    "nuclei": Data(write_nuclei, crop=128, steps=500),
}
"""Name → data set, the cheap ones first."""


def prepare(name: str, work: Path, nuclei: Path) -> Path:
    """The folder in which a data set lies, written if it is not there.

    Raises:
        DataError: nuclei is not in its folder.
    """
    folder = work / "data" / name
    if not folder.exists():
        unfinished = folder.with_name(f"{name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        DATA[name].write(unfinished, nuclei)
        unfinished.rename(folder)
    return folder
