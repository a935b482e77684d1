"""What the reference detectors cost: parameters, FLOPs, and a training step with JOL and without.

    python -m bench.detector_cost [--detectors NAME ...] [--size 800] [--batch-size 2] [--out FILE]

The paper's Table 9 counts multiply-accumulates of one 800 x 800 image with 8 classes, as
MMDetection does, with 1,000 proposals in the second stage; so does this (FLOPs over two, by
torch.utils.flop_counter; what it does not know, deformable convolution, is stated below). Steps are
forward, backward and SGD on generated images, base and JOL taking turns in one process from the
same weights; the ratio is the median over neighbours.
"""

import argparse
import platform
import time
from pathlib import Path

import torch

from bench.loss.measure import Sample, summary, synchronize
from detectors.models.cost import CLASSES, batch, build, gigamacs, parameters
from detectors.models.presets import DETECTORS
from detectors.paper.published_numbers import COSTS
from detectors.utils.text_tables import markdown

NOTE = """
FCOS has 2.4 G more than the paper's because MMDetection's configuration takes the caffe ResNet-50,
whose strides sit in 1x1 convolutions where torchvision's sit in the 3x3: moved there, ours counts
122.7 G. The half G that RetinaNet, Faster R-CNN and that FCOS lack is presumably batch norm and
activations, which the counter here leaves out: 0.14 G elements are normalised.
"""


def step_samples(
    name: str, size: int, images: int, device: str, repetitions: int | None = None
) -> dict[str, Sample]:
    """Seconds of a base step and of a JOL step, and of JOL's over its neighbour's, "ratio".

    Without `repetitions`: 30 pairs on a GPU, 5 on a CPU. The first pair is not counted.
    """
    repetitions = repetitions or (5 if device == "cpu" else 30)
    inputs, targets = batch(images, size, device)
    models = {loss: build(name, loss, size).to(device).train() for loss in ("base", "jol")}
    optimizers = {
        loss: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9) for loss, m in models.items()
    }
    seconds: dict[str, list[float]] = {"base": [], "jol": []}
    for _ in range(repetitions + 1):
        for loss, model in models.items():
            synchronize(torch.device(device))
            began = time.perf_counter()
            losses = model(inputs, targets)
            optimizers[loss].zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizers[loss].step()
            synchronize(torch.device(device))
            seconds[loss].append(time.perf_counter() - began)
    base, joint = seconds["base"][1:], seconds["jol"][1:]
    ratios = [j / b for j, b in zip(joint, base, strict=True)]
    return {"base": summary(base), "jol": summary(joint), "ratio": summary(ratios)}


def row(name: str, options: argparse.Namespace) -> list[str]:
    """Measure a detector; the cells of its row."""
    model = build(name, "base", options.size)
    flops, size = (COSTS[name].gflops, COSTS[name].parameters) if name in COSTS else ("", "")
    counted = [f"{parameters(model):.1f}", size, f"{gigamacs(model, options.size):.1f}", flops]
    steps = ["", ""]
    if options.repetitions:
        found = step_samples(
            name, options.size, options.batch_size, options.device, options.repetitions
        )
        steps = [f"{found['base'].median:.2f}", f"{found['ratio'].median:.3f}"]
    return [name, *map(str, counted), *steps]


def main() -> None:
    """Measure and print, or write, a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--size", type=int, default=800, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2, help="images a step")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of steps, 0: none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    head = ("detector", "parameters, M", "paper", "GMACs", "paper", "base, s a step", "JOL / base")
    lines = []
    for line in markdown(head, (row(name, options) for name in options.detectors)):
        print(line, flush=True)
        lines.append(line)
    if options.out:
        about = (
            f"`python -m bench.detector_cost`, preset paper, {CLASSES} classes, {options.size} x "
            f"{options.size}, batch {options.batch_size}, {options.device} ({platform.machine()}, "
            f"{torch.get_num_threads()} threads), torch {torch.__version__}.\n\n"
        )
        options.out.write_text(
            "# What the detectors cost\n\n" + about + "\n".join(lines) + "\n" + NOTE
        )


if __name__ == "__main__":
    main()
