"""extra_regression: another box loss of the caller's under the same weights."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, gradients, random_batch, sampled
from inputs import all_gradients, with_inputs
from torchvision import ops

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels


def positives(batch):
    return (batch["labels"] >= 0) & (batch["labels"] < 5)


@pytest.mark.parametrize("weights", [{}, {"detach_weights": True}, {"weighting": "none"}])
@pytest.mark.parametrize("normalizer", ["positives", 2.5])
def test_its_gradient_is_the_weight_over_the_normalizer(weights, normalizer):
    batch = with_inputs(random_batch(), "extra_regression")
    batch["regression_normalizer"] = normalizer
    criterion = JointOptimizationLoss(**weights)
    w = criterion.per_sample(**batch).weight if weights.get("weighting") != "none" else 1
    z = positives(batch).sum() if normalizer == "positives" else normalizer
    wanted = torch.where(positives(batch), 0.7 * batch["regression_weights"] * w / z, 0)
    got = all_gradients(criterion(**batch), batch)[2]
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)
    assert (got[~positives(batch)] == 0).all()


HEADS = [("cross_entropy", "last"), ("bce", "last")]
WEIGHTS = [{}, {"detach_weights": True}, {"weighting": "none"}]


@pytest.mark.parametrize(
    ("head", "weights"), sampled(list(itertools.product(HEADS, WEIGHTS)), every=3)
)
def test_a_box_loss_handed_over_is_that_box_loss(head, weights):
    """Values and gradients, those of the weights too, of 5 l1 + 2 giou: in one, or as two parts."""
    batch = random_batch(head)
    whole = JointOptimizationLoss(head[0], "5*l1+2*giou", **weights)
    expected = whole(**batch)
    pairs = batch["box_preds"][positives(batch)], batch["target_boxes"][positives(batch)]
    extra = torch.full((len(batch["labels"]),), torch.nan, dtype=torch.float64, device=DEVICE)
    giou = 2 * ops.generalized_box_iou_loss(*pairs)
    extra = extra.index_put((positives(batch).nonzero()[:, 0],), giou)
    parts = JointOptimizationLoss(head[0], "5*l1", **weights)
    loss = parts(**batch, extra_regression=extra)
    torch.testing.assert_close(tuple(loss[:4]), tuple(expected[:4]), rtol=1e-12, atol=1e-12)
    got, wanted = gradients(loss, batch), gradients(expected, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_regression_holds_it_and_the_field_shows_it():
    batch = with_inputs(random_batch(), "extra_regression")
    extra = batch.pop("extra_regression")
    criterion = JointOptimizationLoss()
    without, loss = criterion(**batch), criterion(**batch, extra_regression=extra)
    torch.testing.assert_close(loss.regression - loss.extra_regression, without.regression)
    torch.testing.assert_close(loss.classification, without.classification)
    torch.testing.assert_close(loss.negative_weight, without.negative_weight)
    weights = criterion.per_sample(**batch).weight * batch["regression_weights"]
    part = (weights * extra)[positives(batch)].sum() / (batch["labels"] != -100).sum()
    torch.testing.assert_close(loss.extra_regression, part.detach())
    assert without.extra_regression == 0 and not loss.extra_regression.requires_grad
    assert loss.total == loss.classification + loss.regression
    rows = criterion.per_sample(**batch, extra_regression=extra).regression
    wanted = criterion.per_sample(**batch).regression + extra.detach()
    torch.testing.assert_close(rows[positives(batch)], wanted[positives(batch)])


@pytest.mark.parametrize("up", [(1, 0), (0, 1)])
def test_one_part_alone(up):
    """The classification part does not depend on it."""
    batch = with_inputs(random_batch(), "extra_regression")
    *_, d_extra = all_gradients(JointOptimizationLoss()(**batch), batch, up)
    assert (d_extra.abs().sum() > 0) == (up == (0, 1))


def test_extra_losses_of_zero_change_nothing():
    batch = random_batch()
    criterion = JointOptimizationLoss()
    zeros = torch.zeros(len(batch["labels"]), dtype=torch.float64, device=DEVICE)
    a, b = criterion(**batch), criterion(**batch, extra_regression=zeros)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradients(a, batch), gradients(b, batch), rtol=1e-14, atol=0)


def test_negative_extra_losses_are_taken():
    batch = with_inputs(random_batch(), "extra_regression")
    extra = batch.pop("extra_regression")
    up, down = (JointOptimizationLoss()(**batch, extra_regression=sign * extra) for sign in (1, -1))
    torch.testing.assert_close(up.extra_regression, -down.extra_regression)


def test_an_infinite_extra_loss_is_not_hidden():
    batch = with_inputs(random_batch(), "extra_regression")
    with torch.no_grad():
        batch["extra_regression"][positives(batch).nonzero()[0, 0]] = torch.inf
    loss = JointOptimizationLoss()(**batch)
    assert loss.regression == torch.inf and loss.extra_regression == torch.inf
    assert torch.isfinite(loss.classification)


def test_a_head_of_distributions_trains():
    """As YOLO has it: distances as distributions, their cross entropy under JOL's weights."""
    batch = random_batch(("bce", "last"), "ltrb")
    bins = torch.randn(len(batch["labels"]), 4, 8, dtype=torch.float64).to(DEVICE).requires_grad_()
    steps = torch.linspace(0, 2, 8, dtype=torch.float64, device=DEVICE)
    batch["box_preds"] = bins.softmax(-1) @ steps
    dfl = F.cross_entropy(bins.flatten(0, 1), torch.full((4 * len(bins),), 3, device=DEVICE),
                          reduction="none").view(-1, 4).mean(1)  # fmt: skip
    loss = JointOptimizationLoss("bce", "ciou", "ltrb")(**batch, extra_regression=dfl)
    (got,) = torch.autograd.grad(loss.total, bins)
    assert (got[positives(batch)].flatten(1).abs().sum(1) > 0).all()
    assert (got[~positives(batch)] == 0).all()
