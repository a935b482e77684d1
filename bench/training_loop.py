"""The training harness against the loop of torchvision's detection references, side by side.

    python -m bench.training_loop --images DIR --annotations FILE [--workers 0 2] [--out FILE.md]

Both train Faster R-CNN with the base loss from the same weights on the same images, mirrored and
ordered in the same way, at the same learning rates. The harness is Trainer.step: its loader,
gradient clipping, a check of every loss and of the gradient's norm, progress and metrics.jsonl. The
other loop is bench.reference_loop.

They take turns in one process, --steps steps each, the first of a pair by turns; the first pair is
not counted. Memory is that of processes that run one loop each, without their loading processes.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from bench.loss.measure import Sample, summary, synchronize
from bench.reference_loop import reference
from detectors.data.dataset import CocoDetection
from detectors.training import loop
from detectors.training.checkpoints import Checkpoints
from detectors.training.run_folder import MetricsLog
from detectors.training.settings import TrainSettings, resolve
from detectors.training.step import Stepper
from detectors.utils.progress import Progress
from detectors.utils.signals import Stopping
from detectors.utils.text_tables import markdown

LOOPS = ("harness", "reference")
MEMORY_STEPS = 10
"""Steps of each process whose memory is measured."""
RATE = 0.001
"""Of learning. At preset slim's 0.02 the reference, which does not clip gradients, came to NaN in
21 steps of one image."""
Loop = Generator[float, None, None]
"""Takes a step at each `next` and gives its loss."""


def harness(settings: TrainSettings, data: CocoDetection, folder: Path) -> Loop:
    """The steps of a Trainer, logged in `folder`, without checkpoints and evaluations."""
    stepper = Stepper(loop.make_model(settings, len(data.class_names)), settings)
    with (
        Stopping() as stopping,
        Progress("harness", 0, settings.steps) as progress,
        MetricsLog(folder, 0) as log,
    ):
        trainer = loop.Trainer(
            settings, stepper, data, data, Checkpoints(folder), log, progress, stopping
        )
        with closing(trainer.batches()) as batches:
            while True:
                trainer.step(batches)
                yield trainer.state.recent[-1]["total"]


def make(name: str, settings: TrainSettings, given: argparse.Namespace, folder: Path) -> Loop:
    """One of LOOPS, which begins when it is asked for its first step."""
    data = CocoDetection(given.images, given.annotations)
    if name == "harness":
        return harness(settings, data, folder)
    return reference(settings, data, given.images, folder)


def settings_of(given: argparse.Namespace, workers: int, steps: int) -> TrainSettings:
    """What both loops train with: the harness's defaults, whole images, random weights."""
    chosen = {
        "detector": "faster_rcnn",
        "loss": "base",
        "preset": given.preset,
        "backbone_weights": "none",
        "crop": None,
        "lr": RATE,
        "batch_size": given.batch_size,
        "device": given.device,
        "workers": workers,
        "max_steps": steps + 1,  # the last, which is always logged, is not taken
    }
    return resolve(chosen, 1, None, {})


def step_samples(given: argparse.Namespace, workers: int) -> dict[str, Sample]:
    """Seconds a step of each loop; the harness's over its neighbour's, "ratio"; "cpu", by CPU time.

    CPU time is that of all threads of this process: other work on the machine disturbs it less.
    """
    device = torch.device(given.device)
    settings = settings_of(given, workers, (given.pairs + 1) * given.steps)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    busy: dict[str, list[float]] = {name: [] for name in LOOPS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loops = {
            name: stack.enter_context(closing(make(name, settings, given, folder)))
            for name in LOOPS
        }
        for pair in range(given.pairs + 1):
            for name in LOOPS if pair % 2 else reversed(LOOPS):
                synchronize(device)
                began, spent = time.perf_counter(), time.process_time()
                for _ in range(given.steps):
                    next(loops[name])
                synchronize(device)
                seconds[name].append((time.perf_counter() - began) / given.steps)
                busy[name].append(time.process_time() - spent)
    found = {name: summary(seconds[name][1:]) for name in LOOPS}
    for what, spans in (("ratio", seconds), ("cpu", busy)):
        ours, theirs = (spans[name][1:] for name in LOOPS)
        found[what] = summary([a / b for a, b in zip(ours, theirs, strict=True)])
    return found


def peak(given: argparse.Namespace, name: str, workers: int) -> float:
    """MiB that a process of its own has resident at most, or on a GPU allocates there at most.

    A new process inherits its parent's peak, so call this before anything large is done here.
    """
    words = [f"--{k.replace('_', '-')}={getattr(given, k)}" for k in SHARED]
    words += [f"--steps={MEMORY_STEPS}", f"--workers={workers}", f"--alone={name}"]
    command = [sys.executable, "-m", "bench.training_loop", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["bytes"]) / 2**20


SHARED = ("images", "annotations", "device", "preset", "batch_size")
"""Options that a process of one loop is given as they are."""


def run_alone(given: argparse.Namespace) -> None:
    """Take the steps of one loop and print the peak of this process's memory."""
    settings = settings_of(given, given.workers[0], given.steps)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(make(given.alone, settings, given, Path(folder))) as steps,
    ):
        for _ in range(given.steps):
            next(steps)
    if given.device == "cuda":
        used = torch.cuda.max_memory_allocated()
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": used}))


def table(given: argparse.Namespace) -> Iterator[str]:
    """Lines of a Markdown table, a row for each number of workers."""
    head = ["workers", "harness, images/s", "reference, images/s", "pairs"]
    head += ["harness / reference, time (20 to 80 %)", "the same, CPU time"]
    head += ["harness, MiB", "reference, MiB", "ratio"]
    # Memory first: see `peak`.
    memory = {w: [peak(given, name, w) for name in LOOPS] for w in given.workers}
    rows = (row(given, workers, *peaks) for workers, peaks in memory.items())
    return markdown(head, rows, labels=0)


def row(given: argparse.Namespace, workers: int, ours: float, theirs: float) -> list[str]:
    """Measure with a number of workers; the cells of its row. `ours`, `theirs`: MiB."""
    found = step_samples(given, workers)
    speeds = [f"{given.batch_size / found[name].median:.2f}" for name in LOOPS]
    ratios = [
        f"{r.median:.3f} ({r.low:.3f} to {r.high:.3f})" for r in (found["ratio"], found["cpu"])
    ]
    memory = [f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.3f}"]
    return [str(workers), *speeds, str(given.pairs), *ratios, *memory]


def about(given: argparse.Namespace) -> str:
    """What was run, and where."""
    words = f"--steps {given.steps} --pairs {given.pairs} --batch-size {given.batch_size}"
    words += f" --preset {given.preset} --device {given.device}"
    words += f" --workers {' '.join(map(str, given.workers))}"
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if given.device == "cuda":
        machine = torch.cuda.get_device_name()
    return (
        f"`python -m bench.training_loop --images DIR --annotations FILE.json {words}` ("
        f"{platform.machine()}, {machine}), torch {torch.__version__}. Times: medians over pairs "
        f"of {given.steps} steps each, memory the peak of a process of {MEMORY_STEPS} steps."
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print, or write, a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO JSON file")
    parser.add_argument("--steps", type=int, default=5, help="of a loop before the other's turn")
    parser.add_argument("--pairs", type=int, default=20, help="of turns that count")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("slim", "torchvision"), default="slim")
    parser.add_argument("--batch-size", type=int, default=4, help="images a step")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--alone", choices=LOOPS, help="run this loop only, print its peak memory")
    given = parser.parse_args(words)
    if given.alone:
        run_alone(given)
        return
    lines = []
    for line in table(given):
        print(line, flush=True)
        lines.append(line)
    if given.out:
        text = "\n".join(["# The harness and torchvision's loop", "", about(given), "", *lines])
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
