"""Nothing that a tensor holds, or that comes of it later, leads out of its memory."""

import pytest
import torch
from cases import ON_KERNELS, random_batch

from jolkernels import JointOptimizationLoss, ops
from jolkernels.batch import make_batch
from jolkernels.cpu import native, tensors
from jolkernels.settings import Call

pytestmark = pytest.mark.kernels

HEADS = {
    "softmax": (("cross_entropy", "last"), {}),
    "first": (("cross_entropy", "first"), {"class_specific": True}),
    "focal": (("focal", "last"), {"class_specific": True}),
}
needs_passes = pytest.mark.skipif(
    ON_KERNELS or native.library() is None, reason="not built, or turned off"
)


def case(name, *, more=False, **options):
    """A loss, and a batch of which logits, box_preds and extra_regression require grad."""
    head, shape = HEADS[name]
    batch = random_batch(head, "delta", **shape, **options)
    if more:
        batch |= further_inputs(batch, *(["class_targets"] if head[0] == "focal" else []))
    return JointOptimizationLoss(head[0], "smooth_l1", "delta", background=head[1]), batch


def further_inputs(batch, *others):
    """Tensors with a number a row or class, and groups."""
    n, columns = batch["logits"].shape
    ones = batch["classification_weights"]
    made = {name: ones.clone() for name in ("extra_regression", *others)}
    made["extra_regression"].requires_grad_()
    made["class_weights"] = ones.new_ones(columns)
    return made | {"groups": torch.arange(n) % 3, "num_groups": 3}


def operators(name="softmax", *, more=False):
    """What both operators take: the batch by name, the call, and what forward kept."""
    criterion, batch = case(name, more=more)
    given = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    fields, call = make_batch(criterion.settings, **given)
    result, one = ops.forward(fields, call), torch.ones(call.shape)
    saved = {"rows": result.rows, "scalars": result.scalars}
    saved |= {"grad_classification": one, "grad_regression": one}
    needs = {"needs_logits": True, "needs_boxes": True, "needs_extra": more}
    return fields, call.encode(), saved | needs


INT64_MIN = torch.iinfo(torch.int64).min


@pytest.mark.parametrize("value", [2**40, -1, 7, INT64_MIN])
@pytest.mark.parametrize("of", ["labels", "groups"])
@pytest.mark.parametrize("name", HEADS)
def test_labels_and_groups_changed_unseen_by_autograd(name, of, value):
    criterion, batch = case(name, more=of == "groups")
    loss = criterion(**batch).total.sum()
    counted = (batch["labels"] != -100).nonzero()[:, 0]
    batch[of].numpy()[counted[5]] = value
    leaves = [t for t in batch.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    if ON_KERNELS:  # as on a GPU, where to look would be to wait
        assert all(g[counted[5]].isnan().all() for g in torch.autograd.grad(loss, leaves))
    else:
        found = rf"{of}: got {value} at index {counted[5]}, wanted 0 to"
        with pytest.raises(ValueError, match=found):
            torch.autograd.grad(loss, leaves)


@needs_passes
@pytest.mark.parametrize("of", ["labels", "groups"])
@pytest.mark.parametrize("name", HEADS)
def test_c_makes_the_gradients_of_such_rows_nan(name, of, monkeypatch):
    """Of these rows only, and also if the label is in order again when Python looks."""
    monkeypatch.setattr(native, "check_labels", lambda *_: None)
    criterion, batch = case(name, more=of == "groups")
    loss = criterion(**batch).total.sum()
    leaves = [t for t in batch.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    before = torch.autograd.grad(loss, leaves, retain_graph=True)
    bad = (batch["labels"] != -100).nonzero()[[3, -1], 0]
    batch[of].numpy()[bad] = 2**40, -7
    after = torch.autograd.grad(loss, leaves)
    for was, now in zip(before, after, strict=True):
        assert now[bad].isnan().all()
        was[bad] = now[bad] = 0
        assert torch.equal(was, now)


TENSORS = [(name, "first") for name in (*random_batch(), "extra_regression", "class_weights",
                                        "groups")] + [("class_targets", "focal")]  # fmt: skip


@needs_passes
@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize(("name", "head"), TENSORS)
def test_freed_memory_is_not_read(name, head, size):
    criterion, batch = case(head, more=True)
    loss = criterion(**batch).total.sum()
    batch[name].untyped_storage().resize_(size)
    with pytest.raises(ValueError, match=f"{name}: got a storage of {size} bytes, wanted"):
        loss.backward()
    with pytest.raises(ValueError, match=f"{name}: got a storage of {size} bytes, wanted"):
        criterion(**batch)


@needs_passes
@pytest.mark.parametrize(("name", "head"), TENSORS)
def test_a_tensor_without_memory_is_not_read(name, head):
    """PyTorch's ZeroTensor, whose storage has a size all the same."""
    criterion, batch = case(head, more=True)
    zeros = torch._efficientzerotensor(batch[name].shape, dtype=batch[name].dtype)
    with pytest.raises(ValueError, match=f"{name}: got a storage of 0 bytes, wanted"):
        criterion(**batch | {name: zeros})


@needs_passes
def test_a_tensor_swapped_between_the_passes_is_not_read_beyond_its_end():
    few, numbers = torch.zeros(3, dtype=torch.long), torch.ones(3)
    for name, other in (("labels", few), ("priors", torch.ones(1, 4)), ("groups", few),
                        ("class_targets", numbers), ("class_weights", numbers)):  # fmt: skip
        criterion, batch = case("focal", more=True, dtype=torch.float32)
        loss = criterion(**batch).total.sum()
        batch[name].data = other
        with pytest.raises(ValueError, match=f"{name}: got a storage of"):
            loss.backward()


FURTHER = "class_targets", "extra_regression", "class_weights", "groups"
WRONG = {
    "logits": [torch.zeros(23), torch.zeros(23, 1), torch.zeros(22, 6), torch.zeros(23, 6).int()],
    "box_preds": [torch.zeros(23, 8), torch.zeros(22, 4), torch.zeros(4)],
    "labels": [torch.zeros(22).long(), torch.zeros(23).int(), torch.zeros(23, 1).long()],
    "target_boxes": [torch.zeros(23, 3), torch.zeros(4), torch.zeros(23, 4).long()],
    "priors": [None, torch.zeros(23, 3), torch.zeros(1, 4)],
    "classification_weights": [torch.zeros(22), torch.zeros(())],
    "regression_weights": [torch.zeros(23, 1), torch.zeros(23).bool()],
    "classification_normalizer": [torch.ones(2)],
    "regression_normalizer": [torch.tensor(True)],
    "class_targets": [torch.zeros(22), torch.zeros(23).long()],
    "extra_regression": [torch.zeros(23, 1), torch.zeros(23).long()],
    "class_weights": [torch.zeros(6), torch.zeros(5, 1), torch.zeros(5).long()],
    "groups": [None, torch.zeros(22).long(), torch.zeros(23).int()],
}


@pytest.mark.parametrize("name", WRONG)
def test_the_operators_check_the_batch(name):
    more = name in FURTHER
    fields, call, saved = operators("focal" if more else "softmax", more=more)
    for value in WRONG[name]:
        wrong = fields._replace(**{name: value})
        blamed = "box_preds" if name == "logits" and value.shape == (22, 6) else name
        blamed = "num_groups" if value is None and name == "groups" else blamed
        with pytest.raises((ValueError, TypeError), match=f"{blamed}: got"):
            torch.ops.jolkernels.forward(*wrong, call=call)
        with pytest.raises((ValueError, TypeError), match=f"{blamed}: got"):
            torch.ops.jolkernels.backward(*wrong, call=call, **saved)


@pytest.mark.parametrize("name", ["classification_normalizer", "regression_normalizer"])
def test_the_operators_check_how_a_normalizer_was_given(name):
    fields, call, saved = operators()
    given = fields._replace(**{name: torch.ones(())})
    wrong = [
        (fields, "number", "got None in the batch and 'number' in the call"),
        (given, "samples", "got a tensor in the batch and 'samples' in the call"),
        (fields, "rows", "got 'rows', wanted one of"),
    ]
    for given, kind, message in wrong:
        text = Call.decode(call)._replace(**{name: kind}).encode()
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            torch.ops.jolkernels.forward(*given, call=text)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            torch.ops.jolkernels.backward(*given, call=text, **saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", torch.zeros(1, 23, dtype=torch.float64)),
        ("rows", torch.zeros(2, 23)),
        ("scalars", torch.zeros(4, dtype=torch.float64)),
        ("grad_classification", torch.zeros(1)),
        ("grad_regression", torch.zeros(()).long()),
    ],
)
def test_the_backward_operator_checks_what_the_forward_kept(name, value):
    fields, call, saved = operators()
    with pytest.raises((ValueError, TypeError), match=f"{name}: got"):
        torch.ops.jolkernels.backward(*fields, call=call, **saved | {name: value})


@pytest.mark.skipif(ON_KERNELS, reason="on a GPU gradients are NaN instead")
@pytest.mark.parametrize("name", HEADS)
def test_the_operators_check_labels(name):
    fields, call, saved = operators(name)
    wrong = fields._replace(labels=fields.labels.where(fields.labels != 2, 99))
    with pytest.raises(ValueError, match="labels: got 99 at index"):
        torch.ops.jolkernels.forward(*wrong, call=call)
    with pytest.raises(ValueError, match="labels: got 99 at index"):
        torch.ops.jolkernels.backward(*wrong, call=call, **saved)


@needs_passes
def test_rows_that_are_not_contiguous_are_read_as_they_are():
    fields, call, saved = operators()
    wanted = torch.ops.jolkernels.backward(*fields, call=call, **saved)
    saved["rows"] = saved["rows"].t().contiguous().t()
    got = torch.ops.jolkernels.backward(*fields, call=call, **saved)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_priors_that_the_coding_does_not_use_change_nothing():
    """The operators may be given some, of no extent even."""
    criterion = JointOptimizationLoss()
    batch = {k: v.detach() for k, v in random_batch().items()}
    fields, call = make_batch(criterion.settings, **batch)
    given = fields._replace(priors=torch.zeros(23, 4, dtype=torch.float64))
    for implementation in (native, tensors) if native.library() else (tensors,):
        wanted, got = (implementation.forward(f, call) for f in (fields, given))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_tensor_operations_poison_the_gradients_as_the_kernels_do():
    """Where a bad label is no error: on a GPU without Triton."""
    criterion, batch = case("focal")
    fields, call = make_batch(criterion.settings, **{k: v.detach() for k, v in batch.items()})
    result, one = tensors.forward(fields, call), torch.ones(())
    scalars = result.scalars.index_fill(0, torch.tensor(4), torch.nan)
    needs = True, True, False
    grads = tensors.backward(fields, call, result.rows, scalars, one, one, needs)
    assert all(g.isnan().all() for g in grads[:2])
