"""Options that several commands share, the option of a setting, and the types of values."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from detectors.errors import Unusable
from detectors.training.setting_values import misfit
from detectors.training.settings import TrainSettings
from detectors.utils.argument_types import file, named_number, number, one_of
from detectors.utils.parser import meant
from jolkernels.registry import resolve
from jolkernels.spec import CHOICES

Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""
PRIORS = ("assigner", "assigner_settings", "anchor_scale", "anchor_ratios", "strides")
"""Settings that `jol data stats` takes as `jol train` does."""


def add_settings(
    options: Options, settings: type[TrainSettings], names: Iterable[str], **changes: Any
) -> None:
    """Add the options of settings by name; their fields say all of them but `changes`."""
    hints = get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names:
        keywords = {"help": fields[name].metadata["help"], **_kind(fields[name], hints[name])}
        options.add_argument(f"--{name.replace('_', '-')}", **(keywords | changes))


def _kind(field: dataclasses.Field, hint: Any) -> dict[str, Any]:
    """What argparse has to know of a field of this type, which TrainSettings' `setting` made."""
    about = dict(field.metadata["kind"])
    wanted = partial(misfit, hint=hint, about=dict(about))
    metavar = {"metavar": about.pop("metavar")} if "metavar" in about else {}
    parts = [part for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    many = [part for part in parts if get_origin(part) is list]
    kind = get_args(many[0])[0] if many else parts[0]
    if hint is bool and not field.metadata.get("usual"):
        return {"action": "store_true"}
    if kind is bool:
        return {"type": one_of({"on": True, "off": False}), "metavar": "on|off"}
    if "choices" in about:
        known = {str(choice): choice for choice in about["choices"]}
        known |= {about["none"]: None} if "none" in about else {}
        return {"type": one_of(known), "metavar": "|".join(known), **metavar}
    if "spec" in about:
        words = [*CHOICES[about["spec"]], *([about["none"]] if "none" in about else [])]
        return {"type": loss_choice(**about), "metavar": "|".join(words), **metavar}
    if get_origin(kind) is dict:
        return {"type": named_number, "nargs": "+", **metavar}
    if kind is str:
        return {"type": partial(_text, wanted), **metavar}
    found = {"type": number(kind, **about), "metavar": "N" if kind is int else "X", **metavar}
    return found | ({"nargs": "+"} if many else {})


def _text(wanted: Callable[[str], str], text: str) -> str:
    if problem := wanted(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {problem}")
    return text


def loss_choice(spec: str, none: str | None = None) -> Callable[[str], str | None]:
    """The type of an argument that names a choice of this kind as jolkernels.registry.parse reads.

    `none` is the word for None.
    """

    def parse(text: str) -> str | None:
        if text == none:
            return None
        try:
            resolve(spec, text)
        except (TypeError, ValueError) as error:
            problem = str(error).removeprefix(f"{spec}: ")
            named = text.partition(":")[0] in CHOICES[spec]
            problem += "" if named else meant(text, CHOICES[spec])
            raise argparse.ArgumentTypeError(problem) from None
        return text

    return parse


def checkpoint_option(options: Options) -> None:
    """The detector to use."""
    options.add_argument(
        "--checkpoint", metavar="FILE", required=True, type=file, help="last.pt or best.pt of a run"
    )


def find_device(device: str | None) -> str:
    """This device, or the one to use where none is given.

    Raises:
        Unusable: it is not there.
    """
    import torch

    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise Unusable("--device cuda: PyTorch finds no GPU here")
    return device or ("cuda" if gpu else "cpu")


share = number(float, least=0, below=1)
