"""The autograd Function of the loss: the only place that saves for backward."""

from typing import Any

import torch
from torch import Tensor

from jolkernels import ops
from jolkernels.batch import Batch
from jolkernels.settings import Call


def joint_optimization(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """classification, regression, negative_weight and num_positives, 0-dim each.

    Differentiable with respect to logits and box_preds; the last two results carry no gradient.
    """
    logits, box_preds, *constants = batch
    if torch.compiler.is_compiling():  # its autograd Functions take no tensor twice
        constants = [t if t is None else t.detach() for t in constants]
    return JointOptimizationFunction.apply(call, logits, box_preds, *constants)


class JointOptimizationFunction(torch.autograd.Function):
    """The operators of jolkernels.ops as a differentiable function: apply(call, *batch).

    Keeps the inputs, the rows' terms (Settings.kept numbers each) and five scalars.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, logits: Tensor, box_preds: Tensor, *constants: Any
    ) -> tuple[Tensor, ...]:
        batch = Batch(logits, box_preds, *constants)
        result = ops.forward(batch, call)
        ctx.call = call
        ctx.save_for_backward(*batch, result.rows, result.scalars)
        ctx.mark_non_differentiable(result.negative_weight, result.num_positives)
        return (
            result.classification,
            result.regression,
            result.negative_weight,
            result.num_positives,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *batch, rows, scalars = ctx.saved_tensors
        _, needs_logits, needs_boxes, *constants = ctx.needs_input_grad
        needs = needs_logits, needs_boxes
        grad_classification, grad_regression, *_ = grads
        saved = rows, scalars, grad_classification, grad_regression
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = JointOptimizationBackward.apply(ctx.call, needs, *saved, *batch)
        else:
            gradients = ops.backward(Batch(*batch), ctx.call, *saved, needs)
        grad_logits, grad_boxes = (
            g if needed else None for g, needed in zip(gradients, needs, strict=True)
        )
        return None, grad_logits, grad_boxes, *[None] * len(constants)


class JointOptimizationBackward(torch.autograd.Function):
    """The gradients, as a node of their own: under create_graph=True its backward raises.

    With once_differentiable, a gradient penalty whose upstream gradient needs no gradient would
    silently lose its second-order term.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        needs: tuple[bool, bool],
        rows: Tensor,
        scalars: Tensor,
        grad_classification: Tensor,
        grad_regression: Tensor,
        *batch: Any,
    ) -> tuple[Tensor, Tensor]:
        return ops.backward(
            Batch(*batch), call, rows, scalars, grad_classification, grad_regression, needs
        )

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")
