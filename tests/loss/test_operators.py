"""The operators as compilers and fake tensors see them."""

import shutil

import pytest
import torch
from cases import DEVICE, HEADS, ON_KERNELS, random_batch, sampled
from inputs import assert_fake_tensors_see_shapes_and_dtypes

from jolkernels import JointOptimizationLoss, joint_optimization_loss, ops, spec
from jolkernels.batch import in_tensors, make_batch
from jolkernels.settings import Call

pytestmark = pytest.mark.kernels

CASES = [
    (("cross_entropy", "first"), {"coding": "delta", "regression": "smooth_l1"}, "samples"),
    (("focal", "last"), {"coding": "ltrb", "regression": "giou"}, "positives"),
    (("varifocal", "last"), {"coding": "xyxy", "regression": "ciou"}, 7.5),
]


def case(head, choices, normalizer):
    criterion = JointOptimizationLoss(head[0], background=head[1], **choices)
    batch = random_batch(head, choices["coding"], class_specific=head[0] == "cross_entropy")
    return criterion, batch | {"classification_normalizer": normalizer}


def opcheck(fields, call):
    """PyTorch's own checks of both operators."""
    named = {"call": call.encode()}
    torch.library.opcheck(torch.ops.jolkernels.forward.default, fields, named)
    result = ops.forward(fields, call)
    one = torch.ones((), dtype=result.rows.dtype)
    named |= {"rows": result.rows, "scalars": result.scalars}
    named |= {"grad_classification": one, "grad_regression": one.clone()}
    extra = fields.extra_regression is not None
    for logits, boxes in ((True, True), (True, False), (False, True)):
        needs = {"needs_logits": logits, "needs_boxes": boxes, "needs_extra": extra}
        torch.library.opcheck(torch.ops.jolkernels.backward.default, fields, named | needs)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Else the tests would share Dynamo's limit of compiled variants of one function."""
    torch._dynamo.reset()


@pytest.mark.parametrize("head", HEADS)
def test_settings_survive_encoding(head):
    criterion = JointOptimizationLoss(
        head[0],
        spec.SmoothL1(beta=0.3),
        spec.Delta(weights=(10, 10, 5, 5)),
        background=head[1],
        location_score=spec.SimD(m=1.5, n=2.5),
        lam=1.7,
    )
    call = Call(criterion.settings, "positives", "number")
    assert Call.decode(call.encode()) == call
    nothing = Call(
        JointOptimizationLoss(location_score=None, class_score=None).settings, "sum", "sum"
    )
    assert Call.decode(nothing.encode()) == nothing


@pytest.mark.parametrize(("head", "choices", "normalizer"), CASES, ids=lambda v: str(v)[:30])
def test_opcheck(head, choices, normalizer):
    criterion, batch = case(head, choices, normalizer)
    detached = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    fields, call = make_batch(criterion.settings, **detached)
    opcheck(in_tensors(fields), call)


@pytest.mark.parametrize(("head", "choices", "normalizer"), CASES, ids=lambda v: str(v)[:30])
def test_fake_tensors_see_shapes_and_dtypes(head, choices, normalizer):
    assert_fake_tensors_see_shapes_and_dtypes(*case(head, choices, normalizer))


class Head(torch.nn.Module):
    """A module that contains the loss, as a detector's head does."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion

    def forward(self, logits, box_preds, rest):
        loss = self.criterion(2 * logits, box_preds + 0, **rest)
        return loss.total, loss.negative_weight


@pytest.mark.parametrize(
    ("head", "choices", "normalizer", "dynamic"),
    sampled([(*case, dynamic) for dynamic in (False, True) for case in CASES], 1, usually=2),
    ids=lambda v: str(v)[:30],
)
def test_compiles_without_a_graph_break(head, choices, normalizer, dynamic):
    criterion, batch = case(head, choices, normalizer)
    module = Head(criterion)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    inputs = batch["logits"], batch["box_preds"]
    rest = {k: v for k, v in batch.items() if k not in ("logits", "box_preds")}
    for run in range(2):
        expected, got = module(*inputs, rest), compiled(*inputs, rest)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        wanted = torch.autograd.grad(expected[0], inputs)
        torch.testing.assert_close(torch.autograd.grad(got[0], inputs), wanted, rtol=0, atol=0)
        assert run or all(g.abs().sum() > 0 for g in wanted)


@pytest.mark.slow
@pytest.mark.skipif(ON_KERNELS, reason="the interpreter under Inductor takes minutes")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize(("head", "choices", "normalizer"), CASES, ids=lambda v: str(v)[:30])
def test_inductor_compiles_it_without_a_graph_break(head, choices, normalizer):
    criterion, batch = case(head, choices, normalizer)
    module = Head(criterion)
    inputs = batch["logits"], batch["box_preds"]
    rest = {k: v for k, v in batch.items() if k not in ("logits", "box_preds")}
    expected, got = module(*inputs, rest), torch.compile(module, fullgraph=True)(*inputs, rest)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(got[0], inputs),
        torch.autograd.grad(expected[0], inputs),
        rtol=1e-12,
        atol=1e-12,
    )


def test_one_tensor_for_two_arguments_compiles():
    batch = random_batch(coding="delta")
    weights = batch["classification_weights"]
    batch |= {"regression_weights": weights, "priors": batch["target_boxes"]}
    module = Head(JointOptimizationLoss(coding="delta"))
    inputs = batch.pop("logits"), batch.pop("box_preds")
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(*inputs, batch)
    torch.testing.assert_close(got, module(*inputs, batch), rtol=0, atol=0)


def test_numbers_as_normalizers_do_not_compile_anew():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    criterion, batch = JointOptimizationLoss(), random_batch()
    compiled = torch.compile(criterion, fullgraph=True, backend=counter)
    for value in (3.5, 7.25, 9.125, 11.0, 13.5):
        got = compiled(**batch, regression_normalizer=value)
        wanted = criterion(**batch, regression_normalizer=value)
        torch.testing.assert_close(tuple(got), tuple(wanted), rtol=1e-14, atol=0)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("normalizer", ["samples", 7.5])
def test_a_training_step_is_one_graph(normalizer):
    """From features to the loss, whose gradients are eager's to the bit."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    criterion, batch = JointOptimizationLoss(coding="delta"), random_batch(coding="delta")
    (n, columns), width = batch.pop("logits").shape, batch.pop("box_preds").shape[1]
    features = torch.randn(n, 8, dtype=torch.float64, device=DEVICE)
    head = torch.nn.Linear(8, columns + width, dtype=torch.float64, device=DEVICE)

    def step():
        logits, boxes = head(features).split([columns, width], 1)
        loss = criterion(logits, boxes, **batch, regression_normalizer=normalizer)
        return loss.total

    wanted = torch.autograd.grad(step(), list(head.parameters()))
    total = torch.compile(step, fullgraph=True, backend=counter)()
    got = torch.autograd.grad(total, list(head.parameters()))
    assert counter.frame_count == 1
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize(
    "regression",
    [
        "iou:mode=log",
        pytest.param(
            "5*l1+2e0*(inner:loss=(shape_iou:scale=1),ratio=.7)",
            marks=pytest.mark.xfail(
                torch.__version__.startswith("2.11."),
                reason="2.11 cannot trace the making of a choice that holds others",
                strict=True,
            ),
        ),
    ],
)
def test_the_function_compiles_too(regression):
    """With choices as text, which is read while it is traced."""
    batch = random_batch(coding="delta")

    def f(batch):
        coding = "delta:weights=(10, 10, 5, 5),low_clip=-4.0"
        return joint_optimization_loss(**batch, regression=regression, coding=coding, lam=1.5).total

    loss = torch.compile(f, fullgraph=True, backend="aot_eager")(batch)
    torch.testing.assert_close(loss, f(batch), rtol=0, atol=0)
    assert loss != joint_optimization_loss(**batch, coding="delta", lam=1.5).total


@pytest.mark.skipif(ON_KERNELS, reason="once is enough")
def test_a_compiled_step_has_one_operator_each_way():
    """Nothing of the loss is taken apart: the graph holds the two operators and glue."""
    seen = []

    def count(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=count, bw_compiler=count)
    criterion, batch = case(*CASES[0])
    rest = {k: v for k, v in batch.items() if k not in ("logits", "box_preds")}
    total, _ = torch.compile(Head(criterion), fullgraph=True, backend=backend)(
        batch["logits"], batch["box_preds"], rest
    )
    total.backward()
    forward, backward = seen
    assert sum("jolkernels.forward" in t for t in forward) == 1
    assert sum("jolkernels.backward" in t for t in backward) == 1
    assert not any("softmax" in t or "nonzero" in t for t in forward + backward)
