"""`jol predict`: a detector's results on images without annotations.

The folder it writes:

detections.json   a list of COCO results: image_id, category_id, bbox [x, y, w, h], score
images.json       a COCO file without annotations, into which pycocotools can load the results: the
                  categories, and each image's id, file_name (in the folder given), width, height,
                  path (as given) and picture
pictures/         each image with its boxes drawn, under the name `picture`

Pixels are those of the image as viewers show it, with its EXIF orientation applied. Both files are
written at the end; an image that cannot be decoded has an id, but is in neither.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detectors.data.coco import to_json
from detectors.data.images import black_images, decode, is_black
from detectors.data.loading import read_in_time
from detectors.errors import DataError, JolError
from detectors.inference.detect import detect
from detectors.inference.drawing import draw_detections
from detectors.inference.image_files import Found
from detectors.utils import files
from detectors.utils.printable import printable
from detectors.utils.progress import Progress

AHEAD = 8
"""Number of batches read ahead to find images of the same size."""


class PredictError(JolError, RuntimeError):
    """Results cannot be written, or some of the images could not be used."""


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
        model: in eval mode, on `device`.
        class_names: label → name.
        category_ids: label → COCO category id.
        images: from find_images.
        out: the folder, checked by refuse_used.
        batch_size: images at a time. They have one size, so padding is as for one image alone.
        device: cpu or cuda.
        threshold: least score of a box that is drawn; the files hold all boxes.

    Returns:
        A summary of counts and speed, and the number of images that could not be decoded, each of
        which has been reported on standard error.

    Raises:
        DataError: none of the images can be decoded. Nothing is written.
        LoadingError: one is not read in time.
        PredictError: `out` cannot be written.
    """
    began = time.perf_counter()
    records: dict[int, dict[str, Any]] = {}
    detections: dict[int, list[str]] = {}
    bad: list[DataError] = []
    black = 0
    with Progress("predict", 0, len(images), quiet=True) as progress:

        def problem(error: DataError) -> None:
            bad.append(error)
            progress.note(str(error))

        for batch in batches(_decoded(images, problem), batch_size):
            black += sum(is_black(pixels) for _, pixels in batch)
            results = detect(model, [pixels for _, pixels in batch], device)
            for (image, pixels), found in zip(batch, results, strict=True):
                record = _record(image, pixels, len(str(len(images))))
                shown = {key: value[found["scores"] >= threshold] for key, value in found.items()}
                path = out / "pictures" / record["picture"]
                with _writing(out), files.naming(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    draw_detections(pixels, **shown, class_names=class_names).save(
                        path, quality=92, subsampling=0
                    )
                records[image.id] = record
                detections[image.id] = _lines(image.id, found, category_ids)
            progress.step(len(records) + len(bad))
        if black:
            progress.note(f"warning: {black_images(black)}")
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
        files.replace(out / "detections.json", lambda file: file.write(text.encode()))
        listed = to_json([records[image_id] for image_id in order], [], categories)
        files.replace(out / "images.json", lambda file: file.write(listed))
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
        reason = error.strerror or type(error).__name__
        raise PredictError(f"{error.filename or out}: cannot be written: {reason}") from error


def batches(
    images: Iterable[tuple[Found, Tensor]], size: int
) -> Iterator[list[tuple[Found, Tensor]]]:
    """Batches of at most `size` images of equal height and width; each image once.

    Detectors pad a batch to its largest image, and padding changes their results (group norm sees
    it). Images of one size are padded as each would be alone.
    """
    waiting: defaultdict[tuple[int, ...], list[tuple[Found, Tensor]]] = defaultdict(list)
    for image, pixels in images:
        same_size = waiting[tuple(pixels.shape)]
        same_size.append((image, pixels))
        if len(same_size) == size:
            yield waiting.pop(tuple(pixels.shape))
        elif sum(map(len, waiting.values())) >= AHEAD * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _decoded(
    images: Sequence[Found], problem: Callable[[DataError], None]
) -> Iterator[tuple[Found, Tensor]]:
    for image in images:
        try:
            read = partial(decode, image.path, None, f"image {image.id}")
            yield image, read_in_time(read, f"image {image.id}: {image.path}")
        except DataError as error:
            problem(error)


def _record(image: Found, pixels: Tensor, digits: int) -> dict[str, Any]:
    """The image in images.json. Its picture is named by id, since names may occur twice."""
    return {
        "id": image.id,
        "file_name": image.name,
        "width": pixels.shape[2],
        "height": pixels.shape[1],
        "path": str(image.path),
        "picture": f"{image.id:0{digits}}_{printable(Path(image.name).stem)[:50]}.jpg",
    }


def _lines(image_id: int, found: dict[str, Tensor], category_ids: Sequence[int]) -> list[str]:
    """COCO results, one a line: as text they take little memory until the end."""
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
