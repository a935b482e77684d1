"""Box losses of boxes as an untrained head predicts them: torchvision's, whatever their extents."""

import itertools

import pytest
import torch
from cases import DEVICE, ON_KERNELS
from torchvision import ops

from jolkernels import JointOptimizationLoss, reference
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels

TORCHVISION = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}
SIDES = [(3.0, 7.0), (7.0, 3.0), (-2.0, 9.5), (5.0, 4.0), (11.0, 12.0)]  # two of negative extent
TARGETS = [[0.0, 0, 8, 4], [1.0, 2, 5, 11], [9.0, 3, 4, 8], [9.0, 8, 4, 3]]


def predictions(dtype=torch.float64):
    """Each prediction with each target, [100, 4] both."""
    pairs = [
        ((x0, y0, x1, y1), target)
        for (x0, x1), (y0, y1), target in itertools.product(SIDES, SIDES, TARGETS)
    ]
    x, t = (torch.tensor(boxes, dtype=dtype, device=DEVICE) for boxes in zip(*pairs, strict=True))
    return x.requires_grad_(), t


def base_loss(regression, x, t, weights=None):
    """The sum of the box losses, weighted, by this path and by the reference."""
    criterion = JointOptimizationLoss(regression=regression, weighting="none")
    labels = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)
    batch = dict(logits=x.new_zeros(len(x), 2), box_preds=x, labels=labels, target_boxes=t)
    batch |= dict(regression_weights=weights, regression_normalizer="sum")
    expected = reference.joint_optimization_loss(*make_batch(criterion.settings, **batch))
    return criterion(**batch).regression, expected[1]


@pytest.mark.parametrize("regression", TORCHVISION)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_negative_extents_are_torchvisions(regression, dtype):
    x, t = predictions(dtype)
    wanted = TORCHVISION[regression](x, t)
    near = dict(rtol=1e-11, atol=1e-11) if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-5)
    rows = JointOptimizationLoss(regression=regression).per_sample(
        x.new_zeros(len(x), 2), x, torch.zeros(len(x), dtype=torch.int64, device=DEVICE), t
    )
    torch.testing.assert_close(rows.regression, wanted.detach(), **near)
    weights = torch.linspace(0.5, 1.5, len(x), dtype=dtype, device=DEVICE)
    (d_wanted,) = torch.autograd.grad((weights * wanted).sum(), x)
    for loss in base_loss(regression, x, t, weights):
        torch.testing.assert_close(loss, (weights * wanted).sum(), **near)
        (got,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(got, d_wanted, **near)


def test_ciou_of_a_negative_width():
    x, t = (torch.tensor([box], device=DEVICE) for box in ([6.0, 1, 3, 5], [0.0, 0, 8, 4]))
    for loss in base_loss("ciou", x, t):
        assert loss.item() == pytest.approx(1.702, abs=5e-4)


@pytest.mark.parametrize("regression", ["ciou", "eiou", "diou", "giou", "iou"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_paths_agree_on_boxes_of_any_extent(regression, dtype):
    """Also where torchvision gives NaN: zero width and height."""
    x, t = predictions(dtype)
    with torch.no_grad():
        x[::3, 2] = x[::3, 0]
        x[::5, 3] = x[::5, 1]
        t[::7, 2] = t[::7, 0]
    losses = base_loss(regression, x, t)
    near = dict(rtol=1e-11, atol=1e-11) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(*losses, **near)
    got, wanted = (torch.autograd.grad(loss, x)[0] for loss in losses)
    assert torch.isfinite(got).all() and got.abs().sum() > 0
    torch.testing.assert_close(got, wanted, **near)


def negative_box(coding):
    """A batch whose row 2, a positive, has a width of -4 pixels, as rows that do not count have."""
    prior = torch.tensor([[0.0, 0, 8, 8]], device=DEVICE).expand(5, 4)
    boxes = torch.full_like(prior, 0.5) if coding == "ltrb" else prior.clone()
    boxes[[0, 2, 4], 2] = -1.0 if coding == "ltrb" else -4.0
    boxes[1, 0] = torch.nan
    labels = torch.tensor([1, 1, 0, 0, -100], device=DEVICE)
    return dict(logits=prior.new_zeros(5, 2), box_preds=boxes, labels=labels, priors=prior,
                target_boxes=prior)  # fmt: skip


@pytest.mark.parametrize("regression", ["iou", "giou", "eiou"])
@pytest.mark.parametrize("coding", ["ltrb", "xyxy"])
def test_validation_finds_boxes_of_negative_size(coding, regression, monkeypatch):
    criterion = JointOptimizationLoss("cross_entropy", regression, coding)
    batch = negative_box(coding)
    criterion(**batch)  # not looked at
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    with pytest.raises(ValueError, match="at index 2, a box of -4 x 8 pixels, wanted no") as error:
        criterion(**batch)
    assert ("softplus" in str(error.value)) == (coding == "ltrb")
    batch["box_preds"].clamp_(min=0)  # ReLU
    assert criterion(**batch).regression > 0
    JointOptimizationLoss("cross_entropy", "l1", coding)(**negative_box(coding))


def test_validation_does_not_call_shares_of_an_image_pixels(monkeypatch):
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    box = torch.tensor([[0.5, 0.5, -0.25, 0.125]], device=DEVICE)
    labels = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    criterion = JointOptimizationLoss("bce", "giou", "cxcywh")
    match = r"\[0.5, 0.5, -0.25, 0.125\] at index 0, wanted no negative size for GIoU"
    with pytest.raises(ValueError, match=match):
        criterion(box[:, :2], box, labels, box.abs())


def test_validation_reads_the_slot_of_the_label(monkeypatch):
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    batch = negative_box("ltrb")
    batch["box_preds"] = torch.cat((batch["box_preds"].abs(), batch["box_preds"]), 1)
    criterion = JointOptimizationLoss("cross_entropy", "giou", "ltrb")
    criterion(**batch)
    batch["box_preds"] = batch["box_preds"].roll(4, 1)
    with pytest.raises(ValueError, match="at index 2"):
        criterion(**batch)


@pytest.mark.parametrize("regression", ["iou", "giou", "diou", "ciou", "eiou"])
def test_infinite_boxes_are_what_the_reference_says(regression):
    """Tensor operations had NaN for boxes that are apart: 0 times an infinite overlap."""
    sides = [-torch.inf, 0.0, 5.0, torch.inf, torch.nan]
    boxes = torch.tensor(list(itertools.product(sides, repeat=4)), dtype=torch.float64)
    labels, target = torch.zeros(1, dtype=torch.int64), boxes.new_tensor([[0, 0, 6, 6]])
    criterion = JointOptimizationLoss("focal", regression, weighting="none")
    for box in boxes[:: 101 if ON_KERNELS else 1]:
        given = (criterion.settings, boxes.new_zeros(1, 2), box[None], labels, target)
        batch, call = make_batch(*given)
        wanted = reference.joint_optimization_loss(batch, call)[1]
        torch.testing.assert_close(criterion(*given[1:]).regression, wanted, equal_nan=True)
