"""The new inputs as compilers see them, and what is said of wrong ones."""

import itertools

import pytest
import torch
from cases import DEVICE, random_batch, sampled, slow_on_kernels
from inputs import (
    CASES,
    all_gradients,
    assert_fake_tensors_see_shapes_and_dtypes,
    case,
    with_inputs,
)

from jolkernels import JointOptimizationLoss, joint_optimization_loss, ops
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels
together = pytest.mark.parametrize("name", ["yolo", "rcnn", "detr"])
N, C = 23, 5  # of random_batch with a sigmoid loss


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("class_targets", torch.ones(N, C), ValueError, r"class_targets: got shape \[23, 5\], w"),
        ("class_targets", torch.ones(N - 1), ValueError, r"got shape \[22\], wanted .* \[23\]"),
        ("class_targets", torch.ones(N).long(), TypeError, "class_targets: got torch.int64, wan"),
        ("class_targets", 1.0, TypeError, "class_targets: got float, wanted a tensor of shape"),
        ("class_targets", torch.ones(N, device="meta"), ValueError, "class_targets: .*meta"),
        ("extra_regression", torch.ones(()), ValueError, r"extra_regression: got shape \[\], want"),
        ("extra_regression", torch.ones(N).int(), TypeError, "extra_regression: got torch.int32"),
        ("extra_regression", torch.ones(N, device="meta"), ValueError, "extra_regression: .*meta"),
        ("class_weights", torch.ones(N), ValueError, r"class_weights: got shape \[23\], .* \[5\]"),
        ("class_weights", torch.ones(C).long(), TypeError, "class_weights: got torch.int64, want"),
        ("class_weights", [1.0] * C, TypeError, "class_weights: got list, wanted a tensor of sha"),
        ("class_weights", torch.ones(C, device="meta"), ValueError, "class_weights: .*meta"),
        ("groups", torch.zeros(N), TypeError, "groups: got torch.float32, wanted torch.int64"),
        ("groups", torch.zeros(N).int(), TypeError, "groups: got torch.int32, wanted torch.int64"),
        ("groups", torch.zeros(2).long(), ValueError, r"groups: got shape \[2\], wanted .* \[23\]"),
        ("groups", torch.zeros(N, device="meta").long(), ValueError, "groups: got device meta"),
        ("groups", None, ValueError, "num_groups: got 3 without groups, wanted None"),
        ("num_groups", None, TypeError, "num_groups: got None, wanted the number of groups"),
        ("num_groups", 3.0, TypeError, "num_groups: got 3.0, wanted the number of groups, an int"),
        ("num_groups", 2**70, ValueError, "num_groups: got .*, wanted 1 to 65,536"),
        ("num_groups", True, TypeError, "num_groups: got True, wanted the number of groups"),
        ("num_groups", 0, ValueError, "num_groups: got 0, wanted 1 to 65,536"),
        ("regression_normalizer", torch.ones(2), ValueError, r"regression_normalizer: .* \[3\]"),
        ("classification_normalizer", torch.ones(3, 1), ValueError, r"normalizer: .* \[3, 1\]"),
        ("classification_normalizer", torch.ones(3).bool(), TypeError, "normalizer: got torch.bo"),
    ],
)
def test_wrong_inputs_are_named(name, value, error, message):
    batch = with_inputs(random_batch(("bce", "last")), "groups", "class_weights")
    with pytest.raises(error, match=message):
        JointOptimizationLoss("bce")(**batch | {name: value})


def test_class_targets_are_refused_where_targets_are_labels():
    targets = torch.ones(N, device=DEVICE)
    with pytest.raises(ValueError, match=r"class_targets: .* wanted None for CrossEntropy\(\)"):
        JointOptimizationLoss()(**random_batch(), class_targets=targets)


def test_a_normalizer_for_each_group_needs_groups():
    with pytest.raises(ValueError, match=r"regression_normalizer: got shape \[3\]"):
        JointOptimizationLoss()(**random_batch(), regression_normalizer=torch.ones(3))


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is not waited for")
@pytest.mark.parametrize("value", [-1, 3, 10**12, -(2**63)])
def test_a_group_out_of_range_is_named(value):
    batch = with_inputs(random_batch(), "groups")
    batch["groups"][(batch["labels"] != -100).nonzero()[4, 0]] = value
    at = int((batch["labels"] != -100).nonzero()[4, 0])
    for call in (JointOptimizationLoss(), JointOptimizationLoss().per_sample):
        with pytest.raises(ValueError, match=f"groups: got {value} at index {at}, wanted 0 to 2"):
            call(**batch)


def operands(batch):
    """The batch without gradients, and the names of its tensors."""
    return {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@pytest.mark.parametrize(("name",), sampled([(name,) for name in CASES], every=10))
def test_opcheck(name):
    criterion, batch = case(name, n=9)
    fields, call = make_batch(criterion.settings, **operands(batch))
    named = {"call": call.encode()}
    torch.library.opcheck(torch.ops.jolkernels.forward.default, fields, named)
    result = ops.forward(fields, call)
    up = torch.ones(call.shape, dtype=result.rows.dtype, device=DEVICE)
    named |= {"rows": result.rows, "scalars": result.scalars}
    named |= {"grad_classification": up, "grad_regression": up.clone()}
    given = fields.extra_regression is not None
    for needs in ((True, True, given), (False, True, False), (False, False, given)):
        wanted = dict(zip(("needs_logits", "needs_boxes", "needs_extra"), needs, strict=True))
        torch.library.opcheck(torch.ops.jolkernels.backward.default, fields, named | wanted)


def test_the_backward_operator_refuses_a_gradient_of_nothing():
    criterion, batch = case("targets", n=9)
    fields, call = make_batch(criterion.settings, **operands(batch))
    result = ops.forward(fields, call)
    up = torch.ones((), dtype=result.rows.dtype, device=DEVICE)
    with pytest.raises(ValueError, match="needs_extra: got True without extra_regression"):
        torch.ops.jolkernels.backward(
            *fields, call=call.encode(), rows=result.rows, scalars=result.scalars,
            grad_classification=up, grad_regression=up, needs_logits=True, needs_boxes=True,
            needs_extra=True,
        )  # fmt: skip


@together
def test_the_operators_check_the_new_inputs(name):
    criterion, batch = case(name, n=9)
    fields, call = make_batch(criterion.settings, **operands(batch))
    for field in ("class_targets", "extra_regression", "class_weights", "groups"):
        if (tensor := getattr(fields, field)) is None:
            continue
        short = fields._replace(**{field: tensor[:-1]})
        with pytest.raises(ValueError, match=f"{field}: got shape"):
            torch.ops.jolkernels.forward(*short, call=call.encode())
    if fields.groups is not None:
        with pytest.raises(ValueError, match="num_groups: got 3 without groups"):
            torch.ops.jolkernels.forward(*fields._replace(groups=None), call=call.encode())


@pytest.mark.parametrize("name", CASES)
def test_fake_tensors_see_shapes_and_dtypes(name):
    assert_fake_tensors_see_shapes_and_dtypes(*case(name))


@pytest.mark.parametrize(
    ("dynamic", "name"),
    sampled(list(itertools.product([False, True], ["yolo", "rcnn", "detr"])), 6, usually=2),
)
def test_compiles_without_a_graph_break(name, dynamic):
    criterion, batch = case(name)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    got, wanted = compiled(**batch), criterion(**batch)
    torch.testing.assert_close(tuple(got), tuple(wanted), rtol=0, atol=0)
    torch.testing.assert_close(
        all_gradients(got, batch), all_gradients(wanted, batch), rtol=0, atol=0
    )


@slow_on_kernels
def test_the_function_takes_them_by_name_and_compiles():
    criterion, batch = case("detr")
    settings = criterion.settings
    choices = {k: getattr(settings, k) for k in ("classification", "regression", "coding")}

    def f(batch):
        return joint_optimization_loss(**batch, **choices).total.sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert f(batch) == criterion(**batch).total.sum() == compiled(batch)


def test_an_input_that_needs_no_gradient():
    criterion, batch = case("yolo")
    expected = dict(zip(("logits", "box_preds", "extra_regression"),
                        all_gradients(criterion(**batch), batch), strict=True))  # fmt: skip
    for only in expected:
        other = operands(batch)
        other[only].requires_grad_()
        loss = criterion(**other)
        (1.3 * loss[0] + 0.7 * loss[1]).backward()
        assert torch.equal(other[only].grad, expected[only])
        assert all(other[k].grad is None for k in expected if k != only)


def test_double_backward_raises():
    criterion, batch = case("yolo")
    extra = batch["extra_regression"]
    (g,) = torch.autograd.grad(criterion(**batch).total, extra, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        g.square().sum().backward()
