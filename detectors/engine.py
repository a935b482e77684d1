"""Training and evaluation loops.

SGD with momentum 0.9 and weight decay 1e-4; the learning rate rises linearly over the first steps
and falls to a tenth at 8/12 and 11/12 of the run, or where the settings say. The data of a step
depend on the seed and the step only, so base and JOL runs of one seed see the same batches from
the same initial weights, and a resumed run goes on as if it had never stopped.
"""

import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors import runs
from detectors.data import CocoDetection, train_batches
from detectors.evaluation import Evaluation, evaluate
from detectors.models import build_detector, joint_head
from detectors.progress import Progress
from detectors.results import metrics_line, write_results
from detectors.runs import TrainSettings

LOG_EVERY = 20
SAVE_EVERY = 1000
WARMUP = 500


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the images."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns: the final evaluation and the median time of a step."""

    evaluation: Evaluation
    seconds_per_step: float
    """From loading the data to the update; NaN if a finished run was resumed."""


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then a tenth at each of two steps or more."""
    warmup = min(WARMUP, max(1, settings.steps // 10))
    if settings.decay_steps is None:
        decays = sum(12 * step >= part * settings.steps for part in (8, 11))
    else:
        decays = sum(step >= decay for decay in settings.decay_steps)
    return settings.lr * min(1.0, (step + 1) / warmup) * 0.1**decays


def make_model(settings: TrainSettings, num_classes: int, *, resumed: bool = False) -> nn.Module:
    """The detector of a run with its initial weights, which depend on the seed, not on the loss.

    `resumed`: a checkpoint brings the weights; those the run began with are not read again.
    """
    torch.manual_seed(settings.seed)
    model = build_detector(
        settings.detector,
        num_classes,
        settings.loss,
        **settings.model_arguments(),
        load_weights=not resumed,
    )
    return model.to(settings.device).to(memory_format=torch.channels_last)


def train(
    settings: TrainSettings,
    model: nn.Module,
    train_data: CocoDetection,
    val_data: CocoDetection,
    out: Path,
    *,
    checkpoint: dict[str, Any] | None = None,
    title: str = "train",
) -> TrainResult:
    """Train `model` (from make_model) and write the run into `out` (see runs), which exists.

    Args:
        settings: the run's settings.
        model: changed in place.
        train_data: images to learn from.
        val_data: images to evaluate on, with the same classes.
        out: the run's folder.
        checkpoint: what runs.resume returned, to go on from there.
        title: what the progress bar is called.

    Raises:
        TrainingError: a loss that is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, weight_decay=1e-4)
    # Building the model may have drawn more or fewer numbers; the samplers start from the seed.
    torch.manual_seed(settings.seed)
    start, best = 0, -math.inf
    if checkpoint is not None:
        start, best = checkpoint["step"], checkpoint["best"]
        _restore(checkpoint, model, optimizer, settings.device)
    batches = train_batches(
        train_data,
        batch_size=settings.batch_size,
        crop=settings.crop,
        seed=settings.seed,
        start_step=start,
        steps=settings.steps,
        workers=settings.workers,
    )
    epoch = math.ceil(len(train_data) / settings.batch_size)
    recent: deque[dict[str, float]] = deque(maxlen=LOG_EVERY)
    seconds: list[float] = []
    evaluation: Evaluation | None = None
    with Progress(title, start, settings.steps) as progress:
        began = time.perf_counter()
        for step, (images, targets) in enumerate(batches, start + 1):
            rate = learning_rate(step - 1, settings)
            values = _step(model, optimizer, images, targets, rate, step, settings)
            seconds.append(time.perf_counter() - began)
            recent.append({**values, "seconds": seconds[-1]})
            means = {k: sum(r[k] for r in recent) / len(recent) for k in recent[-1]}
            progress.step(step, means, seconds)
            last = step == settings.steps
            if step % LOG_EVERY == 0 or last:
                runs.log(out, {"step": step, "lr": rate, **means})
            if last or (settings.eval_every and step % (settings.eval_every * epoch) == 0):
                evaluation = evaluate_model(
                    model, val_data, settings.device, settings.evaluator, settings.protocol
                )
                runs.log(out, {"step": step, "evaluation": evaluation.metrics})
                progress.note(f"step {step}: {metrics_line(evaluation)}")
                if evaluation.metrics["AP"] > best:
                    best = evaluation.metrics["AP"]
                    runs.save_checkpoint(out / "best.pt", _weights(model, step, settings, val_data))
            if last or step % epoch == 0 or step % SAVE_EVERY == 0:
                state = _weights(model, step, settings, val_data)
                state |= {"optimizer": optimizer.state_dict(), "best": best, "rng": _rng()}
                runs.save_checkpoint(out / "last.pt", state)
            began = time.perf_counter()
    if evaluation is None:  # resumed after its last step
        evaluation = evaluate_model(
            model, val_data, settings.device, settings.evaluator, settings.protocol
        )
    write_results(out, evaluation, settings.loss)
    return TrainResult(evaluation, statistics.median(seconds) if seconds else math.nan)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Any]],
    rate: float,
    step: int,
    settings: TrainSettings,
) -> dict[str, float]:
    """One optimizer step; returns the losses by name, total, w_neg and the gradient's norm."""
    device = settings.device
    model.train()
    wanted = [{k: t[k].to(device) for k in ("boxes", "labels")} for t in targets]
    ids = ", ".join(str(t["image_id"]) for t in targets)
    try:
        losses: dict[str, Tensor] = model([image.to(device) for image in images], wanted)
    except FloatingPointError as error:  # a NaN that would take the process down
        raise TrainingError(f"step {step}: {error}; image ids {ids}") from error
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    total.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
    named = {**losses, "total": total, "grad_norm": norm}
    negative_weight = joint_head(model).negative_weight
    if negative_weight is not None:
        named["negative_weight"] = negative_weight
    # One transfer a step: everything there is to know about it.
    numbers = torch.stack([v.detach().float() for v in named.values()]).tolist()
    values = dict(zip(named, numbers, strict=True))
    if not all(map(math.isfinite, numbers)):
        what = ", ".join(f"{k} = {v}" for k, v in values.items() if not math.isfinite(v))
        raise TrainingError(f"step {step}: {what}; image ids {ids}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return values


@torch.no_grad()
def predict(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    *,
    on_image: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Detections of every image as COCO results, in pixels of the image as stored."""
    model.eval()
    results: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        found = model([image.to(device).float() / 255])[0]
        boxes = found["boxes"].cpu()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        results += [
            {
                "image_id": target["image_id"],
                "category_id": dataset.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for box, score, label in rows
        ]
        if on_image is not None:
            on_image(index)
    return results


def evaluate_model(
    model: nn.Module,
    dataset: CocoDetection,
    device: str,
    evaluator: str = "faster",
    protocol: str = "aitod",
) -> Evaluation:
    """Detect on every image of `dataset` and compare with its ground truth."""
    with Progress("evaluate", 0, len(dataset), quiet=True) as progress:
        results = predict(model, dataset, device, on_image=lambda i: progress.step(i + 1, {}, []))
    found = dataset.assemble(results)
    return evaluate(dataset.ground_truth, found, protocol=protocol, evaluator=evaluator)


def _weights(
    model: nn.Module, step: int, settings: TrainSettings, data: CocoDetection
) -> dict[str, Any]:
    """What is needed to use the model: plain values and tensors only."""
    return {
        "model": model.state_dict(),
        "settings": dataclasses.asdict(settings),
        "class_names": data.class_names,
        "category_ids": data.category_ids,
        "step": step,
    }


def load_detector(checkpoint: dict[str, Any]) -> nn.Module:
    """The detector of a checkpoint, with its weights, on the CPU.

    Raises:
        runs.RunError: the weights do not fit the settings beside them.
    """
    try:
        settings = TrainSettings(**checkpoint["settings"])
        model = build_detector(
            settings.detector,
            len(checkpoint["class_names"]),
            settings.loss,
            **settings.model_arguments(),
            load_weights=False,
        )
        model.load_state_dict(checkpoint["model"])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise runs.RunError(f"the checkpoint does not fit this version: {reason}") from error
    return model.to(memory_format=torch.channels_last)


def _rng() -> dict[str, Any]:
    """State of the generators that the samplers of the detectors draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore(
    checkpoint: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> None:
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if device == "cuda" and checkpoint["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"])
