"""The loss against the equations in float64, as closely as its dtypes allow."""

from collections.abc import Sequence
from typing import Any

import torch
from cases import in_dtype
from dense import flat, in_rows
from dense import gradients as dense_gradients
from dense import leaves as dense_leaves
from inputs import all_gradients, leaves
from torch import Tensor

from jolkernels import JointLoss, JointOptimizationLoss, reference
from jolkernels.batch import make_batch

LOSSES, GRADIENTS = 2e-6, 1e-5  # of float32, relative: of a loss, and of the largest gradient
DOUBLE = 1e-12


def stated(
    criterion: JointOptimizationLoss, batch: dict[str, Any], dtype: torch.dtype
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The equations' results and gradients, from this batch's numbers, computed in `dtype`."""
    given = in_dtype(batch, dtype)
    loss = reference.joint_optimization_loss(*make_batch(criterion.settings, **given))
    return [x.detach().double() for x in loss], all_gradients(loss, given)


def assert_exact(criterion: JointOptimizationLoss, batch: dict[str, Any]) -> None:
    """Losses and gradients equal the equations' in float64, NaN and infinities included.

    In float32 within LOSSES and GRADIENTS, or as near as PyTorch's arithmetic in float32 comes. In
    half precision no further than that, but for the rounding of the gradients.
    """
    loss = criterion(**batch)
    assert_stated(loss, all_gradients(loss, batch), criterion, batch)


def assert_exact_dense(criterion: JointOptimizationLoss, batch: dict[str, Any]) -> None:
    """The same of the dense entrance, whose gradients lie as their levels do."""
    loss, rows, count = criterion.dense(**batch), flat(criterion, batch), len(batch["logits"])
    found = dense_gradients(loss, batch)
    for g, x in zip(found, dense_leaves(batch), strict=True):
        assert g.dtype == x.dtype and g.stride() == torch.empty_like(x).stride()
    logits, boxes, extra = found[:count], found[count : 2 * count], found[2 * count :]
    columns = rows["logits"].shape[1]
    in_order = in_rows(logits, columns), in_rows(boxes, 4), *(x.flatten() for x in extra)
    assert_stated(loss, in_order, criterion, rows)


def assert_stated(
    loss: JointLoss,
    found: Sequence[Tensor],
    criterion: JointOptimizationLoss,
    batch: dict[str, Any],
) -> None:
    """Results and gradients against those of the equations of a flat batch."""
    wanted, slopes = stated(criterion, batch, torch.float64)
    _, plain = stated(criterion, batch, torch.float32)
    double = loss.classification.dtype == torch.float64
    losses, gradients = (DOUBLE, DOUBLE) if double else (LOSSES, GRADIENTS)
    for a, b in zip(loss, wanted, strict=True):
        torch.testing.assert_close(
            a.detach().double(), b, rtol=losses, atol=losses * size(b), equal_nan=True
        )
    for leaf, a, b, c in zip(leaves(batch), found, slopes, plain, strict=True):
        assert a.dtype == leaf.dtype
        near = torch.tensor(gradients * size(b))
        if not double:
            own = 1.1 * size(c.double() - b)
            near = near.clamp(min=own)
            if a.itemsize == 2:
                near = own + torch.finfo(a.dtype).eps / 2 * b.abs() + tiny(a.dtype)
        close = ((a.double() - b).abs() <= near) | (a == b) | (a.isnan() & b.isnan())
        assert close.all(), f"off by {size(a.double() - b):.1e} of {size(b):.1e}"


def size(x: Tensor) -> float:
    """The largest finite magnitude; 0 of nothing."""
    finite = x[x.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def tiny(dtype: torch.dtype) -> float:
    """Half the distance between the smallest numbers."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
