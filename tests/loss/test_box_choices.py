"""The box losses asked for by name, IoU's modes, sums and codings: by hand, at edges, gradcheck."""

import itertools
import math

import pytest
import torch
from cases import DEVICE, random_batch, sampled
from frozen import frozen
from torchvision import ops

from jolkernels import JointOptimizationLoss, reference, spec
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels

A, B = (0.0, 0, 10, 8), (1.0, 2, 13, 8)  # centres (5, 4), (7, 5); a hull of 13 x 8
APART = (20.0, 30, 24, 33)


def by_row(choice, boxes, targets):
    """Box losses of rows, and their sum's gradient for the boxes."""
    box = torch.tensor(boxes, dtype=torch.float64, device=DEVICE).view(-1, 4).requires_grad_()
    target = torch.tensor(targets, dtype=torch.float64, device=DEVICE).view(-1, 4)
    labels = torch.zeros(len(box), dtype=torch.int64, device=DEVICE)
    criterion = JointOptimizationLoss(regression=choice, weighting="none")
    given = box.new_zeros(len(box), 2), box, labels, target
    loss = criterion(*given, regression_normalizer="sum").regression
    rows = criterion.per_sample(*given).regression
    torch.testing.assert_close(loss.detach(), rows.sum(), rtol=1e-12, atol=1e-12)
    return rows.tolist(), torch.autograd.grad(loss, box)[0]


def intersection_over_union(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def scaled(box, ratio):
    x, y, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    return x - ratio * w / 2, y - ratio * h / 2, x + ratio * w / 2, y + ratio * h / 2


IOU = 54 / 98
OMEGA_W, OMEGA_H = (1 - math.exp(-2 / 12)) ** 4, (1 - math.exp(-2 / 8)) ** 4
LAMBDA = 1 - 2 * math.sin(math.asin(1 / math.sqrt(5)) - math.pi / 4) ** 2
DELTA = 2 - math.exp(-(2 - LAMBDA) * (2 / 13) ** 2) - math.exp(-(2 - LAMBDA) * (1 / 8) ** 2)
WW, HH = 2 * 12**2 / (12**2 + 6**2), 2 * 6**2 / (12**2 + 6**2)  # of the target, 12 x 6
SHAPED = (1 - math.exp(-HH * 2 / 12)) ** 4 + (1 - math.exp(-WW * 2 / 8)) ** 4
NWD = math.exp(-math.sqrt(4 + 1 + (4 + 4) / 4) / 12.7)
INNER = intersection_over_union(scaled(A, 0.7), scaled(B, 0.7))
BY_HAND = {
    spec.IoU(): 1 - IOU,
    spec.IoU("log"): -math.log(IOU),
    spec.IoU("square"): 1 - IOU**2,
    spec.SIoU(): 1 - IOU + (DELTA + OMEGA_W + OMEGA_H) / 2,
    spec.ShapeIoU(): 1 - IOU + 5 / (13**2 + 8**2) + (OMEGA_W + OMEGA_H) / 2,
    spec.ShapeIoU(2): 1 - IOU + (HH * 4 + WW) / (13**2 + 8**2) + SHAPED / 2,
    spec.WIoU(): math.exp(5 / (13**2 + 8**2)) * (1 - IOU),
    spec.NWD(): 1 - NWD,
    spec.NWD(mix=0.3): 0.3 * (1 - NWD) + 0.7 * (1 - IOU),
    spec.Inner(ratio=0.7): 1 - INNER,
    spec.Inner(spec.SIoU(), 0.7): 1 - INNER + (DELTA + OMEGA_W + OMEGA_H) / 2,
    spec.Focaler(low=0.2, high=0.9): 1 - (IOU - 0.2) / 0.7,
    spec.Focaler(spec.SIoU(), 0.2, 0.9): 1 - (IOU - 0.2) / 0.7 + (DELTA + OMEGA_W + OMEGA_H) / 2,
    spec.Sum((5, spec.L1()), (0.5, spec.IoU("log"))): 5 * (1 + 2 + 3 + 0) - 0.5 * math.log(IOU),
    spec.Sum((3, spec.L2()), None): 3 * (1 + 4 + 9),
}


@pytest.mark.parametrize(("choice", "expected"), sampled(list(BY_HAND.items()), every=2), ids=str)
def test_by_hand(choice, expected):
    assert intersection_over_union(A, B) == pytest.approx(IOU)
    (loss,), _ = by_row(choice, A, B)
    assert loss == pytest.approx(expected, rel=1e-8)  # but for eps


def test_nwd_of_the_boxes_that_its_users_quote():
    """Two boxes a pixel apart each way, of 8 and of 4 pixels: the same NWD, unlike the IoU."""
    boxes, targets = [(6.0, 6, 14, 14), (8.0, 8, 12, 12)], [(7.0, 7, 15, 15), (9.0, 9, 13, 13)]
    losses, _ = by_row(spec.NWD(12.8), boxes, targets)
    assert losses == pytest.approx([1 - 0.89540] * 2, abs=5e-6)
    assert by_row("iou", boxes, targets)[0] == pytest.approx([1 - 0.62025, 1 - 0.39130], abs=5e-6)


EVERY = [*BY_HAND, *(spec.CHOICES["regression"][n]() for n in ("giou", "diou", "ciou", "eiou"))]


@pytest.mark.parametrize(("choice",), sampled([(c,) for c in EVERY], every=4), ids=str)
def test_equal_boxes_have_no_loss_and_a_finite_gradient(choice):
    (loss,), gradient = by_row(choice, A, A)
    assert loss == pytest.approx(0, abs=1e-6) and torch.isfinite(gradient).all()


WITHIN = [(1.0, 1, 9, 9), (5.0, 2, 11, 9), (4.0, 2, 10, 8)]


@pytest.mark.parametrize(
    ("choice", "box"), sampled(list(itertools.product(EVERY, WITHIN)), every=10), ids=str
)
def test_one_box_in_the_other_and_centres_on_an_axis_or_together(choice, box):
    (loss,), gradient = by_row(choice, box, (2.0, 1, 12, 9))
    assert math.isfinite(loss) and torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("mode", ["linear", "log", "square"])
def test_boxes_apart_have_the_greatest_iou_loss_and_no_gradient(mode):
    (loss,), gradient = by_row(spec.IoU(mode), A, APART)
    assert loss == pytest.approx(-math.log(1e-6) if mode == "log" else 1.0, rel=1e-12)
    assert (gradient == 0).all()


@pytest.mark.parametrize(("overlap", "moves"), [(1e-5, True), (1e-8, False)])
def test_log_iou_ends_at_a_millionth(overlap, moves):
    (loss,), gradient = by_row("iou:mode=log", (0.0, 0, 1, 1), (1 - overlap, 0, 2 - overlap, 1))
    assert loss == pytest.approx(-math.log(max(overlap / (2 - overlap), 1e-6)), rel=1e-7)
    assert (gradient != 0).any() == moves


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.6, 1.0)])
def test_focaler_beyond_its_range_is_constant(low, high):
    (loss,), gradient = by_row(spec.Focaler(low=low, high=high), A, B)
    assert loss == pytest.approx(0.0 if high == 0.5 else 1.0)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize(
    ("codes", "moves"), [((0.5, -0.25), (True, True)), ((0.75, -0.5), (False, False))]
)
def test_size_codes_are_clamped_on_both_sides(codes, moves):
    """At the clips themselves the gradient is PyTorch's clamp's: 1."""
    box = torch.tensor([[0.0, 0, *codes]], dtype=torch.float64, device=DEVICE).requires_grad_()
    prior = torch.tensor([[0.0, 0, 8, 8]], dtype=torch.float64, device=DEVICE)
    criterion = JointOptimizationLoss(
        regression="iou", coding=spec.Delta(clip=0.5, low_clip=-0.25), weighting="none"
    )
    logits, labels = prior.new_zeros(1, 2), torch.tensor([0], device=DEVICE)
    loss = criterion(logits, box, labels, prior + prior.new_tensor([-2, -2, 1, 1]), prior)
    (got,) = torch.autograd.grad(loss.regression, box)
    assert [(g != 0).item() for g in got[0, 2:]] == list(moves)
    clamped = [4 * math.exp(min(max(c, -0.25), 0.5)) for c in codes]
    w, h = clamped
    decoded = torch.tensor([[4 - w, 4 - h, 4 + w, 4 + h]], dtype=torch.float64)
    iou = ops.box_iou(decoded, torch.tensor([[-2.0, -2, 9, 9]], dtype=torch.float64))
    assert loss.regression.item() == pytest.approx(1 - iou.item(), rel=1e-12)


CORNERS = ["giou", "siou", "shape_iou:scale=1", "wiou", "inner:loss=ciou"]
SCALES = [None, (32.0, 32.0), (640.0, 480.0)]


@pytest.mark.parametrize(
    ("choice", "scale"), sampled(list(itertools.product(CORNERS, SCALES)), every=4)
)
def test_centres_and_sizes_are_corners(choice, scale):
    """Losses of corners, in pixels of 32 x 32: with cxcywh those of the corners it stands for."""
    batch = random_batch(("bce", "last"), "cxcywh")
    sizes = torch.tensor(scale or (1024.0, 1024.0), dtype=torch.float64, device=DEVICE).repeat(2)
    corners = batch | {
        k: ops.box_convert(batch[k] * sizes, "cxcywh", "xyxy")
        for k in ("box_preds", "target_boxes")
    }
    a = JointOptimizationLoss("bce", choice, spec.CXCYWH(scale))(**batch)
    b = JointOptimizationLoss("bce", choice)(**corners)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-12, atol=1e-12)
    inputs = batch["logits"], batch["box_preds"]
    got, wanted = (torch.autograd.grad(x.total, inputs) for x in (a, b))
    positive = (batch["labels"] >= 0) & (batch["labels"] < 5)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got[1][positive], wanted[1][positive], rtol=1e-10, atol=1e-10)


SQUARE = ["diou", "ciou", "eiou", "siou", "shape_iou", "wiou"]


@pytest.mark.parametrize("choice", ["iou:mode=log", "giou", "inner", "focaler:loss=giou", *SQUARE])
def test_losses_of_shares_of_an_image_that_is_not_square(choice):
    """Without the scale those with distances or aspect ratios differ from those in pixels."""
    batch = random_batch(coding="cxcywh")
    losses = [
        JointOptimizationLoss(regression=choice, coding=coding, location_score=score)(**batch)
        for coding in (spec.CXCYWH(), spec.CXCYWH((1600, 800)))
        for score in ("iou", "simd")
    ]
    for a, b in zip(losses[:2], losses[2:], strict=True):
        torch.testing.assert_close(a.negative_weight, b.negative_weight, rtol=1e-12, atol=0)
        same = abs(a.regression.item() - b.regression.item()) < 1e-9
        assert same == (choice not in SQUARE)


@pytest.mark.parametrize("score", ["nwd", "dotd", "simd", "giou"])
def test_scores_see_pixels(score):
    batch = random_batch(coding="cxcywh")
    corners = batch | {
        k: ops.box_convert(batch[k] * 32, "cxcywh", "xyxy") for k in ("box_preds", "target_boxes")
    }
    scale = {"coding": spec.CXCYWH((32, 32)), "regression": "giou"}
    a = JointOptimizationLoss(**scale, location_score=score).per_sample(**batch)
    b = JointOptimizationLoss(regression="giou", location_score=score).per_sample(**corners)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-11, atol=1e-12)


PARAMETERS = [
    {"regression": spec.IoU("log")},
    {"regression": spec.IoU("square"), "coding": "cxcywh"},
    {"regression": spec.ShapeIoU(0.7), "coding": "delta"},
    {"regression": spec.NWD(3.0, 0.4), "coding": "ltrb"},
    {"regression": spec.NWD(3.0), "coding": spec.CXCYWH((32, 24))},
    {"regression": spec.Inner(spec.CIoU(), 1.3)},
    {"regression": spec.Inner(spec.Focaler(spec.ShapeIoU(1), 0.1, 0.8), 0.7), "coding": "ltrb"},
    {"regression": spec.Focaler(spec.EIoU(), 0.1, 0.8), "coding": "delta"},
    {"regression": spec.Sum((0.5, spec.SmoothL1()), (2, spec.WIoU())), "coding": "delta"},
    {"regression": spec.Sum((5, spec.L1()), (2, spec.Inner(spec.SIoU()))), "coding": "cxcywh"},
    {"regression": "giou", "coding": spec.Delta((1, 2, 3, 4), 0.2, -0.1)},
    {"classification": spec.MAL(2.0), "location_score": "giou"},
    {"classification": spec.Varifocal(0.4, 1.5, True)},
    {"classification": spec.Varifocal(0.4, 1.5, False, "label"), "coding": "cxcywh"},
    {"classification": spec.Varifocal(detach=True, positives="label"), "coding": "delta"},
]


def functions(choices, n):
    """Losses and the reference's as functions of logits and box_preds, and these."""
    head = ("mal" if "classification" in choices else "cross_entropy", "last")
    coding = choices.get("coding", "xyxy")
    coding = coding if isinstance(coding, str) else type(coding).__name__.lower()
    batch = random_batch(head, coding, n=n, classes=2, seed=5)
    inputs = batch.pop("logits"), batch.pop("box_preds").detach().nan_to_num(0.5).requires_grad_()
    assert ((batch["labels"] >= 0) & (batch["labels"] < 2)).any()
    criterion = JointOptimizationLoss(**choices)

    def losses(*given):
        return criterion(*given, **batch)[:2]

    def statement(logits, box_preds):
        given = {"logits": logits, "box_preds": box_preds} | batch
        return reference.joint_optimization_loss(*make_batch(criterion.settings, **given))[:2]

    return losses, statement, inputs


@pytest.mark.parametrize(("choices",), sampled([(c,) for c in PARAMETERS], every=3), ids=str)
def test_values_and_gradients_equal_the_reference(choices):
    losses, statement, inputs = functions(choices, 23)
    got, wanted = losses(*inputs), statement(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    a, b = (torch.autograd.grad(x[0] + 0.7 * x[1], inputs) for x in (got, wanted))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(g.abs().sum() > 0 for g in b)


@pytest.mark.parametrize(("choices",), sampled([(c,) for c in PARAMETERS], every=10), ids=str)
def test_gradcheck(choices):
    losses, statement, inputs = functions(choices, 6)
    assert torch.autograd.gradcheck(frozen(losses, statement, inputs), inputs, atol=1e-6)


def test_at_a_limit_the_gradient_passes():
    """In every implementation, whatever torch.clamp does there."""
    big, point = (0.0, 0, 1000, 1000), (500.0, 500, 501, 501)
    _, slope = by_row(spec.IoU("log"), big, point)  # an IoU of 1e-6 in float64
    assert slope.abs().sum() > 0
    _, slope = by_row(spec.Focaler(spec.IoU(), 0.3, 0.36), (0.0, 0, 6, 6), (0.0, 0, 10, 10))
    assert slope.abs().sum() > 0
    for coding, code in ((spec.Delta(clip=0.5), 0.5), (spec.Delta(low_clip=-0.5), -0.5)):
        codes = torch.tensor([[0, 0, code, 0]], dtype=torch.float64, device=DEVICE).requires_grad_()
        prior = codes.new_tensor([[0, 0, 10, 10]])
        labels = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        criterion = JointOptimizationLoss(regression="giou", coding=coding, weighting="none")
        given = codes.new_zeros(1, 2), codes, labels, prior, prior
        stated = reference.joint_optimization_loss(*make_batch(criterion.settings, *given))
        for loss in (criterion(*given).regression, stated[1]):
            (slope,) = torch.autograd.grad(loss, codes)
            assert slope[0, 2].abs() > 0.1
