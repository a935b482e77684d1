"""The autograd Function of the loss: the only place that saves for backward."""

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
    return JointOptimizationFunction.apply(
        batch.logits, batch.box_preds, batch.extra_regression, batch, call
    )


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
            gradients = JointOptimizationBackward.apply(ctx.call, needs, *saved, *fields)
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
    def forward(
        ctx: Any,
        call: Call,
        needs: ops.Needs,
        rows: Tensor,
        scalars: Tensor,
        grad_classification: Tensor | None,
        grad_regression: Tensor | None,
        *fields: Any,
    ) -> ops.Gradients:
        return ops.backward(
            Batch._make(fields), call, rows, scalars, grad_classification, grad_regression, needs
        )

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("the Joint Optimization Loss has no second derivative")


def dense_joint_optimization(batch: DenseBatch, call: Call) -> tuple[Tensor, ...]:
    """As joint_optimization, of a dense batch; differentiable with respect to all levels."""
    return DenseFunction.apply(*batch.logits, *batch.box_preds, batch.extra_regression, batch, call)


class DenseFunction(torch.autograd.Function):
    """The operators of jolkernels.dense_ops as a differentiable function.

    apply(*logits, *box_preds, extra_regression, batch, call).
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *_, batch, call = args
        result = dense_ops.forward(batch, call)
        ctx.call, ctx.levels = call, len(batch.logits)
        ctx.save_for_backward(
            *batch.logits, *batch.box_preds, *batch[2:8], *batch[10:], result.rows, result.scalars
        )
        ctx.mark_non_differentiable(*result[2:5])
        ctx.set_materialize_grads(False)
        return result[:5]

    @staticmethod
    def backward(
        ctx: Any, g_cls: Tensor | None, g_loc: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        *fields, rows, scalars = ctx.saved_tensors
        n = ctx.levels
        logits, boxes, others = fields[:n], fields[n : 2 * n], fields[2 * n :]
        batch = DenseBatch(tuple(logits), tuple(boxes), *others[:6], None, None, *others[6:])
        needs = ctx.needs_input_grad
        gradients = dense_ops.backward(
            batch, ctx.call, rows, scalars, g_cls, g_loc,
            (any(needs[:n]), any(needs[n : 2 * n]), needs[2 * n]),
        )  # fmt: skip
        found = [*gradients[0], *gradients[1], gradients[2]]
        return (*(g if n else None for g, n in zip(found, needs, strict=False)), None, None)
