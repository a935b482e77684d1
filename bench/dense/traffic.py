"""Bytes that a provider moves, by a model: each operator reads its arguments, writes its results.

An operator that picks or sets elements moves those alone. Of what is compiled nothing is known. Our
passes move the logits and what there is of each sample twice, forward and backward, and their
gradients once.
"""

from collections.abc import Iterable
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.dense.cases import Case, Name
from bench.dense.inputs import Outputs
from bench.loss.measure import step
from bench.loss.providers import Loss
from jolkernels import ops

PICKS = ("index", "index_select", "gather")
SETS = ("index_put_", "_index_put_impl_", "scatter_")
FILLS = ("zero_", "fill_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full",
         "full_like", "arange")  # fmt: skip
OF_A_SAMPLE = {Name.DENSE: 8 + 2 * 4, Name.FLAT: 8 + 2 * 4 + 2 * 4}
"""Bytes that our passes read of a sample, or write forward and read backward: index or label, two
terms, and flat two weights."""


def size(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors, of expanded ones those that there are; each once."""
    found = {
        (t.data_ptr(), t.shape): min(t.numel() * t.itemsize, t.untyped_storage().nbytes())
        for t in tensors
        if isinstance(t, Tensor)
    }
    return sum(found.values())


class CountBytes(TorchDispatchMode):
    """Adds up what PyTorch's operators read and write: not views, not allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        space, name = schema.name.split("::")
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if space != "aten" or view or name.startswith(("empty", "new_empty", "detach")):
            return result
        given, made = tree_leaves((args, kwargs)), tree_leaves(result)
        if name in PICKS:
            self.bytes += 2 * size(made) + size(given[1:])
        elif name in SETS:
            self.bytes += 2 * size(given[1:])
        elif name in FILLS:
            self.bytes += size(made)
        else:
            self.bytes += size(given) + size(made)
        return result


def bytes_moved(name: str, case: Case, loss: Loss, x: Outputs) -> int | None:
    """Bytes of a forward and a backward; None where nothing is known."""
    if name in (Name.COMPILE_FLAT, Name.COMPILE_TORCHVISION):
        return None
    # As without a mode: by no operator of ours.
    with mock.patch.object(ops, "in_eager_mode", lambda tensors: True), CountBytes() as seen:
        step(loss, x)
    if name in OF_A_SAMPLE:
        seen.bytes += 3 * size(x.logits) + size(x.boxes) + 2 * OF_A_SAMPLE[Name(name)] * case.rows
    return seen.bytes
