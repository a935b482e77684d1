"""What a GPU would launch: operators of PyTorch that write memory, counted without a GPU."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jolkernels import dense_ops

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "promote_types", "_unsafe_view"}
"""These write nothing, as views do not."""


def is_view(function: Any) -> bool:
    """Whether the result of an operator is an argument's memory, unwritten."""
    alias = [a.alias_info for a in function._schema.returns]
    return any(a is not None and not a.is_write for a in alias)


class Launches(TorchDispatchMode):
    """Counts operators by name; those of our loss, whatever computes it, as one a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()
        self.inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if not (self.inside or is_view(function) or name in FREE):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))

    def as_one(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given):
            self.found[name] += 1
            self.inside = True
            try:
                return inner(*given)
            finally:
                self.inside = False

        return counted


def launches(run: Callable[[], torch.Tensor]) -> Counter:
    """Those of run() and of its result's backward pass."""
    count = Launches()
    with pytest.MonkeyPatch.context() as patch, count:
        for name in ("forward", "backward"):
            inner = getattr(dense_ops, name)
            patch.setattr(dense_ops, name, count.as_one(f"ours_{name}", inner))
        run().backward()
    return count.found
