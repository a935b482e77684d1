"""The loss as a citizen of PyTorch: autograd, module habits, import without extras."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from cases import COMPILED, ON_KERNELS, gradients, random_batch

from jolkernels import (
    JointLoss,
    JointOptimizationLoss,
    joint_optimization_loss,
    registry,
    spec,
)
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels


def test_result():
    loss = JointOptimizationLoss()(**random_batch())
    assert isinstance(loss, JointLoss)
    assert all(x.shape == () for x in loss)
    assert loss.total == loss.classification + loss.regression
    assert loss.num_positives.dtype == torch.int64
    assert loss.classification.requires_grad and loss.regression.requires_grad
    assert not any(x.requires_grad for x in loss[2:])
    assert loss._fields[2:] == ("negative_weight", "num_positives", "extra_regression")
    assert loss.extra_regression == 0 and loss.extra_regression.dtype == loss.regression.dtype


def test_double_backward_raises():
    batch = random_batch()
    loss = JointOptimizationLoss()(**batch)
    (d_logits,) = torch.autograd.grad(loss.total, batch["logits"], create_graph=True)
    assert d_logits.requires_grad
    with pytest.raises(RuntimeError, match="second derivative"):
        d_logits.square().sum().backward()


def test_a_gradient_penalty_is_not_silently_lost():
    """The penalty's upstream gradient needs no gradient, yet its term in the weights must raise."""
    layer = torch.nn.Linear(4, 6).double()
    batch = random_batch()
    x = torch.randn(23, 4, dtype=torch.float64, requires_grad=True)
    loss = JointOptimizationLoss()(**batch | {"logits": layer(x)})
    (d_x,) = torch.autograd.grad(loss.total, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss.total + d_x.square().sum()).backward()


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.jacrev])
def test_transforms_of_torch_func_are_refused(transform):
    batch = random_batch()
    logits = torch.stack([batch.pop("logits").detach()] * 2)
    given = logits if transform is torch.vmap else logits[0]
    with pytest.raises(RuntimeError, match=r"no vmap and no transforms of torch\.func"):
        transform(lambda z: JointOptimizationLoss()(z, **batch).total)(given)


def test_two_backward_passes_agree():
    batch = random_batch()
    loss = JointOptimizationLoss()(**batch)
    loss.total.backward(retain_graph=True)
    first = batch["logits"].grad.clone(), batch["box_preds"].grad.clone()
    batch["logits"].grad = batch["box_preds"].grad = None
    loss.total.backward()
    assert torch.equal(batch["logits"].grad, first[0])
    assert torch.equal(batch["box_preds"].grad, first[1])


@pytest.mark.parametrize("part", ["classification", "regression"])
def test_one_part_alone(part):
    batch = random_batch()
    criterion = JointOptimizationLoss()
    getattr(criterion(**batch), part).backward()
    up = (1, 0) if part == "classification" else (0, 1)
    expected = gradients(criterion(**batch), batch, up)
    assert torch.equal(batch["logits"].grad, expected[0])
    assert torch.equal(batch["box_preds"].grad, expected[1])


@pytest.mark.parametrize("frozen", ["logits", "box_preds"])
def test_an_input_that_needs_no_gradient(frozen):
    batch = random_batch()
    other = "box_preds" if frozen == "logits" else "logits"
    criterion = JointOptimizationLoss()
    expected = dict(zip(("logits", "box_preds"), gradients(criterion(**batch), batch), strict=True))
    batch[frozen] = batch[frozen].detach()
    loss = criterion(**batch)
    (1.3 * loss.classification + 0.7 * loss.regression).backward()
    assert batch[frozen].grad is None
    near = 1e-14 if COMPILED else 0.0  # other products are fused
    torch.testing.assert_close(batch[other].grad, expected[other], rtol=near, atol=0)


def test_a_default_device_does_not_matter():
    """torch.set_default_device is for the user's own tensors: ours lie where the inputs do."""
    criterion = JointOptimizationLoss()
    batch = random_batch()
    expected = criterion(**batch)
    wanted = gradients(expected, batch)
    with torch.device("meta"):
        loss = criterion(**batch)
        got = gradients(loss, batch)
    assert loss == expected
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.skipif(ON_KERNELS, reason="of the tensor operations")
@pytest.mark.parametrize(
    ("kind", "choice", "choices"),
    [
        ("regression", spec.EIoU, {"regression": "eiou"}),
        ("location_score", spec.NWD, {"location_score": "nwd"}),
        ("classification", spec.BCE, {"classification": "bce"}),
        ("coding", spec.Delta, {"coding": "delta", "regression": "eiou"}),
    ],
)
def test_what_has_no_closed_form_is_differentiated_by_autograd(kind, choice, choices, monkeypatch):
    """So that a new loss needs no row there."""
    criterion = JointOptimizationLoss(**choices)
    head = (choices.get("classification", "cross_entropy"), "last")
    batch = random_batch(head, choices.get("coding", "xyxy"))
    expected = gradients(criterion(**batch), batch)
    monkeypatch.delitem(registry.CLOSED_FORM[kind], choice)
    torch.testing.assert_close(gradients(criterion(**batch), batch), expected)


def test_meta_tensors_go_through_the_operators():
    batch = {k: v.detach().to("meta") for k, v in random_batch().items()}
    loss = JointOptimizationLoss()(**batch)
    assert loss.classification.is_meta and loss.classification.shape == ()


def test_without_grad():
    batch = random_batch()
    with torch.no_grad():
        loss = JointOptimizationLoss()(**batch)
    assert not loss.total.requires_grad
    assert loss == JointOptimizationLoss()(**batch)


def test_an_input_changed_before_backward_raises():
    batch = random_batch()
    logits = batch["logits"] * 1
    loss = JointOptimizationLoss()(**batch | {"logits": logits})
    logits += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.total.backward()


def test_constants_carry_no_gradient():
    batch = random_batch()
    weights = batch["classification_weights"].requires_grad_()
    z = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    JointOptimizationLoss()(**batch, classification_normalizer=z).total.backward()
    assert weights.grad is None and z.grad is None


def test_detached_weights_have_no_gradient_through_the_scores():
    """With constant weights the gradient is that of a weighted base loss."""
    batch = random_batch()
    criterion = JointOptimizationLoss(detach_weights=True)
    rows = criterion.per_sample(**batch)
    base = dict(batch)
    base["classification_weights"] = batch["classification_weights"] * rows.weight
    base["regression_weights"] = batch["regression_weights"] * rows.weight
    got = gradients(criterion(**batch), batch)
    expected = gradients(JointOptimizationLoss(weighting="none")(**base), base)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    attached = gradients(JointOptimizationLoss()(**batch), batch)
    assert not torch.allclose(got[0], attached[0]) and not torch.allclose(got[1], attached[1])


def test_per_sample_adds_up_to_the_loss():
    batch = random_batch(coding="delta")
    criterion = JointOptimizationLoss("cross_entropy", "giou", "delta")
    rows, loss = criterion.per_sample(**batch), criterion(**batch)
    valid = batch["labels"] != -100
    positive = valid & (batch["labels"] != 5)
    assert not any(x.requires_grad for x in rows)
    for x in rows:
        assert x.shape == (23,) and (x[~valid] == 0).all()
    assert (rows.regression[~positive] == 0).all() and (rows.location_score[~positive] == 0).all()
    torch.testing.assert_close(
        rows.weight[positive], 2 - rows.location_score[positive] * rows.class_score[positive]
    )
    negative = rows.weight[valid & ~positive]
    torch.testing.assert_close(negative, loss.negative_weight.expand_as(negative))
    total = (batch["classification_weights"] * rows.weight * rows.classification).sum()
    torch.testing.assert_close(total / valid.sum(), loss.classification.detach())
    total = (batch["regression_weights"] * rows.weight * rows.regression).sum()
    torch.testing.assert_close(total / valid.sum(), loss.regression.detach())


def test_module_habits():
    criterion = JointOptimizationLoss("focal", spec.SmoothL1(beta=0.5), lam=1.5)
    assert list(criterion.parameters()) == [] and criterion.state_dict() == {}
    text = repr(criterion)
    assert "Focal(alpha=0.25, gamma=2.0)" in text and "beta=0.5" in text and "lam=1.5" in text
    batch = random_batch(("focal", "last"))
    for clone in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert clone(**batch) == criterion(**batch)
    assert criterion.to(torch.float16)(**batch) == criterion(**batch)


def test_function_refuses_positional_choices():
    batch = random_batch()
    with pytest.raises(TypeError):
        joint_optimization_loss(*batch.values(), "focal")


def test_import_needs_torch_alone():
    """Neither Triton nor torchvision, nor numpy's neighbours, are imported or needed."""
    program = """
import sys
from dataclasses import fields
for name in ("triton", "torchvision", "matplotlib", "pycocotools", "faster_coco_eval"):
    sys.modules[name] = None  # an import of it raises
import torch, jolkernels
z = torch.zeros(3, 4, requires_grad=True)
boxes = torch.tensor([[0., 0, 4, 4]] * 3)
loss = jolkernels.JointOptimizationLoss()(z, boxes, torch.tensor([0, 1, 3]), boxes + 1)
loss.total.backward()
assert z.grad.abs().sum() > 0
print("fine")
"""
    environment = {"PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_number_stays_a_number_where_nothing_is_compiled():
    """No tensor is made of it, which on a GPU would be a launch."""
    settings = JointOptimizationLoss().settings
    numbers = {"classification_normalizer": 7, "regression_normalizer": 2.5}
    given, call = make_batch(settings, **random_batch(), **numbers)
    assert (given.classification_normalizer, given.regression_normalizer) == (7.0, 2.5)
    assert type(given.classification_normalizer) is float
    assert call.classification_normalizer == call.regression_normalizer == "number"


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_nothing_uses_has_no_gradient(part, create_graph):
    """Nor a NaN of its own: one positive with a NaN box makes w_neg NaN."""
    criterion, batch = JointOptimizationLoss(), random_batch()
    row = int((batch["labels"] == 1).nonzero()[0])
    batch["box_preds"].data[row] = torch.nan
    leaves, loss = (batch["logits"], batch["box_preds"]), criterion(**batch)
    alone = torch.autograd.grad(loss[part], leaves, retain_graph=True, create_graph=create_graph)
    one = torch.ones_like(loss[0])
    wanted = torch.autograd.grad((loss[part], loss[1 - part]), leaves, (one, 0 * one))
    torch.testing.assert_close(alone, wanted, rtol=0, atol=0, equal_nan=True)
    assert alone[0].isfinite().any() and alone[1].isfinite().any()
