"""class_targets, extra_regression, class_weights and groups, alone and together: the edges."""

import copy
import itertools

import pytest
import torch
from cases import DEVICE, sampled
from frozen import frozen
from inputs import CASES, all_gradients, case

from jolkernels import reference
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels


def some(every):
    """CASES; on interpreted kernels every so many."""
    return pytest.mark.parametrize(("name",), sampled([(name,) for name in CASES], every))


every = some(5)
together = pytest.mark.parametrize("name", ["yolo", "rcnn", "detr"])
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def with_labels(batch, labels):
    """The batch with other labels, none of them of a positive."""
    return batch | {"labels": torch.as_tensor(labels, device=DEVICE).expand_as(batch["labels"])}


def background(criterion, batch):
    return criterion.settings.background_label(batch["logits"].shape[1])


@pytest.mark.parametrize(
    ("name", "normalizer"),
    sampled(list(itertools.product(CASES, ["samples", "positives", 2.5])), every=7),
)
def test_values_and_gradients_equal_the_reference(name, normalizer):
    criterion, batch = case(name)
    batch |= {"classification_normalizer": normalizer, "regression_normalizer": normalizer}
    loss = criterion(**batch)
    expected = reference.joint_optimization_loss(*make_batch(criterion.settings, **batch))
    assert [(x.dtype, x.shape) for x in loss] == [(x.dtype, x.shape) for x in expected]
    torch.testing.assert_close(tuple(loss), expected, rtol=1e-10, atol=1e-10)
    got, wanted = all_gradients(loss, batch), all_gradients(expected, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in got)


@pytest.mark.parametrize(("name",), sampled([(name,) for name in CASES], every=10, usually=3))
def test_gradcheck(name):
    criterion, batch = case(name, n=6, classes=2, seed=5)
    names = [n for n in ("logits", "box_preds", "extra_regression") if n in batch]
    inputs = tuple(batch.pop(n).detach().nan_to_num(0.5).requires_grad_() for n in names)
    assert len(batch["labels"].unique()) > 2

    def losses(*given):
        return criterion(**dict(zip(names, given, strict=True)), **batch)[:2]

    def statement(*given):
        given = dict(zip(names, given, strict=True)) | batch
        return reference.joint_optimization_loss(*make_batch(criterion.settings, **given))[:2]

    assert torch.autograd.gradcheck(frozen(losses, statement, inputs), inputs, atol=1e-6)


@together
def test_none_is_the_same_as_not_given(name):
    criterion, batch = case(name)
    for unwanted in ("class_targets", "extra_regression", "class_weights", "groups", "num_groups"):
        batch.pop(unwanted, None)
    nothing = dict.fromkeys(("class_targets", "extra_regression", "class_weights", "groups"))
    a, b = criterion(**batch), criterion(**batch, **nothing, num_groups=None)
    assert a == b and a.extra_regression == 0


@some(9)
def test_rows_that_do_not_count_may_hold_anything(name):
    criterion, batch = case(name)
    before = criterion(**batch)
    expected = all_gradients(before, batch)
    labels = batch["labels"]
    ignored = labels == -100
    negative = labels == background(criterion, batch)
    assert ignored.any() and negative.any()
    for value in (torch.inf, -1e4, 0.0):
        other = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v
                 for k, v in batch.items()}  # fmt: skip
        for key in ("class_targets", "extra_regression", "box_preds", "target_boxes"):
            if key in other:
                other[key][ignored | negative] = value
        other["logits"][ignored] = value
        if "groups" in other:
            other["groups"][ignored] = 10**15
        for key in ("logits", "box_preds", "extra_regression"):
            if key in other:
                other[key].requires_grad_()
        after = criterion(**other)
        torch.testing.assert_close(tuple(after), tuple(before), rtol=0, atol=0)
        got = all_gradients(after, other)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert (got[0][ignored] == 0).all()
        assert all((g[ignored | negative] == 0).all() for g in got[1:])


@every
def test_no_positives(name):
    criterion, batch = case(name)
    batch = with_labels(batch, background(criterion, batch))
    if "groups" in batch:
        batch["groups"] = batch["groups"].clamp(min=0)
    loss = criterion(**batch)
    assert (loss.negative_weight == 1).all() and (loss.num_positives == 0).all()
    assert (loss.regression == 0).all() and (loss.extra_regression == 0).all()
    assert (loss.classification > 0).all()
    d_logits, *rest = all_gradients(loss, batch)
    assert torch.isfinite(d_logits).all() and d_logits.abs().sum() > 0
    assert all((g == 0).all() for g in rest)


@every
@pytest.mark.parametrize("n", [0, 9])
def test_no_samples(name, n):
    criterion, batch = case(name, n=n)
    batch = with_labels(batch, -100)
    loss = criterion(**batch)
    assert (loss.classification == 0).all() and (loss.regression == 0).all()
    assert (loss.negative_weight == 1).all() and (loss.num_positives == 0).all()
    assert (loss.extra_regression == 0).all()
    for g, key in zip(all_gradients(loss, batch), ("logits", "box_preds", "extra_regression"),
                      strict=False):  # fmt: skip
        assert g.shape == batch[key].shape and (g == 0).all()


@pytest.mark.parametrize(
    ("name", "dtype"), sampled(list(itertools.product(CASES, DTYPES)), every=14)
)
def test_lower_and_mixed_precision(name, dtype):
    """Every input in the dtype; and the new ones alone, next to float32 logits and boxes."""
    criterion, batch = case(name)
    given = [k for k, v in batch.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    old = ("logits", "box_preds", "target_boxes", "priors")
    for mixed in (False, True):
        lower = {
            k: batch[k].detach().to(torch.float32 if mixed and k in old else dtype) for k in given
        }
        for key in ("logits", "box_preds", "extra_regression"):
            if key in lower:
                lower[key].requires_grad_()
        exact = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in lower.items()}
        loss, expected = criterion(**batch | lower), criterion(**batch | exact)
        for a, b in zip(loss[:3] + loss[4:], expected[:3] + expected[4:], strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=3e-5, atol=3e-6)
        pairs = zip(all_gradients(loss, lower), all_gradients(expected, exact), strict=True)
        for key, (a, b) in zip(("logits", "box_preds", "extra_regression"), pairs, strict=False):
            assert a.dtype == lower[key].dtype
            near, largest = max(3e-5, 4 * torch.finfo(a.dtype).eps), b.abs().max().item()
            torch.testing.assert_close(a.double(), b, rtol=near, atol=near * largest)


@every
def test_strides_do_not_matter(name):
    criterion, batch = case(name)
    other = {
        k: torch.stack((v, v), -1).detach()[..., 0].requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor)
        else v
        for k, v in batch.items()
    }
    a, b = criterion(**batch), criterion(**other)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-14, atol=1e-14)
    got, wanted = all_gradients(b, other), all_gradients(a, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)


@together
def test_expanded_inputs(name):
    criterion, batch = case(name, n=40)
    positive = ~batch["target_boxes"].isnan().any(1)
    for key in ("class_targets", "extra_regression", "class_weights"):
        if key in batch:
            batch[key] = torch.full_like(batch[key], 0.7)
    if "groups" in batch:
        batch["groups"] = torch.ones_like(batch["groups"])
    other = {
        k: batch[k][:1].detach().expand(batch[k].shape)
        for k in ("class_targets", "extra_regression", "class_weights", "groups")
        if k in batch
    }
    assert positive.any() and all(t.stride() == (0,) for t in other.values())
    a, b = criterion(**batch), criterion(**batch | other)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-14, atol=0)


@together
def test_constants_carry_no_gradient_and_inputs_are_not_written(name):
    criterion, batch = case(name)
    constants = [batch[k].requires_grad_() for k in ("class_targets", "class_weights")
                 if k in batch]  # fmt: skip
    before = copy.deepcopy({k: v.detach() for k, v in batch.items() if k != "num_groups"})
    criterion(**batch).total.sum().backward()
    assert constants and all(t.grad is None for t in constants)
    for key, value in before.items():
        torch.testing.assert_close(batch[key].detach(), value, rtol=0, atol=0, equal_nan=True)


@every
def test_per_sample_adds_up_to_the_loss(name):
    criterion, batch = case(name)
    batch |= {"classification_normalizer": "sum", "regression_normalizer": "sum"}
    rows, loss = criterion.per_sample(**batch), criterion(**batch)
    valid = batch["labels"] != -100
    assert all(x.shape == valid.shape and not x.requires_grad for x in rows)
    groups = batch.get("groups", torch.zeros_like(batch["labels"]))
    for g in range(batch.get("num_groups", 1)):
        mine = valid & (groups == g)
        for weights, losses, part in (
            (batch["classification_weights"], rows.classification, loss.classification),
            (batch["regression_weights"], rows.regression, loss.regression),
        ):
            total = (weights * rows.weight * losses)[mine].sum()
            torch.testing.assert_close(total, part.detach().view(-1)[g])
        negative = mine & (batch["labels"] == background(criterion, batch))
        assert negative.any()
        w_neg = loss.negative_weight.view(-1)[g]
        torch.testing.assert_close(rows.weight[negative], w_neg.expand(int(negative.sum())))
