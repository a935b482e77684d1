"""Triton's driver and compiler replaced by ones that do nothing, and the loss made to use them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel

from jolkernels import dense_ops, ops
from jolkernels.kernels import dense_launch, launch

OTHERS = 9
"""Arguments of a launcher before the kernel's: grid, stream, function, metadata, hooks."""
CHECKED = 3
"""Launches of a kernel whose arguments are looked at; that takes time, which others measure."""
MODULES = launch, dense_launch
KERNELS = [
    *{kernel.fn.__name__: kernel for module in MODULES for kernel in vars(module).values()
      if isinstance(kernel, triton.JITFunction)}.values()
]  # fmt: skip


@dataclass
class Seen:
    """What Triton was asked for, by the name of the kernel.

    Attributes:
        launched: by whomever.
        by_jit: launches that were the JIT's, not direct ones.
    """

    compiled: Counter[str] = field(default_factory=Counter)
    launched: Counter[str] = field(default_factory=Counter)
    by_jit: Counter[str] = field(default_factory=Counter)


class FakeDriver(DriverBase):
    """An H100 that nothing runs on."""

    def get_current_device(self) -> int:  # noqa: D102
        return 0

    def get_current_stream(self, device: int) -> int:  # noqa: D102
        return 0

    def get_current_target(self) -> GPUTarget:  # noqa: D102
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:  # noqa: D102
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:  # noqa: D102
        return ty

    def get_benchmarker(self) -> Any:  # noqa: D102
        raise NotImplementedError

    @staticmethod
    def is_active() -> bool:  # noqa: D102
        return True


class FakeKernel(CompiledKernel):
    """A compiled kernel whose launch is counted, and that is all."""

    def __init__(self, src: Any, seen: Seen) -> None:
        name = src.fn.fn.__name__
        types = src.signature.values()
        seen.compiled[name] += 1

        def run(*given: Any) -> None:
            if seen.launched[name] < CHECKED:
                check_types(name, types, given[OTHERS:])
            seen.launched[name] += 1

        self.src, self.name, self._run = src, name, run
        self.module = self.function = self.packed_metadata = 0

    def __del__(self) -> None:
        pass


def check_types(name: str, types: Iterable[Any], values: Sequence[Any]) -> None:
    """Raise TypeError where a launcher in C would, or read something else."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            if not isinstance(value, tuple):
                raise TypeError(f"{name}: got {value!r} for a tuple")
            check_types(name, kind, value)
            continue
        wanted: Any = int
        if kind == "constexpr":
            wanted = object
        elif kind.startswith("*"):
            wanted = (int, torch.Tensor)
        elif kind.startswith("fp"):
            wanted = float
        if not isinstance(value, wanted):
            raise TypeError(f"{name}: got {value!r} for {kind}")


@contextmanager
def fake_gpu() -> Iterator[Seen]:
    """The loss runs on Triton with CPU tensors, compiles nothing and launches nothing.

    Results are whatever memory held. On exit everything is as before.

    Raises:
        RuntimeError: the kernels are interpreted.
    """
    if not KERNELS:
        raise RuntimeError("TRITON_INTERPRET=1 leaves no launches to measure: unset it")
    seen = Seen()
    driver, run = triton.runtime.driver, triton.JITFunction.run
    workspace = lru_cache(launch.workspace)

    def run_by_jit(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        seen.by_jit[kernel.fn.__name__] += 1
        return run(kernel, *args, **kwargs)

    with ExitStack() as stack:
        replace = lambda *what: stack.enter_context(mock.patch.object(*what))  # noqa: E731
        replace(driver, "_active", FakeDriver())
        replace(triton.compiler, "compile", lambda src, **_: FakeKernel(src, seen))
        for kernel in KERNELS:
            caches = type(kernel.device_caches)(kernel.create_binder)
            replace(kernel, "device_caches", caches)
            stack.enter_context(attributes_kept(kernel, ("compile", "CompiledKernel", "ASTSource")))
        replace(triton.JITFunction, "run", run_by_jit)
        replace(launch, "PLANS", {})
        for module in MODULES:
            replace(module, "workspace_for", lambda device, alone, *size: workspace(device, *size))
            replace(module, "gpu", lambda device: 0)
        replace(ops, "INTERPRETED", True)
        # Only on a CPU are the scalars looked at, which here hold anything.
        for passes in (ops, dense_ops):
            replace(passes, "math", SimpleNamespace(isnan=lambda number: False))
        yield seen


@contextmanager
def attributes_kept(owner: Any, names: Sequence[str]) -> Iterator[None]:
    """Give `owner` the attributes back that it had, and no others of these names."""
    before = {name: vars(owner)[name] for name in names if name in vars(owner)}
    try:
        yield
    finally:
        for name in names:
            vars(owner).pop(name, None)
        vars(owner).update(before)
