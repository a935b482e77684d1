"""The autograd Function of the loss: the only place that saves for backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from jolkernels import ops
from jolkernels.spec import Batch, Settings


class JointOptimizationFunction(torch.autograd.Function):
    """Forward and backward of jolkernels.ops: apply(settings, *batch).

    Returns classification, regression, negative_weight and num_positives; the last two carry no
    gradient. Keeps the inputs, one number a row and five scalars.
    """

    @staticmethod
    def forward(ctx: Any, settings: Settings, *fields: Any) -> tuple[Tensor, ...]:
        batch = Batch(*fields)
        result = ops.forward(batch, settings)
        ctx.settings = settings
        ctx.names = [x if isinstance(x, str) else None for x in batch]  # normalisers by name
        tensors = [x if isinstance(x, Tensor) else None for x in batch]
        ctx.save_for_backward(*tensors, result.rows, result.scalars)
        ctx.mark_non_differentiable(result.negative_weight, result.num_positives)
        return result[:4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, rows, scalars = ctx.saved_tensors
        pairs = zip(tensors, ctx.names, strict=True)
        batch = Batch(*(tensor if name is None else name for tensor, name in pairs))
        needs = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grad_logits, grad_boxes = JointOptimizationBackward.apply(
            ctx.settings, rows, scalars, grads[0], grads[1], needs, *batch
        )
        return None, grad_logits, grad_boxes, *[None] * (len(batch) - 2)


class JointOptimizationBackward(torch.autograd.Function):
    """The gradients, as a node of their own: under create_graph=True its backward raises.

    once_differentiable would let a gradient penalty whose upstream gradient needs no gradient
    lose its second-order term without a word.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        settings: Settings,
        rows: Tensor,
        scalars: Tensor,
        grad_classification: Tensor,
        grad_regression: Tensor,
        needs: tuple[bool, bool],
        *fields: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        return ops.backward(
            Batch(*fields), settings, rows, scalars, grad_classification, grad_regression, needs
        )

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")
