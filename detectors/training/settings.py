"""The settings of a training run: their names, defaults, and what decides those not given.

One dataclass serves the command line, whose options carry the same names, the file config.json and
the training loop. `resolve` fills in what was not given: from an earlier run's config.json, else
the data set's, the preset's and the defaults below.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from detectors.data.catalog import DATASETS
from detectors.errors import Unusable
from detectors.evaluation.average_precision import EVALUATORS, PROTOCOLS
from detectors.models.presets import WEIGHTS, find_detector

BATCHES = {"torchvision": 2, "paper": 2, "slim": 4}
CROPS = {"torchvision": 0, "paper": 0, "slim": 192}
EPOCHS = 12
LENGTH = ("epochs", "max_steps", "decay_epochs")
"""Options that become `steps` and `decay_steps` once the number of images is known."""
MAY_CHANGE = frozenset(
    {"device", "workers", "evaluator", "eval_every", "max_bad_steps", "tensorboard"}
)
"""Settings a resumed run need not share with its beginning."""
PRECISIONS = ("off", "bf16", "fp16")
KNOWN = {"amp": PRECISIONS, "evaluator": EVALUATORS, "protocol": tuple(PROTOCOLS)}


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what a run computes; build_detector explains the model's part.

    Attributes:
        steps: optimizer steps in all.
        batch_size: images a step, over all processes.
        crop: side of the random training crops in pixels; None: whole images.
        decay_steps: steps after which the learning rate falls to a tenth; None: at 8/12 and 11/12.
        clip: largest norm of the gradient of all parameters; larger ones are scaled down.
        amp: the forward pass in this precision (one of PRECISIONS); losses are float32 always.
        channels_last: memory order of images and weights.
        compile: torch.compile what of the model has static shapes.
        deterministic: the same bits on a GPU too, slower; on a CPU they are anyway.
        max_bad_steps: so many steps in a row may be left out because a loss is not finite or an
            image cannot be read, and loading processes started again; one more ends the run.
        tensorboard: write what metrics.jsonl holds for TensorBoard as well.
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
    amp: str = "off"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    max_bad_steps: int = 0
    tensorboard: bool = False
    device: str = "cpu"
    workers: int = 0
    evaluator: str = "faster"
    protocol: str = "aitod"
    eval_every: int = 1

    def check(self) -> None:
        """Refuse what a file says that the command line would not have taken.

        What build_detector takes beyond its kind is for build_detector to refuse.

        Raises:
            ValueError: a setting of another kind, or an unknown name.
        """
        for name, hint in get_type_hints(type(self)).items():
            if not _fits(getattr(self, name), hint):
                wanted = hint.__name__ if isinstance(hint, type) else hint
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted {wanted}")
        for name, known in KNOWN.items():
            if getattr(self, name) not in known:
                wanted = ", ".join(known)
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {wanted}")

    def model_arguments(self) -> dict[str, Any]:
        """What build_detector takes beside name, number of classes and loss."""
        return {name: getattr(self, name) for name in MODEL}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of this type; whole numbers are floats too."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


MODEL = (
    *("preset", "backbone", "backbone_weights", "image_size"),
    *("assigner", "assigner_settings", "anchor_scale", "anchor_ratios", "strides"),
    *("centreness_weights", "score_threshold"),
    *("lam", "location_score", "class_score", "detach_weights"),
)


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(TrainSettings):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
    return found


DEFAULTS = _defaults()
"""Settings that an older run's file may lack; it ran with these."""
WITHOUT_PRESET: dict[str, Any] = {
    **DEFAULTS,
    "lam": 2.0,
    "location_score": "iou",
    "class_score": "probability",
    "detach_weights": False,
    "seed": 0,
}
"""What the command line takes for a setting that is not given, whatever the preset."""


def resolve(
    given: Mapping[str, Any], images: int, dataset: str | None, config: Mapping[str, Any]
) -> TrainSettings:
    """The settings of a run.

    Args:
        given: what the command line gives, by TrainSettings' names, and LENGTH.
        images: number of training images.
        dataset: a named data set, or None.
        config: settings of an earlier run that hold where nothing is given; may be empty.

    Raises:
        Unusable: no detector or loss, or an unknown detector.
    """
    for name in ("detector", "loss"):
        if name not in given and name not in config:
            raise Unusable(f"--{name} is missing")
    chosen = {**(config or _chosen(given, dataset)), **given}
    length = {name: chosen.pop(name, None) for name in LENGTH}
    chosen["assigner_settings"] = dict(chosen["assigner_settings"])
    if isinstance(chosen["image_size"], list) and len(chosen["image_size"]) == 1:
        chosen["image_size"] = chosen["image_size"][0]
    epoch = images / chosen["batch_size"]
    lengths = [math.ceil(length["epochs"] * epoch)] if length["epochs"] else []
    lengths += [length["max_steps"]] if length["max_steps"] else []
    if lengths:
        chosen["steps"] = min(lengths)
    if length["decay_epochs"]:
        chosen["decay_steps"] = [math.ceil(number * epoch) for number in length["decay_epochs"]]
    return TrainSettings(**chosen)


def _chosen(given: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """What the data set, the preset and the defaults say."""
    named = DATASETS[dataset] if dataset else None
    preset = given.get("preset", "paper" if named else "torchvision")
    try:
        detector = find_detector(given["detector"])
    except ValueError as error:
        raise Unusable(str(error)) from error
    return {
        **WITHOUT_PRESET,
        "preset": preset,
        "backbone": detector.backbone[preset],
        "backbone_weights": WEIGHTS[preset],
        "image_size": named.image_size if named and preset != "slim" else None,
        "batch_size": BATCHES[preset],
        "lr": detector.learning_rate[preset],
        "crop": CROPS[preset] or None,
        "protocol": named.protocol if named else DEFAULTS["protocol"],
        "epochs": None if "max_steps" in given else named.epochs if named else EPOCHS,
    }
