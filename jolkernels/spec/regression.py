"""Box losses; IoU and GIoU are location scores too.

A loss on codes compares a box's four coded numbers with those of its target, the others compare
corners. Sum, Inner and Focaler are sums of other losses: `terms` gives these with their factors.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jolkernels.checks import check_fields, one_of, real
from jolkernels.registry import Regression, resolve, terms


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
        check_fields(self)


@dataclass(frozen=True)
class L2:
    """Sum of squared differences of the four coded numbers."""

    on_codes: ClassVar[bool] = True


@dataclass(frozen=True)
class IoU:
    """Intersection over union; no eps, 0 for an empty union.

    As a loss 1 - IoU ("linear"), -log IoU ("log", of an IoU of at least 1e-6, below which there is
    no gradient: MMDetection's IoULoss and its default) or 1 - IoU^2 ("square"). As a score IoU.
    """

    mode: str = "linear"
    on_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the mode."""
        one_of("IoU: mode", self.mode, ("linear", "log", "square"))

    def check_score(self) -> None:
        """Raise ValueError unless this can be a location score."""
        if self.mode != "linear":
            raise ValueError(f"location_score: IoU: mode: got {self.mode!r}, wanted 'linear'")


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
class SIoU:
    """SCYLLA-IoU (arXiv 2205.12740): DIoU's distance by its angle, and a shape cost, theta = 4.

    MMDetection's siou_loss with neg_gamma=True, which has the paper's sign, but for its eps.
    """

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class ShapeIoU:
    """Shape-IoU (arXiv 2312.17663): distance and shape cost weighed by the target's shape.

    With the authors' default, scale 0, both sides weigh the same. Source: shapeiou.py of
    malagoutou/Shape-IoU at 6cc086e.
    """

    scale: float = 0.0
    on_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that the exponent is not negative."""
        check_fields(self)


@dataclass(frozen=True)
class WIoU:
    """Wise-IoU, version 1 (arXiv 2301.10051): 1 - IoU, times more for centres apart.

    Source: iou.py of Instinct323/wiou at ed0649f.
    """

    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class InnerGap:
    """IoU - IoU of both boxes with their sides scaled by `ratio`: a term of Inner."""

    ratio: float
    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class FocalerGap:
    """IoU - IoU mapped from low..high to 0..1: a term of Focaler."""

    low: float
    high: float
    on_codes: ClassVar[bool] = False


@dataclass(frozen=True)
class Inner:
    """Inner-IoU (arXiv 2311.02877): loss + IoU - IoU of both boxes with sides scaled by `ratio`.

    Of IoU() it is 1 - that IoU. `loss` is an IoU loss or its name; a ratio below 1 is meant for
    boxes that overlap well, above 1 for the others. Source: innersiou.py and innerciou.py of
    malagoutou/Inner-IoU at db9e8db.
    """

    loss: Regression | str = IoU()
    ratio: float = 0.75
    on_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the loss, and that the ratio is positive."""
        check_inner(self)
        check_fields(self, "ratio", above=True)

    def terms(self) -> tuple[tuple[float, Regression], ...]:
        """The loss, and what is added to it."""
        return (*terms(self.loss), (1.0, InnerGap(self.ratio)))


@dataclass(frozen=True)
class Focaler:
    """Focaler-IoU (arXiv 2401.10525): loss + IoU - IoU mapped linearly from low..high to 0..1.

    Of IoU() it is 1 - that mapped IoU. `loss` is an IoU loss or its name. Source: focaleriou.py of
    malagoutou/Focaler-IoU at d4dfc34, which also has the defaults.
    """

    loss: Regression | str = IoU()
    low: float = 0.0
    high: float = 0.95
    on_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the loss, and 0 <= low < high <= 1."""
        check_inner(self)
        check_fields(self, "low", most=1)
        real("Focaler: high", self.high, self.low, 1, above=True)
        check_fields(self, "high")

    def terms(self) -> tuple[tuple[float, Regression], ...]:
        """The loss, and what is added to it."""
        return (*terms(self.loss), (1.0, FocalerGap(self.low, self.high)))


WRAPPED = (IoU, GIoU, DIoU, CIoU, EIoU, SIoU, ShapeIoU, Inner, Focaler)
"""Losses with a term 1 - IoU, which Inner and Focaler replace."""


def check_inner(choice: Any) -> None:
    """Raise unless the loss that Inner or Focaler stands around has a term 1 - IoU."""
    loss = resolve("regression", choice.loss)
    if type(loss) not in WRAPPED or getattr(loss, "mode", "linear") != "linear":
        others = ", ".join(c.__name__ for c in WRAPPED[1:])
        raise ValueError(
            f"{type(choice).__name__}: loss: got {loss!r}, wanted IoU(mode='linear') or one of "
            f"{others}"
        )
    object.__setattr__(choice, "loss", loss)


@dataclass(frozen=True)
class Sum:
    """A weighted sum of two box losses, each given as (weight, loss): DETR's by default.

    Sum((5, L1()), (2, GIoU())) is 5 L1 + 2 GIoU. The second may be missing.
    """

    first: tuple[float, Regression] = (5.0, L1())
    second: tuple[float, Regression] | None = (2.0, GIoU())
    on_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check each pair: a weight that is not negative, and a box loss or its name."""
        for name in ("first", "second"):
            pair = getattr(self, name)
            if pair is None and name == "second":
                continue
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(f"Sum: {name}: got {pair!r}, wanted a pair (weight, loss)")
            weight, loss = real("Sum: weight", pair[0], 0), resolve("regression", pair[1])
            if isinstance(loss, Sum):
                raise ValueError(f"Sum: {name}: got {loss!r}, wanted a loss that is no Sum")
            object.__setattr__(self, name, (weight, loss))

    def terms(self) -> tuple[tuple[float, Regression], ...]:
        """The losses with their weights."""
        pairs = [pair for pair in (self.first, self.second) if pair is not None]
        return tuple((w * part, t) for w, loss in pairs for part, t in terms(loss))
