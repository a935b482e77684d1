"""What holds of every batch: properties, upstream gradients, layouts, memory that nobody wrote."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, HEADS, ON_KERNELS, gradients, random_batch, sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels

few = settings(max_examples=4 if ON_KERNELS else 30, deadline=None, derandomize=True)
batches = st.builds(
    dict,
    head=st.sampled_from(HEADS),
    coding=st.sampled_from(["xyxy", "delta", "ltrb"]),
    n=st.integers(1, 40),
    classes=st.integers(1, 12),
    class_specific=st.booleans(),
    seed=st.integers(0, 10**6),
)


def make(case, **choices):
    criterion = JointOptimizationLoss(
        case["head"][0], "giou", case["coding"], background=case["head"][1], **choices
    )
    return criterion, random_batch(**case)


def with_rows(batch, rows):
    """The batch's rows of these indices, as leaves."""
    return {
        name: t.detach()[rows].contiguous().requires_grad_(t.requires_grad)
        for name, t in batch.items()
    }


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@few
@given(batches, st.randoms(use_true_random=False))
def test_permuting_rows_permutes_gradients(case, random):
    criterion, batch = make(case)
    order = torch.tensor(random.sample(range(case["n"]), case["n"]), device=DEVICE)
    other = with_rows(batch, order)
    a, b = criterion(**batch), criterion(**other)
    close(tuple(a), tuple(b))
    for x, y in zip(gradients(a, batch), gradients(b, other), strict=True):
        close(x[order], y)


@few
@given(batches)
def test_a_batch_twice_has_the_same_mean_losses(case):
    criterion, batch = make(case)
    twice = with_rows(batch, torch.arange(2 * case["n"], device=DEVICE) % case["n"])
    a, b = criterion(**batch), criterion(**twice)
    close(a[:3], b[:3])
    assert b.num_positives == 2 * a.num_positives
    for x, y in zip(gradients(a, batch), gradients(b, twice), strict=True):
        close(x, 2 * y[: case["n"]])


@few
@given(batches, st.floats(-50, 50))
def test_a_constant_added_to_a_rows_logits_changes_nothing(case, constant):
    case["head"] = ("cross_entropy", case["head"][1])
    criterion, batch = make(case)
    shift = constant * torch.linspace(-1, 1, case["n"], device=DEVICE, dtype=torch.float64)
    other = batch | {"logits": (batch["logits"].detach() + shift[:, None]).requires_grad_()}
    a, b = criterion(**batch), criterion(**other)
    close(tuple(a), tuple(b))
    close(gradients(a, batch), gradients(b, other))


@few
@given(batches)
def test_lambda_two_without_scores_is_the_base_loss(case):
    """w = 2 - 1 * 1."""
    criterion, batch = make(case, lam=2.0, location_score=None, class_score=None)
    base, _ = make(case, weighting="none")
    a, b = criterion(**batch), base(**batch)
    close(tuple(a), tuple(b))
    if a.num_positives and not criterion.settings.detach_weights:
        detached, _ = make(case, location_score=None, class_score=None, detach_weights=True)
        close(gradients(detached(**batch), batch), gradients(b, batch))


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_linear_in_the_two_upstream_gradients(head):
    criterion = JointOptimizationLoss(head[0], "giou", background=head[1])
    batch = random_batch(head)
    by_cls, by_loc = (gradients(criterion(**batch), batch, up) for up in ((1, 0), (0, 1)))
    up = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    both = gradients(criterion(**batch), batch, up)
    for c, r, got in zip(by_cls, by_loc, both, strict=True):
        close(got, up[0] * c + up[1] * r)


def test_upstream_gradients_of_stride_zero():
    batch, criterion = random_batch(), JointOptimizationLoss()
    loss = criterion(**batch)
    expanded = torch.tensor([0.4], dtype=torch.float64, device=DEVICE).expand(7)
    inputs = batch["logits"], batch["box_preds"]
    stacked = torch.stack(loss[:2]).sum() * expanded  # [7], its upstream gradient expanded too
    got = torch.autograd.grad(stacked.sum(), inputs)
    close(got, gradients(criterion(**batch), batch, (2.8, 2.8)))
    direct = torch.autograd.grad(criterion(**batch)[:2], inputs, (expanded[0], expanded[3]))
    close(direct, gradients(criterion(**batch), batch, (0.4, 0.4)))


def layouts(batch, layout):
    """The same numbers, not contiguous, for every input that can be laid out so."""

    def lay(t):
        data = t.detach()
        if layout == "transposed":
            data = data.t().contiguous().t() if data.ndim == 2 else data
        elif layout == "sliced":
            data = torch.stack((data, data), -1)[..., 0]
        elif layout == "expanded":  # every row the same
            data = data[:1].expand_as(data)
        return data.requires_grad_(t.requires_grad)

    return {name: lay(t) for name, t in batch.items()}


MATRIX = list(
    itertools.product(
        [torch.float64, torch.float32, torch.float16, torch.bfloat16],
        ["contiguous", "transposed", "sliced", "expanded"],
        ["eager", "fullgraph"],
        ["cross_entropy", "focal"],
    )
)


@pytest.mark.parametrize(("dtype", "layout", "mode", "name"), sampled(MATRIX, every=5, usually=3))
def test_dtypes_layouts_and_compilation(dtype, layout, mode, name):
    batch = random_batch((name, "last"), "delta", n=8, seed=4, dtype=dtype)
    batch["labels"][0] = 1
    for box in ("box_preds", "target_boxes", "priors"):
        batch[box].data[0] = batch[box].data[(batch["labels"] >= 0) & (batch["labels"] < 5)][-1]
    other = layouts(batch, layout)
    criterion = JointOptimizationLoss(name, "smooth_l1", "delta")
    run = criterion
    if mode == "fullgraph":
        torch._dynamo.reset()  # else the cases before count as recompilations
        run = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    plain = {
        k: v.detach().contiguous().clone().requires_grad_(v.requires_grad) for k, v in other.items()
    }
    a, b = criterion(**plain), run(**other)
    torch.testing.assert_close(tuple(b), tuple(a), rtol=1e-6, atol=1e-6)
    for got, wanted in zip(gradients(b, other), gradients(a, plain), strict=True):
        assert got.dtype == dtype and wanted.abs().sum() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("class_specific", "head"), sampled(list(itertools.product([False, True], HEADS)), every=1)
)
def test_every_result_is_written(head, class_specific, monkeypatch):
    """With new memory full of NaN, what no kernel wrote would show."""
    batch = random_batch(head, "delta", n=70, class_specific=class_specific)
    criterion = JointOptimizationLoss(head[0], coding="delta", background=head[1])
    expected = criterion(**batch)
    wanted = gradients(expected, batch)

    def poisoned(make):
        def function(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return function

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    loss = criterion(**batch)
    got = gradients(loss, batch)
    assert tuple(loss) == tuple(expected)
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))
    assert all(torch.isfinite(g).all() for g in got)


@pytest.mark.parametrize(["name"], sampled([("cross_entropy",), ("focal",)], 1))
def test_a_hundred_thousand_classes(name):
    g = torch.Generator().manual_seed(0)
    columns = 100_000
    logits = (3 * torch.randn(3, columns, generator=g)).to(DEVICE).requires_grad_()
    background = columns - 1 if name == "cross_entropy" else columns
    labels = torch.tensor([99_998, background, 17], device=DEVICE)
    boxes = torch.tensor([[0.0, 0, 8, 8]], device=DEVICE).expand(3, 4)
    loss = JointOptimizationLoss(name)(logits, boxes + 1, labels, boxes)
    (got,) = torch.autograd.grad(loss.classification, logits)

    double = logits.detach().double().requires_grad_()
    iou = 49 / 79
    if name == "cross_entropy":
        rows = F.cross_entropy(double, labels, reduction="none")
        s_cls = double.softmax(1)[[0, 2], labels[[0, 2]]]
    else:
        from torchvision.ops import sigmoid_focal_loss

        one_hot = F.one_hot(labels, columns + 1)[:, :-1].double()
        rows = sigmoid_focal_loss(double, one_hot).sum(1)
        s_cls = double.sigmoid()[[0, 2], labels[[0, 2]]]
    w = 2 - iou * s_cls
    expected = ((w * rows[[0, 2]]).sum() + w.mean() * rows[1]) / 3
    torch.testing.assert_close(loss.classification.double(), expected, rtol=1e-5, atol=0)
    (wanted,) = torch.autograd.grad(expected, double)
    scale = wanted.abs().max().item()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_half_precision_is_as_good_as_pytorchs(name, dtype):
    """Our error against float64 is at most that of PyTorch in the same dtype, and a tolerance."""
    from torchvision.ops import sigmoid_focal_loss

    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 20, generator=g)).to(DEVICE, dtype).requires_grad_()
    labels = torch.randint(0, 19, (64,), generator=g).to(DEVICE)
    boxes = torch.ones(64, 4, device=DEVICE)

    def theirs(z):
        if name == "cross_entropy":
            return F.cross_entropy(z, labels)
        return sigmoid_focal_loss(z, F.one_hot(labels, 20).to(z.dtype), reduction="sum") / 64

    def error(loss):
        (d,) = torch.autograd.grad(loss, logits)
        return abs(loss.item() - exact.item()), (d.double() - wanted).abs().max().item()

    double = logits.detach().double().requires_grad_()
    exact = theirs(double)
    (wanted,) = torch.autograd.grad(exact, double)
    ours = JointOptimizationLoss(name, weighting="none")(logits, boxes, labels, boxes)
    for got, limit in zip(error(ours.classification), error(theirs(logits)), strict=True):
        assert got <= limit + 1e-5
