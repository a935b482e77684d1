"""One run: train, evaluate, and look at what the loss sees on the way."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.study.losses import LOSSES, put_in_place
from bench.study.runs import Run
from detectors.data.batches import train_batches
from detectors.data.dataset import CocoDetection
from detectors.data.object_sizes import LIMITS
from detectors.evaluation.model_evaluation import evaluate_model
from detectors.evaluation.protocols import METRICS, PROTOCOLS
from detectors.models.build import LOSS_NAMES
from detectors.paper.figures import correlation, object_shares
from detectors.paper.loss_samples import collect
from detectors.training.loop import make_model
from detectors.training.schedule import learning_rate
from detectors.training.settings import TrainSettings, resolve
from detectors.training.step import Stepper

WATCHED = ("base", "jol")
"""Losses whose samples are looked at, in the runs that are reported."""
MARKS = (0.1, 0.25, 0.5, 1.0)
"""Parts of a run after which they are."""
LOOKED_AT = 30
"""Images, of the part tune."""
SIZES = dict(zip(PROTOCOLS["aitod"].areas, pairwise(LIMITS), strict=True))
"""Size bucket → sizes from .. to below .., in pixels."""
SAMPLES = ("objects", "samples", "share", "correlation", "s_loc", "s_cls")
"""What is noted of a bucket: numbers, per cent of the loss of all positives, Pearson's r of class
score and IoU, and their means. Objects' own boxes as proposals count in the loss alone."""
SAMPLE_COLUMNS = ("data", "detector", "loss", "backbone", "seed", "step", "size", *SAMPLES)


def settings_of(run: Run, images: int, device: str) -> TrainSettings:
    """The settings of `jol train` that a run has; its loss may be more than they say."""
    given = {
        "detector": run.detector,
        "preset": "slim",
        "backbone": run.backbone,
        "max_steps": run.steps,
        "batch_size": run.batch_size,
        "crop": run.crop or None,
        "lr": run.lr,
        "seed": run.seed,
        "device": device,
        **LOSSES[run.loss].settings,
        **({"assigner": run.assigner} if run.assigner else {}),
        **({"anchor_scale": run.anchor_scale} if run.anchor_scale else {}),
    }
    return resolve(given, images, None, {})


def train(run: Run, folder: Path, device: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do a run with the data in `folder`.

    Returns:
        What runs.FOUND names, but for commit and machine; lines of SAMPLE_COLUMNS.
    """
    began = time.perf_counter()
    data = {p: CocoDetection(folder / p, folder / f"{p}.json") for p in {"train", "tune", run.part}}
    settings = settings_of(run, len(data["train"]), device)
    model = make_model(settings, len(data["train"].class_names))
    put_in_place(model, LOSSES[run.loss])
    watched = run.part == "report" and run.loss in WATCHED and not run.assigner
    marks = {math.ceil(run.steps * mark) for mark in MARKS} if watched else set()
    samples: list[dict[str, Any]] = []
    log: list[Mapping[str, float]] = []
    problem = ""
    for step, outcome in steps(model, settings, data["train"]):
        if outcome.problem:
            problem = f"step {step}: {outcome.problem}"
            break
        log.append(outcome.values)
        if step in marks:
            where = {name: getattr(run, name) for name in SAMPLE_COLUMNS[:5]}
            found = sizes(model, data["tune"], device)
            samples += [{**where, "step": step, **line} for line in found]
    metrics = dict.fromkeys(METRICS, 0.0)
    if not problem:
        evaluation = evaluate_model(
            model, data[run.part], device, settings.evaluator, settings.protocol,
            counted=settings.counted,
        )  # fmt: skip
        assert evaluation is not None
        metrics = {name: 100 * evaluation.metrics[name] for name in METRICS}
    return metrics | means(log) | {
        "problem": problem,
        "seconds": time.perf_counter() - began,
    }, samples  # fmt: skip


def steps(model: nn.Module, settings: TrainSettings, data: CocoDetection) -> Iterator[Any]:
    """Train; after each step its number, from 1, and its outcome."""
    stepper = Stepper(model, settings)
    batches = train_batches(
        data,
        batch_size=settings.batch_size,
        crop=settings.crop,
        seed=settings.seed,
        steps=settings.steps,
    )
    for step, batch in enumerate(batches):
        yield step + 1, stepper(batch, step + 1, learning_rate(step, settings))


def means(log: list[Mapping[str, float]]) -> dict[str, float]:
    """Losses and the negatives' weight, over the last tenth of the steps."""
    last = log[-math.ceil(len(log) / 10) :]
    found = {}
    for name, short in {"loss_cls": "cls", "loss_box": "box", "weight": "w⁻"}.items():
        values = [x[key] for x in last for key in LOSS_NAMES[short] if key in x]
        found[name] = sum(values) / len(values) if values else math.nan
    return found


def sizes(model: nn.Module, data: CocoDetection, device: str) -> list[dict[str, Any]]:
    """What the loss sees of objects of each size, SAMPLES by name; sizes that are there."""
    s = collect(model, data, device, LOOKED_AT)
    shares = object_shares(s)
    lines = []
    for size, (low, high) in SIZES.items():
        objects = (s.objects >= low) & (s.objects < high)
        here = (s.size >= low) & (s.size < high) & ~s.own
        if objects.any():
            values = (
                int(objects.sum()),
                int(here.sum()),
                float(shares[objects].sum()),
                correlation(s.s_loc[here], s.s_cls[here]),
                float(s.s_loc[here].mean()),
                float(s.s_cls[here].mean()),
            )
            lines.append({"size": size, **dict(zip(SAMPLES, values, strict=True))})
    return lines


def main() -> None:
    """Do the runs that come as lines of JSON, one after the other, and answer each with a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the study, which ends this process
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        order = json.loads(line)
        run = Run(**order["run"])
        found, samples = train(run, Path(order["folder"]), order["device"])
        answer = {"run": asdict(run), "found": found, "samples": samples}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
