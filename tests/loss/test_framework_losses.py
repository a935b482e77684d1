"""With weighting="none" the frameworks' own losses: torch, torchvision, MMDetection, transformers.

Values and gradients in float64. Those of packages that are not installed are skipped; their losses
were run with mmdet 3.3.0 (mmcv-lite 2.1.0) and transformers 5.24.0.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, random_batch
from torchvision import ops

from jolkernels import JointOptimizationLoss, spec

pytestmark = pytest.mark.kernels
SUMS = {"classification_normalizer": "sum", "regression_normalizer": "sum"}


def rows(classification="bce", coding="xyxy"):
    """A batch without weights of rows; which rows count, which are positive, one-hot labels."""
    batch = random_batch((classification, "last"), coding, n=40)
    del batch["classification_weights"], batch["regression_weights"]
    labels = batch["labels"]
    valid, positive = labels != -100, (labels >= 0) & (labels < 5)
    assert positive.sum() > 9 and (valid & ~positive).sum() > 5
    one_hot = F.one_hot(labels.clamp(min=0), 6)[:, :5].double() * valid[:, None]
    return batch, valid, positive, one_hot


def scores(n):
    """Class targets, 0 and 1 among them."""
    g = torch.Generator().manual_seed(1)
    targets = torch.rand(n, generator=g, dtype=torch.float64)
    targets[::5], targets[1::7] = 0, 1
    return targets.to(DEVICE)


def assert_same(got, wanted, inputs, rtol=1e-11, atol=1e-11):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
    a, b = (torch.autograd.grad(x, inputs, materialize_grads=True, allow_unused=True)
            for x in (got, wanted))  # fmt: skip
    assert any(g.abs().sum() > 0 for g in b)
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0)])
def test_focal_with_class_targets_is_torchvisions(alpha, gamma):
    batch, valid, _, one_hot = rows("focal")
    targets = scores(len(valid))
    criterion = JointOptimizationLoss(spec.Focal(alpha, gamma), weighting="none")
    got = criterion(**batch, **SUMS, class_targets=targets).classification
    z, t = batch["logits"][valid], (one_hot * targets[:, None])[valid]
    wanted = ops.sigmoid_focal_loss(z, t, alpha, gamma, reduction="sum")
    assert_same(got, wanted, batch["logits"])


def test_bce_with_class_targets_and_class_weights_is_torchs():
    batch, valid, _, one_hot = rows()
    targets = scores(len(valid))
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64, device=DEVICE)
    criterion = JointOptimizationLoss("bce", weighting="none")
    got = criterion(**batch, **SUMS, class_targets=targets, class_weights=weights).classification
    wanted = F.binary_cross_entropy_with_logits(
        batch["logits"][valid], (one_hot * targets[:, None])[valid], weights, reduction="sum"
    )
    assert_same(got, wanted, batch["logits"])


@pytest.mark.parametrize("alpha", [0.25, 0.0])
def test_mal_with_a_gradient_of_the_modulation_is_ia_bce(alpha):
    """Of LW-DETR and RF-DETR: positives t log p + (1 - t) log(1 - p), others p^2 log(1 - p)."""
    batch, valid, positive, one_hot = rows()
    z, p = batch["logits"], batch["logits"].sigmoid()
    apart = ops.box_iou(batch["box_preds"], batch["target_boxes"]).diagonal().detach()
    t = (p.detach()[one_hot == 1] ** alpha * apart[positive] ** (1 - alpha)).clamp(min=0.01)
    assert (t == 0.01).any() and t.max() > 0.2
    for_positives, for_others = torch.zeros_like(p), p**2
    for_positives[one_hot == 1], for_others[one_hot == 1] = t, 1 - t
    terms = for_positives * F.logsigmoid(z) + for_others * F.logsigmoid(-z)

    targets = torch.full_like(apart, torch.nan)
    targets[positive] = t.sqrt()
    criterion = JointOptimizationLoss(spec.MAL(2, detach=False), weighting="none")
    got = criterion(**batch, **SUMS, class_targets=targets).classification
    assert_same(got, -terms[valid].sum(), z)


@pytest.mark.parametrize("background", ["last", "first"])
@pytest.mark.parametrize("smallest", [0.0, 0.3])
def test_class_weights_with_samples_are_those_of_torchs_mean(background, smallest):
    batch = random_batch(("cross_entropy", background))
    del batch["classification_weights"]
    weights = torch.linspace(smallest, 2, 6, dtype=torch.float64, device=DEVICE)
    criterion = JointOptimizationLoss(weighting="none", background=background)
    got = criterion(**batch, class_weights=weights).classification
    wanted = F.cross_entropy(batch["logits"], batch["labels"], weights, reduction="mean")
    assert_same(got, wanted, batch["logits"])


def test_five_l1_and_two_giou_are_torchs_and_torchvisions():
    batch, _, positive, _ = rows("focal", "cxcywh")
    got = JointOptimizationLoss("focal", "5*l1+2*giou", "cxcywh", weighting="none")(**batch, **SUMS)
    pairs = batch["box_preds"][positive], batch["target_boxes"][positive]
    corners = (ops.box_convert(1024 * b, "cxcywh", "xyxy") for b in pairs)
    wanted = 5 * F.l1_loss(*pairs, reduction="sum")
    wanted = wanted + 2 * ops.generalized_box_iou_loss(*corners, reduction="sum")
    assert_same(got.regression, wanted, batch["box_preds"])


# MMDetection


def mmdet_losses():
    return pytest.importorskip("mmdet.models.losses", exc_type=ImportError)


def test_quality_focal_is_mmdetections():
    losses = mmdet_losses()
    batch, valid, _, _ = rows("quality_focal")
    targets = scores(len(valid))
    criterion = JointOptimizationLoss("quality_focal", weighting="none")
    got = criterion(**batch, **SUMS, class_targets=targets).classification
    theirs = losses.QualityFocalLoss(beta=2.0, reduction="sum")
    wanted = theirs(batch["logits"][valid], (batch["labels"][valid], targets[valid]))
    assert_same(got, wanted, batch["logits"])


def test_varifocal_is_mmdetections():
    losses = mmdet_losses()
    batch, valid, _, one_hot = rows("varifocal")
    targets = scores(len(valid))
    criterion = JointOptimizationLoss("varifocal", weighting="none")
    got = criterion(**batch, **SUMS, class_targets=targets).classification
    theirs = losses.VarifocalLoss(alpha=0.75, gamma=2.0, reduction="sum")
    wanted = theirs(batch["logits"][valid], (one_hot * targets[:, None])[valid])
    assert_same(got, wanted, batch["logits"])


@pytest.mark.parametrize("mode", ["linear", "log", "square"])
def test_iou_modes_are_mmdetections(mode):
    """Its IoU is at least 1e-6 in every mode: linear loses so much where boxes lie apart."""
    losses = mmdet_losses()
    batch, _, positive, _ = rows()
    pairs = batch["box_preds"][positive], batch["target_boxes"][positive]
    apart = (ops.box_iou(*pairs).diagonal() == 0).sum()
    assert 0 < apart < positive.sum()
    got = JointOptimizationLoss("bce", spec.IoU(mode), weighting="none")(**batch, **SUMS)
    wanted = losses.IoULoss(mode=mode, reduction="sum")(*pairs)
    wanted = wanted + {"linear": 1e-6, "log": 0, "square": 1e-12}[mode] * apart
    assert_same(got.regression, wanted, batch["box_preds"])


def test_siou_is_mmdetections_but_for_its_eps():
    mmdet_losses()
    from mmdet.models.losses.iou_loss import siou_loss

    batch, _, positive, _ = rows()
    pairs = batch["box_preds"][positive], batch["target_boxes"][positive]
    wanted = siou_loss(*pairs, neg_gamma=True, reduction="none")
    assert wanted.max() < 2  # beyond which its gradient is 0
    got = JointOptimizationLoss("bce", "siou", weighting="none")(**batch, **SUMS)
    assert_same(got.regression, wanted.sum(), batch["box_preds"], rtol=1e-6, atol=1e-6)


def test_delta_with_both_clips_is_mmdetections():
    mmdet_losses()
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

    batch, _, positive, _ = rows(coding="delta")
    codes = batch["box_preds"].detach().clone()
    codes[:, 2:] *= 60
    batch["box_preds"] = codes.requires_grad_()
    limit, x = math.log(1000 / 16), codes[positive]
    assert (x[:, 2:] / 5 > limit).any() and (x[:, 2:] / 5 < -limit).any()
    coding = spec.Delta((10, 10, 5, 5), low_clip=-limit)
    got = JointOptimizationLoss("bce", "giou", coding, weighting="none")(**batch, **SUMS)
    boxes = delta2bbox(batch["priors"][positive], x, stds=(0.1, 0.1, 0.2, 0.2))
    wanted = ops.generalized_box_iou_loss(boxes, batch["target_boxes"][positive], reduction="sum")
    assert_same(got.regression, wanted, codes)


# transformers


def matched(shift):
    """Logits [6, 4] and boxes of one image, the first two matched, the first off by `shift`."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=g, dtype=torch.float64).requires_grad_()
    boxes = torch.rand(6, 4, generator=g, dtype=torch.float64) * 0.1 + 0.4
    target = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.2, 0.3]], dtype=torch.float64)
    boxes[:2] = target + torch.tensor([[shift, 0, 0, 0], [0.01, 0.02, -0.03, 0.01]])
    boxes.requires_grad_()
    outputs = {"logits": z[None], "pred_boxes": boxes[None]}
    targets = [{"class_labels": torch.tensor([1, 2]), "boxes": target}]
    indices = [(torch.tensor([0, 1]), torch.tensor([0, 1]))]
    ours = {
        "logits": z,
        "box_preds": boxes,
        "labels": torch.tensor([1, 2, 4, 4, 4, 4]),
        "target_boxes": torch.cat((target, torch.full((4, 4), torch.nan, dtype=torch.float64))),
    }
    return (outputs, targets, indices), ours, (z, boxes)


@pytest.mark.skipif(DEVICE != "cpu", reason="their losses are made on the CPU")
@pytest.mark.parametrize("shift", [0.01, 0.6])  # of an IoU near 1, and of 0
def test_varifocal_is_transformers_rt_detrs(shift):
    rt_detr = pytest.importorskip("transformers.loss.loss_rt_detr")
    from transformers import RTDetrConfig

    theirs = rt_detr.RTDetrLoss(RTDetrConfig(num_labels=4))
    given, ours, inputs = matched(shift)
    wanted = theirs.loss_labels_vfl(*given, num_boxes=2)["loss_vfl"]
    choice = spec.Varifocal(theirs.alpha, theirs.gamma, detach=True, positives="label")
    criterion = JointOptimizationLoss(choice, coding="cxcywh", weighting="none")
    assert_same(criterion(**ours, classification_normalizer=2).classification, wanted, inputs)


@pytest.mark.skipif(DEVICE != "cpu", reason="their losses are made on the CPU")
@pytest.mark.parametrize("shift", [0.01, 0.6])  # of a target of 0.01 with the latter
def test_mal_is_transformers_ia_bce(shift):
    module = pytest.importorskip("transformers.loss.loss_lw_detr")
    theirs = module.LwDetrImageLoss(None, 4, focal_alpha=0.25, losses=["labels"], group_detr=1)
    given, ours, inputs = matched(shift)
    wanted = theirs.loss_labels(*given, num_boxes=2)["loss_ce"]
    z, boxes = (x.detach() for x in inputs)
    pairs = (ops.box_convert(b[:2], "cxcywh", "xyxy") for b in (boxes, ours["target_boxes"]))
    iou = ops.box_iou(*pairs).diagonal()
    t = (z[[0, 1], [1, 2]].sigmoid() ** 0.25 * iou**0.75).clamp(min=0.01)
    assert (t == 0.01).any() == (shift > 0.5)
    targets = F.pad(t.sqrt(), (0, 4), value=torch.nan)
    criterion = JointOptimizationLoss("mal:gamma=2,detach=False", coding="cxcywh", weighting="none")
    got = criterion(**ours, class_targets=targets, classification_normalizer=2).classification
    assert_same(got, wanted, inputs, rtol=1e-6, atol=1e-6)  # of float32 boxes


@pytest.mark.skipif(DEVICE != "cpu", reason="their losses are made on the CPU")
@pytest.mark.parametrize("shift", [0.01, 0.6])
def test_a_sum_of_box_losses_is_transformers_detrs(shift):
    module = pytest.importorskip("transformers.loss.loss_for_object_detection")
    theirs = module.ImageLoss(matcher=None, num_classes=4, eos_coef=0.1, losses=["boxes"])
    given, ours, inputs = matched(shift)
    parts = theirs.loss_boxes(*given, num_boxes=2)
    wanted = 5 * parts["loss_bbox"] + 2 * parts["loss_giou"]
    criterion = JointOptimizationLoss("focal", spec.Sum(), "cxcywh", weighting="none")
    assert_same(criterion(**ours, regression_normalizer=2).regression, wanted, inputs)
