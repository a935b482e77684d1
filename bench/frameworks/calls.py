"""What a loss asks PyTorch for, by name: the calls that a GPU would be given, and waits for it.

Counted on a CPU, by dispatch: the same operators are dispatched on a GPU. What is not seen: how
many kernels an operator launches.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.loss.measure import Leaves
from bench.loss.providers import Loss
from jolkernels import dense_ops, ops

WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
"""Operators whose results the host reads, or has to know the sizes of."""
COPIES = {Tensor.cpu: "cpu", Tensor.tolist: "tolist"}
"""Methods that wait on a GPU and dispatch nothing on a CPU."""
Functions = Sequence[tuple[Any, str]]
"""Where functions are: owner and name."""


def writes(function: Any) -> bool:
    """Whether an operator writes memory: not if its result is an argument's, or unwritten."""
    name = function._overloadpacket.__name__
    alias = [a.alias_info for a in function._schema.returns]
    view = any(a is not None and not a.is_write for a in alias) or name == "_unsafe_view"
    return not (view or "empty" in name or name == "promote_types")


def wait(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """The operator's name if the host waits for it on a GPU, else nothing."""
    name: str = function._overloadpacket.__name__
    if name in WAITS:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    if name.strip("_").startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
        masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        fills = len(args) > 2 and args[2].numel() == 1  # PyTorch makes it a masked_fill
        return f"{name} by a mask" if masks and not fills else ""
    return ""


class Found:
    """Calls and waits by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()


class Watch(TorchDispatchMode):
    """Counts operators.

    Attributes:
        loss: what was found, our loss as one call a pass.
        assigner: what was found within the assigner instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.assigner = Found(), Found()
        self.now: Found | None = self.loss

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.now is not None:
            if writes(func):
                self.now.calls[func._overloadpacket.__name__] += 1
            if name := wait(func, args, kwargs or {}):
                self.now.waits[name] += 1
        return func(*args, **(kwargs or {}))

    def within(self, place: Found | None, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A function during whose calls it is `place` that counts; None: nothing does."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.now = self.now, place
            try:
                return inner(*args, **kwargs)
            finally:
                self.now = before

        return call

    def as_one(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A function that counts as one call."""
        silent = self.within(None, inner)

        def call(*args: Any) -> Any:
            self.loss.calls[name] += 1
            return silent(*args)

        return call


class Copies(TorchFunctionMode):
    """Counts the waits of COPIES for a Watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES and self.watch.now is not None:
            self.watch.now.waits[COPIES[func]] += 1
        return func(*args, **(kwargs or {}))


def watched(run: Callable[[], object], assigner: Functions = ()) -> Watch:
    """What `run` asks for, functions of the assigner apart."""
    watch = Watch()
    passes = {
        name: [(module, name) for module in (ops, dense_ops)] for name in ("forward", "backward")
    }
    with ExitStack() as stack:
        for name, functions in passes.items():
            stack.enter_context(replaced(functions, partial(watch.as_one, f"ours_{name}")))
        stack.enter_context(replaced(assigner, partial(watch.within, watch.assigner)))
        stack.enter_context(Copies(watch))
        stack.enter_context(watch)
        run()
    return watch


@contextmanager
def replaced(
    functions: Functions, made: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Functions are for a while what `made` makes of them."""
    with ExitStack() as stack:
        for owner, name in functions:
            new = made(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


def calls_of(loss: Loss, x: Leaves, assigner: Functions = ()) -> Watch:
    """What a forward and a backward of a loss ask for."""

    def run() -> None:
        torch.autograd.grad(loss(x), x.leaves, allow_unused=True)

    return watched(run, assigner)
