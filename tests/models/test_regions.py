"""Crowds and regions to ignore are not learned as background."""

import argparse
import copy
from typing import Any

import pytest
import torch
from scenes import QUICK, K, losses_and_gradients, scene, tiny
from torch import Tensor, nn

from detectors.commands.options import add_settings
from detectors.models import DETECTORS, TWO_STAGE, build_detector, joint_head
from detectors.training.settings import TrainSettings, resolve
from detectors.training.step import Stepper
from detectors.utils.distributed import ALONE

SIZE = (96, 128)
HALF = torch.tensor([[64.0, 0, 128, 96]])


def made(name: str, **choices: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(name, K, "base", preset="slim", **choices).train()


def with_regions(targets: list[dict[str, Tensor]], *regions: Tensor) -> list[dict[str, Tensor]]:
    return [{**t, "ignored": r} for t, r in zip(targets, regions, strict=True)]


def samples(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Fills with the labels [N] and priors [N, 4] of each of the model's losses."""
    head, found = joint_head(model), []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append((given[2], given[4]))

    head.dense = False  # one-stage heads then give their loss samples
    for stage in getattr(head, "stages", [head]):
        stage.criterion.register_forward_pre_hook(keep)
    return found


def background(model: nn.Module, name: str, labels: Tensor) -> Tensor:
    return labels == (0 if name in TWO_STAGE else K)


def inside(name: str, priors: Tensor, region: Tensor) -> Tensor:
    """By this test's own words: more than half of a box, the centre of a point."""
    x1, y1, x2, y2 = priors.unbind(1)
    left, top, right, bottom = region.tolist()
    if DETECTORS[name].has_points:
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        return (x > left) & (x < right) & (y > top) & (y < bottom)
    w = (x2.clamp(max=right) - x1.clamp(min=left)).clamp(min=0)
    h = (y2.clamp(max=bottom) - y1.clamp(min=top)).clamp(min=0)
    return w * h / ((x2 - x1) * (y2 - y1)) > 0.5


@pytest.mark.parametrize("name", QUICK)
def test_nothing_in_a_region_is_learned_as_background(name: str) -> None:
    """All positives stay, those in the region too; the switch keeps the old losses."""
    images, targets = scene([6], SIZE)
    marked = with_regions(targets, HALF)
    plain, kept, off = made(name), made(name), made(name, ignore_regions=False)
    seen, seen_with, _ = map(samples, (plain, kept, off))
    losses, _ = losses_and_gradients(plain, images, targets)
    with_region, _ = losses_and_gradients(kept, images, marked)
    old, _ = losses_and_gradients(off, images, marked)
    changed = {"loss_classifier", "loss_objectness"} if name in TWO_STAGE else {"classification"}
    assert all(losses[key] != with_region[key] for key in changed)
    assert all(torch.equal(losses[key], old[key]) for key in losses)
    assert len(seen) == len(seen_with) == (3 if name in ("cascade_rcnn", "detectors") else 1)
    for labels, priors in seen:
        assert (background(plain, name, labels) & inside(name, priors, HALF[0])).any()
    for labels, priors in seen_with:
        negative = background(kept, name, labels)
        assert negative.any() and not (negative & inside(name, priors, HALF[0])).any()
    if name not in TWO_STAGE:
        (labels, priors), (labels_with, _) = seen[0], seen_with[0]
        positive = (labels >= 0) & (labels < K)
        assert (positive & inside(name, priors, HALF[0])).any()
        assert torch.equal(labels[positive], labels_with[positive])
        left = labels_with[~positive]
        assert torch.equal(left == K, ~inside(name, priors[~positive], HALF[0]) & (
            labels[~positive] == K))  # fmt: skip


@pytest.mark.parametrize("assigner", [None, "iou", "rfla"])
def test_anchors_of_an_rpn(assigner: str | None) -> None:
    """Labels of all anchors: -1 in the region where they were 0, else as without it."""
    model = made("faster_rcnn", **({"assigner": assigner} if assigner else {}))
    images, targets = scene([6], SIZE)
    batch, _ = model.transform(images, targets)
    features = list(model.backbone(batch.tensors).values())
    anchors = model.rpn.anchor_generator(batch, features)
    (plain,), _ = model.rpn.assign_targets_to_anchors(anchors, targets)
    (labels,), _ = model.rpn.assign_targets_to_anchors(anchors, with_regions(targets, HALF))
    there = inside("faster_rcnn", anchors[0], HALF[0]) & (plain == 0)
    assert there.any() and (plain == 1).any()
    assert torch.equal(labels, torch.where(there, -1.0, plain))


@pytest.mark.parametrize("name", QUICK)
def test_no_regions_change_no_bit(name: str) -> None:
    images, targets = scene([6, 2], SIZE)
    outside = torch.tensor([[200.0, 200, 300, 300]])
    model = made(name)
    other = copy.deepcopy(model)
    want, want_gradients = losses_and_gradients(model, images, targets)
    marked = with_regions(targets, torch.zeros(0, 4), outside)
    got, gradients = losses_and_gradients(other, images, marked)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert all(torch.equal(gradients[key], want_gradients[key]) for key in gradients)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("retinanet", "slim"),
        ("fcos", "slim"),
        ("faster_rcnn", "slim"),
        ("faster_rcnn", "paper"),
        ("cascade_rcnn", "slim"),
        pytest.param("detectors", "slim", marks=pytest.mark.slow),
    ],
)
def test_an_image_that_is_all_region(name: str, preset: str) -> None:
    """No samples: losses of 0; next to another image, that image's. Every layer has a gradient."""
    images, targets = scene([0, 4], SIZE)
    whole = torch.tensor([[-500.0, -500, 900, 900]])
    model = tiny(name, preset, "base").train()
    losses, gradients = losses_and_gradients(model, images[:1], with_regions(targets[:1], whole))
    assert all(loss == 0 for loss in losses.values())
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, g in gradients.items() if g is not None} == trained
    assert all(gradients[key].isfinite().all() for key in trained)
    marked = with_regions(targets, whole, whole[:0])
    losses, gradients = losses_and_gradients(model, images, marked)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(gradients[key].isfinite().all() for key in trained)


@pytest.mark.parametrize("size", [(96, 128), (1, 300)])
def test_regions_are_resized_as_boxes_are(size: tuple[int, int]) -> None:
    model = made("retinanet", image_size=48)
    box = torch.tensor([[1.0, 0, 40, 1], [10, 0, 20, 1]])
    target = {"boxes": box, "labels": torch.zeros(2).long(), "ignored": box.clone()}
    _, (resized,) = model.transform([torch.rand(3, *size)], [target])
    assert not torch.equal(resized["boxes"], box)
    assert torch.equal(resized["ignored"], resized["boxes"])
    assert torch.equal(target["ignored"], box)
    native = made("retinanet")
    _, (same,) = native.transform([torch.rand(3, *size)], [target])
    assert torch.equal(same["ignored"], box)


def test_regions_of_another_shape_are_named() -> None:
    images, targets = scene([1, 1])
    bad = with_regions(targets, torch.zeros(0, 4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"targets\[1\]\['ignored'\]: got shape \[4\], wanted \["):
        made("fcos")(images, bad)
    made("fcos", ignore_regions=False)(images, bad)


def test_the_switch_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, TrainSettings, ["ignore_regions"])
    for word, value in (("on", True), ("off", False)):
        assert parser.parse_args(["--ignore-regions", word]).ignore_regions is value


def test_regions_reach_the_detector_in_training() -> None:
    """A new run ignores them, one whose file has no such setting did not."""
    given = {"detector": "fcos", "loss": "jol", "preset": "slim", "max_steps": 1}
    settings = resolve(given, 1, None, {})
    assert settings.ignore_regions
    images, targets = scene([3], SIZE)
    batch = (images, [{**targets[0], "ignored": HALF, "image_id": 1}])
    losses = []
    for value in (True, False):
        settings = resolve({**given, "ignore_regions": value}, 1, None, {})
        torch.manual_seed(0)
        model = build_detector("fcos", K, "jol", **settings.model_arguments())
        losses.append(Stepper(model, settings, ALONE)(batch, 1, 0.01).values["total"])
    assert losses[0] < losses[1]
    older = {k: v for k, v in vars(settings).items() if k != "ignore_regions"}
    assert not resolve({}, 1, None, older).ignore_regions
