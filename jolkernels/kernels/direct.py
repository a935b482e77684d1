"""Compiled kernels launched without the work of Triton's just-in-time launcher.

That binds, describes and looks up every argument anew, for 25 microseconds or more on a fast host.
A Plan keeps the kernel that the launcher found for its first batch; `launch` hands over addresses.
Whoever makes a plan keys it by all that Triton specialises a kernel for.

Where somebody asks to see launches (hooks, profilers) or to change them (debug knobs), and with
versions of Triton whose internals nobody has looked at, every launch is Triton's own.
"""

from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

KNOWN = (3, 6), (3, 10)
"""From the first to before the second version, CompiledKernel.run takes what `launch` gives it."""


class Plan:
    """A kernel with the arguments that all batches of its kind share.

    Attributes:
        kernel: the JIT function.
        constants: its constexpr arguments, by name and in their order, then its options.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        self.kernel = kernel
        self.constants = constants
        self.compiled: Any = None
        self.tensors: list[int] = []
        self.tuples: list[int] = []
        self.last: tuple[Any, ...] = ()

    def launch(self, programs: int, arguments: tuple[Any, ...], device: int | None) -> None:
        """Launch on the current stream of the current CUDA device, whose index is `device`.

        Args:
            programs: the number of programs.
            arguments: those that are no constexpr, in their order.
            device: None: not directly.
        """
        compiled = self.compiled
        if compiled is None or device is None or watched(self.kernel):
            found = self.kernel[(programs,)](*arguments, **self.constants)
            if device is not None:
                self.keep(found, arguments)
            return
        values = [*arguments, *self.last]
        for i in self.tensors:
            values[i] = values[i].data_ptr()
        for i in self.tuples:
            values[i] = addresses(values[i])
        compiled.run(
            programs, 1, 1, driver.active.get_current_stream(device),
            compiled.function, compiled.packed_metadata, None, None, None, *values,
        )  # fmt: skip

    def keep(self, found: Any, arguments: tuple[Any, ...]) -> None:
        """Launch what the JIT's launcher found directly from now on, if it can be."""
        if not KNOWN[0] <= version() < KNOWN[1] or watched(self.kernel):
            return
        if all(hasattr(found, name) for name in ("run", "function", "packed_metadata")):
            self.last = tuple(self.constants[p.name] for p in self.kernel.params if p.is_constexpr)
            self.tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
            self.tuples = [
                i for i, a in enumerate(arguments) if isinstance(a, tuple) and has_tensor(a)
            ]
            self.compiled = found


def addresses(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple, maybe of tuples, with addresses for its tensors."""
    return tuple(
        [
            v.data_ptr() if isinstance(v, Tensor) else addresses(v) if isinstance(v, tuple) else v
            for v in values
        ]
    )


def has_tensor(values: tuple[Any, ...]) -> bool:
    """Whether a tuple, maybe of tuples, has tensors."""
    return any(has_tensor(v) if isinstance(v, tuple) else isinstance(v, Tensor) for v in values)


def version() -> tuple[int, ...]:
    """Triton's, major and minor."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def watched(kernel: Any) -> bool:
    """Whether somebody wants to see this kernel's launches, or something is amiss with Triton."""
    try:
        runtime = knobs.runtime
        return bool(
            runtime.launch_enter_hook.calls
            or runtime.launch_exit_hook.calls
            or kernel.pre_run_hooks
            or runtime.add_stages_inspection_hook is not None
            or runtime.debug
            or knobs.compilation.instrumentation_mode
        )
    except AttributeError:
        return True
