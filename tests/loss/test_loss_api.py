"""The loss as a citizen of PyTorch: errors, autograd, module habits, import without extras."""

import copy
import enum
import inspect
import pickle
import subprocess
import sys
from dataclasses import fields

import numpy as np
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
from jolkernels.loss import PerSample
from jolkernels.settings import Call

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"classification": "hinge"}, ValueError, "classification: got 'hinge', wanted one of"),
        ({"classification": spec.L1()}, TypeError, r"classification: got L1\(\), wanted"),
        ({"classification": None}, TypeError, "classification: got None"),
        ({"regression": "huber"}, ValueError, "regression: got 'huber'.*smooth_l1"),
        ({"coding": "xywh"}, ValueError, "coding: got 'xywh'.*ltrb"),
        ({"location_score": "iof"}, ValueError, "location_score: got 'iof'"),
        ({"location_score": ""}, ValueError, "location_score: got ''"),
        ({"class_score": "margin"}, ValueError, "class_score: got 'margin'"),
        ({"lam": 0.5}, ValueError, "lam: got 0.5, wanted a finite number >= 1"),
        ({"lam": float("nan")}, ValueError, "lam: got nan"),
        ({"lam": float("inf")}, ValueError, "lam: got inf"),
        ({"lam": "2"}, TypeError, "lam: got '2', wanted a number"),
        ({"lam": 10**400}, ValueError, "lam: got an integer beyond"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index: got 1180591620717411303424"),
        ({"weighting": "both"}, ValueError, "weighting: got 'both'"),
        ({"background": "middle"}, ValueError, "background: got 'middle'"),
        ({"classification": "focal", "background": "first"}, ValueError, "background.*sigmoid"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: got 1.5"),
        ({"detach_weights": "yes"}, TypeError, "detach_weights: got 'yes'"),
    ],
)
def test_wrong_choices_are_named(choices, error, message):
    with pytest.raises(error, match=message):
        JointOptimizationLoss(**choices)


DEFAULTS = {  # in order
    "classification": "cross_entropy",
    "regression": "l1",
    "coding": "xyxy",
    "location_score": "iou",
    "class_score": "probability",
    "lam": 2.0,
    "weighting": "joint",
    "detach_weights": False,
    "background": "last",
    "ignore_index": -100,
    "sync_group": None,
}


def test_choices_are_taken_by_position_and_by_name():
    by_position = JointOptimizationLoss(
        "focal", "giou", "ltrb", None, None, 1.5, "joint", True, "last", -1, None
    )
    by_name = JointOptimizationLoss(
        ignore_index=-1,
        detach_weights=True,
        lam=1.5,
        class_score=None,
        location_score=None,
        coding=spec.LTRB(),
        regression=spec.GIoU(),
        classification=spec.Focal(),
    )
    assert by_position.settings == by_name.settings


@pytest.mark.parametrize("function", [JointOptimizationLoss, joint_optimization_loss])
def test_signatures_show_every_choice_with_its_default(function):
    """For help() and for completion, although the choices are written down once."""
    parameters = inspect.signature(function).parameters
    shown = [(name, p.default) for name, p in parameters.items() if name in DEFAULTS]
    assert shown == list(DEFAULTS.items())
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())


def test_per_sample_shows_the_arguments_of_a_call():
    shown = inspect.signature(JointOptimizationLoss.per_sample)
    call = inspect.signature(JointOptimizationLoss.forward)
    assert shown.parameters == call.parameters and shown.return_annotation is PerSample
    with pytest.raises(TypeError, match="unexpected keyword argument 'prior'"):
        JointOptimizationLoss().per_sample(**random_batch(), prior=None)


def test_a_misspelt_choice_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamda'"):
        JointOptimizationLoss(lamda=2.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamda'"):
        joint_optimization_loss(**random_batch(), lamda=2.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'text'"):
        JointOptimizationLoss(text="")
    with pytest.raises(TypeError, match="12 positional arguments"):
        JointOptimizationLoss(*DEFAULTS.values(), None)


OTHERS = ("weights", "scale", "mode", "detach", "positives", "loss", "first", "second")
PARAMETERS = [  # once each: some losses are scores too
    (choice, field.name)
    for choice in dict.fromkeys(c for choices in spec.CHOICES.values() for c in choices.values())
    for field in fields(choice)
    if field.name not in OTHERS or choice is spec.ShapeIoU
]


@pytest.mark.parametrize(("choice", "name"), PARAMETERS)
def test_every_parameter_of_a_spec_is_a_finite_number(choice, name):
    for value, error in (
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
        ("x", TypeError),
        (True, TypeError),
        (None, TypeError),
    ):
        if (name, value) == ("low_clip", None):  # no limit
            continue
        with pytest.raises(error, match=f"^{choice.__name__}: {name}: got "):
            choice(**{name: value})
    if "clip" not in name:
        with pytest.raises(ValueError, match=f"{name}: got -1, wanted a finite number >"):
            choice(**{name: -1})
    made = choice(**{name: np.float32(0.5)})
    assert type(getattr(made, name)) is float
    kind = next(
        kind
        for kind, choices in reversed(spec.CHOICES.items())
        if choice in choices.values()
        and (kind, name) != ("location_score", "mix")  # a location score is not mixed
    )
    call = Call(JointOptimizationLoss(**{kind: made}).settings, "samples", "sum")
    assert Call.decode(call.encode()) == call


class Weighting(enum.Enum):
    JOINT = "joint"


class Named(str, enum.Enum):  # noqa: UP042  the older way, whose str() is another
    JOINT, LAST, SAMPLES = "joint", "last", "samples"


def test_members_of_enums_are_their_strings_and_numbers():
    number = enum.IntEnum("number", {"IGNORED": -100})
    batch = random_batch()
    criterion = JointOptimizationLoss(
        weighting=Named.JOINT, background=Named.LAST, ignore_index=number.IGNORED
    )
    got = criterion(**batch, classification_normalizer=Named.SAMPLES)
    assert got == JointOptimizationLoss()(**batch)
    with pytest.raises(ValueError, match="weighting: got <Weighting"):
        JointOptimizationLoss(weighting=Weighting.JOINT)


@pytest.mark.parametrize("value", [1e300, 10**39, 10**200, np.float32(2), np.int64(3)])
def test_any_number_is_a_normalizer(value):
    batch = random_batch(dtype=torch.float32)
    a = JointOptimizationLoss()(**batch, classification_normalizer="sum").classification.double()
    b = JointOptimizationLoss()(**batch, classification_normalizer=value).classification.double()
    torch.testing.assert_close(b, a / float(value), rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("choice", [spec.NWD, spec.SimD, spec.DotD])
def test_scales_of_scores_are_positive(choice):
    for field in fields(choice):
        if field.name == "mix":  # a share
            continue
        with pytest.raises(ValueError, match=f"{field.name}: got 0, wanted a finite number > 0"):
            choice(**{field.name: 0})


def test_the_share_of_the_true_class_is_at_most_one():
    with pytest.raises(ValueError, match=r"Focal: alpha: got 1.5, wanted .* <= 1"):
        spec.Focal(alpha=1.5)


def test_weights_of_a_coding_are_four_positive_numbers():
    for weights in ((1, 2, 3), (1, 2, 3, 0), (1, 2, 3, float("inf")), "1234", 5, None):
        with pytest.raises(ValueError, match="Delta: weights: got"):
            spec.Delta(weights=weights)
    with pytest.raises(TypeError, match="Delta: weights: got 'x', wanted a number"):
        spec.Delta(weights=(1, 2, 3, "x"))
    assert spec.Delta(weights=[10, 10, 5, 5]) == spec.Delta(weights=(10.0, 10.0, 5.0, 5.0))


N, C = 23, 6  # of random_batch


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("logits", [1.0], TypeError, r"logits: got list, wanted a tensor of shape \[N, C\]"),
        ("logits", torch.zeros(N), ValueError, r"logits: got shape \[23\]"),
        ("logits", torch.zeros(N, 1), ValueError, r"logits: got shape \[23, 1\].*C >= 2"),
        ("logits", torch.zeros(N, C).int(), TypeError, "logits: got torch.int32"),
        ("box_preds", torch.zeros(N, 5), ValueError, r"box_preds: got shape \[23, 5\]"),
        ("box_preds", torch.zeros(N, 12), ValueError, r"\[23, 4\] or \[23, 20\] or \[23, 24\]"),
        ("box_preds", torch.zeros(N - 1, 4), ValueError, r"box_preds: got shape \[22, 4\]"),
        ("box_preds", torch.zeros(N, 4).long(), TypeError, "box_preds: got torch.int64"),
        ("labels", torch.zeros(N), TypeError, "labels: got torch.float32, wanted torch.int64"),
        ("labels", torch.zeros(N).int(), TypeError, "labels: got torch.int32"),
        ("labels", torch.zeros(N, 1).long(), ValueError, r"labels: got shape \[23, 1\]"),
        ("target_boxes", torch.zeros(N, 5), ValueError, r"target_boxes: got shape \[23, 5\]"),
        ("target_boxes", None, TypeError, "target_boxes: got NoneType"),
        ("priors", None, ValueError, r"priors: got None, wanted a \[23, 4\] tensor"),
        ("priors", torch.zeros(4), ValueError, r"priors: got shape \[4\]"),
        ("classification_weights", torch.ones(1), ValueError, "classification_weights: got shape"),
        ("regression_weights", torch.ones(N).int(), TypeError, "regression_weights: got torch.int"),
        ("classification_normalizer", "mean", ValueError, "classification_normalizer: got 'mean'"),
        ("regression_normalizer", torch.ones(1), ValueError, "regression_normalizer: got shape"),
        ("regression_normalizer", 10**400, ValueError, "regression_normalizer: got an integer"),
        ("regression_normalizer", None, TypeError, "regression_normalizer: got None"),
        ("target_boxes", torch.zeros(N, 4, device="meta"), ValueError, "device meta.*cpu"),
    ],
)
def test_wrong_arguments_are_named(name, value, error, message):
    with pytest.raises(error, match=message):
        JointOptimizationLoss(coding="delta")(**random_batch(coding="delta") | {name: value})


@pytest.mark.parametrize("head", [("cross_entropy", "last"), ("focal", "last")])
@pytest.mark.parametrize("value", [-1, 7, 10**12, -(10**12)])
def test_a_label_out_of_range_is_named_on_the_cpu(head, value):
    batch = random_batch(head)
    batch["labels"][4] = value
    batch["labels"][9] = 99
    last = 5
    with pytest.raises(ValueError, match=rf"labels: got {value} at index 4, wanted 0 to {last}"):
        JointOptimizationLoss(head[0])(**batch)


@pytest.mark.skipif(not ON_KERNELS, reason="the kernels run with TRITON_INTERPRET=1")
@pytest.mark.parametrize("value", [-1, 6, 10**12, -(10**12)])
def test_a_label_out_of_range_makes_the_kernels_give_nan(value):
    """What a GPU does: no look at the labels from outside, never a silent number."""
    from jolkernels import kernels

    criterion = JointOptimizationLoss()
    batch = random_batch(class_specific=True)
    batch["labels"][4] = value
    fields, call = make_batch(criterion.settings, **{k: v.detach() for k, v in batch.items()})
    result = kernels.forward(fields, call)
    assert result.classification.isnan() and result.regression.isnan()
    one = torch.ones((), dtype=torch.float64)
    saved = (result.rows, result.scalars, one, one, (True, True, False))
    *given, extra = kernels.backward(fields, call, *saved)
    assert all(gradient.isnan().all() for gradient in given) and extra is None


def test_a_label_may_be_the_ignore_index_whatever_that_is():
    batch = random_batch()
    labels = torch.where(batch["labels"] == -100, 255, batch["labels"])
    a = JointOptimizationLoss()(**batch)
    b = JointOptimizationLoss(ignore_index=255)(**batch | {"labels": labels})
    assert a == b


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
