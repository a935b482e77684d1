"""Numbers beyond the range of the result, and normalisers near 0: what PyTorch gives, no error."""

import pytest
import torch
from cases import DEVICE, gradients, random_batch

from jolkernels import JointOptimizationLoss, reference
from jolkernels.batch import make_batch
from jolkernels.spec import Delta

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def both(criterion, batch):
    """The losses, and those of the reference."""
    return criterion(**batch), reference.joint_optimization_loss(
        *make_batch(criterion.settings, **batch)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["classification", "regression"])
def test_a_loss_beyond_the_range_is_infinite(name, dtype):
    batch = random_batch(dtype=dtype)
    batch[f"{name}_normalizer"] = torch.finfo(torch.float64).tiny if dtype.itemsize == 8 else 1e-39
    weights = batch[f"{name}_weights"]
    weights.copy_(torch.full_like(weights, torch.finfo(dtype).max))
    for loss in both(JointOptimizationLoss(), batch):
        assert loss[name == "regression"] == torch.inf
        assert torch.isfinite(loss[name == "classification"])
        assert loss[0].dtype == loss[1].dtype == torch.promote_types(dtype, torch.float32)


def test_a_sum_beyond_the_range_is_infinite_though_every_row_is_finite():
    batch = random_batch(dtype=torch.float32)
    del batch["regression_weights"]
    with torch.no_grad():
        batch["box_preds"].fill_(2e37)  # 1.6e38 a row
    for loss in both(JointOptimizationLoss(), batch | {"regression_normalizer": "sum"}):
        assert loss[1] == torch.inf and torch.isfinite(loss[0])
    assert all(torch.isfinite(g).all() for g in gradients(JointOptimizationLoss()(**batch), batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "number", [1e-45, 1e-310, torch.tensor(1e-45), torch.tensor(1e-310, dtype=torch.float64)]
)
@pytest.mark.parametrize("name", ["classification", "regression"])
def test_a_tiny_normalizer_divides(name, number, dtype):
    """By 1e-310 and not by 0, whose quotient would be NaN where nothing is lost."""
    if isinstance(number, torch.Tensor):
        number = number.to(DEVICE)
    batch = random_batch(dtype=dtype) | {f"{name}_normalizer": number}
    criterion, value = JointOptimizationLoss(), float(number)
    plain = criterion(**batch | {f"{name}_normalizer": "sum"})
    wanted = (getattr(plain, name).double() / value).to(dtype)
    torch.testing.assert_close(getattr(criterion(**batch), name), wanted, rtol=1e-6, atol=0)

    # Nothing to divide: exactly 0, and no gradient.
    batch["labels"][:] = -100
    loss = criterion(**batch)
    assert getattr(loss, name) == 0
    assert all((g == 0).all() for g in gradients(loss, batch))


@pytest.mark.parametrize("name", ["classification", "regression"])
@pytest.mark.parametrize("number", [1e-45, 1e-310])
def test_a_tiny_normalizer_leaves_the_other_loss_alone(name, number):
    """A part that is not differentiated has an upstream gradient of 0, and 0 / Z is 0."""
    batch = random_batch(dtype=torch.float32)
    up = (0, 1) if name == "classification" else (1, 0)
    wanted = gradients(JointOptimizationLoss()(**batch), batch, up)
    got = gradients(JointOptimizationLoss()(**batch, **{f"{name}_normalizer": number}), batch, up)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_an_upstream_gradient_of_the_size_of_the_normalizer():
    batch = random_batch(dtype=torch.float32)
    wanted = gradients(JointOptimizationLoss()(**batch, regression_normalizer=1), batch, (1, 1))
    loss = JointOptimizationLoss()(**batch, regression_normalizer=2.0**-140)
    got = gradients(loss, batch, (1, 2.0**-140))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("clip", [1e300, -1e300])
def test_a_clip_beyond_the_range_is_none(clip):
    batch = random_batch(coding="delta", dtype=torch.float32)
    criterion = JointOptimizationLoss("cross_entropy", "giou", Delta(clip=clip))
    nearer = JointOptimizationLoss("cross_entropy", "giou", Delta(clip=clip / 1e298))
    for loss in both(criterion, batch):
        torch.testing.assert_close(tuple(loss), tuple(nearer(**batch)))
    torch.testing.assert_close(
        gradients(criterion(**batch), batch), gradients(nearer(**batch), batch)
    )


def test_a_gradient_beyond_the_range_keeps_its_sign():
    """Of the true class, whose p - 1 is negative, it was inf - inf in C."""
    batch = random_batch(dtype=torch.float32) | {"classification_normalizer": 1e-45}
    criterion = JointOptimizationLoss(weighting="none")
    valid = (batch["labels"] != -100).nonzero()[:, 0]
    got, _ = gradients(criterion(**batch), batch)
    at_labels = got[valid, batch["labels"][valid]]
    assert (at_labels == -torch.inf).all()
    assert (got[valid] == torch.inf).sum(1).eq(got.shape[1] - 1).all()
