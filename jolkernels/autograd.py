"""The autograd Function of the loss: the only place that saves for backward."""

from typing import Any

import torch
from torch import Tensor

from jolkernels import ops
from jolkernels.batch import Batch
from jolkernels.settings import Call


def joint_optimization(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """The fields of a JointLoss, 0-dim each or [G].

    Differentiable with respect to logits, box_preds and extra_regression; only the first two
    results carry a gradient.

    Raises:
        RuntimeError: under a transform of torch.func, such as vmap or grad.
    """
    if torch.compiler.is_compiling():  # its autograd Functions take no tensor twice
        batch = batch._replace(
            **{name: t.detach() for name, t in batch._asdict().items()
               if t is not None and name not in DIFFERENTIABLE}
        )  # fmt: skip
    elif torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "the Joint Optimization Loss has no vmap and no transforms of torch.func: use its "
            "groups for several losses at once, torch.autograd for gradients"
        )
    return JointOptimizationFunction.apply(call, *batch)


DIFFERENTIABLE = ("logits", "box_preds", "extra_regression")
AT = tuple(1 + Batch._fields.index(name) for name in DIFFERENTIABLE)  # after the call


class JointOptimizationFunction(torch.autograd.Function):
    """The operators of jolkernels.ops as a differentiable function: apply(call, *batch).

    Keeps the inputs, the rows' terms (Settings.kept numbers each) and the scalars.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *fields: Any) -> tuple[Tensor, ...]:
        batch = Batch(*fields)
        result = ops.forward(batch, call)
        ctx.call = call
        ctx.save_for_backward(*batch, result.rows, result.scalars)
        constants = result.negative_weight, result.num_positives, result.extra_regression
        ctx.mark_non_differentiable(*constants)
        return result.classification, result.regression, *constants

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *batch, rows, scalars = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[i] for i in AT)
        grad_classification, grad_regression, *_ = grads
        saved = rows, scalars, grad_classification, grad_regression
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = JointOptimizationBackward.apply(ctx.call, needs, *saved, *batch)
        else:
            gradients = ops.backward(Batch(*batch), ctx.call, *saved, needs)
        results: list[Tensor | None] = [None] * (1 + len(batch))
        for i, gradient, needed in zip(AT, gradients, needs, strict=True):
            results[i] = gradient if needed else None
        return tuple(results)


class JointOptimizationBackward(torch.autograd.Function):
    """The gradients, as a node of their own: under create_graph=True its backward raises.

    With once_differentiable, a gradient penalty whose upstream gradient needs no gradient would
    silently lose its second-order term.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        needs: ops.Needs,
        rows: Tensor,
        scalars: Tensor,
        grad_classification: Tensor,
        grad_regression: Tensor,
        *batch: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.backward(
            Batch(*batch), call, rows, scalars, grad_classification, grad_regression, needs
        )

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")
