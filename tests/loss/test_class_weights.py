"""class_weights: of columns with the sigmoid losses, of rows by their label with cross entropy."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import CLASSIFICATIONS, DEVICE, HEADS, gradients, random_batch, sampled

from jolkernels import JointOptimizationLoss, registry

pytestmark = pytest.mark.kernels


def factors(columns, *numbers):
    given = list(numbers) or [0.5 + 0.3 * k for k in range(columns)]
    return torch.tensor(given, dtype=torch.float64, device=DEVICE)


@pytest.mark.parametrize(("head",), sampled([(head,) for head in HEADS], every=3))
def test_ones_change_nothing(head):
    batch = random_batch(head)
    criterion = JointOptimizationLoss(head[0], background=head[1])
    ones = torch.ones(batch["logits"].shape[1], dtype=torch.float64, device=DEVICE)
    a, b = criterion(**batch), criterion(**batch, class_weights=ones)
    torch.testing.assert_close(tuple(b), tuple(a), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients(b, batch), gradients(a, batch), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("scale", [1, 1e-3])
@pytest.mark.parametrize("background", ["last", "first"])
@pytest.mark.parametrize("weighting", ["joint", "none"])
def test_with_cross_entropy_they_are_weights_of_rows(background, weighting, scale):
    """And "samples" is their sum, below 1 too, for the classification loss alone."""
    batch = random_batch(("cross_entropy", background))
    weights, labels = scale * factors(6), batch["labels"]
    valid = labels != -100
    of_rows = torch.where(valid, weights[labels.clamp(min=0)], 1)
    by_rows = batch | {
        "classification_weights": of_rows * batch["classification_weights"],
        "classification_normalizer": of_rows[valid].sum(),
    }
    criterion = JointOptimizationLoss(background=background, weighting=weighting)
    loss, expected = criterion(**batch, class_weights=weights), criterion(**by_rows)
    torch.testing.assert_close(tuple(loss), tuple(expected), rtol=1e-13, atol=1e-13)
    got, wanted = gradients(loss, batch), gradients(expected, by_rows)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.regression, criterion(**batch).regression)


@pytest.mark.parametrize("name", ["positives", "sum", 7.0])
def test_other_normalizers_do_not_know_them(name):
    batch = random_batch() | {"classification_normalizer": name}
    a = JointOptimizationLoss()(**batch, class_weights=factors(6))
    b = JointOptimizationLoss()(**batch, class_weights=2 * factors(6))
    torch.testing.assert_close(b.classification, 2 * a.classification)
    a, b = (
        JointOptimizationLoss()(**batch | {"classification_normalizer": "samples"}, class_weights=w)
        for w in (factors(6), 2 * factors(6))
    )
    torch.testing.assert_close(b.classification, a.classification)


@pytest.mark.parametrize(("head",), sampled([(head,) for head in HEADS[2:]], every=5))
def test_with_a_sigmoid_loss_they_are_weights_of_columns(head):
    """The columns' own losses, each seen by setting the others' weights to 0, add up."""
    batch = random_batch(head)
    criterion = JointOptimizationLoss(head[0])
    weights = factors(5)
    loss = criterion(**batch, class_weights=weights)
    parts = [criterion(**batch, class_weights=row) for row in torch.diag(weights)]
    torch.testing.assert_close(sum(p.classification for p in parts), loss.classification)
    assert all(p.negative_weight == loss.negative_weight for p in parts)
    for k, part in enumerate(parts):
        (d,) = torch.autograd.grad(part.classification, batch["logits"], retain_graph=True)
        others = [c for c in range(5) if c != k]
        negative = batch["labels"] == 5
        assert negative.any() and (d[negative][:, others] == 0).all()
    summed = [sum(g) for g in zip(*(gradients(p, batch, (1, 0)) for p in parts), strict=True)]
    torch.testing.assert_close(summed, list(gradients(loss, batch, (1, 0))))


@pytest.mark.parametrize(("name",), sampled([(name,) for name in CLASSIFICATIONS], every=4))
def test_weights_of_zero_leave_no_loss_and_no_nan(name):
    batch = random_batch((name, "last"))
    zeros = torch.zeros(batch["logits"].shape[1], dtype=torch.float64, device=DEVICE)
    criterion = JointOptimizationLoss(name)
    loss = criterion(**batch, class_weights=zeros)
    assert loss.classification == 0 and loss.regression > 0
    torch.testing.assert_close(loss.negative_weight, criterion(**batch).negative_weight)
    assert all(torch.isfinite(g).all() for g in gradients(loss, batch))
    (d,) = torch.autograd.grad(criterion(**batch, class_weights=zeros)[0], batch["logits"])
    assert (d == 0).all()


def test_a_class_without_rows_does_not_count():
    batch = random_batch()
    batch["labels"][batch["labels"] == 1] = 2
    weights = factors(6)
    other = weights.clone()
    other[1] = 1e6
    a, b = (JointOptimizationLoss()(**batch, class_weights=w) for w in (weights, other))
    assert a == b


@pytest.mark.parametrize("value", [-0.5, torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_validation_finds_weights_that_are_none(name, value, monkeypatch):
    batch, criterion = random_batch((name, "last")), JointOptimizationLoss(name)
    weights = torch.ones(batch["logits"].shape[1], device=DEVICE)
    weights[0] = 0
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    assert criterion(**batch, class_weights=weights).total.isfinite()
    weights[2:] = value
    message = rf"class_weights: got {value} at index 2, wanted a finite number >= 0"
    with pytest.raises(ValueError, match=message):
        criterion(**batch, class_weights=weights)
    monkeypatch.delenv("JOLKERNELS_VALIDATE")
    criterion(**batch, class_weights=weights)  # not looked at


def test_a_loss_without_columns_of_its_own_refuses_them(monkeypatch):
    @dataclass(frozen=True)
    class Whole:
        softmax: ClassVar[bool] = False
        soft: ClassVar[bool] = False

    def whole(logits, labels, goal, spec):
        return logits.sigmoid().sum(1)

    for table in (registry.CHOICES, registry.REFERENCE):
        monkeypatch.setitem(table, "classification", dict(table["classification"]))
    registry.register("classification", "whole", Whole, reference=whole)
    batch = random_batch(("bce", "last"))
    assert JointOptimizationLoss("whole")(**batch).classification > 0
    with pytest.raises(ValueError, match=r"class_weights: .* wanted None for .*Whole"):
        JointOptimizationLoss("whole")(**batch, class_weights=factors(5))
