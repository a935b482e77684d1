"""A training run on disk: its settings, and the files in its folder.

config.json     all settings, versions, the data's digests
metrics.jsonl   a line every logged step and every evaluation
last.pt         everything needed to go on; best.pt: the weights with the best AP so far
results.json    the final metrics by name; per_class.csv, pr_curves.npz, pr_curves.png and
                pr_classes.png beside it: see results

Files that are replaced are written beside and renamed, so a run that dies leaves whole files.
"""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "triton", "numpy", "pycocotools", "faster-coco-eval")
MAY_CHANGE = frozenset({"device", "workers", "evaluator", "eval_every"})
"""Settings a resumed run need not share with its beginning."""


class RunError(ValueError):
    """A folder or file that cannot be used as the run it should hold."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what a run computes; build_detector explains the model's part.

    Attributes:
        steps: optimizer steps in all.
        crop: side of the random training crops in pixels; None: whole images.
        decay_steps: steps after which the learning rate falls to a tenth; None: at 8/12 and 11/12.
        clip: largest norm of the gradient of all parameters; larger ones are scaled down.
        protocol: of the evaluation.
        eval_every: evaluate every so many epochs, and at the end; 0: at the end only.
    """

    detector: str
    loss: str
    preset: str
    backbone: str
    backbone_weights: str
    image_size: int | list[int] | None
    lam: float
    location_score: str | None
    class_score: str | None
    detach_weights: bool
    steps: int
    batch_size: int
    lr: float
    crop: int | None
    seed: int
    assigner: str | None = None
    assigner_settings: dict[str, float] = dataclasses.field(default_factory=dict)
    anchor_scale: float | None = None
    anchor_ratios: list[float] | None = None
    strides: list[int] | None = None
    centreness_weights: bool | None = None
    score_threshold: float | None = None
    decay_steps: list[int] | None = None
    clip: float = 10.0
    device: str = "cpu"
    workers: int = 0
    evaluator: str = "faster"
    protocol: str = "aitod"
    eval_every: int = 1

    def model_arguments(self) -> dict[str, Any]:
        """What build_detector takes beside name, number of classes and loss."""
        return {
            "preset": self.preset,
            "backbone": self.backbone,
            "backbone_weights": self.backbone_weights,
            "image_size": self.image_size,
            "assigner": self.assigner,
            "assigner_settings": self.assigner_settings,
            "anchor_scale": self.anchor_scale,
            "anchor_ratios": self.anchor_ratios,
            "strides": self.strides,
            "centreness_weights": self.centreness_weights,
            "score_threshold": self.score_threshold,
            "lam": self.lam,
            "location_score": self.location_score,
            "class_score": self.class_score,
            "detach_weights": self.detach_weights,
        }


def start(out: Path, settings: TrainSettings, data: Mapping[str, Any]) -> None:
    """Make the folder of a new run and write its config.json.

    Raises:
        RunError: the folder holds a run already, or cannot be made.
    """
    refuse_run(out)
    config = {"settings": dataclasses.asdict(settings), "data": dict(data), "versions": versions()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error


def refuse_run(out: Path) -> None:
    """Raise RunError if `out` holds a run or is no folder."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file, wanted a folder")
    if (out / "config.json").exists():
        raise RunError(f"{out}: holds a run already; give --resume to go on with it")


def resume(out: Path, settings: TrainSettings, data: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of an interrupted run; later lines of its metrics.jsonl are dropped.

    Raises:
        RunError: no run there, or one with other settings or data.
    """
    try:
        config = json.loads((out / "config.json").read_text())
        settings_then = dataclasses.asdict(TrainSettings(**config["settings"]))
        was = {"settings": settings_then, "data": dict(config["data"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{out}: no run to resume: config.json is missing or broken") from error
    now = {"settings": dataclasses.asdict(settings), "data": dict(data)}
    for part in ("settings", "data"):
        for name, value in now[part].items():
            if name not in MAY_CHANGE and was[part].get(name) != value:
                raise RunError(
                    f"{out}: cannot resume: {name} was {was[part].get(name)!r}, is now {value!r}"
                )
    checkpoint = load_checkpoint(out / "last.pt")
    if "optimizer" not in checkpoint:
        raise RunError(f"{out / 'last.pt'}: holds no optimizer state, nothing to resume from")
    _drop_lines_after(out / "metrics.jsonl", checkpoint["step"])
    return checkpoint


def _drop_lines_after(path: Path, step: int) -> None:
    """Cut metrics.jsonl back to what the checkpoint knows: the rest will be written again."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break  # the line a dying run was writing
        if record["step"] <= step:
            kept.append(line + "\n")
    _replace(path, lambda beside: beside.write_text("".join(kept)))


def log(out: Path, record: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(finite(record)) + "\n")


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write tensors and plain values such that load_checkpoint reads them back."""
    _replace(path, lambda beside: torch.save(checkpoint, beside))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What save_checkpoint wrote, on the CPU.

    Raises:
        RunError: no such file, or not a checkpoint of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        known = checkpoint.keys() >= {"model", "settings", "class_names", "step"}
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except Exception as error:  # torch.load raises many kinds for what is not its file
        raise RunError(f"{path}: is no checkpoint that can be read") from error
    if not known:
        raise RunError(f"{path}: is no checkpoint of a detector")
    return dict(checkpoint)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, NaN as null."""
    text = json.dumps(finite(content), indent=2) + "\n"
    _replace(path, lambda beside: beside.write_text(text))


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity in it replaced by None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _replace(path: Path, write: Any) -> None:
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)
