"""Location scores in pixels or of their own; IoU and GIoU stand with the box losses."""

from dataclasses import dataclass
from typing import ClassVar

from jolkernels.checks import check_fields


@dataclass(frozen=True)
class NWD:
    """Normalized Gaussian Wasserstein distance (arXiv 2110.13389), `constant` in pixels.

    As a box loss: mix (1 - NWD) + (1 - mix) (1 - IoU). Without the eps that its code adds under
    the root (mmdet/models/losses/iou_loss.py, wasserstein_loss, of jwwangchn/NWD at 9775ac2).
    """

    constant: float = 12.7
    mix: float = 1.0
    on_codes: ClassVar[bool] = False
    in_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the constant is positive and mix a share, 0 to 1."""
        check_fields(self, "constant", above=True)
        check_fields(self, "mix", most=1)

    def check_score(self) -> None:
        """Raise ValueError unless this can be a location score."""
        if self.mix != 1:
            raise ValueError(f"location_score: NWD: mix: got {self.mix:g}, wanted 1")


@dataclass(frozen=True)
class SimD:
    """Similarity distance (arXiv 2407.02394) with normalisers m and n."""

    m: float = 6.13
    n: float = 4.59

    def __post_init__(self) -> None:
        """Check that the parameters are positive."""
        check_fields(self, above=True)


@dataclass(frozen=True)
class DotD:
    """Dot distance (CVPR Workshops 2021), `size` the mean object size in pixels."""

    size: float = 12.7
    in_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the parameters are positive."""
        check_fields(self, above=True)
