"""Launches compiled for a GPU that need not be there."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

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
    options = dict(call.plan.constants)
    constants = {p.name: options.pop(p.name) for p in call.plan.kernel.params if p.is_constexpr}
    names = (p.name for p in call.plan.kernel.params if not p.is_constexpr)
    values = dict(zip(names, call.arguments, strict=True)) | constants
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for i, parameter in enumerate(call.plan.kernel.params):
        value = values[parameter.name]
        specialized = not parameter.do_not_specialize
        one = specialized and isinstance(value, int) and value == 1
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name] = "constexpr"
            constexprs[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            aligned = value.data_ptr() % 16 == 0
            if aligned and not parameter.do_not_specialize_on_alignment:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif parameter.annotation_type:
            signature[parameter.name] = parameter.annotation_type
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialized and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(call.plan.kernel, signature, constexprs, attributes), options


def compile_launch(call: Launch, target: GPUTarget) -> Any:
    """Compile a launch for a target."""
    return compile_source(*source_of(call), target)


def compile_source(source: ASTSource, options: dict[str, Any], target: GPUTarget) -> Any:
    """Compile what `source_of` made of a launch."""
    # Kernels ask the active driver what they are compiled for.
    asked = SimpleNamespace(get_current_target=lambda: target)
    with mock.patch.object(triton.runtime.driver, "_active", asked):
        return triton.compile(source, target=target, options=options)
