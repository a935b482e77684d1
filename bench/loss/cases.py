"""What is measured: heads at the sizes that detectors give them. Nothing here needs torch.

N rows (samples), C columns of the logits.
"""

from dataclasses import dataclass
from enum import StrEnum

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Names of torch's."""


class Name(StrEnum):
    """What tables and the command line call a provider (bench/loss/providers.py)."""

    OURS = "jolkernels"
    EAGER = "eager"
    COMPILE = "compile"
    COMPILE_AUTOTUNE = "compile-autotune"
    COMPILE_EAGER = "compile-eager"
    RELEASED = "released"
    BASE_OURS = "base-jolkernels"
    BASE_TORCH = "base-torch"
    BASE_TORCHVISION = "base-torchvision"
    LIGER = "liger-classification"


@dataclass(frozen=True)
class Head:
    """A head as its detector has it: the arguments of its JointOptimizationLoss, and its inputs.

    Attributes:
        normalizer: what both sums are divided by.
        positives: share of the rows.
        class_specific: boxes [N, 4 C] instead of [N, 4].
        weights: of the delta coder.
    """

    classification: str
    regression: str
    coding: str
    normalizer: str
    positives: float
    background: str = "last"
    class_specific: bool = False
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def background_label(self, columns: int) -> int:
        """The label of a negative row."""
        if self.classification == "focal":
            return columns
        return 0 if self.background == "first" else columns - 1


RCNN = Head(
    "cross_entropy", "smooth_l1", "delta", "samples", 0.25, "first", True, (10.0, 10.0, 5.0, 5.0)
)
RETINANET = Head("focal", "l1", "delta", "positives", 0.003)
FCOS = Head("focal", "giou", "ltrb", "positives", 0.02)
AGNOSTIC = Head("cross_entropy", "l1", "delta", "samples", 0.25)
"""A class-agnostic head with a column for each word of a large vocabulary."""


@dataclass(frozen=True)
class Case:
    """A head at a size."""

    name: str
    head: Head
    rows: int
    columns: int


CASES = {
    case.name: case
    for case in (
        *(Case(f"rcnn-{c}", RCNN, 1_024, c) for c in (9, 11, 81, 91, 1204)),
        *(Case(f"retinanet-{c}", RETINANET, 2 * 120_087, c) for c in (8, 80)),
        Case("fcos-8", FCOS, 2 * 13_343, 8),
        Case("large-80", RETINANET, 2**20, 80),
        Case("vocabulary-13205", AGNOSTIC, 4_096, 13_205),
        # For the plot of time against N.
        *(Case(f"sweep-{2**k}", RCNN, 2**k, 9) for k in range(8, 19, 2)),
    )
}
SWEEP = tuple(name for name in CASES if name.startswith("sweep"))
