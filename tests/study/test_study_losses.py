"""The study's mixtures of losses against their formulas, in rows and in levels."""

import pytest
import torch
import torch.nn.functional as F

from bench.study.losses import LOSSES, Mixed, put_in_place
from bench.study.training import settings_of
from detectors.models.build import joint_head
from detectors.training.loop import make_model
from jolkernels import JointOptimizationLoss

N, C, LAM = 24, 4, 2.0
MIXTURES = [name for name, loss in LOSSES.items() if loss.mix]


def samples():
    """Logits, predicted boxes, labels and target boxes of N rows, six of them positive."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(N, C, generator=random, dtype=torch.float64)
    corners = 20 * torch.rand(2, N, 2, generator=random, dtype=torch.float64)
    sides = 8 + 8 * torch.rand(2, N, 2, generator=random, dtype=torch.float64)
    predicted, target = torch.cat([corners, corners + sides], -1)
    labels = torch.full((N,), C - 1)
    labels[:6] = torch.arange(6) % (C - 1)
    target[:6] = predicted[:6] + torch.rand(6, 4, generator=random, dtype=torch.float64)
    return logits.requires_grad_(), predicted.requires_grad_(), labels, target


def formulas(logits, predicted, labels, target):
    """Class loss and box loss of each mixture and of JOL, by Eq. 2 to 4."""
    positive = labels < C - 1
    low = torch.maximum(predicted[:, :2], target[:, :2])
    high = torch.minimum(predicted[:, 2:], target[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (predicted, target)]
    iou = shared / (sum(areas) - shared)
    l_cls = F.cross_entropy(logits, labels, reduction="none")
    l_box = 1 - iou
    score = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    w = LAM - iou * score
    w_neg = w[positive].mean()

    def loss(w_cls, w_box, negatives):
        cls = (w_cls * l_cls)[positive].sum() + negatives * l_cls[~positive].sum()
        return cls / N, (w_box * l_box)[positive].sum() / N

    one, same = torch.ones_like(w), w_neg.detach().expand(N)
    return {
        "jol": loss(w, w, w_neg),
        "constant": loss(same, same, w_neg.detach()),
        "negatives-at-one": loss(w, w, 1.0),
        "classification-alone": loss(w, one, w_neg),
        "boxes-alone": loss(one, w, 1.0),
    }


def criterion(name, **changes):
    joint = JointOptimizationLoss("cross_entropy", "iou", lam=LAM, **changes)
    return joint if name == "jol" else Mixed(joint, LOSSES[name].mix)


@pytest.mark.parametrize("name", ["jol", *MIXTURES])
def test_rows_have_the_losses_and_gradients_of_the_formula(name):
    given = samples()
    found = criterion(name)(*given)
    wanted = formulas(*given)[name]
    for got, want in zip((found.classification, found.regression), wanted, strict=True):
        torch.testing.assert_close(got, want)
    got, want = (torch.autograd.grad(sum(x), given[:2]) for x in (found[:2], wanted))
    torch.testing.assert_close(got, want)


def test_the_mixtures_differ():
    values = {name: torch.stack(x).tolist() for name, x in formulas(*samples()).items()}
    assert len({tuple(x) for x in values.values()}) == len(values) == 1 + len(MIXTURES)


@pytest.mark.parametrize("name", MIXTURES)
def test_levels_have_the_losses_and_gradients_of_their_rows(name):
    random = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 4, 5, generator=random, dtype=torch.float64).requires_grad_()
    boxes = (10 * torch.rand(2, 4, 4, 5, generator=random, dtype=torch.float64)).requires_grad_()
    matched = torch.randint(-2, 2, (2, 20), generator=random)
    priors = torch.tensor([[x, y, x + 8.0, y + 8.0] for y in range(4) for x in range(5)]).double()
    objects = torch.tensor(
        [[[0.0, 0, 9, 9], [2, 1, 8, 12]], [[1, 1, 7, 7], [3, 0, 12, 8]]]
    ).double()
    classes = torch.tensor([[0, 2], [1, 1]])
    joint = JointOptimizationLoss("focal", "giou", "ltrb")
    loss = Mixed(joint, LOSSES[name].mix)
    normal = dict.fromkeys(("classification_normalizer", "regression_normalizer"), "positives")
    given = dict(priors=priors, matched=list(matched), **normal)
    found = loss.dense([logits], [boxes], list(classes), list(objects), **given)
    labels = classes.gather(1, matched.clamp(min=0))
    labels = labels.where(matched >= 0, 3).where(matched != -2, joint.settings.ignore_index)
    target = objects.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4)).flatten(0, 1)
    rows = [x.flatten(2).mT.flatten(0, 1) for x in (logits, boxes)]
    wanted = loss(*rows, labels.flatten(), target, priors.repeat(2, 1), **normal)
    torch.testing.assert_close(found[:3], wanted[:3])
    got, want = (torch.autograd.grad(sum(x[:2]), (logits, boxes)) for x in (found, wanted))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("detector", ["faster_rcnn", "fcos", "retinanet"])
def test_every_loss_starts_from_the_same_weights(detector, run):
    states = {}
    for name in LOSSES:
        settings = settings_of(run(detector=detector, loss=name), 8, "cpu")
        model = make_model(settings, 3)
        put_in_place(model, LOSSES[name])
        states[name] = model.state_dict()
        assert isinstance(joint_head(model).criterion, Mixed) == (name in MIXTURES)
        weighting = joint_head(model).criterion.settings.weighting
        assert weighting == ("none" if name.startswith("base") else "joint")
        assert settings.clip == (5 if name == "base-clip-5" else 10)
    first = states.pop("base")
    for state in states.values():
        assert list(state) == list(first)
        assert all(torch.equal(state[key], first[key]) for key in first)


def test_settings_of_jol_are_what_their_names_say(run):
    def settings(loss):
        made = make_model(settings_of(run(loss=loss), 8, "cpu"), 3)
        return joint_head(made).criterion.settings

    assert settings("jol").lam == 2 and settings("lam-4").lam == 4
    assert settings("detached").detach_weights and not settings("jol").detach_weights
    assert settings("s-loc-alone").class_score is None and settings("jol").class_score
    assert settings("s-cls-alone").location_score is None
    kinds = [type(settings(x).location_score).__name__ for x in ("jol", "nwd", "simd")]
    assert kinds == ["IoU", "NWD", "SimD"]
