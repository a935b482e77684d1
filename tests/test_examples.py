"""The examples run as they are, and their losses fall."""

import math
import runpy
from pathlib import Path
from statistics import mean

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py"))
SLOW = {"train_torchvision"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)
def test_the_loss_of_an_example_falls(name: str) -> None:
    losses = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert len(losses) >= 10 and all(math.isfinite(loss) for loss in losses)
    assert mean(losses[-3:]) < mean(losses[:3]) / 2


def test_there_is_an_example_of_each_kind() -> None:
    """So that the test above has something to run."""
    assert {"own_loop", "train_torchvision"} <= {file.stem for file in EXAMPLES.glob("*.py")}
