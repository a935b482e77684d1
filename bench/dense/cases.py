"""Dense heads at the sizes that detectors give them. Nothing here needs torch.

Letters as in jolkernels.dense: B images, A anchors of a position, C columns, M samples of an image.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from bench.loss.cases import FCOS, RETINANET, Head
from bench.loss.cases import Name as OfLoss

FORMATS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}
"""Memory formats of the levels → torch's name."""


class Name(StrEnum):
    """What tables and the command line call a provider (bench/dense/providers.py)."""

    DENSE = OfLoss.OURS
    FLAT = "flat"
    TORCHVISION = "torchvision"
    COMPILE_FLAT = "compile-flat"
    COMPILE_TORCHVISION = "compile-torchvision"


@dataclass(frozen=True)
class Case:
    """A head's outputs in a memory format.

    Attributes:
        normalizer: of the loss: "image", each image's by its own positives, or "positives".
        sizes: (H, W) of the levels.
        ignored: share of the samples.
    """

    name: str
    head: Head
    normalizer: str
    images: int
    sizes: tuple[tuple[int, int], ...]
    anchors: int
    columns: int
    ignored: float = 0.0
    memory_format: str = "contiguous"

    @property
    def samples(self) -> int:
        """M."""
        return self.anchors * sum(h * w for h, w in self.sizes)

    @property
    def rows(self) -> int:
        """B * M."""
        return self.images * self.samples

    def laid_out(self, memory_format: str) -> "Case":
        """The case in a memory format, which its name then has."""
        return replace(self, name=f"{self.name} {memory_format}", memory_format=memory_format)


SQUARE = tuple((n, n) for n in (100, 50, 25, 13, 7))
"""The levels of an image of 800 x 800."""
WIDE = (100, 168), (50, 84), (25, 42), (13, 21), (7, 11)
"""Those of one of 800 x 1,344."""
CASES = {
    case.name: case
    for case in (
        Case("retinanet-8", RETINANET, "image", 2, SQUARE, 9, 8, 0.01),
        Case("retinanet-80", RETINANET, "image", 2, SQUARE, 9, 80, 0.01),
        Case("fcos-8", FCOS, "positives", 2, SQUARE, 1, 8),
        Case("large-80", RETINANET, "image", 16, WIDE, 9, 80, 0.01),
    )
}
