"""`jol demo`: base and JOL side by side on generated scenes of tiny objects, on a CPU, in minutes.

Both runs start from the same weights and see the same batches. What is printed is what was
measured, whichever way it falls.
"""

import argparse
import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors.data.object_sizes import SMALL, TINY, VERY_TINY
from detectors.errors import JolError, RunError, Stopped, TrainingError
from detectors.evaluation.protocols import METRICS
from detectors.training import run_folder
from detectors.training.settings import TrainSettings, resolve
from detectors.utils.argument_types import count, folder_to_write
from detectors.utils.locks import LOCK, claimed
from detectors.utils.parser import Parser
from detectors.utils.text_tables import aligned

if TYPE_CHECKING:
    from torch import nn

    from detectors.training.loop import TrainResult

LEARNING_RATE = 0.01
"""Base does better at 0.02 (AP 30.4 and 31.1 against 28.0 and 29.3, seeds 0 and 1), JOL worse (27.9
against 30.3, seed 0): the sign of the difference at one rate says little about the losses."""
MARK = ".jol-demo"
"""The file that says a folder is a demo's, to be replaced by the next one."""
ROWS = 3
"""Images in the picture of detections."""


@dataclasses.dataclass(frozen=True)
class DemoSize:
    """How much the demo does: what is smaller is for tests."""

    train_images: int = 300
    val_images: int = 60
    pixels: int = 192
    crop: int = 128
    steps: int = 360
    batch_size: int = 4


class DemoError(JolError, RuntimeError):
    """Training that ended early: the next demo begins anew."""


def add(subparsers: Any) -> None:
    """Declare `jol demo`."""
    command: Parser = subparsers.add_parser(
        "demo",
        help="train base and JOL side by side on generated tiny objects, on the CPU, in minutes",
        usage="jol demo [--out DIR] [--seed N]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add(
        "--out",
        metavar="DIR",
        type=folder_to_write,
        default="runs/demo",
        help="folder for data, runs and pictures",
    )
    add(
        "--seed",
        metavar="N",
        type=count,
        default=0,
        help="seed of scenes, initial weights and data order",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Do the demo.

    Raises:
        RunError: --out holds something that is no demo.
        DemoError: training ended early.
    """
    compare(args.out, seed=args.seed)


def demo_settings(loss: str, seed: int, size: DemoSize) -> TrainSettings:
    """Faster R-CNN, preset slim; the two losses differ in nothing but their name."""
    given = {
        "detector": "faster_rcnn",
        "loss": loss,
        "preset": "slim",
        "max_steps": size.steps,
        "batch_size": size.batch_size,
        "lr": LEARNING_RATE,
        "crop": size.crop,
        "seed": seed,
        "eval_every": 0,
    }
    return resolve(given, size.train_images, None, {})


def compare(out: Path, *, seed: int = 0, size: DemoSize | None = None) -> None:
    """Write scenes, train both, and leave table.txt, detections.png, pr_curves.png in `out`.

    Args:
        out: folder of the demo; one from an earlier demo is replaced.
        seed: seed of scenes, initial weights and data order.
        size: how much to do.

    Raises:
        RunError: `out` holds something that is no demo, or another process writes there.
        DemoError: training ended early.
    """
    _refuse_other(out)
    with claimed(out):
        _clear(out)
        try:
            _compare(out, seed, size or DemoSize())
        except Stopped as error:
            raise DemoError("stopped by a signal; the next demo begins anew") from error
        except TrainingError as error:
            raise DemoError(str(error)) from error


def _compare(out: Path, seed: int, size: DemoSize) -> None:
    from detectors.data.dataset import CocoDetection
    from detectors.data.synthetic import write_scenes
    from detectors.evaluation.curves import NAMES, pr_curves
    from detectors.paper.side_by_side import detections
    from detectors.training import loop

    began = time.perf_counter()
    train_data = CocoDetection(
        *write_scenes(out / "train", images=size.train_images, seed=2 * seed, size=size.pixels)
    )
    val_data = CocoDetection(
        *write_scenes(out / "val", images=size.val_images, seed=2 * seed + 1, size=size.pixels)
    )
    counts = [len(d.ground_truth["annotations"]) for d in (train_data, val_data)]
    print(
        f"{size.train_images} training and {size.val_images} validation scenes of "
        f"{size.pixels} pixels, {counts[0]} and {counts[1]} objects of "
        f"{len(train_data.class_names)} classes"
    )
    results: dict[str, TrainResult] = {}
    models: dict[str, nn.Module] = {}
    for loss in ("base", "jol"):
        settings = demo_settings(loss, seed, size)
        models[loss] = loop.make_model(settings, len(train_data.class_names))
        data = {"train_sha256": train_data.digest, "val_sha256": val_data.digest}
        run_folder.start(out / loss, settings, data)
        result = loop.train(
            settings, models[loss], train_data, val_data, out / loss, title=NAMES[loss]
        )
        assert result is not None  # this process is alone, so it leads
        results[loss] = result
    pr_curves({k: r.evaluation for k, r in results.items()}, out / "pr_curves.png")
    shown = range(min(ROWS, len(val_data)))
    detections(models, val_data, "cpu", shown, out / "detections.png")
    text = table(results, seed, size)
    (out / "table.txt").write_text(text)
    print("\n" + text)
    print(f"pictures: {out / 'detections.png'}, {out / 'pr_curves.png'}")
    print(f"the whole demo took {(time.perf_counter() - began) / 60:.1f} minutes")


def _refuse_other(out: Path) -> None:
    """Raise RunError unless `out` is empty, or holds what a demo wrote, which left MARK there."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file, wanted a folder")
    found = {p.name for p in out.iterdir()} - {LOCK} if out.exists() else set()
    ours = {MARK, "train", "val", "base", "jol", "pr_curves.png", "detections.png", "table.txt"}
    if found and (MARK not in found or not found <= ours):
        raise RunError(f"{out}: holds what no demo wrote; not touched")


def _clear(out: Path) -> None:
    """Remove what a demo wrote into `out`, which is locked, and leave MARK there."""
    try:
        (out / MARK).touch()  # first: what is left of a demo that is killed here is a demo's
        for path in out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, MARK):
                path.unlink()
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error


def table(results: "dict[str, TrainResult]", seed: int, size: DemoSize) -> str:
    """The comparison as text: AP by size in per cent, seconds a step, both and the difference."""
    base, joint = results["base"], results["jol"]
    rows = [["", "base", "JOL", "JOL - base"]]
    for name in METRICS:
        a, b = 100 * base.evaluation.metrics[name], 100 * joint.evaluation.metrics[name]
        if not math.isnan(a):
            rows.append([SIZES.get(name, name), f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"])
    a, b = base.seconds_per_step, joint.seconds_per_step
    rows.append(["seconds a step", f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}"])
    about = (
        f"AP in per cent (IoU .5:.95) on {size.val_images} scenes. Faster R-CNN from random "
        f"weights, {size.steps} steps\nof {size.batch_size} images; same initial weights, data and "
        f"learning rate. One seed ({seed}) and one rate\n({LEARNING_RATE}): a few points either "
        "way are chance or the rate's (docs/measurements.md); try others with --seed."
    )
    return "\n".join([*aligned(rows), "", about]) + "\n"


SIZES = {
    "AP_vt": f"AP_vt   < {VERY_TINY} px",
    "AP_t": f"AP_t   {VERY_TINY}-{TINY} px",
    "AP_s": f"AP_s  {TINY}-{SMALL} px",
    "AP_m": f"AP_m   > {SMALL} px",
}
"""How the table names AP by size; sizes are square roots of areas."""
