"""Launches compiled for a GPU that need not be there."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import triton
from triton._C.libtriton import native_specialize_impl
from triton._utils import find_paths_if, get_iterable_path
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler import ASTSource

from jolkernels.kernels.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def source_of(call: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """A launch as Triton's just-in-time compiler would specialise it, and its options.

    Tensors without memory, on the meta device, count as aligned. Of a tuple Triton specialises
    every element, whatever the kernel asks for its parameter.
    """
    options = dict(call.plan.constants)
    constants = {p.name: options.pop(p.name) for p in call.plan.kernel.params if p.is_constexpr}
    names = (p.name for p in call.plan.kernel.params if not p.is_constexpr)
    values = dict(zip(names, call.arguments, strict=True)) | constants
    signature = {}
    keys = []
    for parameter in call.plan.kernel.params:
        signature[parameter.name], key = specialized(parameter, values[parameter.name])
        keys.append(key)
    constexprs = {
        path: get_iterable_path(list(values[name] for name in signature), path)
        for path in find_paths_if(list(signature.values()), lambda _, kind: kind == "constexpr")
    }
    attributes = {
        path: BaseBackend.parse_attr(get_iterable_path(keys, path))
        for path in find_paths_if(keys, lambda _, key: isinstance(key, str) and key)
        if path not in constexprs
    }
    return ASTSource(call.plan.kernel, signature, constexprs, attributes), options


def specialized(parameter: Any, value: Any) -> tuple[Any, Any]:
    """The type of an argument and what else a kernel is compiled for, (nested) tuples of tuples."""
    if parameter.is_constexpr:
        return "constexpr", None
    each, aligned = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
    kind, key = native_specialize_impl(BaseBackend, value, parameter.is_const, each, aligned)
    given = parameter.annotation_type
    if given:
        return given, key if each and not given.startswith(("u1", "fp", "bf")) else None
    return kind, key


def compile_launch(call: Launch, target: GPUTarget) -> Any:
    """Compile a launch for a target."""
    return compile_source(*source_of(call), target)


def compile_source(source: ASTSource, options: dict[str, Any], target: GPUTarget) -> Any:
    """Compile what `source_of` made of a launch."""
    # Kernels ask the active driver what they are compiled for.
    asked = SimpleNamespace(get_current_target=lambda: target)
    with mock.patch.object(triton.runtime.driver, "_active", asked):
        return triton.compile(source, target=target, options=options)
