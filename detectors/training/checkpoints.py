"""Checkpoints: tensors and plain values in a file that is whole or refused.

A checkpoint carries the sha256 of its content. A new one is written next to the old one, synced to
the disk and renamed; the one before it stays as PREVIOUS until the next is whole. It is read
without running code that a file may hold (torch.load with weights_only).
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from detectors.errors import RunError, means_no_memory
from detectors.models.build import build_detector
from detectors.training import run_folder
from detectors.training.fit import check_contents, check_fit, check_weights
from detectors.training.settings import TrainSettings
from detectors.utils import files

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
NEEDED = ("model", "settings", "class_names", "step", "sha256")
"""What every checkpoint of a detector holds."""
TO_GO_ON = ("optimizer", "scaler", "state")
"""What one to resume from holds as well."""
SAVE_SECONDS = 600.0
"""A run writes its next checkpoint when the last one is older than this, if not sooner."""


class Checkpoints:
    """The checkpoints that a run writes into its folder.

    Args:
        folder: the run's.
        resumed: the checkpoint the run resumes from, as load_last returns it; None: there is none.
        leads: False: nothing is written, because another process does.

    Attributes:
        kept: what messages say of the newest one.
    """

    def __init__(
        self, folder: Path, resumed: Mapping[str, Any] | None = None, *, leads: bool = True
    ) -> None:
        self.folder, self._leads = folder, leads
        self._saved_at = time.monotonic()
        self.kept = f"no checkpoint was written in {folder} before"
        self._last_is_bad = resumed is not None and resumed.get("file") == PREVIOUS
        if resumed is not None:
            self._note(resumed["step"])

    def are_old(self) -> bool:
        """Whether the newest one is older than SAVE_SECONDS."""
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    def save_last(self, checkpoint: Mapping[str, Any]) -> None:
        """Write what a run resumes from: all of NEEDED and TO_GO_ON but sha256.

        Raises:
            OSError: as `save`.
        """
        if self._leads:
            # A bad one is not kept: between two renames it would be the only one there.
            previous = None if self._last_is_bad else self.folder / PREVIOUS
            save(self.folder / LAST, checkpoint, previous=previous)
            self._last_is_bad = False
        self._saved_at = time.monotonic()
        self._note(checkpoint["step"])

    def save_best(self, checkpoint: Mapping[str, Any]) -> None:
        """Write the weights with the best AP so far: all of NEEDED but sha256.

        Raises:
            OSError: as `save`.
        """
        if self._leads:
            save(self.folder / BEST, checkpoint)

    def _note(self, step: int) -> None:
        self.kept = f"the last checkpoint, of step {step}, is in {self.folder}"


def save(path: Path, checkpoint: Mapping[str, Any], *, previous: Path | None = None) -> None:
    """Write `checkpoint` (tensors and plain values) such that `load` reads it back.

    Args:
        path: the file to write or replace.
        checkpoint: all of NEEDED but sha256, which is added here.
        previous: where the checkpoint that `path` replaces goes; None: it is lost.

    Raises:
        OSError: it cannot be written; what was at `path` still is, there or at `previous`.
    """
    whole = {**checkpoint, "sha256": digest(checkpoint)}
    written = path if previous is None else path.with_name(path.name + ".new")
    with files.naming(path):
        files.replace(written, lambda file: _write(whole, file))
        if previous is not None:
            if path.exists():
                path.replace(previous)
            written.replace(path)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Checkpoints of earlier versions do not hold category_ids; they are 1, 2, ... then.

    Raises:
        RunError: no such file, not a checkpoint of ours, or not as it was written.
    """
    try:
        files.refuse_endless(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except Exception as error:  # torch.load raises many kinds for what is not its file
        if means_no_memory(error):
            raise
        raise RunError(f"{path}: is no checkpoint that can be read") from error
    missing = [k for k in NEEDED if not isinstance(checkpoint, dict) or k not in checkpoint]
    if missing:
        raise RunError(f"{path}: is no checkpoint of a detector, it lacks {', '.join(missing)}")
    try:
        found = digest({k: v for k, v in checkpoint.items() if k != "sha256"})
    except (RuntimeError, TypeError, ValueError) as error:  # kinds of tensors, depths
        if means_no_memory(error):
            raise
        raise RunError(f"{path}: holds what no run writes") from error
    if found != checkpoint["sha256"]:
        raise RunError(f"{path}: damaged, its content is not what was written (sha256 differs)")
    try:
        check_contents(checkpoint)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    return {"category_ids": list(range(1, len(checkpoint["class_names"]) + 1)), **checkpoint}


def exist(folder: Path) -> bool:
    """Whether a run has come to its first checkpoint."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def load_last(
    folder: Path,
    settings: Mapping[str, Any],
    model: nn.Module | None = None,
    class_names: Sequence[str] = (),
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint of a run that can be resumed from, and what is wrong with newer ones.

    Args:
        folder: the run's.
        settings: the run's, by name.
        model: the run's detector, which stays as it is; None: whether it fits is not looked at.
        class_names: the run's classes, with `model`.

    Returns:
        The checkpoint with its name at "file", None where the run has not come to its first; a
        line for each problem.

    Raises:
        RunError: there are checkpoints, and none can be used.
    """
    problems: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            checkpoint = load(path)
            missing = [name for name in TO_GO_ON if name not in checkpoint]
            if missing:
                raise RunError(f"{path}: cannot be resumed from, it lacks {', '.join(missing)}")
            run_folder.refuse_other_settings(
                f"{path}: of another run", checkpoint["settings"], settings
            )
            if model is not None:
                try:
                    check_fit(checkpoint, model, class_names, settings["steps"])
                except ValueError as error:
                    raise RunError(f"{path}: does not fit the run: {error}") from error
            return {**checkpoint, "file": path.name}, problems
        except RunError as error:
            problems.append(str(error))
    if problems:
        raise RunError("; ".join(problems))
    return None, problems


def digest(value: Any) -> str:
    """sha256 (hexadecimal) of tensors and plain values, nested in dicts, lists and tuples."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        found.update(b"{")
        for key, item in value.items():
            _feed(found, key)
            _feed(found, item)
    elif isinstance(value, list | tuple):
        found.update(b"[")
        for item in value:
            _feed(found, item)
    elif isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(plain.numpy().data)
    else:
        found.update(f"{type(value).__name__} {value!r},".encode())


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    torch.save(checkpoint, file)


def load_detector(
    checkpoint: dict[str, Any], name: object = "the checkpoint", detections: int | None = None
) -> nn.Module:
    """The detector of a checkpoint, with its weights, on the CPU; `name` is for messages.

    `detections`: most detections of an image; None: as it was trained with.

    Raises:
        RunError: the weights do not fit the settings stored with them.
    """
    try:
        settings = TrainSettings.read(checkpoint["settings"])
        model = build_detector(
            settings.detector,
            len(checkpoint["class_names"]),
            settings.loss,
            **settings.model_arguments() | ({"detections": detections} if detections else {}),
            load_weights=False,
        )
        check_weights(checkpoint["model"], model)
        model.load_state_dict(checkpoint["model"])
    except (TypeError, ValueError, RuntimeError) as error:
        if means_no_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(f"{name}: does not fit this version: {reason}") from error
    return model.to(memory_format=torch.channels_last)
