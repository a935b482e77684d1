"""How many images a second the training loader brings, decoded, cropped and mirrored.

    python -m bench.loading_speed --images DIR --annotations FILE [--workers 0 1 2] [--crop 192]
    python -m bench.loading_speed ... --crop 0 --mosaic 800 [--suffix png]

Batches are taken from the loader and dropped, in a process with one thread, as in training with
workers. Files are read once before, so that the disk is not what is measured. The numbers of
workers take turns, so that other work on the machine slows all of them down.

With --mosaic S the images are squares of S pixels put together of those given, unscaled, in a
temporary folder: files as hard to decode as real images of that size.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectors.data.batches import train_batches
from detectors.data.coco import to_json
from detectors.data.dataset import CocoDetection
from detectors.data.tiles import clip

CELL = 256  # pixels of an image that a mosaic shows, from its upper left corner
QUALITY = 95  # of JPEG


def images_a_second(dataset: CocoDetection, crop: int | None, workers: int, images: int) -> float:
    """Of `images` images in batches of 4, after as many as fill the workers' queues."""
    warm, steps = 4 * max(1, workers), images // 4
    batches = train_batches(
        dataset, batch_size=4, crop=crop, seed=0, steps=warm + steps, workers=workers
    )
    count, began = 0, 0.0
    for i, (pictures, _) in enumerate(batches):
        if i == warm:
            began = time.perf_counter()
        elif i > warm:
            count += len(pictures)
    return count / (time.perf_counter() - began)


def write_mosaics(
    dataset: CocoDetection, folder: Path, size: int, count: int, suffix: str
) -> tuple[Path, Path]:
    """Write `count` images of size x size pixels into `folder`, and their COCO JSON file.

    Each is filled with the upper left 256 x 256 pixels of images of `dataset`, which are taken in
    turn, and with the boxes there; what an image is too small for stays black.

    Returns:
        The folder and the file.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    source = 0
    for number in range(1, count + 1):
        pixels = np.zeros((size, size, 3), dtype=np.uint8)
        for top in range(0, size, CELL):
            for left in range(0, size, CELL):
                image, target = dataset[source % len(dataset)]
                source += 1
                part = image[:, : min(CELL, size - top), : min(CELL, size - left)]
                _, height, width = part.shape
                pixels[top : top + height, left : left + width] = part.permute(1, 2, 0).numpy()
                for (x1, y1, x2, y2), label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                ):
                    shown = clip((x1, y1, x2 - x1, y2 - y1), 0, 0, width, height)
                    if shown is not None:
                        (x, y, w, h), _ = shown
                        annotations.append(
                            {
                                "id": len(annotations) + 1,
                                "image_id": number,
                                "category_id": dataset.category_ids[label],
                                "bbox": [left + x, top + y, w, h],
                            }
                        )
        name = f"{number}.{suffix}"
        Image.fromarray(pixels).save(folder / name, quality=QUALITY)  # which PNG has no use for
        images.append({"id": number, "file_name": name, "width": size, "height": size})
    file = folder / "mosaics.json"
    file.write_bytes(to_json(images, annotations, dataset.ground_truth["categories"]))
    return folder, file


def main() -> None:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO JSON file")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop", type=int, default=192, help="pixels, 0: whole images")
    parser.add_argument("--count", type=int, default=800, help="images to measure in a round")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--mosaic", type=int, metavar="S", help="images of S pixels of these")
    parser.add_argument("--mosaics", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--suffix", choices=("jpg", "png"), default="jpg", help="of the mosaics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = CocoDetection(options.images, options.annotations)
    with tempfile.TemporaryDirectory() as folder:
        if options.mosaic:
            dataset = CocoDetection(
                *write_mosaics(
                    dataset, Path(folder), options.mosaic, options.mosaics, options.suffix
                )
            )
        for index in range(len(dataset)):
            _ = dataset[index]
        found: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for _ in range(options.rounds):
            for workers, speeds in found.items():
                speeds.append(
                    images_a_second(dataset, options.crop or None, workers, options.count)
                )
    for workers, speeds in found.items():
        rounds = " ".join(f"{speed:.0f}" for speed in speeds)
        print(f"{workers} workers: {statistics.median(speeds):.0f} images a second ({rounds})")


if __name__ == "__main__":
    main()
