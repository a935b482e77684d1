"""The paper's data sets, tiny, each with the files of its publisher."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectors.cli import main
from detectors.data.sodad import IGNORE

SIZE = 64
"""Of an image, in pixels a side."""
BOXES = ((8, 8, 12, 12), (30, 34, 9, 16))
"""Of every image: x, y, w, h."""
TRAIN, TEST = 3, 2
"""Images of the splits that are trained and tested on."""


def write_tree(name: str, root: Path) -> Path:
    """A data set in `root`, which is made."""
    WRITERS[name](root)
    return root


def _pictures(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
        for x, y, w, h in BOXES:
            pixels[y : y + h, x : x + w] = (220, 200, 40)
        Image.fromarray(pixels).save(folder / name)


def _json(file: Path, names: Sequence[str], classes: Sequence[str], **more: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    annotations = [
        {"image_id": i, "category_id": 1 + k, "bbox": list(box), "area": box[2] * box[3]}
        for i in range(len(names))
        for k, box in enumerate(BOXES)
    ]
    sides = {"width": SIZE, "height": SIZE}
    content = {
        "images": [{"id": i, "file_name": name, **sides} for i, name in enumerate(names)],
        "annotations": [{"id": i, "iscrowd": 0, **one} for i, one in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    file.write_text(json.dumps(content | more))


def _visdrone(root: Path) -> None:
    for split, number in (("train", TRAIN), ("val", TEST)):
        folder = root / f"VisDrone2019-DET-{split}"
        stems = [f"{split}{i}" for i in range(number)]
        _pictures(folder / "images", [f"{stem}.jpg" for stem in stems])
        (folder / "annotations").mkdir()
        for stem in stems:
            lines = [f"{x},{y},{w},{h},1,{4 + k},0,0," for k, (x, y, w, h) in enumerate(BOXES)]
            (folder / "annotations" / f"{stem}.txt").write_text("\n".join([*lines, ""]))


def _aitod(version: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for split, number in (("trainval", TRAIN), ("test", TEST)):
            names = [f"{split}{i}.png" for i in range(number)]
            end = "" if version else "_v1"
            _json(
                root / "annotations" / f"aitod{version}_{split}{end}.json", names, ["ship", "car"]
            )
            _pictures(root / split / "images", names)

    return write


def _sodad(root: Path) -> None:
    """With the tiles that its user writes: here one an image."""
    for split, number in (("train", TRAIN), ("val", 1), ("test", TEST)):
        names = [f"{split}{i}.jpg" for i in range(number)]
        _json(root / "Annotations" / f"{split}.json", names, ["people", "rider", IGNORE])
        _pictures(root / "Images", names)
    for split in ("train", "test"):
        words = ["--dataset", "sodad", "--data-root", str(root), "--split", split]
        tiles = root / "tiles" / split
        words += ["--out", f"{tiles}.json", "--out-images", str(tiles)]
        assert main(["data", "convert", *words]) == 0


def _coco(root: Path) -> None:
    for split, number in (("train", TRAIN), ("val", TEST)):
        names = [f"{i:012}.jpg" for i in range(number)]
        more = {"info": {}, "licenses": []}
        _json(
            root / "annotations" / f"instances_{split}2017.json", names, ["person", "car"], **more
        )
        _pictures(root / f"{split}2017", names)


WRITERS: dict[str, Callable[[Path], None]] = {
    "visdrone": _visdrone,
    "aitod": _aitod(""),
    "aitodv2": _aitod("v2"),
    "sodad": _sodad,
    "coco": _coco,
}
