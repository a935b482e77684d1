"""Where a run is, and what it came to."""

import dataclasses
import math
import statistics
from collections.abc import Mapping

from detectors.evaluation.average_precision import Evaluation
from detectors.models.build import LOSS_NAMES


@dataclasses.dataclass
class State:
    """Where a run is, apart from its weights; a checkpoint holds it.

    Attributes:
        step: steps done.
        best: the best AP so far, and best_step: its step.
        bad: steps skipped in a row.
        recent: values of the last steps, whose means are logged.
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad: int = 0
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def add(self, values: Mapping[str, float], keep: int) -> dict[str, float]:
        """Remember a step's values by name; the means over the last `keep` steps."""
        self.recent = [*self.recent, dict(values)][-keep:]
        columns: dict[str, list[float]] = {}
        for step in self.recent:
            for name, value in step.items():
                if math.isfinite(value):  # fp16's gradients may not be, until their scale fits
                    columns.setdefault(name, []).append(value)
        return {name: statistics.fmean(column) for name, column in columns.items()}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
        evaluation: the final one.
        seconds_per_step: median, from loading the data to the update; NaN if a finished run was
            resumed.
        best: the best AP, 0 to 1, and best_step: the step of its weights, those of best.pt.
    """

    evaluation: Evaluation
    seconds_per_step: float
    best: float
    best_step: int


def losses_line(means: Mapping[str, float]) -> str:
    """The two losses of the joint head and w⁻ as text, those that are there."""
    shown = [
        f"{short} {means[name]:.3f}"
        for short, names in LOSS_NAMES.items()
        for name in names
        if name in means
    ]
    return "  ".join(shown)
