"""What a GPU would launch, counted without one (bench/frameworks/calls.py)."""

from collections import Counter
from collections.abc import Callable

import torch

from bench.frameworks.calls import watched


def launches(run: Callable[[], torch.Tensor]) -> Counter:
    """Those of run() and of its result's backward pass."""
    return watched(lambda: run().backward()).loss.calls
