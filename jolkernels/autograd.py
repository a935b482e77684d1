"""The autograd Function of the loss: the only place that saves for backward."""

from typing import Any

import torch
from torch import Tensor

from jolkernels import ops


class JointOptimizationFunction(torch.autograd.Function):
    """The operators of jolkernels.ops as a differentiable function: apply(key, *tensors).

    Returns classification, regression, negative_weight and num_positives; the last two carry no
    gradient. Keeps the inputs, one or two numbers a row and five scalars.
    """

    @staticmethod
    def forward(ctx: Any, key: str, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        *results, rows, scalars = ops.forward(tensors, key)
        ctx.key = key
        ctx.save_for_backward(*tensors, rows, scalars)
        ctx.mark_non_differentiable(*results[2:])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, rows, scalars = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        saved = (rows, scalars, grads[0], grads[1])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = JointOptimizationBackward.apply(ctx.key, needs, *saved, *tensors)
        else:
            gradients = ops.backward(tensors, ctx.key, saved, needs)
        grad_logits, grad_boxes = (
            g if needed else None for g, needed in zip(gradients, needs, strict=True)
        )
        return None, grad_logits, grad_boxes, *[None] * (len(tensors) - 2)


class JointOptimizationBackward(torch.autograd.Function):
    """The gradients, as a node of their own: under create_graph=True its backward raises.

    once_differentiable would let a gradient penalty whose upstream gradient needs no gradient
    lose its second-order term without a word.
    """

    @staticmethod
    def forward(
        ctx: Any, key: str, needs: tuple[bool, bool], *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return ops.backward(tensors[4:], key, tensors[:4], needs)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")
