"""What the loss takes and what it refuses: choices, arguments, labels."""

import enum
import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from cases import ON_KERNELS, random_batch

from jolkernels import (
    JointOptimizationLoss,
    joint_optimization_loss,
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
