"""groups: in one call as many losses as groups, each as if it were called for its rows alone."""

import itertools

import pytest
import torch
from cases import DEVICE, ON_KERNELS, random_batch, sampled, slow_on_kernels
from inputs import CASES, all_gradients, case, with_inputs

from jolkernels import JointOptimizationLoss, reference
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels
GROUPED = [name for name in CASES if "groups" in CASES[name][2]]
grouped = pytest.mark.parametrize(("name",), sampled([(name,) for name in GROUPED], every=4))
NAMES = ("classification_normalizer", "regression_normalizer")
NORMALIZERS = {
    "by name": ("samples", "positives"),
    "sums": ("sum", "sum"),
    "numbers": (2.5, torch.tensor(0.75)),
    "each": (torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.5, 7.0, 1.5], dtype=torch.float64)),
}
ROWS = ("logits", "box_preds", "labels", "target_boxes", "priors", "classification_weights",
        "regression_weights", "class_targets", "extra_regression", "groups")  # fmt: skip


def of_rows(batch, at):
    """The rows of these indices, as leaves."""
    return {
        k: v.detach()[at].requires_grad_(v.requires_grad) if k in ROWS else v
        for k, v in batch.items()
    }


def of_group(batch, g):
    """The batch of a group's rows alone, and their indices."""
    at = (batch["groups"] == g).nonzero()[:, 0]
    alone = {k: v for k, v in of_rows(batch, at).items() if k not in ("groups", "num_groups")}
    for name in NAMES:
        if isinstance(alone.get(name), torch.Tensor) and alone[name].ndim:
            alone[name] = alone[name][g]
    return alone, at


def assert_as_if_called_alone(criterion, batch, up=(1.3, 0.7)):
    loss = criterion(**batch)
    got = all_gradients(loss, batch, up)
    assert all(x.shape == (batch["num_groups"],) for x in loss)
    counted = torch.zeros_like(batch["labels"], dtype=torch.bool)
    for g in range(batch["num_groups"]):
        alone, at = of_group(batch, g)
        expected = criterion(**alone)
        for a, b in zip(loss, expected, strict=True):
            torch.testing.assert_close(a[g], b, rtol=1e-12, atol=1e-12)
        wanted = all_gradients(expected, alone, tuple((g + 1) * u for u in up))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a[at], b, rtol=1e-12, atol=1e-13)
        counted[at] = True
    assert all((a[~counted] == 0).all() for a in got)
    return loss


def assert_equals_the_reference(criterion, batch):
    """For as many groups that separate calls would take long."""
    loss = criterion(**batch)
    expected = reference.joint_optimization_loss(*make_batch(criterion.settings, **batch))
    torch.testing.assert_close(tuple(loss), expected, rtol=1e-11, atol=1e-12)
    got, wanted = all_gradients(loss, batch), all_gradients(expected, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    return loss


@pytest.mark.parametrize(
    ("name", "normalizers"), sampled(list(itertools.product(GROUPED, NORMALIZERS)), every=11)
)
def test_groups_are_separate_calls(name, normalizers):
    criterion, batch = case(name, n=40)
    for key, value in zip(NAMES, NORMALIZERS[normalizers], strict=True):
        batch[key] = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
    assert_as_if_called_alone(criterion, batch)


WEIGHTS = [{"detach_weights": True}, {"weighting": "none"}, {"lam": 1.2}]


@pytest.mark.parametrize(("choices",), sampled([(w,) for w in WEIGHTS], every=2))
def test_groups_are_separate_calls_whatever_the_weights(choices):
    batch = with_inputs(random_batch(n=40), "groups", "extra_regression")
    loss = assert_as_if_called_alone(JointOptimizationLoss(**choices), batch)
    assert (loss.num_positives > 0).all()


@grouped
def test_the_order_of_rows_does_not_matter(name):
    criterion, batch = case(name, n=40)
    loss = criterion(**batch)
    gradients = all_gradients(loss, batch)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for at in (order, batch["groups"].argsort(stable=True)):
        other = of_rows(batch, at)
        again = criterion(**other)
        torch.testing.assert_close(tuple(again), tuple(loss), rtol=1e-12, atol=1e-13)
        for a, b in zip(all_gradients(again, other), gradients, strict=True):
            torch.testing.assert_close(a, b[at], rtol=1e-12, atol=1e-13)


@grouped
def test_groups_without_rows_or_positives(name):
    """Group 0 has no rows, 1 only negatives, and the last two no rows either."""
    criterion, batch = case(name, n=40)
    background = criterion.settings.background_label(batch["logits"].shape[1])
    valid = batch["labels"] != -100
    negative = batch["labels"] == background
    groups = torch.where(negative & (torch.arange(40, device=DEVICE) < 20), 1, 2)
    batch |= {"groups": torch.where(valid, groups, -1), "num_groups": 5}
    loss = assert_as_if_called_alone(criterion, batch)
    empty, negatives = torch.tensor([0, 3, 4]), 1
    assert (loss.classification[empty] == 0).all() and loss.classification[negatives] > 0
    assert (loss.regression[[0, 1, 3, 4]] == 0).all() and loss.regression[2] > 0
    assert (loss.negative_weight[[0, 1, 3, 4]] == 1).all() and loss.negative_weight[2] > 1
    assert loss.num_positives.tolist() == [0, 0, int((valid & ~negative).sum()), 0, 0]


def test_one_group_is_the_batch():
    batch = random_batch()
    zeros = torch.zeros_like(batch["labels"])
    loss, expected = (
        JointOptimizationLoss()(**batch, groups=zeros, num_groups=1),
        JointOptimizationLoss()(**batch),
    )
    assert loss.total.shape == (1,)
    for a, b in zip(loss, expected, strict=True):
        torch.testing.assert_close(a[0], b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("classes",), sampled([(1,), (5,)], every=2))
def test_more_groups_than_columns_or_rows_of_a_tile(classes):
    batch = random_batch(("bce", "last"), n=100, classes=classes)
    batch = with_inputs(batch, "groups", "class_weights", "class_targets", groups=40)
    criterion = JointOptimizationLoss("bce", "giou")
    loss = assert_equals_the_reference(criterion, batch)
    assert (loss.num_positives > 0).sum() > 15
    rows = criterion.per_sample(**batch)
    negative = batch["labels"] == classes
    torch.testing.assert_close(rows.weight[negative],
                               loss.negative_weight[batch["groups"][negative]])  # fmt: skip


@pytest.mark.parametrize("ordered", [True, False])
@slow_on_kernels
def test_groups_of_many_rows(ordered):
    """More rows than a chunk or a program takes at a time."""
    batch = with_inputs(random_batch(n=9000, classes=2), "groups", "extra_regression")
    if ordered:
        batch = of_rows(batch, batch["groups"].argsort(stable=True))
    assert_equals_the_reference(JointOptimizationLoss(regression="giou"), batch)


def test_a_list_of_normalizers_is_answered_with_the_shape_for_groups():
    batch = with_inputs(random_batch(n=40), "groups")
    with pytest.raises(TypeError, match=r"wanted a number, a tensor of shape \[\] or \[3\] or one"):
        JointOptimizationLoss()(**batch, regression_normalizer=[1, 2, 3])


def test_a_group_whose_loss_is_not_differentiated_has_no_gradient():
    batch = with_inputs(random_batch(n=40), "groups", "extra_regression")
    numbers = torch.tensor([0.0, 1, 2], device=batch["logits"].device)
    loss = JointOptimizationLoss()(**batch, regression_normalizer=numbers)
    assert loss.regression[0] == torch.inf  # of a normaliser of 0
    inputs = [batch[k] for k in ("logits", "box_preds", "extra_regression")]
    got = torch.autograd.grad(loss.total[1] + loss.classification[2], inputs)
    first = batch["groups"] == 0
    assert all((g[first] == 0).all() and torch.isfinite(g).all() for g in got)
    assert (got[1][batch["groups"] == 2].abs().sum() > 0).item()  # through the weights


def test_the_same_input_gives_the_same_bits():
    batch = random_batch(n=200 if ON_KERNELS else 700, dtype=torch.float32)
    batch = with_inputs(batch, "groups", "extra_regression", "class_weights")
    criterion = JointOptimizationLoss("cross_entropy", "giou")
    a, b = criterion(**batch), criterion(**batch)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(all_gradients(a, batch), all_gradients(b, batch), strict=True):
        assert torch.equal(x, y)


@grouped
def test_every_result_is_written(name, monkeypatch):
    """With new memory full of NaN, what nobody wrote would show."""
    criterion, batch = case(name, n=70)
    expected = criterion(**batch)
    wanted = all_gradients(expected, batch)

    def poisoned(make):
        def function(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return function

    for function in ("empty", "empty_like"):
        monkeypatch.setattr(torch, function, poisoned(getattr(torch, function)))
    loss = criterion(**batch)
    got = all_gradients(loss, batch)
    assert all(torch.equal(a, b) for a, b in zip((*loss, *got), (*expected, *wanted), strict=True))
