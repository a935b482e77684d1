"""Peak memory and time of a training step on one image with many objects.

    python -m bench.object_memory [--detectors NAME ...] [--presets NAME ...] [--objects 2500]
        [--size 512] [--threads 2]

Each step, forward and backward with the base loss, runs in a process of its own, whose largest
resident set is printed. Weights are random; the image is resized as the preset resizes it.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator
from itertools import product

import torch

from detectors.models import build_detector
from detectors.models.cost import CLASSES
from detectors.models.presets import DETECTORS, PRESETS
from detectors.utils.text_tables import markdown

HEAD = ("detector", "preset", "peak, GiB", "forward, s", "step, s", "processor time, s")


def measure(name: str, preset: str, objects: int, size: int, threads: int) -> list[str]:
    """One step's peak resident memory, and seconds of wall clock and processors."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_detector(name, CLASSES, preset=preset, backbone_weights="none").train()
    sides = 4 + 12 * torch.rand(objects, 2)
    corner = torch.rand(objects, 2) * (size - sides)
    labels = torch.randint(CLASSES, (objects,))
    targets = [{"boxes": torch.cat([corner, corner + sides], 1), "labels": labels}]
    image = torch.rand(3, size, size)
    began, worked = time.perf_counter(), time.process_time()
    losses = model([image], targets)
    forward = time.perf_counter() - began
    torch.stack(list(losses.values())).sum().backward()
    step, work = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [f"{peak:.1f}", f"{forward:.1f}", f"{step:.1f}", f"{work:.1f}"]


def _rows(options: argparse.Namespace) -> Iterator[list[str]]:
    for name, preset in product(options.detectors, options.presets):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            given = (name, preset, options.objects, options.size, options.threads)
            yield [name, preset, *process.apply(measure, given)]


def main() -> None:
    """Print a table with a row for each detector and preset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--objects", type=int, default=2500)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for line in markdown(HEAD, _rows(options)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
