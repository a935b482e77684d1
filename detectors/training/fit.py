"""Whether what a checkpoint holds can be used: its kinds, and its names and shapes for a model.

torch would find some of it in the middle of a step, and name none of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detectors.training.settings import TrainSettings
from detectors.training.state import State
from detectors.training.step import sgd
from detectors.utils.argument_types import within
from detectors.utils.names import brief
from detectors.utils.printable import printable

SCALE = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
"""What torch's GradScaler keeps."""


def check_contents(checkpoint: Mapping[str, Any]) -> None:
    """Check what every checkpoint of a detector holds.

    Raises:
        ValueError: something of another kind than a run writes.
    """
    weights, names = checkpoint["model"], checkpoint["class_names"]
    if not _is_dict(weights, Tensor):
        raise ValueError("model: wanted tensors by name")
    if not (names and isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f"class_names: got {brief(names)}, wanted a list of names")
    if len(set(names)) != len(names) or not all(n and n == printable(n) for n in names):
        got = brief(names)
        raise ValueError(
            f"class_names: got {got}, wanted different ones without control characters"
        )
    ids = checkpoint.get("category_ids", list(range(len(names))))
    if not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise ValueError(f"category_ids: got {brief(ids)}, wanted a list of whole numbers")
    if len(ids) != len(names) or len(set(ids)) != len(names):
        raise ValueError(f"category_ids: got {brief(ids)}, wanted one for each of {len(names)}")
    scale = checkpoint.get("scale", {})
    if not (_is_dict(scale, object) and all(v is None or _is_number(v) for v in scale.values())):
        raise ValueError(f"scale: got {brief(scale)}, wanted numbers by name")
    if not _is_count(checkpoint["step"]):
        raise ValueError(f"step: got {brief(checkpoint['step'])}, wanted a count")
    if not isinstance(checkpoint["settings"], dict):
        kind = type(checkpoint["settings"]).__name__
        raise ValueError(f"its settings are a {kind}, wanted a dict of settings by name")
    TrainSettings.read(checkpoint["settings"])


def check_fit(
    checkpoint: Mapping[str, Any], model: nn.Module, class_names: Sequence[str], steps: int
) -> None:
    """Check what a run resumes from, whose contents are checked.

    Args:
        checkpoint: with all of checkpoints.NEEDED and TO_GO_ON.
        model: the run's detector.
        class_names: the run's classes.
        steps: of the whole run.

    Raises:
        ValueError: a part that does not fit.
    """
    if list(class_names) != checkpoint["class_names"]:
        got = brief(checkpoint["class_names"])
        raise ValueError(f"class_names: got {got}, wanted {brief(list(class_names))}")
    check_weights(checkpoint["model"], model)
    _check_optimizer(checkpoint["optimizer"], [p for p in model.parameters() if p.requires_grad])
    _check_scaler(checkpoint["scaler"], checkpoint["settings"].get("amp") == "fp16")
    _check_state(checkpoint["state"], checkpoint["step"], steps)


def check_weights(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check tensors by name against those of a model.

    Raises:
        ValueError: the first one that does not fit.
    """
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ weights.keys()):
        what = "a tensor is missing" if name in wanted else "there is no such tensor"
        raise ValueError(f"model: {brief(name)}: {what}")
    for name, tensor in wanted.items():
        if problem := _unlike(weights[name], tensor):
            raise ValueError(f"model: {name} {problem}")
        if not weights[name].isfinite().all():
            raise ValueError(f"model: {name} holds numbers that are not finite")


def _check_optimizer(found: Any, parameters: Sequence[Tensor]) -> None:
    wanted = sgd(parameters, 1.0).state_dict()["param_groups"][0]
    groups = found.get("param_groups") if isinstance(found, dict) else None
    state = found.get("state") if isinstance(found, dict) else None
    if not (isinstance(groups, list) and len(groups) == 1 and _is_dict(groups[0], object)):
        raise ValueError("optimizer: wanted the state of SGD with one group of parameters")
    for name, value in wanted.items():
        got = groups[0].get(name, value)  # another version of torch may have more of them
        good = _is_number(got) if name == "lr" else type(got) is type(value) and got == value
        if not good:
            raise ValueError(f"optimizer: {name}: got {brief(got)}, wanted {brief(value)}")
    if not (isinstance(state, dict) and state.keys() <= set(range(len(parameters)))):
        raise ValueError(f"optimizer: wanted states of {len(parameters)} parameters by number")
    for number, one in state.items():
        if not (isinstance(one, dict) and one.keys() <= {"momentum_buffer"}):
            raise ValueError(f"optimizer: parameter {number}: wanted a momentum_buffer")
        momentum = one.get("momentum_buffer")
        if momentum is not None and (problem := _unlike(momentum, parameters[number])):
            raise ValueError(f"optimizer: the momentum of parameter {number} {problem}")


def _check_scaler(found: Any, used: bool) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"scaler: got {brief(found)}, wanted a dict")
    for name in SCALE if used else ():
        if not (_is_number(found.get(name)) and (found[name] > 0 or name == SCALE[-1])):
            raise ValueError(f"scaler: {name}: got {brief(found.get(name))}, wanted a number > 0")


def _check_state(found: Any, step: int, steps: int) -> None:
    fields = vars(State())
    if not isinstance(found, dict) or found.keys() != fields.keys():
        names = brief(sorted(map(str, found))) if isinstance(found, dict) else brief(found)
        raise ValueError(f"state: got {names}, wanted {brief(sorted(fields))}")
    if found["step"] != step or not step <= steps:
        raise ValueError(f"state: step: got {brief(found['step'])}, wanted {step} of {steps}")
    for name in ("step", "best_step", "bad"):
        if not _is_count(found[name]):
            raise ValueError(f"state: {name}: got {brief(found[name])}, wanted a count")
    recent = found["recent"]
    if not isinstance(recent, list) or not all(_is_dict(means, int | float) for means in recent):
        raise ValueError("state: recent: wanted a list of numbers by name")
    if not isinstance(found["best"], float):
        raise ValueError(f"state: best: got {brief(found['best'])}, wanted an AP")


def _is_dict(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(item, kind) for name, item in value.items()
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and within(value)


def _unlike(got: Any, wanted: Tensor) -> str:
    """How a tensor differs from the one wanted in kind and shape; "" if it does not."""
    if not isinstance(got, Tensor):
        return f"is {brief(got)}, wanted a tensor"
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        what = [f"{list(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in (got, wanted)]
        return f"is {what[0]}, wanted {what[1]}"
    return ""
