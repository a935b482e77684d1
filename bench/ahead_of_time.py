"""Launches compiled for a GPU that need not be there."""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from jolkernels.kernels.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16",
            torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}  # fmt: skip


def source_of(call: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """A launch as Triton's just-in-time compiler would specialise it, and its options.

    Tensors without memory, on the meta device, count as aligned.
    """
    options = dict(call.compile_time)
    constants = {p.name: options.pop(p.name) for p in call.kernel.params if p.is_constexpr}
    values = dict(zip((p.name for p in call.kernel.params if not p.is_constexpr), call.arguments,
                      strict=True)) | constants  # fmt: skip
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for i, parameter in enumerate(call.kernel.params):
        value = values[parameter.name]
        specialized = not parameter.do_not_specialize
        one = specialized and isinstance(value, int) and value == 1
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name] = "constexpr"
            constexprs[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialized and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(call.kernel, signature, constexprs, attributes), options


def compile_launch(call: Launch, target: GPUTarget) -> Any:
    """Compile a launch for a target."""
    source, options = source_of(call)
    return triton.compile(source, target=target, options=options)
