"""What the loss does at the edges: no rows, unread rows, extreme numbers, degenerate boxes."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import (
    CODINGS,
    COMPILED,
    DEVICE,
    HEADS,
    REGRESSIONS,
    go_together,
    gradients,
    random_batch,
    sampled,
)
from torchvision import ops

from jolkernels import JointOptimizationLoss
from jolkernels.spec import Delta

pytestmark = pytest.mark.kernels


def criterion_for(head, **choices) -> JointOptimizationLoss:
    return JointOptimizationLoss(head[0], background=head[1], **choices)


@pytest.mark.parametrize("head", HEADS)
def test_no_positives(head):
    batch = random_batch(head)
    background = 0 if head[1] == "first" else 5
    batch["labels"][:] = background
    batch["labels"][:3] = -100
    loss = criterion_for(head)(**batch)
    assert loss.negative_weight == 1 and loss.num_positives == 0
    assert loss.regression == 0 and loss.classification > 0
    d_logits, d_boxes = gradients(loss, batch)
    assert torch.isfinite(d_logits).all() and d_logits[3:].abs().sum() > 0
    assert (d_logits[:3] == 0).all() and (d_boxes == 0).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("case", ["no rows", "all ignored"])
def test_no_samples(head, case):
    batch = random_batch(head, n=0 if case == "no rows" else 9)
    batch["labels"][:] = -100
    loss = criterion_for(head)(**batch)
    assert loss.classification == 0 and loss.regression == 0
    assert loss.negative_weight == 1 and loss.num_positives == 0
    loss.total.backward()
    for name in ("logits", "box_preds"):
        assert batch[name].grad.shape == batch[name].shape
        assert (batch[name].grad == 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_rows_that_are_not_read_do_not_matter(head):
    batch = random_batch(head, "delta")
    criterion = criterion_for(head, coding="delta")
    ignored = batch["labels"] == -100
    assert ignored.any()
    before = criterion(**batch)
    expected = gradients(before, batch)
    for value in (torch.nan, torch.inf, -torch.inf):
        with torch.no_grad():
            batch["logits"][ignored] = value
            batch["box_preds"][ignored] = value
        after = criterion(**batch)
        torch.testing.assert_close(tuple(after), tuple(before), rtol=0, atol=0)
        got = gradients(after, batch)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert (got[0][ignored] == 0).all() and (got[1][ignored] == 0).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_extreme_finite_logits_stay_finite(head, dtype):
    batch = random_batch(head, dtype=dtype)
    with torch.no_grad():
        batch["logits"][:, 0] = 1e4
        batch["logits"][:, 1] = -1e4
        batch["logits"][::3] *= -1
    loss = criterion_for(head)(**batch)
    assert all(torch.isfinite(x) for x in loss)
    assert all(torch.isfinite(g).all() for g in gradients(loss, batch))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("column", [0, 2, 5])
def test_infinite_logits_never_give_a_finite_wrong_loss(head, value, column):
    """A row is as PyTorch has it in the base loss, and so are its positives in the joint one."""
    batch = random_batch(head)
    del batch["classification_weights"]
    column = min(column, batch["logits"].shape[1] - 1)
    with torch.no_grad():
        batch["logits"][batch["labels"] != -100, column] = value
    labels, logits = batch["labels"], batch["logits"]
    if head[0] == "cross_entropy":
        expected = F.cross_entropy(logits, labels, ignore_index=-100)
    else:
        valid = labels != -100
        one_hot = F.one_hot(labels[valid], 6)[:, :5].to(logits)
        ops = pytest.importorskip("torchvision.ops")
        expected = ops.sigmoid_focal_loss(logits[valid], one_hot, reduction="sum") / valid.sum()
    base = criterion_for(head, weighting="none")(**batch)
    joint = criterion_for(head)(**batch)
    if torch.isfinite(expected):
        torch.testing.assert_close(base.classification, expected)
        assert torch.isfinite(joint.classification)
    elif head[0] == "cross_entropy":
        torch.testing.assert_close(base.classification, expected, equal_nan=True)
    if not torch.isfinite(expected):
        assert not torch.isfinite(base.classification)
        assert not torch.isfinite(joint.classification)


def test_a_row_of_minus_infinities_is_nan_as_in_pytorch():
    batch = random_batch()
    with torch.no_grad():
        batch["logits"][batch["labels"] == 5] = -torch.inf
    assert JointOptimizationLoss(weighting="none")(**batch).classification.isnan()


DEGENERATE = [  # xyxy reads no priors; delta codes of a prior with an extent have one
    (coding, which)
    for coding in CODINGS
    for which in ("box_preds", "target_boxes", "priors")
    if (coding, which) not in (("xyxy", "priors"), ("cxcywh", "priors"), ("delta", "box_preds"))
]


DEGENERATE_CASES = [
    case
    for case in itertools.product(HEADS[1:3], REGRESSIONS, DEGENERATE, [0.0, -3.0])
    if go_together(case[1], case[2][0])
]


@pytest.mark.parametrize(
    ("head", "regression", "coding_which", "extent"), sampled(DEGENERATE_CASES, every=17)
)
def test_degenerate_boxes_score_nothing_and_stay_finite(head, regression, coding_which, extent):
    coding, which = coding_which
    batch = random_batch(head, coding)
    with torch.no_grad():
        if coding == "cxcywh":
            batch[which][:, 2] = extent
        elif which != "box_preds" or coding == "xyxy":
            batch[which][:, 2] = batch[which][:, 0] + extent
        else:  # ltrb: right = -left is no width
            batch[which][:, 2] = -batch[which][:, 0] + extent
    choices = {"regression": regression, "coding": coding}
    loss = criterion_for(head, **choices)(**batch)
    assert all(torch.isfinite(x) for x in loss)
    assert loss.negative_weight == 2  # every score is 0, every weight is lam
    got = gradients(loss, batch)
    assert all(torch.isfinite(g).all() for g in got)

    # No gradient comes from the scores: the same as with constant weights.
    constant = criterion_for(head, **choices, detach_weights=True)(**batch)
    torch.testing.assert_close(got, gradients(constant, batch))


def test_subgradients_at_ties():
    """Identical boxes: half of each side's derivative; L1 of equal numbers: none."""
    box = torch.tensor([[2.0, 3.0, 8.0, 7.0]], dtype=torch.float64)
    batch = {
        "logits": torch.zeros(1, 2, dtype=torch.float64, requires_grad=True),
        "box_preds": box.clone().requires_grad_(),
        "labels": torch.tensor([0]),
        "target_boxes": box,
    }
    torchvision_ops = pytest.importorskip("torchvision.ops")
    preds = box.clone().requires_grad_()
    torchvision_ops.generalized_box_iou_loss(preds, box).sum().backward()
    loss = JointOptimizationLoss("cross_entropy", "giou", weighting="none")(**batch)
    torch.testing.assert_close(gradients(loss, batch, (0, 1))[1], preds.grad)
    loss = JointOptimizationLoss("cross_entropy", "l1", weighting="none")(**batch)
    assert (gradients(loss, batch)[1] == 0).all()


@pytest.mark.parametrize("score", ["nwd", "simd", "dotd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_scores_of_equal_boxes_have_no_gradient(score, dtype):
    """The root of 0 has none, also where centres of equal boxes could differ by rounding."""
    batch = random_batch(n=40, dtype=dtype)
    batch["box_preds"] = batch["target_boxes"].clone().requires_grad_()
    choices = {"location_score": score, "regression": "l1"}
    loss = JointOptimizationLoss("cross_entropy", **choices)(**batch)
    assert loss.regression == 0
    assert (gradients(loss, batch)[1] == 0).all()


@pytest.mark.parametrize(["columns"], sampled([(9,), (80,)], 1))
@pytest.mark.parametrize("scale", [5.0, 100.0, 1e4])
def test_large_float32_logits_lose_no_more_than_pytorch(columns, scale):
    g = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(300, columns, generator=g)).requires_grad_()
    labels = torch.randint(columns, (300,), generator=g)
    box = torch.tensor([[0.0, 0, 4, 4]]).expand(300, 4)

    def error(loss, exact):
        (d,) = torch.autograd.grad(loss, logits)
        return (d.double() - exact).abs().max().item() * 300

    double = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(F.cross_entropy(double, labels), double)
    ours = JointOptimizationLoss(weighting="none")(logits, box, labels, box).classification
    assert error(ours, exact) <= error(F.cross_entropy(logits, labels), exact) + 1e-6


@pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU paths")
def test_minus_infinity_at_the_true_class_has_pytorchs_gradient():
    batch = random_batch(n=4)
    batch["labels"][:] = torch.tensor([0, 1, 5, 5])
    batch["box_preds"] = batch["target_boxes"] = torch.ones(4, 4, dtype=torch.float64)
    del batch["classification_weights"], batch["regression_weights"]
    with torch.no_grad():
        batch["logits"][1, 1] = -torch.inf
    expected = F.cross_entropy(batch["logits"], batch["labels"])
    loss = JointOptimizationLoss(weighting="none")(**batch).classification
    assert loss == expected == torch.inf
    for wanted, got in zip(
        torch.autograd.grad(expected, batch["logits"]),
        torch.autograd.grad(loss, batch["logits"]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_boxes_that_only_touch_do_not_overlap():
    box = torch.tensor([[2.0, 3.0, 8.0, 7.0]], dtype=torch.float64)
    batch = {
        "logits": torch.zeros(1, 2, dtype=torch.float64, requires_grad=True),
        "box_preds": (box + torch.tensor([6.0, 0, 6, 0])).requires_grad_(),
        "labels": torch.tensor([0]),
        "target_boxes": box,
    }
    loss = JointOptimizationLoss("cross_entropy", "iou")(**batch)
    assert loss.negative_weight == 2 and loss.regression == 2
    assert (gradients(loss, batch)[1] == 0).all()


def strided(name: str, t: torch.Tensor) -> torch.Tensor:
    """The same numbers with other strides."""
    if name in ("logits", "box_preds"):
        return t.detach().t().contiguous().t().requires_grad_()
    wide = torch.stack((t, t), -1).flatten(-2) if t.ndim == 1 else torch.cat((t, t), 1)
    return wide[::2] if t.ndim == 1 else wide[:, : t.shape[1]]


@pytest.mark.parametrize("head", HEADS)
def test_strides_do_not_matter(head):
    batch = random_batch(head, "delta", class_specific=True)
    other = {name: strided(name, t) for name, t in batch.items()}
    assert not any(t.is_contiguous() for t in other.values())
    criterion = criterion_for(head, coding="delta")
    a, b = criterion(**batch), criterion(**other)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-14, atol=1e-14)
    got, expected = gradients(a, batch), gradients(b, other)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("head", HEADS[:3])
def test_offsets_beyond_32_bits(head):
    """Rows, and columns, whose offset in elements is beyond 2^31; only their pages get memory."""
    small = random_batch(head, "delta", n=4, seed=2, dtype=torch.float16)
    assert (small["labels"] >= 0).sum() > 2
    far = dict(small)
    n, c = small["logits"].shape
    memory = torch.empty(2**31 + 2**20, dtype=torch.float16)
    far["logits"] = memory.as_strided((n, c), (2**31 // (n - 1), 1))
    far["box_preds"] = memory[2**18 :].as_strided((n, 4), (1, 2**31 // 3))
    for name in ("logits", "box_preds"):
        far[name].copy_(small[name].detach())
        far[name].requires_grad_()
    criterion = criterion_for(head, coding="delta")
    a, b = criterion(**small), criterion(**far)
    torch.testing.assert_close(tuple(b), tuple(a))
    torch.testing.assert_close(gradients(b, far), gradients(a, small))


def test_expanded_inputs():
    row = random_batch(n=1, seed=1)
    row["labels"][:] = 2
    row["box_preds"] = torch.tensor([[1.0, 1, 6, 6]], dtype=torch.float64)
    row["target_boxes"] = torch.tensor([[2.0, 1, 7, 5]], dtype=torch.float64)
    wide = {k: v.detach().expand(6, *v.shape[1:]) for k, v in row.items()}
    full = {k: v.contiguous() for k, v in wide.items()}
    a, b = JointOptimizationLoss()(**wide), JointOptimizationLoss()(**full)
    assert a == b and a.num_positives == 6


@pytest.mark.parametrize("coding", CODINGS)
def test_inputs_are_never_written(coding):
    batch = random_batch(coding=coding, class_specific=True)
    before = copy.deepcopy({k: v.detach() for k, v in batch.items()})
    loss = JointOptimizationLoss("cross_entropy", "giou", coding)(**batch)
    gradients(loss, batch)
    for name, tensor in batch.items():
        torch.testing.assert_close(
            tensor.detach(), before[name], rtol=0, atol=0, equal_nan=True, msg=name
        )


def test_the_same_input_gives_the_same_bits():
    batch = random_batch(n=700, dtype=torch.float32)
    criterion = JointOptimizationLoss("cross_entropy", "giou")
    a, b = criterion(**batch), criterion(**batch)
    assert a == b
    for x, y in zip(gradients(a, batch), gradients(b, batch), strict=True):
        assert torch.equal(x, y)


def test_a_prior_without_extent_scores_nothing_though_its_box_has_one():
    # Sides of -4 pixels and codes of -1 decode to the target itself.
    batch = {
        "logits": torch.zeros(1, 2, dtype=torch.float64, device=DEVICE, requires_grad=True),
        "box_preds": torch.full((1, 4), -1.0, dtype=torch.float64, device=DEVICE),
        "labels": torch.tensor([0], device=DEVICE),
        "target_boxes": torch.tensor([[4.0, 4, 12, 12]], dtype=torch.float64, device=DEVICE),
        "priors": torch.tensor([[10.0, 10, 6, 6]], dtype=torch.float64, device=DEVICE),
    }
    batch["box_preds"].requires_grad_()
    loss = JointOptimizationLoss(coding="ltrb", regression="iou")(**batch)
    assert loss.regression == 0 and loss.negative_weight == 2
    batch["priors"] = torch.tensor([[6.0, 6, 10, 10]], dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        batch["box_preds"].neg_()
    loss = JointOptimizationLoss(coding="ltrb", regression="iou")(**batch)
    assert loss.regression == 0 and loss.negative_weight == 1.5


@pytest.mark.parametrize("logit", [21.0, 25.0, 37.0, -25.0])
def test_focal_loss_is_torchvisions_where_softplus_of_pytorch_is_linear(logit):
    logits = torch.full((2, 1), logit, dtype=torch.float64, device=DEVICE, requires_grad=True)
    labels, box = torch.tensor([0, 1], device=DEVICE), torch.ones(2, 4, device=DEVICE)
    one_hot = (labels == 0).double()[:, None]
    expected = ops.sigmoid_focal_loss(logits, one_hot, reduction="mean")
    loss = JointOptimizationLoss("focal", weighting="none")(logits, box, labels, box)
    for got, wanted in (
        (loss.classification, expected),
        (
            torch.autograd.grad(loss.classification, logits)[0],
            torch.autograd.grad(expected, logits)[0],
        ),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("head", HEADS)
def test_a_nan_logit_leaves_the_base_box_loss_alone(head):
    batch = random_batch(head)
    positive = int(((batch["labels"] != -100) & (batch["labels"] == 2)).nonzero()[0])
    criterion = criterion_for(head, weighting="none")
    (wanted,) = torch.autograd.grad(criterion(**batch).regression, batch["box_preds"])
    with torch.no_grad():
        batch["logits"][positive, 1:] = torch.nan
    loss = criterion(**batch)
    (got,) = torch.autograd.grad(loss.regression, batch["box_preds"])
    assert torch.equal(got, wanted) and loss.classification.isnan()


def test_a_lazily_negated_tensor_counts_as_what_it_says():
    batch = random_batch()
    for name in ("logits", "target_boxes", "regression_weights"):
        other = batch | {name: torch._neg_view(-batch[name].detach()).requires_grad_()}
        assert (other[name].is_neg() and torch.equal(other[name], batch[name])) or name != "logits"
        assert JointOptimizationLoss()(**other) == JointOptimizationLoss()(**batch)


def test_a_tile_of_columns_that_are_all_minus_infinity():
    logits = torch.zeros(2, 1500, dtype=torch.float64, device=DEVICE)
    logits[:, :1100] = -torch.inf
    logits.requires_grad_()
    labels, box = torch.tensor([1200, 1499], device=DEVICE), torch.ones(2, 4, device=DEVICE)
    loss = JointOptimizationLoss(weighting="none")(logits, box, labels, box)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss.classification, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(loss.classification, logits),
        torch.autograd.grad(expected, logits),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


def test_small_probabilities_keep_their_digits():
    """A float32 gradient of 1e-20 is not 0."""
    logits = torch.tensor([[0.0, -45.0, -60.0, -80.0]], device=DEVICE, requires_grad=True)
    labels, box = torch.tensor([3], device=DEVICE), torch.ones(1, 4, device=DEVICE)
    loss = JointOptimizationLoss(weighting="none")(logits, box, labels, box)
    (got,) = torch.autograd.grad(loss.classification, logits)
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    near = 5e-6 if COMPILED else 2e-6  # a GPU's exp2 of a product that is rounded
    torch.testing.assert_close(got[0, 1:3], wanted[0, 1:3], rtol=near, atol=0)


@pytest.mark.parametrize(("code", "moves"), [(0.5, True), (0.75, False)])
def test_the_size_codes_gradient_ends_beyond_the_clip(code, moves):
    """At the clip itself it is PyTorch's clamp's: 1."""
    batch = {
        "logits": torch.zeros(1, 2, dtype=torch.float64, device=DEVICE),
        "box_preds": torch.tensor([[0.0, 0, code, 0]], dtype=torch.float64, device=DEVICE),
        "labels": torch.tensor([0], device=DEVICE),
        "target_boxes": torch.tensor([[0.0, 0, 9, 9]], dtype=torch.float64, device=DEVICE),
        "priors": torch.tensor([[0.0, 0, 8, 8]], dtype=torch.float64, device=DEVICE),
    }
    codes = batch["box_preds"].requires_grad_()
    criterion = JointOptimizationLoss(regression="iou", coding=Delta(clip=0.5), weighting="none")
    (got,) = torch.autograd.grad(criterion(**batch).regression, codes)
    assert (got[0, 2] != 0) == moves
