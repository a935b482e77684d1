"""class_targets, and the losses whose targets are soft: Varifocal's switches and MAL."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, gradients, random_batch, sampled
from torchvision import ops

from jolkernels import JointOptimizationLoss, reference, spec
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ce(x, y):
    """Binary cross entropy of a logit, in plain numbers."""
    return -y * math.log(sigmoid(x)) - (1 - y) * math.log(1 - sigmoid(x))


Z = [[0.7, -1.1], [0.2, 0.4]]  # of a positive of class 0 and of a negative


def two_rows(target=(4.0, 2, 13, 10)):
    boxes = torch.tensor([[2.0, 1, 12, 9]] * 2, dtype=torch.float64, device=DEVICE)
    return {
        "logits": torch.tensor(Z, dtype=torch.float64, device=DEVICE, requires_grad=True),
        "box_preds": boxes,
        "labels": torch.tensor([0, 2], device=DEVICE),
        "target_boxes": torch.tensor([target] * 2, dtype=torch.float64, device=DEVICE),
        "classification_normalizer": "sum",
    }


def base(choice, **given):
    batch = two_rows() | given
    loss = JointOptimizationLoss(choice, weighting="none")(**batch).classification
    (gradient,) = torch.autograd.grad(loss, batch["logits"])
    return loss.item(), gradient.tolist()


APART = (40.0, 40, 50, 50)  # of an IoU of 0 with the prediction


SOFT = ["bce", "quality_focal", "varifocal", "label", "mal"]


@pytest.mark.parametrize(
    ("choice", "q"), sampled(list(itertools.product(SOFT, [0.0, 0.3, 1.0])), every=2)
)
def test_targets_by_hand(choice, q):
    """The target falls on the labelled column of the positive, and 0 on every other."""

    def positive(x):
        if choice == "varifocal":
            return q * ce(x, q) if q > 0 else 0.75 * sigmoid(x) ** 2 * ce(x, 0)
        return {
            "bce": ce(x, q),
            "quality_focal": abs(q - sigmoid(x)) ** 2 * ce(x, q),
            "label": q * ce(x, q),
            "mal": ce(x, q**1.5),
        }[choice]

    def negative(x):
        modulation = {"bce": 1.0, "quality_focal": sigmoid(x) ** 2, "mal": sigmoid(x) ** 1.5}
        return modulation.get(choice, 0.75 * sigmoid(x) ** 2) * ce(x, 0)

    expected = positive(Z[0][0]) + sum(map(negative, (Z[0][1], *Z[1])))
    targets = torch.tensor([q, torch.nan], dtype=torch.float64, device=DEVICE)
    loss = spec.Varifocal(positives="label") if choice == "label" else choice
    assert base(loss, class_targets=targets)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("choice", ["quality_focal", "varifocal", "mal"])
def test_the_box_of_soft_losses_gives_the_target_if_the_caller_does_not(choice):
    batch = two_rows()
    q = ops.box_iou(batch["box_preds"], batch["target_boxes"]).diagonal()
    value, gradient = base(choice)
    given, given_gradient = base(choice, class_targets=q)
    assert given == pytest.approx(value, rel=1e-13)
    assert given_gradient == [pytest.approx(row, rel=1e-13) for row in gradient]


@pytest.mark.parametrize("choice", ["bce", "focal"])
def test_targets_of_one_are_labels(choice):
    batch = random_batch((choice, "last"))
    ones = torch.ones(len(batch["labels"]), dtype=torch.float64, device=DEVICE)
    criterion = JointOptimizationLoss(choice)
    a, b = criterion(**batch), criterion(**batch, class_targets=ones)
    torch.testing.assert_close(tuple(b), tuple(a), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients(b, batch), gradients(a, batch), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("choice", ["bce", "focal", "quality_focal", "varifocal", "mal"])
def test_the_class_score_stays_the_probability_of_the_label(choice):
    batch = random_batch((choice, "last"))
    criterion = JointOptimizationLoss(choice)
    targets = torch.full((len(batch["labels"]),), 0.2, dtype=torch.float64, device=DEVICE)
    a, b = criterion(**batch), criterion(**batch, class_targets=targets)
    torch.testing.assert_close(a.negative_weight, b.negative_weight)
    assert (a.classification - b.classification).abs() > 1e-3
    rows = criterion.per_sample(**batch, class_targets=targets)
    positive = (batch["labels"] >= 0) & (batch["labels"] < 5)
    p = batch["logits"].detach().sigmoid()
    wanted = p[positive].gather(1, batch["labels"][positive][:, None])[:, 0]
    torch.testing.assert_close(rows.class_score[positive], wanted)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("positives", ["target", "label"])
def test_varifocals_switches_without_overlap(detach, positives):
    """IoU 0: a negative's column by target, by label one without a loss; p^gamma moves or not."""
    choice = spec.Varifocal(detach=detach, positives=positives)
    value, gradient = base(choice, target_boxes=two_rows(APART)["target_boxes"])

    def by_hand(x):
        p = sigmoid(x)
        slope = 0.75 * p**2 * (p if detach else p + 2 * ce(x, 0) * (1 - p))
        return 0.75 * p**2 * ce(x, 0), slope

    columns = [[by_hand(x) for x in row] for row in Z]
    if positives == "label":
        columns[0][0] = 0.0, 0.0
    assert value == pytest.approx(sum(c[0] for row in columns for c in row), rel=1e-12)
    for got, row in zip(gradient, columns, strict=True):
        assert got == pytest.approx([slope for _, slope in row], rel=1e-12)


@pytest.mark.parametrize("target", [(4.0, 2, 13, 10), APART])
@pytest.mark.parametrize("gamma", [1.5, 2.0, 0.0])
@pytest.mark.parametrize("detach", [True, False])
def test_mal_is_a_weighted_cross_entropy_whose_weights_may_be_constants(target, gamma, detach):
    """As DEIM's code has it; a positive without overlap keeps weight 1 and has target 0."""
    batch = two_rows(target)
    z = batch["logits"]
    one_hot = torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64, device=DEVICE)
    q = ops.box_iou(batch["box_preds"], batch["target_boxes"]).diagonal()
    weights = one_hot + (1 - one_hot) * z.sigmoid() ** gamma
    bces = F.binary_cross_entropy_with_logits(z, one_hot * q[:, None] ** gamma, reduction="none")
    wanted = ((weights.detach() if detach else weights) * bces).sum()
    (slopes,) = torch.autograd.grad(wanted, z)
    value, gradient = base(spec.MAL(gamma, detach), target_boxes=batch["target_boxes"])
    assert value == pytest.approx(wanted.item(), rel=1e-12)
    assert gradient == [pytest.approx(row, rel=1e-12) for row in slopes.tolist()]


@pytest.mark.parametrize("value", [-0.25, 1.0000001, torch.inf, torch.nan])
@pytest.mark.parametrize("choice", ["bce", "mal"])
def test_validation_finds_targets_outside_0_to_1(choice, value, monkeypatch):
    """Of positives alone: other rows may hold anything."""
    batch = random_batch((choice, "last"), dtype=torch.float32)
    criterion = JointOptimizationLoss(choice)
    positive = ((batch["labels"] >= 0) & (batch["labels"] < 5)).nonzero()[:, 0]
    targets = torch.full((len(batch["labels"]),), value, device=DEVICE)
    targets[positive], targets[positive[::2]] = 0, 1
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    assert criterion(**batch, class_targets=targets).total.isfinite()
    at = int(positive[3])
    targets[positive[3:]] = value
    message = rf"class_targets: got {targets[at].item()} at index {at}, wanted 0 to 1"
    with pytest.raises(ValueError, match=message):
        criterion(**batch, class_targets=targets)
    monkeypatch.delenv("JOLKERNELS_VALIDATE")
    criterion(**batch, class_targets=targets)  # not looked at


EXTREMES = [["bce", "focal", "quality_focal", "varifocal", "mal"], [0.0, 0.4, 1.0],
            [torch.float32, torch.float16]]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "target", "dtype"), sampled(list(itertools.product(*EXTREMES)), every=7)
)
def test_extreme_logits_stay_finite(choice, target, dtype):
    batch = random_batch((choice, "last"), dtype=dtype)
    with torch.no_grad():
        batch["logits"][:, 0], batch["logits"][:, 1] = 1e4, -1e4
        batch["logits"][::3] *= -1
    targets = torch.full((len(batch["labels"]),), target, dtype=dtype, device=DEVICE)
    loss = JointOptimizationLoss(choice)(**batch, class_targets=targets)
    assert all(torch.isfinite(x) for x in loss)
    assert all(torch.isfinite(g).all() for g in gradients(loss, batch))


EXPONENTS = ["focal:gamma=0.5", "quality_focal:beta=0", "quality_focal:beta=0.05",
             "varifocal:gamma=0.5", "mal:gamma=0.5"]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "target", "dtype"),
    sampled(list(itertools.product(EXPONENTS, [None, 0.5], [torch.float32, torch.float64])), 4),
)
def test_small_exponents_at_saturated_logits_keep_a_finite_gradient(choice, target, dtype):
    """The derivative of p^0.5 is infinite at p = 0, where p itself has no slope."""
    logits = torch.tensor(
        [[-100.0, 0.3], [100, -1e4], [0.3, -1e4], [1e4, 1e4]], dtype=dtype, device=DEVICE
    ).requires_grad_()
    boxes = logits.new_tensor([[20, 20, 25, 25], [0, 0, 5, 5], [0, 0, 5, 4], [1, 1, 5, 5]])
    targets = logits.new_tensor([0, 0, 5, 5]).expand(4, 4)
    labels = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    given = {} if target is None else {"class_targets": logits.new_full((4,), target)}
    criterion = JointOptimizationLoss(choice)
    loss = criterion(logits, boxes, labels, targets, **given)
    (got,) = torch.autograd.grad(loss.total, logits)
    stated = reference.joint_optimization_loss(
        *make_batch(criterion.settings, logits, boxes, labels, targets, **given)
    )
    (wanted,) = torch.autograd.grad(stated[0] + stated[1], logits)
    assert torch.isfinite(got).all()
    close = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, wanted, rtol=close, atol=close)
