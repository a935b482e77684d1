"""The autograd Function of the loss: the only place that saves for backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jolkernels import dense_ops, ops
from jolkernels.batch import Batch
from jolkernels.dense import DenseBatch
from jolkernels.settings import Call

DIFFERENTIABLE = ("logits", "box_preds", "extra_regression")


def joint_optimization(batch: Batch, call: Call) -> tuple[Tensor, ...]:
    """The fields of a JointLoss, 0-dim each or [G].

    Differentiable with respect to logits, box_preds and extra_regression; only the first two
    results carry a gradient.

    Raises:
        RuntimeError: under a transform of torch.func, such as vmap or grad.
    """
    batch = for_apply(batch)
    return JointOptimizationFunction.apply(
        batch.logits, batch.box_preds, batch.extra_regression, batch, call
    )


def for_apply(batch: Any) -> Any:
    """The batch, flat or dense, as an autograd Function can be given it; raises if none can."""
    if torch.compiler.is_compiling():  # its autograd Functions take no tensor twice
        return batch._replace(
            **{name: t.detach() for name, t in batch._asdict().items()
               if isinstance(t, Tensor) and name not in DIFFERENTIABLE}
        )  # fmt: skip
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "the Joint Optimization Loss has no vmap and no transforms of torch.func: use its "
            "groups for several losses at once, torch.autograd for gradients"
        )
    return batch


Z_CLS, Z_LOC = map(Batch._fields.index, ("classification_normalizer", "regression_normalizer"))


class JointOptimizationFunction(torch.autograd.Function):
    """The operators of jolkernels.ops as a differentiable function.

    apply(logits, box_preds, extra_regression, batch, call): the batch has these three too; of its
    constants autograd sees nothing, which would take time. Keeps the inputs, the rows' terms
    (Settings.kept numbers each) and the scalars, which have the normalisers in them.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, box_preds: Tensor, extra: Tensor | None, batch: Batch, call: Call
    ) -> tuple[Tensor, ...]:
        result = ops.forward(batch, call)
        kept = list(batch)
        kept[Z_CLS] = kept[Z_LOC] = None
        ctx.call = call
        ctx.save_for_backward(*kept, result.rows, result.scalars)
        ctx.mark_non_differentiable(*result[2:5])
        ctx.set_materialize_grads(False)  # results that nothing uses cost no zeros
        return result[:5]

    @staticmethod
    def backward(
        ctx: Any, g_cls: Tensor | None, g_loc: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        *fields, rows, scalars = ctx.saved_tensors
        needs = logits_needed, boxes_needed, extra_needed = ctx.needs_input_grad[:3]
        saved = rows, scalars, g_cls, g_loc  # None: a part that nothing uses
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            call = ctx.call

            def compute(*tensors: Any) -> ops.Gradients:
                rows, scalars, g_cls, g_loc, *fields = tensors
                return ops.backward(Batch._make(fields), call, rows, scalars, g_cls, g_loc, needs)

            gradients = JointOptimizationBackward.apply(compute, *saved, *fields)
        else:
            gradients = ops.backward(Batch._make(fields), ctx.call, *saved, needs)
        logits, boxes, extra = gradients
        return (
            logits if logits_needed else None,
            boxes if boxes_needed else None,
            extra if extra_needed else None,
            None,
            None,
        )


class JointOptimizationBackward(torch.autograd.Function):
    """The gradients, as a node of their own: under create_graph=True its backward raises.

    With once_differentiable, a gradient penalty whose upstream gradient needs no gradient would
    silently lose its second-order term.
    """

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], *tensors: Any) -> Any:
        return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")


def dense_joint_optimization(batch: DenseBatch, call: Call) -> tuple[Tensor, ...]:
    """As joint_optimization, of a dense batch; differentiable with respect to all levels."""
    batch = for_apply(batch)
    return DenseFunction.apply(*batch.logits, *batch.box_preds, batch.extra_regression, batch, call)


class DenseFunction(torch.autograd.Function):
    """The operators of jolkernels.dense_ops as a differentiable function.

    apply(*logits, *box_preds, extra_regression, batch, call), as JointOptimizationFunction.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *_, batch, call = given
        result = dense_ops.forward(batch, call)
        constants = batch._replace(classification_normalizer=None, regression_normalizer=None)[2:]
        ctx.call, ctx.levels = call, len(batch.logits)
        ctx.save_for_backward(
            *batch.logits, *batch.box_preds, *constants, result.rows, result.scalars
        )
        ctx.mark_non_differentiable(*result[2:5])
        ctx.set_materialize_grads(False)
        return result[:5]

    @staticmethod
    def backward(
        ctx: Any, g_cls: Tensor | None, g_loc: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        n, call, needed = ctx.levels, ctx.call, ctx.needs_input_grad
        *fields, rows, scalars = ctx.saved_tensors
        needs = any(needed[:n]), any(needed[n : 2 * n]), needed[2 * n]

        def compute(
            rows: Tensor, scalars: Tensor, g_cls: Tensor | None, g_loc: Tensor | None, *fields: Any
        ) -> tuple[Tensor | None, ...]:
            batch = DenseBatch(fields[:n], fields[n : 2 * n], *fields[2 * n :])
            logits, boxes, extra = dense_ops.backward(
                batch, call, rows, scalars, g_cls, g_loc, needs
            )
            return *logits, *boxes, extra

        saved = rows, scalars, g_cls, g_loc
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = JointOptimizationBackward.apply(compute, *saved, *fields)
        else:
            gradients = compute(*saved, *fields)
        kept = [g if need else None for g, need in zip(gradients, needed[:-2], strict=True)]
        return *kept, None, None
