"""The choices of the loss, by name: frozen dataclasses that loss, kernels and tests share.

A string means the choice with its defaults: "focal" is Focal(), "smooth_l1" is SmoothL1(). Class
variables say how a choice is used: whether classes are exclusive (`softmax`), whether the target of
the true class is the box's IoU (`soft`), whether a box loss compares codes or corners (`on_codes`),
whether a coding needs priors (`uses_priors`).

`register` adds a choice of your own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from jolkernels.checks import real
from jolkernels.registry import (
    CHOICES,
    CLASS_SCORES,
    Classification,
    Coding,
    Regression,
    Score,
    Spec,
    register,
)

__all__ = [
    "BCE",
    "CHOICES",
    "CLASS_SCORES",
    "L1",
    "L2",
    "LTRB",
    "NWD",
    "XYXY",
    "CIoU",
    "Classification",
    "Coding",
    "CrossEntropy",
    "DIoU",
    "Delta",
    "DotD",
    "EIoU",
    "Focal",
    "GIoU",
    "IoU",
    "QualityFocal",
    "Regression",
    "Score",
    "SimD",
    "SmoothL1",
    "Varifocal",
    "register",
]


def check_params(
    choice: Spec, least: float = 0, most: float = math.inf, *, above: bool = False
) -> None:
    """Check that the fields of a spec are in this range, and make them floats; raises as `real`."""
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
        """Check that alpha is a share, 0 to 1, and gamma an exponent >= 0."""
        check_params(self)
        real("Focal: alpha", self.alpha, 0, 1)


@dataclass(frozen=True)
class QualityFocal:
    """Quality focal loss (Generalized Focal Loss, arXiv 2006.04388, Eq. 3)."""

    beta: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the exponent is not negative."""
        check_params(self)


@dataclass(frozen=True)
class Varifocal:
    """Varifocal loss (VarifocalNet, arXiv 2008.13367, Eq. 2)."""

    alpha: float = 0.75
    gamma: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that factor and exponent are not negative."""
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
        """Check that beta is not negative."""
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
        """Accept any sequence of four positive weights."""
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
        """Check that the parameters are positive."""
        check_params(self, above=True)


@dataclass(frozen=True)
class SimD:
    """Similarity distance (arXiv 2407.02394) with normalisers m and n."""

    m: float = 6.13
    n: float = 4.59

    def __post_init__(self) -> None:
        """Check that the parameters are positive."""
        check_params(self, above=True)


@dataclass(frozen=True)
class DotD:
    """Dot distance (CVPR Workshops 2021), `size` the mean object size in pixels."""

    size: float = 12.7

    def __post_init__(self) -> None:
        """Check that the parameters are positive."""
        check_params(self, above=True)


CHOICES["classification"] |= {
    "cross_entropy": CrossEntropy,
    "bce": BCE,
    "focal": Focal,
    "quality_focal": QualityFocal,
    "varifocal": Varifocal,
}
CHOICES["regression"] |= {
    "l1": L1,
    "smooth_l1": SmoothL1,
    "l2": L2,
    "iou": IoU,
    "giou": GIoU,
    "diou": DIoU,
    "ciou": CIoU,
    "eiou": EIoU,
}
CHOICES["coding"] |= {"xyxy": XYXY, "delta": Delta, "ltrb": LTRB}
CHOICES["location_score"] |= {"iou": IoU, "giou": GIoU, "nwd": NWD, "simd": SimD, "dotd": DotD}
