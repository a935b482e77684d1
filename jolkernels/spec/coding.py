"""Codings: how four numbers are a box."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jolkernels.checks import real


def check_numbers(choice: Any, name: str, count: int, least: float = 0) -> tuple[float, ...]:
    """Make a field of a choice a tuple of `count` floats above `least`; any sequence will do."""
    given, label = getattr(choice, name), f"{type(choice).__name__}: {name}"
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != count:
        word = {2: "two", 4: "four"}[count]
        raise ValueError(f"{label}: got {given!r}, wanted {word} numbers > {least:g}")
    numbers = tuple(real(label, number, least, above=True) for number in given)
    object.__setattr__(choice, name, numbers)
    return numbers


@dataclass(frozen=True)
class XYXY:
    """Box predictions are corners x1 y1 x2 y2 in pixels."""

    uses_priors: ClassVar[bool] = False


@dataclass(frozen=True)
class Delta:
    """Centre offsets and log sizes against a prior, over `weights`: torchvision's BoxCoder.

    When a box is decoded, log sizes are at most `clip` and, if it is given, at least `low_clip`:
    MMDetection's delta2bbox clamps at log(1000 / 16) and at minus that.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clip: float = math.log(1000 / 16)
    low_clip: float | None = None
    uses_priors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Accept any sequence of four positive weights, and limits in order."""
        check_numbers(self, "weights", 4)
        object.__setattr__(self, "clip", real("Delta: clip", self.clip))
        if self.low_clip is not None:
            low = real("Delta: low_clip", self.low_clip, most=self.clip)
            object.__setattr__(self, "low_clip", low)


@dataclass(frozen=True)
class LTRB:
    """Distances from the prior's centre to the four sides, over the prior's size.

    torchvision's BoxLinearCoder with normalize_by_size. Distances must be >= 0: put a head's raw
    outputs through ReLU (as torchvision's FCOS does), exp or softplus. Negative ones make boxes of
    negative size, where GIoU falls without bound; JOLKERNELS_VALIDATE=1 finds them.
    """

    uses_priors: ClassVar[bool] = True


@dataclass(frozen=True)
class CXCYWH:
    """Box predictions and target_boxes are centre and size, cx cy w h, as DETR has them.

    Box losses on codes compare these four numbers as they are. `scale` is how many pixels their
    units are, (1, 1) for pixels and (width, height) of the images for shares of an image. Without
    it, as for images of different sizes, losses and scores of corners take images of 1024 x 1024.
    IoU, GIoU, SimD, and Inner or Focaler around the first two do not notice. The others, which have
    distances or aspect ratios in them, see what is not square compressed, as if they were given its
    shares. nwd and dotd, which are in pixels, are refused.
    """

    scale: tuple[float, float] | None = None
    uses_priors: ClassVar[bool] = False
    coded_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Accept any sequence of two positive numbers."""
        if self.scale is not None:
            check_numbers(self, "scale", 2)

    @property
    def pixels(self) -> tuple[float, float]:
        """What widths and heights are multiplied by."""
        return (1024.0, 1024.0) if self.scale is None else self.scale

    def check_unit(self, name: str, choice: Any) -> None:
        """Raise ValueError for a box loss or score in pixels, if these are not known."""
        if self.scale is None and getattr(choice, "in_pixels", False):
            raise ValueError(
                f"{name}: got {choice} with {self}, wanted one that does not depend on the unit, "
                "or CXCYWH(scale=(width, height)), the images' size in pixels"
            )
