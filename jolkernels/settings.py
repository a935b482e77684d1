"""What is fixed when a loss is made, and when it is called."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from inspect import signature
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from torch.distributed import ProcessGroup

from jolkernels import process_groups
from jolkernels.checks import one_of, real
from jolkernels.registry import (
    CHOICES,
    CLASS_SCORES,
    MOST_TERMS,
    Classification,
    Coding,
    Regression,
    Score,
    read,
    resolve,
    terms,
    written,
)


@dataclass(frozen=True)
class Arguments:
    """The arguments of JointOptimizationLoss, which documents them; checked on construction."""

    classification: str | Classification = "cross_entropy"
    regression: str | Regression = "l1"
    coding: str | Coding = "xyxy"
    location_score: str | Score | None = "iou"
    class_score: str | None = "probability"
    lam: float = 2.0
    weighting: str = "joint"
    detach_weights: bool = False
    background: str = "last"
    ignore_index: int = -100
    sync_group: ProcessGroup | None = None
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the values; keep specs instead of names, and of the group its name."""
        kept: dict[str, Any] = {
            "classification": resolve("classification", self.classification),
            "regression": resolve("regression", self.regression),
            "coding": resolve("coding", self.coding),
            "lam": real("lam", self.lam, 1),
            "weighting": one_of("weighting", self.weighting, ("joint", "none")),
            "background": one_of("background", self.background, ("last", "first")),
            "sync_group": process_groups.name(self.sync_group),
        }
        if self.location_score is not None:
            kept["location_score"] = resolve("location_score", self.location_score)
        if self.class_score is not None:
            kept["class_score"] = one_of("class_score", self.class_score, CLASS_SCORES)
        if not isinstance(self.detach_weights, bool):
            raise TypeError(f"detach_weights: got {self.detach_weights!r}, wanted True or False")
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index: got {self.ignore_index!r}, wanted an int")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index: got {self.ignore_index}, wanted an int of 64 bits")
        kept["ignore_index"] = int(self.ignore_index)
        if kept["background"] == "first" and not kept["classification"].softmax:
            raise ValueError(
                f"background: got 'first' with {kept['classification']}, wanted 'last': "
                "a sigmoid loss has no background column"
            )
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        check_together(self)
        # Here, because torch.compile may see symbols for the floats and could not write them.
        object.__setattr__(self, "text", self.written())

    def written(self) -> str:
        """These settings as text, for Call."""
        names = [field.name for field in fields(self) if field.init]
        return repr({name: written(name, getattr(self, name)) for name in names})


def check_together(arguments: Any) -> None:
    """Raise ValueError for a score that is none, or that a coding's unit does not suit."""
    score = arguments.location_score
    if hasattr(score, "check_score"):
        score.check_score()
    losses = terms(arguments.regression)
    if len(losses) > MOST_TERMS:
        raise ValueError(
            f"regression: got {arguments.regression}, a sum of {len(losses)} terms, wanted at most "
            f"{MOST_TERMS}"
        )
    if hasattr(arguments.coding, "check_unit"):
        arguments.coding.check_unit("location_score", score)
        for _, loss in losses:
            arguments.coding.check_unit("regression", loss)


class Settings(Arguments):
    """The arguments as kept: specs where names were given, and the name of the process group."""

    classification: Classification
    regression: Regression
    coding: Coding
    location_score: Score | None
    sync_group: str | None  # type: ignore[assignment]  # a group itself cannot be copied

    @property
    def weighted(self) -> bool:
        """Whether rows have weights of Eq. 3 and 4 (else every weight is 1, Eq. 1)."""
        return self.weighting == "joint"

    @property
    def weights_have_gradient(self) -> bool:
        """Whether the gradient flows through the weights."""
        return self.weighted and not self.detach_weights

    @property
    def takes_targets(self) -> bool:
        """Whether class_targets can be given."""
        return getattr(self.classification, "takes_targets", self.classification.soft)

    @property
    def coded_targets(self) -> bool:
        """Whether target_boxes are coded as predictions are."""
        return getattr(self.coding, "coded_targets", False)

    @property
    def terms(self) -> tuple[tuple[float, Regression], ...]:
        """The box loss as a sum of losses that have formulas: (factor, loss) each."""
        return terms(self.regression)

    @property
    def kept(self) -> int:
        """How many numbers of a row are kept for the backward pass.

        With softmax two, the highest logit and log sum exp(z - highest): their sum alone would
        lose the digits of the second where logits are large. Else one, the classification loss.
        """
        return 2 if self.classification.softmax else 1

    def background_label(self, columns: int) -> int:
        """The label of the background for logits of that many columns."""
        if not self.classification.softmax:
            return columns
        return 0 if self.background == "first" else columns - 1

    def last_label(self, columns: int) -> int:
        """The largest valid label for logits of that many columns."""
        return columns - 1 if self.classification.softmax else columns


class Call(NamedTuple):
    """The settings of one call: those of the loss, how each normaliser was given, the groups."""

    settings: Settings
    classification_normalizer: str
    """"samples", "positives", "sum", or "number": it is in the batch."""
    regression_normalizer: str
    num_groups: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the results: () or, with groups, (G,)."""
        return () if self.num_groups is None else (self.num_groups,)

    def encode(self) -> str:
        """This call as text, for operators, whose schemas know no dataclasses."""
        settings, z_cls, z_loc, groups = self
        return f"{z_cls} {z_loc} {int(groups or 0)} {settings.text}"  # int: 2.11 compiles no symbol

    @staticmethod
    @lru_cache
    def decode(text: str) -> "Call":
        """The call that `encode` wrote as text."""
        z_cls, z_loc, groups, settings = text.split(" ", 3)
        values = ast.literal_eval(settings)
        for kind in CHOICES:
            values[kind] = read(kind, values[kind])
        if values["sync_group"] is not None:
            values["sync_group"] = process_groups.resolve(values["sync_group"])
        return Call(Settings(**values), z_cls, z_loc, int(groups) or None)


P = ParamSpec("P")
R = TypeVar("R")


def hands_on(
    arguments: Callable[P, object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Decorate a method that hands on *args and **kwargs with the signature that these have."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        show_arguments(method, arguments)
        return method

    return decorate


def show_arguments(function: Any, *arguments: Callable[..., object]) -> None:
    """Show help() and completion what `function` hands on as *args or **kwargs.

    As keywords only if it takes no *args, and then without those that it has itself.
    """
    own = signature(function).parameters.values()
    named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    handed = [p for a in arguments for p in signature(a).parameters.values()]
    if not any(p.kind == p.VAR_POSITIONAL for p in own):
        names = {p.name for p in named}
        handed = [p.replace(kind=p.KEYWORD_ONLY) for p in handed if p.name not in names]
    function.__signature__ = signature(function).replace(parameters=[*named, *handed])
