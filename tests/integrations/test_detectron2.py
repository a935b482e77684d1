"""docs/recipes.md: Detectron2's Faster R-CNN with JOL."""

import copy

import pytest
import torch
from documents import code

pytest.importorskip("detectron2")
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


def model(beta, agnostic):
    """Faster R-CNN on a small image, with one level of a small ResNet."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = beta
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.5
    cfg.INPUT.FORMAT = "RGB"
    torch.manual_seed(0)
    return build_model(cfg).train()


def joint(base, **choices):
    names = {"model": copy.deepcopy(base)}
    for block in code("recipes.md", "python", "## Detectron2"):
        exec(block, names)
    names["model"].roi_heads.box_predictor.choices = choices
    return names["model"]


def batch():
    """Two images, the second without objects."""
    g = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[4.0, 4, 30, 28], [20, 30, 60, 60]])
    objects = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 2]))
    none = Instances(
        (64, 64), gt_boxes=Boxes(boxes[:0]), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    images = 255 * torch.rand(2, 3, 64, 64, generator=g)
    return [
        {"image": image, "height": 64, "width": 64, "instances": x}
        for image, x in zip(images, (objects, none), strict=True)
    ]


def gradients(made):
    torch.manual_seed(1)  # samplers draw
    with EventStorage():
        losses = made(batch())
    wanted = [p for p in made.parameters() if p.requires_grad]
    return losses, torch.autograd.grad(sum(losses.values()), wanted)


@pytest.mark.parametrize(("beta", "agnostic"), [(0.0, False), (0.5, True)])
def test_without_weights_it_is_detectron2s(beta, agnostic):
    base = model(beta, agnostic)
    wanted, expected = gradients(base)
    got, own = gradients(joint(base, weighting="none"))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
    largest = max(x.abs().max() for x in expected)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6 * float(largest))


def test_it_trains():
    made = joint(model(0.0, False))
    optimizer = torch.optim.SGD(made.roi_heads.parameters(), lr=0.02)
    totals = []
    for _ in range(8):
        torch.manual_seed(1)
        with EventStorage() as log:
            losses = made(batch())
        totals.append(float((losses["loss_cls"] + losses["loss_box_reg"]).detach()))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0]
    assert 1 <= log.latest()["fast_rcnn/negative_weight"][0] <= 2
