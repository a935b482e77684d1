"""Every mix of dtypes: values, gradients and the dtypes of the results."""

import pytest
import torch
from cases import DEVICE, HEADS, gradients, in_dtype, random_batch

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def assert_equals_float64(criterion, batch):
    """That the loss of `batch` is that of the same numbers in float64, but for rounding."""
    exact = in_dtype(batch, torch.float64)
    loss, expected = criterion(**batch), criterion(**exact)
    double = torch.float64 in (batch["logits"].dtype, batch["box_preds"].dtype)
    dtype, near = (torch.float64, 1e-12) if double else (torch.float32, 1e-5)
    for a, b in zip(loss[:3], expected[:3], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=near, atol=near / 10)
    got, wanted = gradients(loss, batch), gradients(expected, exact)
    for name, a, b in zip(("logits", "box_preds"), got, wanted, strict=True):
        assert a.dtype == batch[name].dtype
        near = 4 * max(torch.finfo(a.dtype).eps, torch.finfo(dtype).eps)
        largest = b.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(a.double(), b, rtol=near, atol=near * largest)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_lower_precision(head, dtype):
    """Half inputs are computed in float32: within their own rounding of the float64 result."""
    criterion = JointOptimizationLoss(head[0], "giou", background=head[1])
    assert_equals_float64(criterion, random_batch(head, dtype=dtype))


INPUTS = ("logits", "box_preds", "target_boxes", "priors", "classification_weights")
TIMES = [[0, 0, 0, 0], [0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2]]
"""Multiplication in the field of four elements, whose addition is ^."""


@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("a", range(4))
def test_every_mix_of_dtypes(a, b):
    """Sixteen mixes, an orthogonal array: any two inputs come in every pair of dtypes."""
    mix = (a, b, a ^ b, a ^ TIMES[2][b], a ^ TIMES[3][b])
    batch = random_batch(coding="delta")
    batch |= {
        "classification_normalizer": torch.tensor(3.7, device=DEVICE).to(DTYPES[mix[2]]),
        "regression_normalizer": torch.tensor(2.3, device=DEVICE).to(DTYPES[mix[3]]),
    }
    for name, i in zip((*INPUTS, "regression_weights"), (*mix, a), strict=True):
        batch[name] = batch[name].detach().to(DTYPES[i])
    for name in ("logits", "box_preds"):
        batch[name].requires_grad_()
    assert_equals_float64(JointOptimizationLoss("cross_entropy", "giou", "delta"), batch)
