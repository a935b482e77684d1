"""How long `evaluate` takes on a data set of AI-TOD's size, and in how much memory.

    python -m bench.evaluation_time [--images 14018] [--detections 300] [--evaluator faster]

The results are generated: about 25 objects an image of 12.8 pixels on average in 8 classes, nine in
ten of them in one class; a quarter of the detections lie about an object, at an IoU from 0 to near
1, and score higher the nearer they are; the others lie anywhere. Peak memory is the process's, with
the ground truth and the results as they come from `predict` in it.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np

from detectors.evaluation.average_precision import Evaluation, evaluate

SIDE = 800  # of an image in pixels
OBJECTS = 25  # an image, on average
SHARES = (0.9, 0.04, 0.02, 0.02, 0.01, 0.005, 0.003, 0.002)


def generate(
    images: int, detections: int, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth of `images` images and COCO results, `detections` an image."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), random.poisson(OBJECTS, images))
    label = random.choice(len(SHARES), len(image), p=SHARES)
    # sizes as they come: a long tail, 12.8 on average
    sides = np.clip(random.lognormal(2.465, 0.58, (len(image), 2)), 2, 200)
    box = np.hstack([random.uniform(0, SIDE - sides), sides]).round(2)
    ground_truth = {
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(len(SHARES))],
        "annotations": [
            {"id": number, "image_id": i, "category_id": k, "bbox": b, "iscrowd": 0}
            for number, (i, k, b) in enumerate(
                zip(image.tolist(), label.tolist(), box.tolist(), strict=True)
            )
        ],
    }
    results = _results(random, image, label, box, images, detections)
    return ground_truth, results


def _results(
    random: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    box: np.ndarray,
    images: int,
    detections: int,
) -> list[dict[str, Any]]:
    """Detections of the objects given; `image`, `label`, `box` as in generate."""
    where = np.repeat(np.arange(images), detections)
    count = np.bincount(image, minlength=images)[where]
    first = np.searchsorted(image, where)
    nearby = (random.random(len(where)) < 0.25) & (count > 0)
    of = np.where(nearby, first + (random.random(len(where)) * count).astype(int), 0)
    guess = random.choice(len(SHARES), len(where), p=SHARES)
    sides = random.lognormal(2.465, 0.58, (len(where), 2))
    found = np.hstack([random.uniform(0, SIDE - np.minimum(sides, 200)), sides])
    score = random.beta(1, 12, len(where))
    if len(box):
        spread = random.exponential(0.12, len(where))  # of the object's size
        moved = box[of] + random.normal(0, 1, found.shape) * (
            spread[:, None] * np.tile(box[of][:, 2:], 2)
        )
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        found = np.where(nearby[:, None], moved, found)
        guess = np.where(nearby, label[of], guess)
        score = np.where(nearby, random.beta(2, 2 + 20 * spread), score)
    # as float32 tensors give them
    rows = zip(
        where.tolist(),
        guess.tolist(),
        found.astype(np.float32).tolist(),
        score.astype(np.float32).tolist(),
        strict=True,
    )
    return [{"image_id": i, "category_id": k, "bbox": b, "score": s} for i, k, b, s in rows]


def measure(images: int, detections: int, evaluator: str) -> tuple[Evaluation, float, float]:
    """The evaluation, its seconds, and the process's peak memory so far in GiB."""
    ground_truth, results = generate(images, detections)
    began = time.perf_counter()
    found = evaluate(ground_truth, results, protocol="aitod", evaluator=evaluator)
    seconds = time.perf_counter() - began
    return found, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=14018)
    parser.add_argument("--detections", type=int, default=300, help="an image")
    parser.add_argument("--evaluator", choices=("faster", "pycocotools"), default="faster")
    options = parser.parse_args()
    found, seconds, memory = measure(options.images, options.detections, options.evaluator)
    print(", ".join(f"{name} {100 * value:.1f}" for name, value in found.metrics.items()))
    print(
        f"{options.images} images, {options.detections} detections each, {options.evaluator}: "
        f"{seconds:.1f} s, peak memory {memory:.1f} GiB"
    )


if __name__ == "__main__":
    main()
