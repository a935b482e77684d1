"""Choices that the package does not know, registered as its documentation says."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import DEVICE, ON_KERNELS, gradients, in_dtype, random_batch, slow_on_kernels
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from jolkernels import JointOptimizationLoss, ops, reference, registry, spec
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels


@dataclass(frozen=True)
class Quartic:
    """A box loss."""

    scale: float = 0.125
    on_codes: ClassVar[bool] = True


def quartic(x, target, spec):
    return spec.scale * ((x - target) ** 4).sum(1)


@dataclass(frozen=True)
class Gauss:
    """A location score whose derivative at a degenerate box is infinite."""

    width: float = 9.0


def gauss(boxes, targets, spec):
    sides = (boxes[:, 2:] - boxes[:, :2]).log() - (targets[:, 2:] - targets[:, :2]).log()
    offset = boxes[:, :2] - targets[:, :2]
    return torch.exp(-sides.square().sum(1) - offset.square().sum(1) / spec.width)


@dataclass(frozen=True)
class Brier:
    """A classification loss with the box's IoU as its target."""

    scale: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True


def brier(logits, labels, quality, spec):
    one_hot = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return spec.scale * (logits.sigmoid() - one_hot * quality[:, None]).square().sum(1)


@dataclass(frozen=True)
class Sinh:
    """A coding: corners against the prior's, on a scale that is linear near 0."""

    scale: float = 5.0
    uses_priors: ClassVar[bool] = True


def decode_sinh(codes, priors, spec):
    return priors + spec.scale * torch.sinh(codes)


def encode_sinh(boxes, priors, spec):
    return torch.asinh((boxes - priors) / spec.scale)


KERNELS = dict.fromkeys(("quartic", "gauss", "brier", "sinh"))
if ops.HAS_TRITON:
    import triton
    import triton.language as tl

    from jolkernels.kernels.classification import sigmoid

    @triton.jit
    def quartic_kernel(x, t, PARAMS: tl.constexpr):
        d0, d1, d2, d3 = x[0] - t[0], x[1] - t[1], x[2] - t[2], x[3] - t[3]
        e0, e1, e2, e3 = d0 * d0 * d0, d1 * d1 * d1, d2 * d2 * d2, d3 * d3 * d3
        s = PARAMS[0]
        loss = s * (d0 * e0 + d1 * e1 + d2 * e2 + d3 * e3)
        return loss, (4 * s * e0, 4 * s * e1, 4 * s * e2, 4 * s * e3)

    @triton.jit
    def gauss_kernel(x, t, PARAMS: tl.constexpr):
        x0, x1, x2, x3 = x
        t0, t1, t2, t3 = t
        w, h = x2 - x0, x3 - x1
        a, b = tl.log(w) - tl.log(t2 - t0), tl.log(h) - tl.log(t3 - t1)
        dx, dy = x0 - t0, x1 - t1
        score = tl.exp(-(a * a + b * b) - (dx * dx + dy * dy) / PARAMS[0])
        by_w, by_h = -2 * score * a / w, -2 * score * b / h
        by_x, by_y = -2 * score * dx / PARAMS[0], -2 * score * dy / PARAMS[0]
        return score, (by_x - by_w, by_y - by_h, by_w, by_h)

    @triton.jit
    def brier_kernel(z, is_true, quality, PARAMS: tl.constexpr):
        p = sigmoid(z)
        d = p - tl.where(is_true, quality, 0.0)
        return PARAMS[0] * d * d, 2 * PARAMS[0] * d * p * (1 - p)

    @triton.jit
    def sinh(x):
        return 0.5 * (tl.exp(x) - tl.exp(-x))

    @triton.jit
    def asinh(x):
        return tl.log(x + tl.sqrt(x * x + 1))

    @triton.jit
    def decode_kernel(b, p, PARAMS: tl.constexpr):
        s = PARAMS[0]
        x0, x1 = p[0] + s * sinh(b[0]), p[1] + s * sinh(b[1])
        return x0, x1, p[2] + s * sinh(b[2]), p[3] + s * sinh(b[3])

    @triton.jit
    def encode_kernel(t, p, PARAMS: tl.constexpr):
        s = PARAMS[0]
        c0, c1 = asinh((t[0] - p[0]) / s), asinh((t[1] - p[1]) / s)
        return c0, c1, asinh((t[2] - p[2]) / s), asinh((t[3] - p[3]) / s)

    @triton.jit
    def cosh(x):
        return tl.sqrt(sinh(x) * sinh(x) + 1)

    @triton.jit
    def pull_kernel(g, b, p, PARAMS: tl.constexpr):
        s = PARAMS[0]
        d0, d1 = s * cosh(b[0]) * g[0], s * cosh(b[1]) * g[1]
        return d0, d1, s * cosh(b[2]) * g[2], s * cosh(b[3]) * g[3]

    KERNELS = {
        "quartic": quartic_kernel,
        "gauss": gauss_kernel,
        "brier": brier_kernel,
        "sinh": (decode_kernel, encode_kernel, pull_kernel),
    }

NEW = {  # kind, spec, reference, and what a loss with it chooses
    "quartic": ("regression", Quartic, quartic, {"regression": "quartic", "coding": "delta"}),
    "gauss": ("location_score", Gauss, gauss, {"location_score": Gauss(width=7.0)}),
    "brier": ("classification", Brier, brier, {"classification": "brier"}),
    "sinh": ("coding", Sinh, (decode_sinh, encode_sinh), {"coding": Sinh(scale=4.0)}),
}
every = pytest.mark.parametrize("name", NEW)
with_and_without = pytest.mark.parametrize("kernel", [True, False] if ON_KERNELS else [False])


TABLES = registry.CHOICES, registry.REFERENCE, registry.CLOSED_FORM, registry.KERNEL


@pytest.fixture
def register():
    """spec.register, undone after the test."""
    tables = [by_kind for table in TABLES for by_kind in table.values()]
    before = [dict(by_kind) for by_kind in tables]
    yield spec.register
    for by_kind, held in zip(tables, before, strict=True):
        by_kind.clear()
        by_kind.update(held)


@pytest.fixture
def case(name, kernel, register):
    """A loss with the new choice and a batch for it."""
    kind, choice, functions, choices = NEW[name]
    register(kind, name, choice, reference=functions, kernel=KERNELS[name] if kernel else None)
    criterion = JointOptimizationLoss(**choices)
    head = ("brier" if name == "brier" else "cross_entropy", "last")
    batch = random_batch(head, "delta" if name in ("quartic", "sinh") else "xyxy")
    positive = (batch["labels"] >= 0) & (batch["labels"] < 5)
    batch["target_boxes"][positive.nonzero()[0, 0], 2:] = 0  # no extent
    assert positive.sum() > 5
    return criterion, batch


def expected(criterion, batch):
    """Results and gradients of the reference."""
    loss = reference.joint_optimization_loss(*make_batch(criterion.settings, **batch))
    return *(x.detach() for x in loss), *gradients(loss, batch)


def check(found, criterion, batch):
    for got, wanted in zip(found, expected(criterion, batch), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@every
@with_and_without
def test_a_registered_choice_runs_in_eager_mode(case):
    criterion, batch = case
    loss = criterion(**batch)
    check((*loss, *gradients(loss, batch)), criterion, batch)


@every
@with_and_without
def test_it_is_differentiated_in_float32_and_half_precision(case):
    criterion, batch = case
    wanted = expected(criterion, batch)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        narrow = in_dtype(batch, dtype)
        found = gradients(criterion(**narrow), narrow)
        for got, exact in zip(found, wanted[-2:], strict=True):
            assert got.dtype == dtype
            scale = exact.abs().max().item()
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance * scale)


@every
@with_and_without
def test_it_runs_under_a_dispatch_mode(case):
    """The operator is below autograd there."""
    criterion, batch = case
    with FlopCounterMode(display=False):
        loss = criterion(**batch)
        found = (*loss, *gradients(loss, batch))
    check(found, criterion, batch)


@every
@with_and_without
def test_it_runs_on_fake_tensors(case):
    criterion, batch = case
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) for k, v in batch.items()}
        loss = criterion(**fake)
        found = (*loss, *gradients(loss, fake))
    for got, wanted in zip(found, expected(criterion, batch), strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype


@slow_on_kernels
@every
@with_and_without
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_without_a_graph_break(case, dynamic):
    torch._dynamo.reset()
    criterion, batch = case
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    loss = compiled(**batch)
    check((*loss, *gradients(loss, batch)), criterion, batch)


@every
@with_and_without
def test_opcheck(case):
    criterion, batch = case
    batch = {k: v.detach() for k, v in batch.items()}
    fields, call = make_batch(criterion.settings, **batch)
    named = {"call": call.encode()}
    torch.library.opcheck(torch.ops.jolkernels.forward.default, fields, named)
    result = ops.forward(fields, call)
    one = torch.ones((), dtype=torch.float64, device=DEVICE)
    named |= {"rows": result.rows, "scalars": result.scalars}
    named |= {"grad_classification": one, "grad_regression": one.clone()}
    named |= {"needs_logits": True, "needs_boxes": True, "needs_extra": False}
    torch.library.opcheck(torch.ops.jolkernels.backward.default, fields, named)


@pytest.mark.skipif(not ON_KERNELS, reason="the kernels run with TRITON_INTERPRET=1")
@every
@pytest.mark.parametrize("kernel", [True, False])
def test_the_kernels_run_where_there_is_a_device_function(case, kernel):
    from jolkernels import cpu, kernels

    criterion, batch = case
    fields, call = make_batch(criterion.settings, **batch)
    assert ops.implementation(fields, call.settings) is (kernels if kernel else cpu)


def test_a_closed_form_is_used(register):
    """Its gradient, a wrong one here, is the one that is returned."""

    def wrong_gradient(x, target, spec):
        return quartic(x, target, spec), lambda: torch.full_like(x, 3.0)

    register("regression", "quartic", Quartic, reference=quartic, closed_form=wrong_gradient)
    batch = random_batch()
    criterion = JointOptimizationLoss(regression="quartic", weighting="none")
    del batch["regression_weights"]
    loss = criterion(**batch, regression_normalizer="sum")
    (g,) = torch.autograd.grad(loss.regression, batch["box_preds"])
    assert (g[(batch["labels"] >= 0) & (batch["labels"] < 5)] == 3).all()


def test_a_constant_loss_has_no_gradient(register):
    register("regression", "quartic", Quartic, reference=lambda x, target, spec: 0 * target[:, 0])
    batch = random_batch()
    loss = JointOptimizationLoss(regression="quartic", weighting="none")(**batch)
    (g,) = torch.autograd.grad(loss.regression, batch["box_preds"])
    assert (g == 0).all()


@dataclass
class Thawed:
    on_codes: ClassVar[bool] = True


@dataclass(frozen=True)
class Bare:
    """A box loss that does not say what it compares."""


@dataclass(frozen=True)
class Margin:
    softmax: ClassVar[bool] = True
    soft: ClassVar[bool] = False


@dataclass(frozen=True)
class Heavy:
    weight: object = object()
    on_codes: ClassVar[bool] = True


REFUSED = {
    "kind": (("distance", "x", Quartic), {}, ValueError, "kind: got 'distance', wanted one of cl"),
    "name": (("regression", "iou", Quartic), {}, ValueError, "'iou' .* is registered already"),
    "class": (("regression", "x", spec.IoU), {}, ValueError, "IoU.* is registered already"),
    "no name": (("regression", 3, Quartic), {}, TypeError, "name: got 3, wanted a string"),
    "thawed": (("regression", "x", Thawed), {}, TypeError, "Thawed.*wanted a frozen dataclass"),
    "instance": (("regression", "x", Quartic()), {}, TypeError, "wanted a frozen dataclass"),
    "bare": (("regression", "x", Bare), {}, TypeError, "Bare.on_codes: wanted True or False"),
    "softmax": (("classification", "x", Margin), {}, ValueError, "only cross entropy"),
    "parameters": (("regression", "x", Heavy), {}, ValueError, "parameters other than numbers"),
    "reference": (("regression", "x", Quartic), {"reference": 3}, TypeError, "reference: got 3"),
    "decoder": (("coding", "x", Sinh), {}, TypeError, "reference: .*wanted a tuple of 2 functions"),
    "kernel": (("regression", "x", Quartic), {"kernel": "k"}, TypeError, "kernel: got 'k'"),
    "closed": (("regression", "x", Quartic), {"closed_form": 1}, TypeError, "closed_form: got 1"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_registered_is_named_and_leaves_nothing(why, register):
    arguments, functions, error, message = REFUSED[why]
    before = repr(TABLES)
    with pytest.raises(error, match=message):
        register(*arguments, **{"reference": quartic} | functions)
    assert repr(TABLES) == before


@pytest.mark.parametrize("scale", [np.float64(0.5), float("inf"), [1.0], (0.5, float("nan"))])
def test_parameters_that_operators_cannot_take_are_refused_at_once(scale, register):
    register("regression", "quartic", Quartic, reference=quartic)
    with pytest.raises(ValueError, match=r"regression: Quartic\(.*\) has parameters other than"):
        JointOptimizationLoss(regression=Quartic(scale))


def test_a_second_registration_is_refused(register):
    register("regression", "quartic", Quartic, reference=quartic)
    with pytest.raises(ValueError, match=r"'quartic' .*registered already"):
        register("regression", "quartic", Quartic, reference=quartic)
    register("location_score", "quartic", Quartic, reference=quartic)  # another kind
    with pytest.raises(ValueError, match=r"regression: got 'quintic', wanted one of .*quartic"):
        JointOptimizationLoss(regression="quintic")
