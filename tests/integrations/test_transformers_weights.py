"""The weighed losses of DETR-type models against Eq. 2 to 4, written out head by head."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

pytest.importorskip("transformers")

from bench.frameworks.tiny_detr import batch, tiny
from jolkernels.integrations.transformers import use_joint_loss

LAYERS, IMAGES, QUERIES, CLASSES = 3, 3, 20, 4
OBJECTS = (5, 0, 1)


def outputs(columns):
    """Logits and boxes of layers; the first queries of an image are near its objects."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(LAYERS, IMAGES, QUERIES, columns, generator=g, dtype=torch.float64)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, generator=g, dtype=torch.float64)
    boxes = 0.1 + 0.3 * boxes
    labels = batch(OBJECTS)["labels"]
    for image, found in enumerate(labels):
        found["boxes"] = found["boxes"].double()
        near = found["boxes"] * (0.9 + 0.2 * torch.rand(LAYERS, 1, 1, generator=g))
        boxes[:, image, : len(found["boxes"])] = near
    return logits.requires_grad_(), boxes.requires_grad_(), labels


def iou(a, b):
    """Of pairs of boxes, as corners [P, 4]."""
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = sides.clamp(min=0).prod(1)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def head_loss(base, logits, boxes, labels, gains, lam, detached):
    """Eq. 2 of one head, its parts with their gains."""
    matches = base.matcher({"logits": logits.detach(), "pred_boxes": boxes.detach()}, labels)
    images = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)])
    queries = torch.cat([q for q, _ in matches])
    pairs = list(zip(labels, matches, strict=True))
    wanted = torch.cat([x["boxes"][found] for x, (_, found) in pairs])
    classes = torch.cat([x["class_labels"][found] for x, (_, found) in pairs])
    softmax = logits.shape[-1] > CLASSES
    scores = logits.softmax(-1) if softmax else logits.sigmoid()
    mine = boxes[images, queries]
    corners = [box_convert(x, "cxcywh", "xyxy") for x in (mine, wanted)]
    s_loc, s_cls = iou(*corners), scores[images, queries, classes]
    w_pos = lam - s_loc * s_cls
    w_pos = w_pos.detach() if detached else w_pos
    weights = w_pos.mean().expand(logits.shape[:2]).index_put((images, queries), w_pos)

    label = torch.full(logits.shape[:2], CLASSES).index_put((images, queries), classes)
    one_hot = F.one_hot(label, CLASSES + 1)[..., :CLASSES].to(logits)
    divisor = float(sum(OBJECTS))
    if softmax:
        of_classes = F.cross_entropy(
            logits.mT, label, weight=base.empty_weight.to(logits), reduction="none"
        )
        divisor = base.empty_weight[label].sum()
    elif hasattr(base, "focal_alpha"):
        of_classes = sigmoid_focal_loss(logits, one_hot, base.focal_alpha, 2).sum(-1)
    else:
        targets = torch.zeros_like(logits).index_put((images, queries, classes), s_loc.detach())
        factors = base.alpha * scores.detach() ** base.gamma * (1 - one_hot) + targets
        of_classes = F.binary_cross_entropy_with_logits(logits, targets, factors, reduction="none")
        of_classes = of_classes.sum(-1)
    giou = generalized_box_iou_loss(*corners, eps=0.0)
    parts = {
        "class": (weights * of_classes).sum() / divisor,
        "bbox": (w_pos * (mine - wanted).abs().sum(1)).sum() / sum(OBJECTS),
        "giou": (w_pos * giou).sum() / sum(OBJECTS),
    }
    return sum(gains[name] * value for name, value in parts.items()), w_pos.mean().detach()


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr"])
def test_weights_and_their_gradient_are_the_papers(name, detached):
    model = use_joint_loss(tiny(name), lam=1.5, detach_weights=detached)
    joint, config = model.loss_function, model.config
    logits, boxes, labels = outputs(CLASSES + (name == "detr"))
    layers = list(zip(logits, boxes, strict=True))
    others = layers[:-1]
    given, more, gains = (logits, boxes), {}, {"class": 1.0}
    if name == "rt_detr":
        encoder = layers[0]
        others = [*others, encoder]
        given = logits.transpose(0, 1), boxes.transpose(0, 1)
        more = {"enc_topk_logits": encoder[0], "enc_topk_bboxes": encoder[1]}
        gains |= {"bbox": config.weight_loss_bbox, "giou": config.weight_loss_giou}
    else:
        gains |= {"bbox": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient}
    heads = [head_loss(joint.base, *x, labels, gains, 1.5, detached) for x in (layers[-1], *others)]
    wanted = sum(loss for loss, _ in heads)
    weights = torch.stack([w_neg for _, w_neg in heads])
    gradients = torch.autograd.grad(wanted, (logits, boxes))

    loss, _, _ = joint(layers[-1][0], labels, logits.device, layers[-1][1], config, *given, **more)
    torch.testing.assert_close(joint.negative_weight, weights)
    assert weights.max() < 1.45  # or nothing is tested
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for got, expected in zip(torch.autograd.grad(loss, (logits, boxes)), gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
