"""`jol predict`: what a detector finds on images that nobody has annotated.

The folder that it writes:

detections.json   a list of COCO results: image_id, category_id, bbox [x, y, w, h], score
images.json       a COCO file without annotations, which pycocotools can load the results into: the
                  categories, and each image's id, file_name (in the folder that was given), width,
                  height, path (as given) and picture
pictures/         each image with its boxes drawn, by the name `picture`

Pixels are those of the image as viewers show it, its EXIF orientation followed. Both files are
written at the end; an image that cannot be decoded has an id, but is in neither.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detectors.data.coco import to_json
from detectors.data.images import decode
from detectors.errors import DataError, JolError, Unusable
from detectors.inference.detect import detect
from detectors.inference.drawing import draw_detections
from detectors.utils.progress import Progress

SUFFIXES = tuple(
    f".{kind}" for kind in ("bmp", "gif", "jp2", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
)
"""What makes a file of a folder an image."""
AHEAD = 8
"""Batches' worth of images that are read ahead to find some of the same size."""


class PredictError(JolError, RuntimeError):
    """Results cannot be written, or some images could not be used while all others were."""


@dataclass(frozen=True)
class Found:
    """An image file, by its id (1, 2, ... in the order given) and its name in its folder."""

    id: int
    name: str
    path: Path


def find_images(given: Sequence[Path]) -> list[Found]:
    """The image files that these files and folders stand for, each once, in this order.

    A folder stands for the files in it, not in folders below, that are called as images are
    (SUFFIXES, not hidden), by name. A file given by its own name is taken whatever it is called.

    Raises:
        Unusable: no such file or folder, or a folder without images.
    """
    files: dict[str, tuple[str, Path]] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _is_image(p))
            if not inside:
                raise Unusable(
                    f"{path}: no image files in this folder (folders below do not count)"
                )
        elif path.is_file():
            inside = [path]
        else:
            raise Unusable(f"{path}: no such file or folder")
        for file in inside:
            files.setdefault(os.path.abspath(file), (file.name, file))
    return [Found(number, *file) for number, file in enumerate(files.values(), 1)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def refuse_used(out: Path) -> None:
    """Raise Unusable unless `out` is an empty folder or not there: results are never mixed."""
    if out.exists() and not out.is_dir():
        raise Unusable(f"--out {out}: is a file, wanted a folder")
    if out.exists() and any(out.iterdir()):
        raise Unusable(f"--out {out}: holds files already, wanted a new or an empty folder")


def predict(
    model: nn.Module,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    images: Sequence[Found],
    out: Path,
    *,
    batch_size: int,
    device: str,
    threshold: float,
) -> tuple[str, int]:
    """Detect on all images and write the folder.

    Args:
        model: in evaluation, on `device`.
        class_names: label → name.
        category_ids: label → COCO category id.
        images: from find_images.
        out: the folder, as refuse_used wants it.
        batch_size: images at a time, those of one size, so that padding is what it is alone.
        device: cpu or cuda.
        threshold: least score of a box that is drawn; the files have them all.

    Returns:
        A line that says how many there were and how fast it went, and the number of images that
        could not be decoded, each of which has been named on standard error.

    Raises:
        DataError: none of the images can be decoded; then nothing is written.
        PredictError: `out` cannot be written.
    """
    began = time.perf_counter()
    records: dict[int, dict[str, Any]] = {}
    detections: dict[int, list[str]] = {}
    bad: list[DataError] = []
    with Progress("predict", 0, len(images), quiet=True) as progress:

        def problem(error: DataError) -> None:
            bad.append(error)
            progress.note(str(error))

        for batch in batches(_decoded(images, problem), batch_size):
            results = detect(model, [pixels for _, pixels in batch], device)
            for (image, pixels), found in zip(batch, results, strict=True):
                record = _record(image, pixels, len(str(len(images))))
                shown = {key: value[found["scores"] >= threshold] for key, value in found.items()}
                with _writing(out):
                    (out / "pictures").mkdir(parents=True, exist_ok=True)
                    draw_detections(pixels, **shown, class_names=class_names).save(
                        out / "pictures" / record["picture"], quality=92, subsampling=0
                    )
                records[image.id] = record
                detections[image.id] = _lines(image.id, found, category_ids)
            progress.step(len(records) + len(bad))
    if not records:
        raise DataError(f"none of the {len(images)} images can be decoded")
    categories = [
        {"id": category, "name": name}
        for category, name in zip(category_ids, class_names, strict=True)
    ]
    order = sorted(records)
    lines = [line for image_id in order for line in detections[image_id]]
    with _writing(out):
        text = "[\n" + ",\n".join(lines) + "\n]\n"
        (out / "detections.json").write_text(text, encoding="utf-8")
        listed = to_json([records[image_id] for image_id in order], [], categories)
        (out / "images.json").write_bytes(listed)
    seconds = time.perf_counter() - began
    summary = (
        f"{len(records)} images, {len(lines)} detections, {seconds:.1f} s, "
        f"{len(records) / seconds:.1f} images a second, in {out}"
    )
    return summary, len(bad)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PredictError(f"{out}: cannot be written: {error}") from error


def batches(
    images: Iterable[tuple[Found, Tensor]], size: int
) -> Iterator[list[tuple[Found, Tensor]]]:
    """Batches of at most `size` images of equal height and width, all images once.

    The detectors pad a batch to its largest image, and what is padded changes what they find
    (group norm sees it, too). Images of one size are padded as each would be alone.
    """
    waiting: defaultdict[tuple[int, ...], list[tuple[Found, Tensor]]] = defaultdict(list)
    for image, pixels in images:
        alike = waiting[tuple(pixels.shape)]
        alike.append((image, pixels))
        if len(alike) == size:
            yield waiting.pop(tuple(pixels.shape))
        elif sum(map(len, waiting.values())) >= AHEAD * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _decoded(
    images: Sequence[Found], problem: Callable[[DataError], None]
) -> Iterator[tuple[Found, Tensor]]:
    for image in images:
        try:
            yield image, decode(image.path, None, f"image {image.id}")
        except DataError as error:
            problem(error)


def _record(image: Found, pixels: Tensor, digits: int) -> dict[str, Any]:
    """The image in images.json; its picture has the id in its name, as names may occur twice."""
    return {
        "id": image.id,
        "file_name": image.name,
        "width": pixels.shape[2],
        "height": pixels.shape[1],
        "path": str(image.path),
        "picture": f"{image.id:0{digits}}_{Path(image.name).stem[:50]}.jpg",
    }


def _lines(image_id: int, found: dict[str, Tensor], category_ids: Sequence[int]) -> list[str]:
    """A COCO result a line; as text an image's detections take little memory until the end."""
    boxes = found["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [
        json.dumps(
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": box,
                "score": score,
            }
        )
        for box, score, label in rows
    ]
