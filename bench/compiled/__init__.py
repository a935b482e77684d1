"""What the compiled kernels cost, without a GPU: their SASS, its executed path, a time model."""

from bench.compiled.variants import TARGETS, compile_launch

__all__ = ["TARGETS", "compile_launch"]
