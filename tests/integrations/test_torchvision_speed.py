"""In place in torchvision's detectors: operators of the loss, torch.compile, and whole models."""

import copy
from typing import Any

import pytest
import torch
from launches import launches
from scenes import losses_and_gradients
from torch import Tensor, nn
from torchvision.models import detection, list_models
from torchvision.models.detection.roi_heads import fastrcnn_loss
from zoo import SSDS, batch, joint_part, make

from jolkernels.integrations.torchvision import use_joint_loss

WAITS = {"nonzero", "_local_scalar_dense", "masked_select"}
"""Operators that wait for a GPU."""


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


@pytest.mark.parametrize("kind", SSDS)
def test_an_ssd_launches_less_and_does_not_wait(kind):
    """From the head's outputs to their gradients; tests/models/test_launches.py has RetinaNet's."""
    model = make(kind)
    given: list[Any] = []
    model.compute_loss = lambda *arguments: given.extend(arguments) or {}
    model(*batch(kind, [5, 3]))
    del model.compute_loss
    targets, outputs, *others = given
    outputs = {name: leaf(x) for name, x in outputs.items()}

    def run():
        return sum(model.compute_loss(targets, outputs, *others).values())

    theirs = launches(run)
    use_joint_loss(model)
    ours = launches(run)
    assert ours["ours_forward"] == ours["ours_backward"] == 1
    assert ours.total() <= theirs.total() / 3
    assert not WAITS & ours.keys() and WAITS & theirs.keys()


def test_a_second_stage_launches_less_and_does_not_wait():
    """From the sampled proposals and their objects to the gradients of what is predicted."""
    model = make("faster_rcnn")
    heads = use_joint_loss(model).roi_heads
    given: list[Any] = []
    inner = heads.joint_loss
    heads.joint_loss = lambda *arguments: given.extend(arguments) or inner(*arguments)
    model(*batch("faster_rcnn", [5, 3]))
    logits, deltas, proposals, labels, objects = given
    logits, deltas = leaf(logits), leaf(deltas)

    def stock():
        targets = heads.box_coder.encode(objects, proposals)
        return sum(fastrcnn_loss(logits, deltas, labels, targets))

    ours = launches(lambda: inner(logits, deltas, proposals, labels, objects).total)
    theirs = launches(stock)
    assert ours.total() <= theirs.total() / 3
    assert not WAITS & ours.keys() and WAITS & theirs.keys()


def test_nothing_of_the_stock_loss_is_computed(monkeypatch):
    model = use_joint_loss(make("mask_rcnn"))
    monkeypatch.setattr("torchvision.models.detection.roi_heads.fastrcnn_loss", None)
    monkeypatch.setattr(model.roi_heads.box_coder, "encode", None)
    losses, _ = losses_and_gradients(model, *batch("mask_rcnn", [5, 3]))
    assert losses["loss_mask"] > 0


@pytest.mark.parametrize(
    "kind",
    [
        "ssd",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("faster_rcnn", "retinanet", "fcos")),
    ],
)
def test_compiled_as_far_as_torchvision_compiles(kind):
    """The same losses and gradients, in no more graphs."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    found = []
    for joint in (False, True):
        torch.compiler.reset()
        model = make(kind)
        model = use_joint_loss(model) if joint else model
        eager = copy.deepcopy(model)
        graphs.clear()
        model.compile(backend=count)
        got = losses_and_gradients(model, *batch(kind, [5, 0, 3]))
        found.append(len(graphs))
    want = losses_and_gradients(eager, *batch(kind, [5, 0, 3]))
    for a, b in zip(got, want, strict=True):
        for key, value in b.items():
            if value is not None:
                scale = value.abs().max().item()
                torch.testing.assert_close(a[key], value, rtol=0, atol=1e-9 * scale, msg=key)
    w_neg = joint_part(eager).negative_weight
    torch.testing.assert_close(joint_part(model).negative_weight, w_neg)
    assert 0 < found[1] <= found[0]


SMALL = {"min_size": 96, "max_size": 128}
SAMPLES = SMALL | {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 100}
STOCK = {
    "fasterrcnn_resnet50_fpn": SAMPLES,
    "fasterrcnn_resnet50_fpn_v2": SAMPLES,
    "fasterrcnn_mobilenet_v3_large_fpn": SAMPLES,
    "fasterrcnn_mobilenet_v3_large_320_fpn": SAMPLES,
    "maskrcnn_resnet50_fpn": SAMPLES,
    "maskrcnn_resnet50_fpn_v2": SAMPLES,
    "keypointrcnn_resnet50_fpn": SAMPLES | {"num_keypoints": 4},
    "retinanet_resnet50_fpn": SMALL,
    "retinanet_resnet50_fpn_v2": SMALL,
    "fcos_resnet50_fpn": SMALL,
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_torchvisions_own_models(name):
    """Each that torchvision builds: unweighted its losses and gradients, weighed others."""
    torch.manual_seed(0)
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=4, **STOCK[name]).double()
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    kind = {"mask": "mask_rcnn", "keyp": "keypoint_rcnn", "reti": "retinanet", "fcos": "fcos"}
    given = batch(kind.get(name[:4], "ssd"), [5, 2])
    want = losses_and_gradients(model, *given)
    other = use_joint_loss(copy.deepcopy(model), weighting="none")
    other.zero_grad()
    got = losses_and_gradients(other, *given)
    for a, b in zip(got, want, strict=True):
        for key, value in b.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(a[key], value, rtol=0, atol=1e-6 * scale, msg=key)
    joint, gradients = losses_and_gradients(use_joint_loss(model, lam=2.0), *given)
    assert sum(joint.values()) > sum(want[0].values())
    assert all(g.isfinite().all() for g in gradients.values())


def test_all_that_torchvision_builds_are_tried():
    assert set(STOCK) == set(list_models(detection))
