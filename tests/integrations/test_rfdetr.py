"""docs/recipes.md: RF-DETR's criterion with JOL."""

import copy

import pytest
import torch
from documents import code

pytest.importorskip("rfdetr")
from rfdetr.config import RFDETRNanoConfig, TrainConfig
from rfdetr.models import build_criterion_from_config

GROUPS, QUERIES, CLASSES = 3, 7, 5


def criterion():
    """As RF-DETR builds it, in float64, with few groups of queries."""
    model = RFDETRNanoConfig(num_classes=CLASSES - 1, pretrain_weights=None)
    made, _ = build_criterion_from_config(model, TrainConfig(dataset_dir="none"))
    made.group_detr = GROUPS
    return made.train()


def joint(base, **choices):
    names = {"module": type("Module", (), {"criterion": copy.deepcopy(base)})}
    for block in code("recipes.md", "python", "## RF-DETR"):
        exec(block, names)
    made = names["module"].criterion
    made.choices = choices
    return made


def batch():
    """The outputs of two decoder layers and the encoder for two images, and the objects."""
    g = torch.Generator().manual_seed(0)

    def layer():
        logits = torch.randn(2, GROUPS * QUERIES, CLASSES, generator=g, dtype=torch.float64)
        boxes = 0.2 + 0.6 * torch.rand(2, GROUPS * QUERIES, 4, generator=g, dtype=torch.float64)
        return {"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}

    outputs = {**layer(), "aux_outputs": [layer()], "enc_outputs": layer()}
    targets = [
        {
            "labels": torch.randint(0, CLASSES, (n,), generator=g),
            "boxes": 0.3 + 0.3 * torch.rand(n, 4, generator=g, dtype=torch.float64),
        }
        for n in (3, 0)
    ]
    return outputs, targets


def total(made, outputs, targets):
    losses = made(outputs, targets)
    gains = made.weight_dict
    loss = sum(losses[name] * gains[name] for name in losses if name in gains)
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    leaves = [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes")]
    return losses, torch.autograd.grad(loss, leaves)


def test_without_weights_it_is_rfdetrs():
    base = criterion()
    wanted, gradients = total(base, *batch())
    got, own = total(joint(base, weighting="none"), *batch())
    torch.testing.assert_close(got, wanted, check_dtype=False, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(own, gradients, rtol=1e-6, atol=1e-9)


def test_weights_are_near_lambda_at_first():
    base = criterion()
    wanted, _ = total(base, *batch())
    got, gradients = total(joint(base, lam=2.0), *batch())
    for name in ("loss_ce", "loss_bbox_0", "loss_giou_enc"):
        assert 1.3 < got[name] / wanted[name] < 2
    assert all(x.isfinite().all() and x.abs().sum() > 0 for x in gradients)


def test_images_without_objects():
    outputs, targets = batch()
    got, _ = total(joint(criterion()), outputs, [targets[1], targets[1]])
    assert all(x.isfinite() for x in got.values()) and got["loss_giou"] == 0
