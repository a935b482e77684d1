"""How many images a second the training loader brings, decoded, cropped and mirrored.

    python -m bench.loading --images DIR --annotations FILE.json [--workers 0 1 2] [--crop 192]

Batches are taken from the loader and dropped, in a process with one thread, as in training with
workers. Files are read once before, so that the disk is not what is measured.
"""

import argparse
import time
from pathlib import Path

import torch

from detectors.data import CocoDetection, train_batches


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


def main() -> None:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO JSON file")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop", type=int, default=192, help="pixels, 0: whole images")
    parser.add_argument("--count", type=int, default=800, help="images to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = CocoDetection(options.images, options.annotations)
    for index in range(len(dataset)):
        _ = dataset[index]
    for workers in options.workers:
        speed = images_a_second(dataset, options.crop or None, workers, options.count)
        print(f"{workers} workers: {speed:.0f} images a second", flush=True)


if __name__ == "__main__":
    main()
