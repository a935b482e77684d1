"""The settings of a training run: their names, help, choices, defaults, and what decides the rest.

One dataclass serves the command line, whose options are made from its fields, the file config.json
and the training loop. `resolve` fills in what was not given: from an earlier run's config.json,
else the data set's, the preset's and the fields' defaults. Nothing here imports torch.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, get_type_hints

from detectors.assigners.names import ASSIGNERS
from detectors.data.catalog import DATASETS, NamedDataset
from detectors.errors import Unusable
from detectors.evaluation.protocols import EVALUATORS, PROTOCOLS
from detectors.models.anchor_plans import RATIOS
from detectors.models.presets import (
    BACKBONES,
    DETECTORS,
    LOSSES,
    PRESETS,
    WEIGHTS,
    by_preset,
    find_detector,
)
from detectors.training.defaults_in_words import (
    anchor_scales,
    of_detectors,
    of_image_sizes,
    of_presets,
    text,
)
from detectors.training.setting_values import misfit
from detectors.utils.names import brief
from jolkernels.spec import CLASS_SCORES

BATCHES = by_preset(2, slim=4)
CROPS = by_preset(0, slim=192)
LENGTH = ("epochs", "max_steps", "decay_epochs")
"""Options that become `steps` and `decay_steps` once the number of images is known."""
PRECISIONS = ("off", "bf16", "fp16")
SIDES: dict[str, Any] = {"least": 1, "below": 16_384}
"""Limits of a side in pixels; Pillow refuses images of more than 178 million."""
SHARES: dict[str, Any] = {"least": 1, "below": 65_536}
"""Limits of the images that are taken at once."""
PASSES: dict[str, Any] = {"least": 1, "below": 100_000}
"""Limits of a number of epochs: as steps they stay whole numbers that torch takes."""
MODEL, LOSS, TRAINING, EVALUATION = "model", "loss", "training", "evaluation"
"""Groups of settings; build_detector takes those of the first two."""


def setting(
    help: str,
    group: str,
    default: Any = MISSING,
    *,
    usual: Any = MISSING,
    said: str = "",
    may_change: bool = False,
    **kind: Any,
) -> Any:
    """A field of TrainSettings that is an option of `jol train`.

    Args:
        help: what the option's help says.
        group: one of the four above.
        default: value where the command line does not give it, and of an earlier run whose file
            lacks it.
        usual: value where the command line does not give it, if files never lacked it, or if
            another than the default of such files.
        said: the default in words, where it depends on the preset, the detector or the data.
        may_change: whether a resumed run may have another value than its beginning.
        kind: what the command line takes beyond the field's type (see commands/options.py):
            `choices`; `spec`, the kind of jolkernels.spec's choices that it names; `none`, the word
            for None; `metavar`; the limits `least`, `above`, `below`.
    """
    plain = usual if default is MISSING else default
    if not said and isinstance(plain, int | float | str) and not isinstance(plain, bool):
        said = text(plain)
    metadata = {
        "help": f"{help} (default: {said})" if said else help,
        "group": group,
        "may_change": may_change,
        "kind": kind,
    }
    if usual is not MISSING:
        metadata["usual"] = usual
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


EPOCHS = NamedDataset.epochs


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides what a run computes; build_detector explains the model's part."""

    detector: str = setting("detector to train", MODEL, choices=DETECTORS)
    loss: str = setting("the detector's own loss, or JOL", LOSS, choices=LOSSES)
    preset: str = setting(
        "torchvision: stock ResNet-50; paper: the paper's settings; slim: small, for a CPU and "
        "random weights",
        MODEL,
        choices=PRESETS,
        said="torchvision, or paper with --dataset",
    )
    backbone: str = setting(
        "ResNet of the detector", MODEL, choices=BACKBONES, said=of_detectors(lambda d: d.backbone)
    )
    backbone_weights: str = setting(
        "weights to start from", MODEL, metavar="imagenet|none|FILE", said=of_presets(WEIGHTS)
    )
    image_size: int | list[int] | None = setting(
        "resize the shorter side to S pixels; of several S one is drawn for each training image, "
        "the largest is for evaluation",
        MODEL,
        metavar="S",
        said=of_image_sizes(),
        **SIDES,
    )
    lam: float = setting("λ of the weights", LOSS, usual=2.0, least=1)
    location_score: str | None = setting(
        "S_loc", LOSS, usual="iou", spec="location_score", none="none"
    )
    class_score: str | None = setting(
        "S_cls", LOSS, usual="probability", choices=CLASS_SCORES, none="none"
    )
    detach_weights: bool = setting("no gradient through the weights", LOSS, usual=False)
    classification: str | None = setting(
        "class loss of the head, with parameters as in focal:alpha=0.5,gamma=1",
        LOSS,
        None,
        spec="classification",
        said=of_detectors(lambda d: d.classification),
    )
    regression: str | None = setting(
        "box loss of the head, with parameters as in iou:mode=log; 5*l1+2*giou is a sum",
        LOSS,
        None,
        spec="regression",
        said=of_detectors(lambda d: d.regression),
    )
    steps: int = dataclasses.field(metadata={"kind": {"least": 1}})
    batch_size: int = setting(
        "images per step, over all processes", TRAINING, said=of_presets(BATCHES), **SHARES
    )
    lr: float = setting(
        "learning rate",
        TRAINING,
        above=0,
        below=1e38,  # float32 ends at 3e38
        said=of_detectors(lambda d: d.learning_rate),
    )
    crop: int | None = setting(
        "train on random crops of S x S pixels; 0: whole images",
        TRAINING,
        metavar="S",
        none="0",
        said=of_presets(CROPS),
        **SIDES,
    )
    seed: int = setting("seed of weights, data order and draws", TRAINING, usual=0, least=0)
    assigner: str | None = setting(
        "label assigner of the RPN or RetinaNet, by default iou; or of FCOS: atss or rfla, by "
        "default its own",
        MODEL,
        None,
        choices=ASSIGNERS,
    )
    assigner_settings: dict[str, float | None] = setting(
        "settings of the assigner, such as m=6.13 n=4.59 of simd", MODEL, {}, metavar="NAME=X"
    )
    anchor_scale: float | None = setting(
        "side of the anchors in strides; tiny objects want 2 to 4",
        MODEL,
        None,
        above=0,
        said=of_detectors(anchor_scales),
    )
    anchor_ratios: list[float] | None = setting(
        "height over width of the anchors of a location", MODEL, None, above=0, said=text(RATIOS)
    )
    strides: list[int] | None = setting(
        "strides of the pyramid's levels",
        MODEL,
        None,
        least=1,
        said=of_detectors(lambda d: d.strides),
    )
    centreness_weights: bool | None = setting(
        "fcos: weight box losses by centreness, as MMDetection does",
        MODEL,
        None,
        said=of_detectors(lambda d: d.centreness_weights),
    )
    score_threshold: float | None = setting(
        "least score of a detection",
        MODEL,
        None,
        least=0,
        below=1,
        said=of_detectors(lambda d: d.score_threshold),
    )
    ignore_regions: bool = setting(
        "in crowds and regions to ignore, learn no background where no object is matched",
        MODEL,
        False,
        usual=True,
        said="on",
    )
    detections: int | None = setting(
        "most detections of an image; the proposals that they are chosen from, and the detections "
        "of a class that the evaluation counts, follow",
        MODEL,
        None,
        least=1,
        below=100_000,
        said="the preset's, but at least what --protocol counts",
    )
    decay_steps: list[int] | None = dataclasses.field(default=None, metadata={"kind": {"least": 0}})
    clip: float = setting(
        "largest norm of the gradient, which is scaled down to it", TRAINING, 10.0, above=0
    )
    amp: str = setting(
        "forward pass in half precision; losses stay in fp32, fp16 scales them",
        TRAINING,
        "off",
        choices=PRECISIONS,
    )
    channels_last: bool = (
        True  # no option: earlier versions had one, and their runs can be repeated
    )
    compile: bool = setting("torch.compile backbone and dense heads", TRAINING, False)
    deterministic: bool = setting(
        "the same bits each time on a GPU too, at a price; on a CPU they are anyway",
        TRAINING,
        False,
    )
    max_bad_steps: int = setting(
        "skip up to N steps in a row whose loss is not finite or whose image cannot be read, and "
        "restart loading processes that die as often, instead of stopping",
        TRAINING,
        0,
        least=0,
        may_change=True,
    )
    tensorboard: bool = setting(
        "write what metrics.jsonl holds for TensorBoard too", TRAINING, False, may_change=True
    )
    device: str = setting(
        "where to compute",
        TRAINING,
        "cpu",
        choices=("cpu", "cuda"),
        said="cuda where there is a GPU",
        may_change=True,
    )
    workers: int = setting(
        "processes that load images, for each process that trains",
        TRAINING,
        0,
        least=0,
        below=1024,
        may_change=True,
    )
    evaluator: str = setting(
        "library that computes AP: faster-coco-eval or pycocotools",
        EVALUATION,
        "faster",
        choices=EVALUATORS,
        may_change=True,
    )
    protocol: str = setting(
        "size ranges and detection limits of the evaluation",
        EVALUATION,
        "aitod",
        choices=PROTOCOLS,
        said="the data set's, else aitod",
    )
    eval_every: int = setting(
        "evaluate every N epochs, 0: at the end only", EVALUATION, 1, least=0, may_change=True
    )

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "TrainSettings":
        """The settings that a file holds by name, checked; those missing are the defaults.

        Raises:
            ValueError: an unknown or missing name, or as `check`.
        """
        for name in settings.keys() - FIELDS.keys():
            raise ValueError(f"unknown setting {brief(name)}")
        missing = FIELDS.keys() - DEFAULTS.keys() - settings.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        found = cls(**settings)
        found.check()
        return found

    def check(self) -> None:
        """Refuse what a file says that the command line would not have taken.

        Which of them go together is for build_detector to refuse.

        Raises:
            ValueError: a setting of another kind, out of range, or an unknown name.
        """
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            wanted = misfit(value, hint, field.metadata.get("kind", {}))
            if wanted:
                raise ValueError(f"{field.name}: got {brief(value)}, wanted {wanted}")

    @property
    def counted(self) -> int | None:
        """What the evaluation takes as `counted`: a number of detections that is not the usual."""
        usual = usual_detections(self.detector, self.preset, self.protocol)
        return None if self.detections == usual else self.detections

    def model_arguments(self) -> dict[str, Any]:
        """What build_detector takes next to name, number of classes and loss."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata.get("group") in (MODEL, LOSS)
            and field.name not in ("detector", "loss")
        }


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(TrainSettings):
        if field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not MISSING:
            found[field.name] = field.default
    return found


FIELDS = {field.name: field for field in dataclasses.fields(TrainSettings)}
DEFAULTS = _defaults()
"""Settings that an older run's file may lack; it ran with these."""
USUAL = {name: f.metadata["usual"] for name, f in FIELDS.items() if "usual" in f.metadata}
"""What a new run takes for a setting without default that is not given, whatever the preset."""
MAY_CHANGE = frozenset(name for name, f in FIELDS.items() if f.metadata.get("may_change"))
"""Settings a resumed run need not share with its beginning."""


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
    followed = config.get("detections") and config["detections"] == usual_detections(**config)
    if followed and "detections" not in given:
        chosen["detections"] = usual_detections(**chosen)
    return TrainSettings(**chosen)


def usual_detections(
    detector: str = "", preset: str = "", protocol: str = "", **_: object
) -> int | None:
    """The detections of an image that a detector reports: at least those that a protocol counts.

    Runs of earlier versions had the preset's number, whatever the protocol; their files have none.
    None: a name that there is not, for build_detector to refuse.
    """
    if detector not in DETECTORS or preset not in PRESETS or protocol not in PROTOCOLS:
        return None
    return max(DETECTORS[detector].detections[preset], PROTOCOLS[protocol].max_dets)


def usual_preset(given: Mapping[str, Any], dataset: str | None) -> str:
    """The preset of a run that is given these settings and a named data set, or none."""
    preset: str = given.get("preset", "paper" if dataset else "torchvision")
    return preset


def _chosen(given: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """What the data set, the preset and the defaults say."""
    named = DATASETS[dataset] if dataset else None
    preset = usual_preset(given, dataset)
    try:
        detector = find_detector(given["detector"])
    except ValueError as error:
        raise Unusable(str(error)) from error
    protocol = named.protocol if named else DEFAULTS["protocol"]
    return {
        **DEFAULTS,
        **USUAL,
        "preset": preset,
        "backbone": detector.backbone[preset],
        "backbone_weights": WEIGHTS[preset],
        "image_size": named.image_size if named and preset != "slim" else None,
        **detector.losses(preset),
        "batch_size": BATCHES[preset],
        "lr": detector.learning_rate[preset],
        "crop": CROPS[preset] or None,
        "protocol": protocol,
        "detections": usual_detections(given["detector"], preset, given.get("protocol", protocol)),
        "epochs": None if "max_steps" in given else named.epochs if named else EPOCHS,
    }
