"""docs/using.md: its examples of the loss run and say what they do, its figures are computed."""

import re
from pathlib import Path

import pytest
import torch
from cases import DEVICE
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_convert

from jolkernels import JointOptimizationLoss
from jolkernels.integrations.matching import match_as

pytestmark = pytest.mark.kernels
TEXT = (Path(__file__).parents[2] / "docs" / "using.md").read_text()
EXAMPLES = [
    block
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S)
    if "JointOptimizationLoss" in block
]


def head(*shape, classes=5):
    """Logits, predicted boxes, labels and target boxes of a head."""
    g = torch.Generator().manual_seed(0)
    corner = 40 * torch.rand(*shape, 2, generator=g)
    targets = torch.cat((corner, corner + 10), -1)
    boxes = targets + torch.randn(*shape, 4, generator=g)
    logits = torch.randn(*shape, classes, generator=g)
    labels = torch.randint(0, classes + 1, shape, generator=g)
    return tuple(t.to(DEVICE) for t in (logits, boxes, labels, targets))


def run(example, **given):
    names = {"torch": torch, "JointOptimizationLoss": JointOptimizationLoss, **given}
    exec(example, names)
    return names["loss"], names["criterion"]


def test_the_example_of_a_yolo_head():
    """Its gradient is that of YOLO's three gains over the sum of the scores."""
    logits, boxes, labels, targets = head(30)
    score = torch.linspace(0, 1, 30, device=DEVICE)
    dfl = torch.rand(30, device=DEVICE)
    for leaf in (logits, boxes, dfl):
        leaf.requires_grad_()
    loss, criterion = run(
        EXAMPLES[0], logits=logits, corners=boxes, labels=labels, targets=targets, score=score,
        dfl=dfl,
    )  # fmt: skip
    weight = criterion.per_sample(logits, boxes, labels, targets, class_targets=score).weight
    expected = torch.where(labels < 5, 1.5 * weight * score / score.sum(), 0)
    torch.testing.assert_close(dfl.grad, expected)
    assert loss.extra_regression > 0 and logits.grad.abs().sum() > 0 and boxes.grad.abs().sum() > 0


@pytest.mark.parametrize("num_boxes", [7.0, torch.tensor([3.0, 4.0, 5.0])])
def test_the_example_of_detrs_heads(num_boxes):
    """A loss for each layer, as if it were called for that."""
    logits, boxes, labels, targets = head(3, 10)
    boxes, targets = (box_convert(b / 64, "xyxy", "cxcywh") for b in (boxes, targets))
    weights = torch.linspace(0.5, 2, 5, device=DEVICE)
    if isinstance(num_boxes, torch.Tensor):
        num_boxes = num_boxes.to(DEVICE)
    for leaf in (logits, boxes):
        leaf.requires_grad_()
    loss, criterion = run(
        EXAMPLES[1], logits=logits, boxes=boxes, labels=labels, targets=targets, weights=weights,
        num_boxes=num_boxes,
    )  # fmt: skip
    assert loss.total.shape == (3,) and logits.grad.abs().sum() > 0 and boxes.grad.abs().sum() > 0
    for layer in range(3):
        number = num_boxes if isinstance(num_boxes, float) else num_boxes[layer]
        alone = criterion(
            logits[layer], boxes[layer], labels[layer], targets[layer], class_weights=weights,
            classification_normalizer=number, regression_normalizer=number,
        )  # fmt: skip
        torch.testing.assert_close(loss.total[layer], alone.total)


class Outputs:
    """A head's outputs by level, in place of its layers."""

    def __init__(self, width, sizes):
        g = torch.Generator().manual_seed(width)
        made = (torch.randn(2, 3 * width, h, w, generator=g) for h, w in sizes)
        self.levels = [x.to(DEVICE).requires_grad_() for x in made]

    def __call__(self, level):
        return self.levels[level]

    def joined(self, width):
        """As torchvision flattens them, [B, M, width]."""
        parts = [x.unflatten(1, (3, width)).permute(0, 3, 4, 1, 2) for x in self.levels]
        return torch.cat([x.reshape(2, -1, width) for x in parts], 1)


def test_the_example_of_a_dense_head():
    """It is the flat loss of torchvision's order, each image over its positives."""
    sizes = (4, 5), (2, 2)
    centres = torch.cat([torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in sizes])
    corners = (8.0 * centres.flip(1))[:, None] + torch.tensor([[0.0, 0], [2, 2], [4, 4]])
    anchors = torch.cat((corners, corners + 10), -1).flatten(0, 1).to(DEVICE)
    targets = [
        {"boxes": anchors[[4, 31]] + 1, "labels": torch.tensor([2, 0], device=DEVICE)},
        {"boxes": anchors[:0], "labels": torch.zeros(0, dtype=torch.int64, device=DEVICE)},
    ]
    classes, deltas = Outputs(5, sizes), Outputs(4, sizes)
    names = {"match_as": match_as, "matcher": Matcher(0.5, 0.4, allow_low_quality_matches=True)}
    loss, criterion = run(
        EXAMPLES[2], classes=classes, deltas=deltas, features=(0, 1), targets=targets,
        anchors=anchors, **names,
    )  # fmt: skip
    assert loss.num_positives >= 2
    grads = [x.grad for x in (*classes.levels, *deltas.levels)]
    matched = torch.stack([match_as(names["matcher"], t["boxes"], anchors) for t in targets])
    labels = targets[0]["labels"][matched[0].clamp(min=0)].where(matched[0] >= 0, 5)
    labels = torch.stack((labels.masked_fill(matched[0] == -2, -100), torch.full_like(labels, 5)))
    weights = 1 / (matched >= 0).sum(1, keepdim=True).clamp(min=1).expand_as(matched)
    flat = criterion(
        classes.joined(5).flatten(0, 1), deltas.joined(4).flatten(0, 1), labels.flatten(),
        targets[0]["boxes"][matched.clamp(min=0)].flatten(0, 1), anchors.repeat(2, 1),
        weights.flatten(), weights.flatten(), 2.0, 2.0,
    )  # fmt: skip
    torch.testing.assert_close(loss[:2], flat[:2])
    wanted = torch.autograd.grad(flat.total, [*classes.levels, *deltas.levels])
    torch.testing.assert_close(grads, list(wanted))


def test_the_example_of_yolos_joined_levels():
    """It is that of a YOLO head, image by image."""
    logits, corners, labels, targets = head(2, 15)
    score = torch.linspace(0, 1, 30, device=DEVICE).view(2, 15)
    given = {"corners": corners, "labels": labels, "targets": targets, "score": score, "dfl": score}
    flat, _ = run(
        EXAMPLES[0], logits=logits.flatten(0, 1).requires_grad_(),
        **{name: x.flatten(0, 1) for name, x in given.items()},
    )  # fmt: skip
    loss, _ = run(EXAMPLES[3], scores=logits.mT.contiguous(), **given)
    torch.testing.assert_close(loss, flat)


def mean_error(criterion, exact, rounded):
    """Of the IoU of predicted boxes, as the loss has it."""
    n = len(exact[0])
    logits, labels = torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64)

    def iou(coded, targets, *priors):
        return criterion.per_sample(logits, coded, labels, targets, *priors).location_score

    return (iou(*rounded) - iou(*exact)).abs().mean().item()


def test_what_half_precision_costs_objects_of_10_pixels():
    g = torch.Generator().manual_seed(0)
    corner = 630 * torch.rand(100_000, 2, generator=g, dtype=torch.float64)
    targets = torch.cat((corner, corner + 10), 1)
    boxes = targets + 4 * torch.rand(targets.shape, generator=g, dtype=torch.float64) - 2
    point = corner.div(8, rounding_mode="floor") * 8 + 4
    priors = torch.cat((point - 4, point + 4), 1)
    sides = torch.cat((point - boxes[:, :2], boxes[:, 2:] - point), 1) / 8
    corners, exact, half = JointOptimizationLoss("bce"), (boxes, targets), torch.bfloat16
    ltrb, distances = JointOptimizationLoss("bce", coding="ltrb"), (sides, targets, priors)
    found = [
        mean_error(corners, exact, (boxes.to(half), targets.to(half))),
        mean_error(corners, exact, (boxes.to(half), targets.float())),
        mean_error(corners, exact, (boxes.half(), targets.half())),
        mean_error(ltrb, distances, (sides.to(half), targets.float(), priors.float())),
    ]
    a, b, c, d = (f"{error:.3f}".removeprefix("0") for error in found)
    text = " ".join(TEXT.split())
    assert f"have a mean error of the IoU of {a} ({b} if" in text
    assert f"float32; {c} in float16)" in text
    assert f"(8 pixels) around the points, is {d} off." in text
