"""What a GPU would launch: operators of PyTorch that write memory, counted without a GPU."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jolkernels import dense_ops


def writes(function: Any) -> bool:
    """Whether an operator writes memory: not if its result is an argument's, or unwritten."""
    name = function._overloadpacket.__name__
    alias = [a.alias_info for a in function._schema.returns]
    view = any(a is not None and not a.is_write for a in alias) or name == "_unsafe_view"
    return not (view or "empty" in name or name == "promote_types")


class Launches(TorchDispatchMode):
    """Counts operators by name; those of our loss, whatever computes it, as one a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()
        self.inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if writes(function) and not self.inside:
            self.found[function._overloadpacket.__name__] += 1
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
