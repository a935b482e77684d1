"""The choices of the loss, by name: frozen dataclasses that loss, kernels and tests share.

A string stands for a choice with its defaults: "focal" is Focal(), "smooth_l1" is SmoothL1().
Each choice knows how it is used: whether classes are exclusive (`softmax`), whether the target of
the true class is the box's IoU (`soft`), whether a box loss compares coded numbers or corners
(`on_codes`), whether a coding needs priors (`uses_priors`).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def real(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
) -> float:
    """`value` as a float, if it is a finite number from `least` (`above`: beyond it) to `most`.

    Raises:
        TypeError: no number.
        ValueError: not finite or out of this range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    bounds = {f"{'>' if above else '>='} {least:g}": least, f"<= {most:g}": most}
    limits = " and ".join(text for text, bound in bounds.items() if math.isfinite(bound))
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: got an integer beyond the range of float64") from None
    inside = least < number <= most if above else least <= number <= most
    if not (math.isfinite(number) and inside):
        raise ValueError(f"{name}: got {value}, wanted a finite number {limits}".rstrip())
    return number


def check_params(
    choice: Any, least: float = 0, most: float = math.inf, *, above: bool = False
) -> None:
    """Make the fields of a spec floats in this range; errors as `real`."""
    for field in fields(choice):
        name = f"{type(choice).__name__}: {field.name}"
        value = real(name, getattr(choice, field.name), least, most, above=above)
        object.__setattr__(choice, field.name, value)


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax at the label; C = K + 1 columns, one of them the background."""

    softmax: ClassVar[bool] = True
    soft: ClassVar[bool] = False


@dataclass(frozen=True)
class BCE:
    """Binary cross entropy summed over the C = K columns."""

    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = False


@dataclass(frozen=True)
class Focal:
    """Focal loss summed over the C = K columns, as torchvision's sigmoid_focal_loss."""

    alpha: float = 0.25
    gamma: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is no share of the true class, or no exponent."""
        check_params(self)
        real("Focal: alpha", self.alpha, 0, 1)


@dataclass(frozen=True)
class QualityFocal:
    """Quality focal loss (Generalized Focal Loss, arXiv 2006.04388, Eq. 3)."""

    beta: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a negative exponent."""
        check_params(self)


@dataclass(frozen=True)
class Varifocal:
    """Varifocal loss (VarifocalNet, arXiv 2008.13367, Eq. 2)."""

    alpha: float = 0.75
    gamma: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a negative factor or exponent."""
        check_params(self)


@dataclass(frozen=True)
class L1:
    """Sum of absolute differences of the four coded numbers."""

    on_codes: ClassVar[bool] = True


@dataclass(frozen=True)
class SmoothL1:
    """PyTorch's smooth_l1_loss with beta, summed over the four coded numbers."""

    beta: float = 1 / 9
    on_codes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a negative beta."""
        check_params(self)


@dataclass(frozen=True)
class L2:
    """Sum of squared differences of the four coded numbers."""

    on_codes: ClassVar[bool] = True


@dataclass(frozen=True)
class IoU:
    """Intersection over union: 1 - IoU as a loss, IoU as a score; no eps, 0 for an empty union."""

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class GIoU:
    """Generalized IoU: torchvision's generalized_box_iou_loss, (1 + GIoU) / 2 as a score."""

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class DIoU:
    """Distance IoU: torchvision's distance_box_iou_loss."""

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class CIoU:
    """Complete IoU: torchvision's complete_box_iou_loss, its trade-off factor a constant."""

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class EIoU:
    """Efficient IoU (arXiv 2101.08158, Eq. 7): DIoU and the differences of width and height."""

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class XYXY:
    """Box predictions are corners x1 y1 x2 y2 in pixels."""

    uses_priors: ClassVar[bool] = False


@dataclass(frozen=True)
class Delta:
    """Centre offsets and log sizes against a prior, over `weights`: torchvision's BoxCoder.

    Log sizes are clamped at `clip` when a box is decoded.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clip: float = math.log(1000 / 16)
    uses_priors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Take any sequence of four positive weights."""
        given = self.weights
        if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != 4:
            raise ValueError(f"Delta: weights: got {given!r}, wanted four numbers > 0")
        weights = tuple(real("Delta: weights", w, 0, above=True) for w in given)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "clip", real("Delta: clip", self.clip))


@dataclass(frozen=True)
class LTRB:
    """Distances from the prior's centre to the four sides, over the prior's size.

    torchvision's BoxLinearCoder with normalize_by_size.
    """

    uses_priors: ClassVar[bool] = True


@dataclass(frozen=True)
class NWD:
    """Normalized Gaussian Wasserstein distance (arXiv 2110.13389), `constant` in pixels."""

    constant: float = 12.7

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        check_params(self, above=True)


@dataclass(frozen=True)
class SimD:
    """Similarity distance (arXiv 2407.02394) with normalisers m and n."""

    m: float = 6.13
    n: float = 4.59

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        check_params(self, above=True)


@dataclass(frozen=True)
class DotD:
    """Dot distance (CVPR Workshops 2021), `size` the mean object size in pixels."""

    size: float = 12.7

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        check_params(self, above=True)


Classification = CrossEntropy | BCE | Focal | QualityFocal | Varifocal
Regression = L1 | SmoothL1 | L2 | IoU | GIoU | DIoU | CIoU | EIoU
Coding = XYXY | Delta | LTRB
Score = IoU | GIoU | NWD | SimD | DotD

CHOICES: dict[str, dict[str, type]] = {
    "classification": {
        "cross_entropy": CrossEntropy,
        "bce": BCE,
        "focal": Focal,
        "quality_focal": QualityFocal,
        "varifocal": Varifocal,
    },
    "regression": {
        "l1": L1,
        "smooth_l1": SmoothL1,
        "l2": L2,
        "iou": IoU,
        "giou": GIoU,
        "diou": DIoU,
        "ciou": CIoU,
        "eiou": EIoU,
    },
    "coding": {"xyxy": XYXY, "delta": Delta, "ltrb": LTRB},
    "location_score": {"iou": IoU, "giou": GIoU, "nwd": NWD, "simd": SimD, "dotd": DotD},
}

NAMES = {c: name for choices in CHOICES.values() for name, c in choices.items()}
BY_CLASS_NAME = {c.__name__: c for choices in CHOICES.values() for c in choices.values()}

NORMALIZERS = ("samples", "positives", "sum")


@dataclass(frozen=True)
class Settings:
    """Everything that is fixed when a JointOptimizationLoss is made; see there."""

    classification: Classification
    regression: Regression
    coding: Coding
    location_score: Score | None
    class_score: str | None
    lam: float
    weighting: str
    detach_weights: bool
    background: str
    ignore_index: int
    sync_group: str | None = None  # a process group's name: groups themselves cannot be copied

    def encode(self) -> str:
        """The settings as a string, for operators whose schema knows no dataclasses."""
        values = [getattr(self, field.name) for field in fields(self)]
        chosen = [None if c is None else (type(c).__name__, params(c)) for c in values[:4]]
        return repr((*chosen, *values[4:]))

    @staticmethod
    def decode(text: str) -> Settings:
        """The settings that `encode` gave as a string."""
        values = ast.literal_eval(text)
        chosen: list[Any] = [None if c is None else BY_CLASS_NAME[c[0]](*c[1]) for c in values[:4]]
        return Settings(*chosen, *values[4:])

    @property
    def weighted(self) -> bool:
        """Whether rows have weights of Eq. 3 and 4 (else every weight is 1, Eq. 1)."""
        return self.weighting == "joint"

    @property
    def weights_have_gradient(self) -> bool:
        """Whether the gradient flows through the weights."""
        return self.weighted and not self.detach_weights

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


class Batch(NamedTuple):
    """What one call is given; shapes as in JointOptimizationLoss.forward."""

    logits: Tensor
    box_preds: Tensor
    labels: Tensor
    target_boxes: Tensor
    priors: Tensor | None
    classification_weights: Tensor | None
    regression_weights: Tensor | None
    classification_normalizer: Tensor | str
    regression_normalizer: Tensor | str


class Forward(NamedTuple):
    """What a forward pass gives: four 0-dim results, and what its backward needs."""

    classification: Tensor
    regression: Tensor
    negative_weight: Tensor
    num_positives: Tensor
    rows: Tensor  # [kept, N]: what the same implementation's backward needs of each row
    scalars: Tensor  # w_neg, A_neg / P, 1 / Z_cls, 1 / Z_loc, and on a GPU 0, or NaN for bad labels


def accumulator(batch: Batch) -> torch.dtype:
    """The dtype of the arithmetic and the losses: float64 if logits or boxes are, else float32."""
    import torch

    double = torch.float64 in (batch.logits.dtype, batch.box_preds.dtype)
    return torch.float64 if double else torch.float32


def params(choice: Any) -> tuple[Any, ...]:
    """The fields of a spec, in order."""
    return tuple(getattr(choice, field.name) for field in fields(choice))


def resolve(kind: str, choice: object) -> Any:
    """The dataclass that `choice` (a name or a spec) of `kind` (a key of CHOICES) stands for.

    Raises:
        TypeError: `choice` is neither a string nor one of the specs of this kind.
        ValueError: a name that is not a choice of this kind.
    """
    choices = CHOICES[kind]
    if isinstance(choice, str):
        if choice not in choices:
            raise ValueError(f"{kind}: got {choice!r}, wanted one of {', '.join(choices)}")
        choice = choices[choice]()
    elif type(choice) not in choices.values():
        wanted = ", ".join(c.__name__ for c in choices.values())
        raise TypeError(
            f"{kind}: got {choice!r}, wanted a name or one of {wanted} (jolkernels.spec)"
        )
    return choice
