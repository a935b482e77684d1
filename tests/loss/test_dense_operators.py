"""The dense entrance as a citizen of PyTorch: operators, compilers, fake tensors, autograd."""

import itertools
import shutil

import pytest
import torch
from cases import DEVICE, ON_KERNELS, sampled, slow_on_kernels
from dense import LAYOUTS, dense_batch, gradients, leaves
from test_syncs import OnDevice
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

from jolkernels import JointOptimizationLoss, dense_ops
from jolkernels.batch import in_tensors
from jolkernels.dense import make_dense_batch

pytestmark = pytest.mark.kernels
CASES = {
    "plain": (("cross_entropy", "first"), {}, {}),
    "samples": (
        ("focal", "last"),
        {"matched": "samples", "layouts": "channels_last", "inputs": ("class_weights",)},
        {"classification_normalizer": "image", "regression_normalizer": 7.5},
    ),
    "objects": (
        ("varifocal", "last"),
        {"matched": "objects", "layouts": ("channels of channels_last", "BPC", "images"),
         "inputs": ("class_targets", "extra_regression")},
        {"classification_normalizer": "positives", "regression_normalizer": "image"},
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)


def case(name: str) -> tuple[JointOptimizationLoss, dict]:
    head, choices, normalizers = CASES[name]
    criterion = JointOptimizationLoss(head[0], "giou", "delta", background=head[1])
    return criterion, dense_batch(head, **choices) | normalizers


def detached(batch: dict) -> dict:
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, batch)


def strides(x: Tensor) -> list[int]:
    """Those that say anything."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


@slow_on_kernels
@every
def test_opcheck(name):
    criterion, batch = case(name)
    fields, call = make_dense_batch(criterion.settings, **detached(batch))
    given = [list(x) if isinstance(x, tuple) else x for x in in_tensors(fields)]
    named = {"call": call.encode()}
    torch.library.opcheck(torch.ops.jolkernels.dense_forward.default, given, named)
    result = dense_ops.forward(fields, call)
    one = torch.ones((), dtype=result.rows.dtype, device=DEVICE)
    named |= {"rows": result.rows, "scalars": result.scalars}
    named |= {"grad_classification": one, "grad_regression": one.clone()}
    extra = fields.extra_regression is not None
    for needs in ((True, True, extra), (True, False, False), (False, True, extra)):
        wanted = dict(zip(("needs_logits", "needs_boxes", "needs_extra"), needs, strict=True))
        torch.library.opcheck(torch.ops.jolkernels.dense_backward.default, given, named | wanted)


def test_the_operators_check_what_they_are_given():
    criterion, batch = case("samples")
    fields, call = make_dense_batch(criterion.settings, **detached(batch))
    forward, named = torch.ops.jolkernels.dense_forward, {"call": call.encode()}
    fields = in_tensors(fields)
    for change, message in (
        ({"logits": fields.logits[:2]}, "box_preds: got 3 levels, wanted 2"),
        ({"labels": fields.labels[:, :-1]}, r"labels: got shape \[2, 17\]"),
        ({"regression_normalizer": None}, "regression_normalizer: got None in the batch and 'numb"),
        ({"classification_normalizer": torch.ones(())}, "got a tensor in the batch and 'image'"),
    ):
        with pytest.raises(ValueError, match=message):
            forward(*fields._replace(**change), **named)
    result = forward(*fields, **named)
    one = torch.ones((), dtype=torch.float64, device=DEVICE)
    named |= {"rows": result[5], "scalars": result[6], "grad_classification": one}
    named |= {"grad_regression": one, "needs_logits": True, "needs_boxes": True}
    for change, message in (
        ({"rows": result[5][:, :-1]}, r"rows: got shape \[1, 35\], wanted .* \[1, 36\]"),
        ({"scalars": result[6][0]}, r"scalars: got shape \[5\], wanted .* \[2, 5\]"),
        ({"grad_regression": one[None]}, r"grad_regression: got shape \[1\]"),
        ({"needs_extra": True}, "needs_extra: got True without extra_regression, wanted False"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.jolkernels.dense_backward(*fields, **{"needs_extra": False} | named | change)


@pytest.mark.parametrize(("layout",), sampled([(layout,) for layout in LAYOUTS], every=3))
def test_fake_tensors_see_shapes_dtypes_and_memory_formats(layout):
    criterion, _ = case("objects")
    batch = dense_batch(("varifocal", "last"), matched="objects", layouts=layout,
                        inputs=("extra_regression",), dtype=torch.float32)  # fmt: skip
    real = criterion.dense(**batch)
    with FakeTensorMode() as mode:
        fake = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, batch)
        loss = criterion.dense(**fake)
        assert [(x.shape, x.dtype) for x in loss] == [(x.shape, x.dtype) for x in real]
        found = gradients(loss, fake)
    for g, x in zip(found, gradients(real, batch), strict=True):
        assert g.shape == x.shape and g.dtype == x.dtype and strides(g) == strides(x)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@every
def test_values_are_not_looked_at(name, device):
    """Fake tensors have none; on a GPU, which need not be there, nothing is copied."""
    criterion, batch = case(name)
    mode = FakeTensorMode()
    given = detached(batch)
    fake = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, given)
    with mode:
        fake = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, fake)
        for x in leaves(fake):
            x.requires_grad_()
        with OnDevice(device):
            loss = criterion.dense(**fake)
            if device == "cpu":
                assert [g.shape for g in gradients(loss, fake)] == [x.shape for x in leaves(batch)]
    assert all(x.device.type == device for x in loss)


class Head(torch.nn.Module):
    """A module that contains the loss, as a detector's head does."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion

    def forward(self, logits, box_preds, rest):
        loss = self.criterion.dense([2 * x for x in logits], [x + 0 for x in box_preds], **rest)
        return loss.total, loss.negative_weight


def parts(batch):
    rest = {k: v for k, v in batch.items() if k not in ("logits", "box_preds")}
    return batch["logits"], batch["box_preds"], rest


@slow_on_kernels
@pytest.mark.parametrize(
    ("dynamic", "name"), sampled(list(itertools.product([False, True], CASES)), 1, usually=2)
)
def test_compiles_without_a_graph_break(name, dynamic):
    """Gradients to the bit, and in the same memory format."""
    criterion, batch = case(name)
    module = Head(criterion)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for run in range(2):
        expected, got = module(*parts(batch)), compiled(*parts(batch))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        wanted = torch.autograd.grad(expected[0], leaves(batch))
        found = torch.autograd.grad(got[0], leaves(batch))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert list(map(strides, found)) == list(map(strides, wanted))
        assert run or all(g.abs().sum() > 0 for g in wanted[:2])


@pytest.mark.slow
@pytest.mark.skipif(ON_KERNELS, reason="the interpreter under Inductor takes minutes")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@every
def test_inductor_compiles_it_without_a_graph_break(name):
    criterion, batch = case(name)
    module = Head(criterion)
    expected, got = module(*parts(batch)), torch.compile(module, fullgraph=True)(*parts(batch))
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(got, expected, **close)
    found, wanted = (torch.autograd.grad(x[0], leaves(batch)) for x in (got, expected))
    torch.testing.assert_close(found, wanted, **close)


@pytest.mark.skipif(ON_KERNELS, reason="once is enough")
def test_a_compiled_step_has_one_operator_each_way():
    """The graph holds the two operators and glue: nothing that flattens."""
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def count(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    backend = aot_autograd(fw_compiler=count, bw_compiler=count)
    criterion, batch = case("samples")
    total, _ = torch.compile(Head(criterion), fullgraph=True, backend=backend)(*parts(batch))
    total.backward()
    forward, backward = seen
    assert sum("jolkernels.dense_forward" in t for t in forward) == 1
    assert sum("jolkernels.dense_backward" in t for t in backward) == 1
    assert not any("permute" in t or "gather" in t for t in forward + backward)


@pytest.mark.skipif(ON_KERNELS, reason="once is enough")
def test_a_training_step_is_one_graph():
    """From features to the loss, with numbers of objects that change; no more than two graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    criterion, batch = (
        JointOptimizationLoss("focal", coding="delta"),
        dense_batch(matched="objects"),
    )
    features = [torch.randn(2, 3, *x.shape[2:]).double() for x in batch["logits"]]
    heads = torch.nn.ModuleList(torch.nn.Conv2d(3, c, 1).double() for c in (10, 8))
    weights = list(heads.parameters())

    def step(matched, labels, boxes):
        levels = [[head(x) for x in features] for head in heads]
        given = {"matched": matched, "priors": batch["priors"]}
        return criterion.dense(*levels, labels, boxes, **given, regression_normalizer=2.5).total

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for objects in (4, 5, 7, 9):
        labels = torch.arange(objects) % 5
        boxes = batch["target_boxes"][0][:1] + torch.arange(objects)[:, None]
        given = batch["matched"], [labels, labels[:2]], [boxes, boxes[:2]]
        given[0][1] = -1
        wanted = torch.autograd.grad(step(*given), weights)
        got = torch.autograd.grad(compiled(*given), weights)
        assert all(map(torch.equal, got, wanted))
    assert counter.frame_count <= 2


def test_one_tensor_for_two_arguments_compiles():
    batch = dense_batch()
    batch |= {"regression_weights": batch["classification_weights"]}
    module = Head(JointOptimizationLoss("focal", coding="delta"))
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(*parts(batch))
    torch.testing.assert_close(got, module(*parts(batch)), rtol=0, atol=0)


def test_meta_tensors_go_through_the_operators():
    batch = tree_map(lambda x: x.detach().to("meta"), dense_batch(matched="objects"))
    loss = JointOptimizationLoss("focal", coding="delta").dense(**batch)
    assert loss.classification.is_meta and loss.classification.shape == ()


def test_a_lazily_negated_level_counts_as_what_it_says():
    criterion, batch = case("plain")
    wanted = criterion.dense(**batch)
    negated = [torch._neg_view(-x.detach()) for x in batch["logits"]]
    assert negated[0].is_neg()
    got = criterion.dense(**batch | {"logits": negated})
    assert torch.equal(got.total, wanted.total)


# Autograd


@slow_on_kernels
def test_double_backward_raises():
    criterion, batch = case("objects")
    for x in leaves(batch):
        (g,) = torch.autograd.grad(criterion.dense(**batch).total, x, create_graph=True)
        assert g.requires_grad
        with pytest.raises(RuntimeError, match="second derivative"):
            g.square().sum().backward()


def test_create_graph_gives_the_same_gradients():
    criterion, batch = case("objects")
    total = criterion.dense(**batch).total
    first = torch.autograd.grad(total, leaves(batch), create_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, leaves(batch))))


def test_a_gradient_penalty_is_not_silently_lost():
    layer = torch.nn.Conv2d(4, 10, 1).double().to(DEVICE)
    batch = dense_batch()
    xs = [torch.randn(2, 4, *x.shape[2:], dtype=torch.float64, device=DEVICE).requires_grad_()
          for x in batch["logits"]]  # fmt: skip
    criterion = JointOptimizationLoss("focal", coding="delta")
    loss = criterion.dense(**batch | {"logits": [layer(x) for x in xs]})
    (d_x,) = torch.autograd.grad(loss.total, xs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss.total + d_x.square().sum()).backward()


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.jacrev])
def test_transforms_of_torch_func_are_refused(transform):
    batch = dense_batch()
    level = torch.stack([batch["logits"][0].detach()] * 2)
    given = level if transform is torch.vmap else level[0]
    criterion = JointOptimizationLoss("focal", coding="delta")
    with pytest.raises(RuntimeError, match=r"no vmap and no transforms of torch\.func"):
        transform(lambda z: criterion.dense(
            **batch | {"logits": [z, *batch["logits"][1:]]}).total)(given)  # fmt: skip


FROZEN = {
    "logits": [0, 1, 2],
    "boxes": [3, 4, 5],
    "a level of each": [1, 5],
    "all but one": [0, 1, 2, 3, 5, 6],
    "extra": [6],
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_needs_no_gradient_gets_none(frozen, monkeypatch):
    criterion, batch = case("objects")
    wanted = gradients(criterion.dense(**batch), batch)
    needs = []
    backward = dense_ops.backward
    monkeypatch.setattr(
        dense_ops, "backward", lambda *given: (needs.append(given[-1]), backward(*given))[1]
    )
    given = leaves(batch)
    for i in FROZEN[frozen]:
        given[i].requires_grad_(False)
    loss = criterion.dense(**batch)
    (1.3 * loss[0] + 0.7 * loss[1]).backward()
    for i, (x, g) in enumerate(zip(given, wanted, strict=True)):
        assert x.grad is None if i in FROZEN[frozen] else torch.equal(x.grad, g)
    free = set(range(7)) - set(FROZEN[frozen])
    assert needs == [(bool(free & {0, 1, 2}), bool(free & {3, 4, 5}), 6 in free)]


def test_nothing_that_needs_a_gradient():
    criterion, batch = case("plain")
    with torch.no_grad():
        loss = criterion.dense(**batch)
    assert not loss.total.requires_grad
    assert not criterion.dense(**detached(batch)).total.requires_grad
    loss = criterion.dense(**batch)
    assert loss[0].requires_grad and loss[1].requires_grad
    assert not any(x.requires_grad for x in loss[2:])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_nothing_uses_has_no_gradient(part, create_graph):
    criterion, batch = case("samples")
    loss = criterion.dense(**batch)
    alone = torch.autograd.grad(
        loss[part], leaves(batch), retain_graph=True, create_graph=create_graph
    )
    one = torch.ones_like(loss[0])
    wanted = torch.autograd.grad((loss[part], loss[1 - part]), leaves(batch), (one, 0 * one))
    torch.testing.assert_close(alone, wanted, rtol=0, atol=0)


def test_two_backward_passes_agree():
    criterion, batch = case("objects")
    loss = criterion.dense(**batch)
    first = torch.autograd.grad(loss.total, leaves(batch), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss.total, leaves(batch))))


def test_a_level_changed_before_backward_raises():
    criterion, batch = case("plain")
    levels = [x * 1 for x in batch["box_preds"]]
    loss = criterion.dense(**batch | {"box_preds": levels})
    levels[2] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.total.backward()


def test_constants_carry_no_gradient():
    criterion, batch = case("objects")
    constants = [batch["class_targets"], batch["classification_weights"], *batch["target_boxes"]]
    for x in constants:
        x.requires_grad_()
    z = torch.tensor(3.0, dtype=torch.float64, device=DEVICE, requires_grad=True)
    criterion.dense(**batch | {"regression_normalizer": z}).total.backward()
    assert z.grad is None and all(x.grad is None for x in constants)


def test_a_number_stays_a_number_where_nothing_is_compiled():
    criterion, batch = case("samples")
    given, call = make_dense_batch(criterion.settings, **batch)
    assert type(given.regression_normalizer) is float and given.classification_normalizer is None
    assert call[1:] == ("image", "number", None)


def test_the_same_level_twice():
    """Its gradient is the sum of both."""
    criterion = JointOptimizationLoss("focal", coding="delta")
    batch = dense_batch(sizes=((2, 2), (2, 2)))
    both = dict(batch)
    both["logits"] = [batch["logits"][0]] * 2
    apart = dict(batch)
    apart["logits"] = [batch["logits"][0].detach().clone().requires_grad_() for _ in range(2)]
    (got,) = torch.autograd.grad(criterion.dense(**both).total, both["logits"][:1])
    wanted = torch.autograd.grad(criterion.dense(**apart).total, apart["logits"])
    assert torch.equal(got, wanted[0] + wanted[1])
