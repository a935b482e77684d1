"""The Triton kernels, interpreted: device functions one by one, and what only kernels have.

What the loss computes with them is in the tests that every implementation passes.
"""

import pytest
import torch
from cases import INTERPRETED, boxes, gradients, random_batch
from inputs import FURTHER, everything, leaves, results
from torch import Tensor

pytest.importorskip("triton")
if not INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from jolkernels import JointOptimizationLoss, kernels, ops, process_groups, reference, spec
from jolkernels.batch import Batch, make_batch
from jolkernels.registry import CHOICES, KERNEL, REFERENCE, params, parse

pytestmark = pytest.mark.kernels


@triton.jit
def box_probe(x, t, out, N: tl.constexpr, F: tl.constexpr, PARAMS: tl.constexpr):
    i = tl.arange(0, N)
    r, d = F(
        (tl.load(x + i), tl.load(x + N + i), tl.load(x + 2 * N + i), tl.load(x + 3 * N + i)),
        (tl.load(t + i), tl.load(t + N + i), tl.load(t + 2 * N + i), tl.load(t + 3 * N + i)),
        PARAMS,
    )
    tl.store(out + i, r)
    for k in tl.static_range(4):
        tl.store(out + (k + 1) * N + i, d[k])


@triton.jit
def class_probe(z, true, goal, out, N: tl.constexpr, F: tl.constexpr, PARAMS: tl.constexpr):
    i = tl.arange(0, N)[:, None]
    goals = None
    if goal is not None:
        goals = tl.load(goal + i)
    loss, d = F(tl.load(z + i), tl.load(true + i) != 0, goals, PARAMS)
    tl.store(out + i, loss)
    tl.store(out + N + i, d)


def pairs() -> tuple[Tensor, Tensor]:
    """128 boxes and targets: any, equal, touching, disjoint, one in the other, ties, no extent."""
    g = torch.Generator().manual_seed(4)
    x, t = boxes(128, g), boxes(128, g)
    t[:4] = x[:4]
    t[4:8] = x[4:8] + torch.tensor([1.0, 0, 1, 0])  # as high, at the same height
    t[8:12] = x[8:12] + 40
    t[12:16] = x[12:16] + torch.tensor([1.0, 1, -0.5, -0.25])
    t[16:20, 0] = x[16:20, 2]  # they touch
    t[16:20, 2] = x[16:20, 2] + 3
    t[20:24, :2] = x[20:24, :2]  # one common corner
    x[24, 2:] = x[24, :2]
    t[25, 2:] = t[25, :2]
    x[26, 2] = x[26, 0] - 2
    x[27] = torch.tensor([5.0, 5, 5 + 1e-9, 9])
    return x, t


BOX_LOSSES = ["l1", "smooth_l1", "l2", "iou", "iou:mode=log", "iou:mode=square", "giou", "diou",
              "ciou", "eiou", "siou", "shape_iou", "shape_iou:scale=1.5", "wiou", "nwd",
              "nwd:mix=0.3", "inner", "inner:ratio=1.25", "focaler", "focaler:low=0.2"]  # fmt: skip


@pytest.mark.parametrize("text", BOX_LOSSES)
def test_a_box_loss_and_its_derivatives(text):
    """The last term of a sum, which is the loss itself where it is none."""
    _, choice = launch_terms(text)[-1]
    x, t = pairs()
    x.requires_grad_()
    value = REFERENCE["regression"][type(choice)](x, t, choice)
    (slope,) = torch.autograd.grad(value.sum(), x)
    out = torch.full((5, len(x)), torch.nan, dtype=torch.float64)
    columns = x.detach().t().contiguous(), t.t().contiguous()
    box_probe[(1,)](*columns, out, len(x), KERNEL["regression"][type(choice)], params(choice))
    torch.testing.assert_close(out[0], value.detach(), rtol=1e-11, atol=1e-12)
    # The sides of boxes next to no extent are in denominators: there an eps decides.
    torch.testing.assert_close(out[1:].t(), slope, rtol=1e-9, atol=1e-10)


def launch_terms(text):
    return JointOptimizationLoss("bce", text).settings.terms


def test_every_box_loss_is_among_them():
    tested = {type(choice) for text in BOX_LOSSES for _, choice in launch_terms(text)}
    assert tested == set(KERNEL["regression"])


SIGMOID = ["bce", "focal", "focal:gamma=1.5", "focal:gamma=0", "quality_focal",
           "quality_focal:beta=0", "quality_focal:beta=1", "quality_focal:beta=2.5", "varifocal",
           "varifocal:detach=True", "varifocal:positives=label", "varifocal:gamma=1.5",
           "varifocal:gamma=0", "mal", "mal:gamma=2.0", "mal:detach=False",
           "mal:gamma=0,detach=False"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        (text, goal)
        for text in SIGMOID
        for goal in (None, 0.0, 0.3, 1.0)
        if goal is not None or not parse("classification", text).soft
    ],
)
def test_a_classification_loss_and_its_derivative(text, goal):
    """For logits of every size, infinite ones too, in true and in other columns; goal None is 1."""
    choice = parse("classification", text)
    z = torch.tensor([-torch.inf, -1e4, -800, -40, -3, -1e-9, 0, 0.5, 3, 40, 800, 1e4, torch.inf,
                      torch.nan, 1.5, -0.25], dtype=torch.float64).repeat(2)  # fmt: skip
    z.requires_grad_()
    labels = torch.arange(32) // 16
    goals = torch.full((32,), 1.0 if goal is None else goal, dtype=torch.float64)
    value = REFERENCE["classification"][type(choice)](z[:, None], labels, goals, choice)[:, 0]
    (slope,) = torch.autograd.grad(value.sum(), z)
    out = torch.full((2, 32), 7.0, dtype=torch.float64)
    function = KERNEL["classification"][type(choice)]
    given = None if goal is None else goals
    class_probe[(1,)](z.detach(), 1 - labels, given, out, 32, function, params(choice))
    known = slope.isfinite()  # not 0 times infinity
    torch.testing.assert_close(out[0], value.detach(), rtol=1e-11, atol=1e-300, equal_nan=True)
    torch.testing.assert_close(out[1][known], slope[known], rtol=1e-9, atol=1e-16)


def expected(criterion, batch):
    clean = batch | {"groups": batch["groups"].where(batch["labels"] >= 0, 0)}
    loss = reference.joint_optimization_loss(*make_batch(criterion.settings, **clean))
    return results(loss, batch)


@pytest.fixture
def dirty(monkeypatch):
    """torch.empty full of NaN, or -7: what a kernel does not write stays so."""
    empty, empty_like = torch.empty, torch.empty_like

    def spoil(tensor):
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: spoil(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: spoil(empty_like(*a, **k)))


@pytest.mark.usefixtures("dirty")
@pytest.mark.parametrize(
    ("name", "n", "num_groups"),
    [("cross_entropy", 0, 3), ("cross_entropy", 130, 3), ("focal", 1, 1), ("focal", 70, 9)],
)
def test_all_further_inputs_at_once(name, n, num_groups):
    """With more groups than classes too."""
    criterion, batch = everything(name, n=n, num_groups=num_groups)
    fields, _ = make_batch(criterion.settings, **batch)
    assert ops.implementation(fields, criterion.settings) is kernels
    found, wanted = results(criterion(**batch), batch), expected(criterion, batch)
    for got, exact in zip(found, wanted, strict=True):
        assert got.dtype == exact.dtype
        torch.testing.assert_close(got, exact.nan_to_num(0), rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("dirty")
@pytest.mark.parametrize("given", [*FURTHER, None])
@pytest.mark.parametrize("name", ["cross_entropy", "quality_focal"])
def test_each_further_input_alone(name, given):
    """And none: what is not given is not computed, and extra_regression is 0."""
    criterion, batch = everything(name)
    dropped = {n for n in FURTHER if n != given} | ({"num_groups"} if given != "groups" else set())
    kept = {k: v for k, v in batch.items() if k not in dropped}
    if given == "class_targets" and name == "cross_entropy":
        with pytest.raises(ValueError, match="class_targets: got a tensor"):
            criterion(**{**kept, given: torch.ones(40)})
        return
    fields, call = make_batch(criterion.settings, **kept)
    (rows, *_), _ = kernels.launch.plan_forward(fields, call)[1:]
    counted = given == "extra_regression" or (given == "class_weights" and name == "cross_entropy")
    assert rows.plan.constants["SUMS"] == (9 if counted else 7)
    if given == "groups":
        kept["groups"] = kept["groups"].where(kept["labels"] >= 0, 0)
        fields, call = make_batch(criterion.settings, **kept)
    loss, wanted = criterion(**kept), reference.joint_optimization_loss(fields, call)
    torch.testing.assert_close(tuple(loss), tuple(wanted), rtol=1e-11, atol=1e-12)
    got, exact = (gradients((x[0].sum(), x[1].sum()), kept) for x in (loss, wanted))
    torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_dtypes(dtype):
    """Each further input in another dtype than the logits; gradients in the inputs' own."""
    criterion, batch = everything()
    narrow = dict(batch)
    for name, other in zip(FURTHER[:3], (torch.bfloat16, dtype, torch.float16), strict=True):
        narrow[name] = batch[name].detach().to(other)
    narrow["extra_regression"].requires_grad_()
    wide = dict(narrow)
    for name in FURTHER[:3]:
        wide[name] = narrow[name].detach().double()
    wide["extra_regression"].requires_grad_()
    found, wanted = results(criterion(**narrow), narrow), results(criterion(**wide), wide)
    assert found[-1].dtype == dtype
    torch.testing.assert_close(found[-1].double(), wanted[-1], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found[:-1], wanted[:-1], rtol=0, atol=0)


def test_strides():
    """Reversed views, every second number and expanded ones: the same bits as contiguous ones."""
    criterion, batch = everything()
    batch["class_weights"] = torch.ones(1, dtype=torch.float64).expand(5)
    batch["groups"] = torch.zeros(1, dtype=torch.int64).expand(40)
    numbers = torch.tensor([2.5, 9, 3.5, 9, 4.5, 9])
    batch["regression_normalizer"] = numbers[::2]
    strided = dict(batch)
    for name in ("class_targets", "extra_regression"):
        wide = torch.full((40, 2), torch.nan, dtype=torch.float64)
        wide[:, 1] = batch[name].detach()
        strided[name] = wide[:, 1]
    strided["extra_regression"].requires_grad_()
    whole = {k: v.detach().clone() if k in FURTHER else v for k, v in batch.items()}
    whole["extra_regression"].requires_grad_()
    whole["regression_normalizer"] = numbers[::2].clone()
    found, wanted = results(criterion(**strided), strided), results(criterion(**whole), whole)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    ones = torch.ones((), dtype=torch.float64).expand(3)  # as .sum().backward() hands them over
    loss = criterion(**whole)
    expanded = torch.autograd.grad(
        (loss[0], loss[1]), leaves(whole), (ones, ones), retain_graph=True
    )
    plain = torch.autograd.grad((loss[0], loss[1]), leaves(whole), (ones.clone(), ones.clone()))
    assert all(torch.equal(a, b) for a, b in zip(expanded, plain, strict=True))


def run(batch: Batch, call):
    """Both passes of the kernels, which are not told to look at labels."""
    forward = kernels.forward(batch, call)
    one = torch.ones(call.shape, dtype=torch.float64)
    needs = True, True, True
    return forward, lambda b: kernels.backward(
        b, call, forward.rows, forward.scalars, one, one, needs
    )


@pytest.mark.parametrize(("value", "label"), [(-1, 1), (3, 5), (2**40, 1), (-(2**63), 5)])
def test_a_bad_group_poisons_everything(value, label):
    """Of a positive or a negative row; in the groups that it is not in too."""
    criterion, batch = everything()
    batch["groups"][int((batch["labels"] == label).nonzero()[0])] = value
    forward, backward = run(*(given := make_batch(criterion.settings, **batch)))
    for x in (forward.classification, forward.regression, forward.extra_regression):
        assert x.isnan().all()
    assert all(g.isnan().all() for g in backward(given[0]))
    with pytest.raises(ValueError, match=f"groups: got {value} at index"):
        criterion(**batch)


def test_a_bad_label_poisons_groups_without_rows_too():
    criterion, batch = everything()
    batch["groups"][:], batch["num_groups"] = 1, 4
    batch["labels"][3] = 77
    for name in ("classification_normalizer", "regression_normalizer"):
        batch[name] = "positives"
    forward, _ = run(*make_batch(criterion.settings, **batch))
    assert forward.classification.isnan().all() and forward.regression.isnan().all()


@pytest.mark.parametrize("constant", [{"detach_weights": True}, {"weighting": "none"}])
def test_weights_without_gradient_spread_no_nan(constant):
    """A positive's NaN box reaches its logits through its weight alone."""
    batch = random_batch(("focal", "last"), "delta", n=40)
    row = int((batch["labels"] == 1).nonzero()[0])
    batch["box_preds"].data[row] = torch.nan
    criterion = JointOptimizationLoss("focal", coding="delta", location_score=None, **constant)
    got = gradients(criterion(**batch), batch)
    wanted = gradients(
        reference.joint_optimization_loss(*make_batch(criterion.settings, **batch)), batch
    )
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12, equal_nan=True)
    assert got[0][row].isfinite().all()


def test_a_group_that_goes_bad_between_the_passes_poisons_its_row():
    criterion, batch = everything()
    fields, call = make_batch(criterion.settings, **batch)
    _, backward = run(fields, call)
    row = int((batch["labels"] == 1).nonzero()[0])
    before = backward(fields)
    groups = batch["groups"].clone()
    groups[row] = 2**40
    for was, now in zip(before, backward(fields._replace(groups=groups)), strict=True):
        assert was[row].isfinite().all() and now[row].isnan().all()
        others = torch.arange(40) != row
        assert torch.equal(was[others], now[others])


@pytest.mark.parametrize(
    ("name", "number"),
    [("samples", torch.tensor([1.5, 2.5, 3.5])), ("positives", 2.5), ("sum", 2.5)],
)
def test_two_ranks_with_the_same_batch(name, number, monkeypatch):
    """The mean over both is the joined batch's loss: named normalisers are shared, numbers kept."""
    criterion, batch = everything("cross_entropy")
    batch |= {"classification_normalizer": name, "regression_normalizer": number}
    fields, call = make_batch(criterion.settings, **batch)
    alone, backward = run(fields, call)
    gradients_alone = backward(fields)

    seen = []
    monkeypatch.setattr(process_groups, "size", lambda group: 2 if group == "pair" else 1)
    monkeypatch.setattr(
        process_groups, "all_reduce", lambda sums, _: seen.append(sums.mul_(2).shape)
    )
    synced = JointOptimizationLoss("cross_entropy", "giou", "delta").settings
    object.__setattr__(synced, "sync_group", "pair")
    both, backward = run(fields, call._replace(settings=synced))
    assert seen == [(3, 16)]  # groups, and room for nine sums
    assert torch.equal(both.num_positives, 2 * alone.num_positives)
    close = dict(rtol=1e-12, atol=1e-14)
    if name == "sum":  # by 1 / R
        assert torch.equal(both.classification, 2 * alone.classification)
    else:
        torch.testing.assert_close(both.classification, alone.classification, **close)
    for field in ("regression", "negative_weight", "extra_regression"):
        torch.testing.assert_close(getattr(both, field), getattr(alone, field), **close)
    if name != "sum":
        torch.testing.assert_close(backward(fields), gradients_alone, **close)


def test_there_is_a_device_function_for_every_choice():
    for kind, names in CHOICES.items():
        sums = {spec.Sum, spec.Inner, spec.Focaler}  # their terms have one
        assert set(names.values()) - sums <= set(KERNEL[kind])
