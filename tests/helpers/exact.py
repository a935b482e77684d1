"""The loss against the equations in float64, as closely as its dtypes allow."""

from typing import Any

import torch
from cases import in_dtype
from inputs import all_gradients, leaves
from torch import Tensor

from jolkernels import JointOptimizationLoss, reference
from jolkernels.batch import accumulator, make_batch

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
    wanted, slopes = stated(criterion, batch, torch.float64)
    _, plain = stated(criterion, batch, torch.float32)
    double = accumulator(make_batch(criterion.settings, **batch)[0]) == torch.float64
    losses, gradients = (DOUBLE, DOUBLE) if double else (LOSSES, GRADIENTS)
    for a, b in zip(loss, wanted, strict=True):
        torch.testing.assert_close(
            a.detach().double(), b, rtol=losses, atol=losses * size(b), equal_nan=True
        )
    found = all_gradients(loss, batch)
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
