"""The Joint Optimization Loss in torchvision's detectors, in place."""

import copy
import pickle

import pytest
import torch
from scenes import K, losses_and_gradients
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou
from zoo import R_CNNS, ZOO, batch, joint_part, make

from jolkernels import JointLoss, JointOptimizationLoss
from jolkernels.integrations.torchvision import (
    JointRoIHeads,
    remove_joint_loss,
    roi_criterion,
    ssd_criterion,
    use_joint_loss,
)
from jolkernels.spec import NWD

BOXES = {"loss_classifier", "loss_box_reg", "classification", "bbox_regression"}
"""The losses that are weighed."""


def step(model, kind, objects=(5, 0, 3)):
    """Losses and gradients; batch norms keep their statistics."""
    model.zero_grad()
    state = copy.deepcopy(model.state_dict())
    losses, gradients = losses_and_gradients(model, *batch(kind, list(objects)))
    model.load_state_dict(state)
    return losses, gradients


def assert_same(got, want, tolerance=0.0):
    """Of losses and gradients; a gradient that is missing counts as 0."""
    for found, wanted in zip(got, want, strict=True):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            value, other = (
                torch.zeros(()) if x is None else x.detach() for x in (value, found[key])
            )
            limit = tolerance * value.abs().max().item()
            torch.testing.assert_close(other, value, rtol=0, atol=limit, msg=key)


@pytest.mark.parametrize("objects", [(5, 0, 3), (4, 1), (0, 0)])
@pytest.mark.parametrize("kind", ZOO)
def test_unweighted_it_is_torchvisions(kind, objects):
    """Values of all losses and gradients of all parameters."""
    model = make(kind)
    want = step(model, kind, objects)
    if any(objects):
        assert all(loss > 0 for loss in want[0].values())
        moved = [g.any().item() for g in want[1].values() if g is not None]
        assert sum(moved) >= len(moved) / 3
    assert_same(step(use_joint_loss(model, weighting="none"), kind, objects), want, 1e-9)
    assert joint_part(model).negative_weight == 1


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_retinanets_box_losses_are_read(kind):
    model = make("retinanet")
    model.head.regression_head._loss_type = kind
    want = step(model, "retinanet")
    # the eps of torchvision's losses of boxes
    assert_same(step(use_joint_loss(model, weighting="none"), "retinanet"), want, 1e-6)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "ssd"])
def test_coders_are_read(kind):
    model = make(kind)
    part = joint_part(model)
    coder = part.regression_head.box_coder if kind == "retinanet" else part.box_coder
    coder.weights, coder.bbox_xform_clip = (3.0, 4.0, 5.0, 6.0), 1.5
    want = step(model, kind)
    use_joint_loss(model, weighting="none")
    assert_same(step(model, kind), want, 1e-9)
    assert part.criterion.settings.coding.clip == 1.5


class EveryOther(Matcher):
    """A matcher of a user's own: every other prior is background, and some are ignored."""

    def __call__(self, similarities):
        matches = super().__call__(similarities)
        matches[::2], matches[1::8] = self.BELOW_LOW_THRESHOLD, self.BETWEEN_THRESHOLDS
        return matches


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "ssd"])
def test_matchers_are_the_models(kind):
    model = make(kind)
    plain = step(model, kind)[0]
    part = model.roi_heads if kind == "faster_rcnn" else model
    part.proposal_matcher = EveryOther(0.5, 0.4, kind != "faster_rcnn")
    if kind == "faster_rcnn":
        part.box_similarity = lambda boxes, priors: box_iou(boxes, priors).sqrt()
    want = step(model, kind)
    assert all(want[0][key] != plain[key] for key in BOXES & plain.keys())
    assert_same(step(use_joint_loss(model, weighting="none"), kind), want, 1e-9)


@pytest.mark.parametrize("kind", ZOO)
def test_the_boxes_losses_alone_are_weighed(kind, monkeypatch):
    """In one call, whose w- is the mean over the positives of all images."""
    calls: list[JointLoss] = []

    def watch(name):
        inner = getattr(JointOptimizationLoss, name)

        def watched(self, *given, **named):
            loss = inner(self, *given, **named)
            if self.settings.weighted:  # not FCOS's centreness
                calls.append(loss)
            return loss

        monkeypatch.setattr(JointOptimizationLoss, name, watched)

    watch("forward")
    watch("dense")
    model = make(kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # which joins the images
            module.eval()
    base, _ = step(model, kind)
    use_joint_loss(model, lam=2.5)
    found, _ = step(model, kind)
    assert {key for key in base if found[key] != base[key]} == BOXES & base.keys()
    whole = joint_part(model).negative_weight
    assert len(calls) == 1 and whole.shape == () and not whole.requires_grad
    images, targets = batch(kind, [5, 0, 3])
    for image, target in zip(images, targets, strict=True):
        torch.manual_seed(3)
        model([image], [target])
    _, *each = calls
    positives = torch.stack([x.num_positives for x in each]).double()
    weights = torch.stack([x.negative_weight for x in each])
    assert calls[0].num_positives == positives.sum() and positives[0] > 0 and positives[2] > 0
    torch.testing.assert_close(whole, (positives * weights).sum() / positives.sum())
    assert 1.5 < whole < 2.5 and weights[0] != weights[2]


@pytest.mark.parametrize("kind", ZOO)
def test_it_trains(kind):
    model = use_joint_loss(make(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(4):
        losses, _ = losses_and_gradients(model, *batch(kind, [4, 2]))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        totals.append(sum(losses[key].item() for key in BOXES & losses.keys()))
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("kind", ZOO)
def test_nothing_else_changes_and_removal_leaves_nothing(kind):
    """Parameters, hooks, modes and results of inference; after removal every bit."""
    model = make(kind)
    part = joint_part(model)
    next(part.children()).eval()
    seen = []
    part.register_forward_pre_hook(lambda *given: seen.append(given))
    want = step(model, kind)
    images = batch(kind, [2, 3])[0]
    modes = [module.training for module in model.modules()]
    attributes = {key: type(value) for key, value in vars(part).items()}
    state = model.state_dict(keep_vars=True)

    assert use_joint_loss(model) is model and joint_part(model) is part
    assert part.negative_weight is None
    kept = model.state_dict(keep_vars=True)
    assert list(kept) == list(state) and all(kept[key] is state[key] for key in state)
    assert [m.training for m in model.modules() if m is not part.criterion] == modes
    step(model, kind)
    assert len(seen) == 2
    with torch.no_grad():
        found = model.eval()(images)
    assert remove_joint_loss(model) is model
    with torch.no_grad():
        wanted = model(images)
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys() and len(b["boxes"])
        assert all(torch.equal(a[key], b[key]) for key in b)

    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert_same(step(model, kind), want)
    assert {key: type(value) for key, value in vars(part).items()} == attributes
    assert type(part).__module__.startswith("torchvision.")


@pytest.mark.parametrize("kind", ZOO)
def test_copies_and_pickles_train_as_well(kind):
    model = use_joint_loss(make(kind), lam=1.5)
    before = copy.deepcopy(model)
    want = step(model, kind)
    for other in (before, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(step(other, kind), want)
        remove_joint_loss(other)
    assert joint_part(model).criterion.settings.lam == 1.5  # theirs was removed, not this one's


def test_choices_are_the_losses():
    choices = {"lam": 3.0, "location_score": "nwd", "class_score": None, "detach_weights": True}
    for kind in ZOO:
        settings = joint_part(use_joint_loss(make(kind), **choices)).criterion.settings
        assert (settings.lam, settings.class_score, settings.detach_weights) == (3.0, None, True)
        assert settings.location_score == NWD()


@pytest.mark.parametrize("kind", ZOO)
def test_under_autocast_losses_and_detections_are_float32(kind):
    """Near to torchvision's, which rounds an R-CNN's objects to bfloat16 as well."""
    model = make(kind).float()
    images, targets = batch(kind, [5, 3])
    images = [image.float() for image in images]
    targets = [target | {"boxes": target["boxes"].float()} for target in targets]
    with torch.autocast("cpu", torch.bfloat16):
        want, _ = losses_and_gradients(model, images, targets)
        got, _ = losses_and_gradients(use_joint_loss(model, weighting="none"), images, targets)
        with torch.no_grad():
            found = model.eval()(images)[0]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert len(found["boxes"]) and not torch.equal(
        found["boxes"], found["boxes"].bfloat16().float()
    )
    limit = 0.2 if kind in R_CNNS else 0.02
    for key in BOXES & want.keys():
        assert got[key].dtype == torch.float32
        assert got[key].item() == pytest.approx(want[key].item(), rel=limit), key


def test_a_head_that_was_replaced_can_be_removed():
    model = make("mask_rcnn")
    want = step(model, "mask_rcnn")
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, roi_criterion(weighting="none"))
    assert_same(step(model, "mask_rcnn"), want, 1e-9)
    assert_same(step(remove_joint_loss(model), "mask_rcnn"), want)


def test_heads_that_are_replaced_keep_their_settings_parts_and_mode():
    heads = make("mask_rcnn").roi_heads.eval()
    heads.proposal_matcher = EveryOther(0.6, 0.3, True)
    heads.fg_bg_sampler = BalancedPositiveNegativeSampler(32, 0.5)
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.1, 0.2, 7
    made = JointRoIHeads.from_roi_heads(heads, roi_criterion())
    parts, settings = (dict(made.named_children()), vars(made))
    assert parts.pop("criterion") and parts == dict(heads.named_children())
    for name, value in vars(heads).items():
        if not name.startswith("_"):
            assert settings[name] is value, name


def test_objects_may_have_another_dtype():
    model = make("faster_rcnn").float()
    images, targets = batch("faster_rcnn", [5, 3])  # boxes in float64
    images = [image.float() for image in images]
    want = losses_and_gradients(model, images, targets)[0]
    got = losses_and_gradients(use_joint_loss(model, weighting="none"), images, targets)[0]
    torch.testing.assert_close(got, want)


def test_criteria_are_torchvisions_where_nothing_is_said():
    for kind, criterion in (("faster_rcnn", roi_criterion()), ("ssd", ssd_criterion())):
        assert criterion.settings.coding.weights == joint_part(make(kind)).box_coder.weights


def test_a_box_for_all_classes_is_trained():
    """torchvision's own loss knows boxes of each class alone."""
    model = make("faster_rcnn")
    model.roi_heads.box_predictor.bbox_pred = nn.Linear(32, 4).double()
    losses, gradients = step(use_joint_loss(model), "faster_rcnn")
    assert losses["loss_box_reg"] > 0 and gradients["roi_heads.box_predictor.bbox_pred.bias"].any()
    with torch.no_grad():
        assert len(model.eval()(batch("faster_rcnn", [2])[0])[0]["boxes"])


class Subclass(RetinaNet):
    """A model that reads the flattened outputs in training."""

    def compute_loss(self, targets, head_outputs, anchors):
        assert head_outputs["cls_logits"].shape[2] == K
        return super().compute_loss(targets, head_outputs, anchors)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_compute_loss_of_a_models_own_gets_torchvisions_outputs(kind):
    model = make(kind)
    inner = model.compute_loss

    def outer(targets, outputs, *others):
        assert outputs["cls_logits"].shape[2] == K
        return inner(targets, outputs, *others)

    model.compute_loss = outer
    want = step(model, kind)
    assert_same(step(use_joint_loss(model, weighting="none"), kind), want, 1e-9)


def test_a_subclass_of_a_model_gets_torchvisions_outputs():
    model = make("retinanet")
    want = step(use_joint_loss(model), "retinanet")
    assert model.head.dense
    remove_joint_loss(model).__class__ = Subclass
    assert_same(step(use_joint_loss(model), "retinanet"), want, 1e-9)
