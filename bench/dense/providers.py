"""What people would use: the levels where they lie, or flattened first, as torchvision's heads do.

The flattened outputs are made float32 where they are less, as under autocast, and the base losses
are torchvision's; that of FCOS without the centreness, which all leave out.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from bench.dense.cases import Case, Name
from bench.dense.inputs import Outputs
from bench.loss.inputs import make_criterion
from bench.loss.providers import Loss, Provider
from jolkernels.integrations.matching import matched_boxes, matched_labels


def permuted(levels: tuple[Tensor, ...], columns: int) -> Tensor:
    """Levels [B, A * C, H, W] as [B, M, C], as torchvision's heads have them; float32 at least."""
    parts = []
    for x in levels:
        n, _, h, w = x.shape
        x = x.view(n, -1, columns, h, w).permute(0, 3, 4, 1, 2)
        parts.append(x.reshape(n, -1, columns))
    flat = torch.cat(parts, 1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def objects(x: Outputs) -> list[dict[str, Tensor]]:
    """The targets as torchvision has them."""
    return [{"labels": y, "boxes": b} for y, b in zip(x.labels, x.targets, strict=True)]


def dense(case: Case) -> Loss:
    """The library's dense entrance."""
    criterion, norm = make_criterion(case.head, "joint"), case.normalizer

    def loss(x: Outputs) -> Tensor:
        return criterion.dense(
            x.logits,
            x.boxes,
            x.labels,
            x.targets,
            priors=x.priors,
            matched=x.matched,
            classification_normalizer=norm,
            regression_normalizer=norm,
        ).total

    return loss


def flat(weighting: str, case: Case) -> Loss:
    """The library's flat entrance as JointRetinaNetHead and JointFCOSHead use it when flattened."""
    criterion = make_criterion(case.head, weighting)

    def loss(x: Outputs) -> Tensor:
        logits, boxes = permuted(x.logits, case.columns), permuted(x.boxes, 4)
        ignore = criterion.settings.ignore_index
        labels = matched_labels(objects(x), x.matched, case.columns, ignore)
        targets = torch.cat(matched_boxes(objects(x), list(x.matched)))
        choices: dict[str, Any] = dict.fromkeys(SUMS, "positives")
        if case.normalizer == "image":
            positives = (x.matched >= 0).sum(1, keepdim=True).clamp(min=1).to(x.priors.dtype)
            weights = (1 / positives).expand_as(x.matched).flatten()
            images = torch.full((), len(x.matched), device=weights.device, dtype=weights.dtype)
            choices = dict.fromkeys(WEIGHTS, weights) | dict.fromkeys(SUMS, images)
        return criterion(
            logits.flatten(0, 1),
            boxes.flatten(0, 1),
            labels.flatten(),
            targets,
            torch.cat([x.priors] * len(x.matched)),
            **choices,
        ).total

    return loss


SUMS = "classification_normalizer", "regression_normalizer"
WEIGHTS = "classification_weights", "regression_weights"


def torchvision(case: Case) -> Loss:
    """torchvision's own losses of the flattened outputs."""
    if case.head.coding == "ltrb":
        return fcos(case)
    head = RetinaNetHead(1, case.anchors, case.columns)

    def loss(x: Outputs) -> Tensor:
        outputs = {
            "cls_logits": permuted(x.logits, case.columns),
            "bbox_regression": permuted(x.boxes, 4),
        }
        priors = [x.priors] * len(x.matched)
        found = head.compute_loss(objects(x), outputs, priors, list(x.matched))
        return found["classification"] + found["bbox_regression"]

    return loss


def fcos(case: Case) -> Loss:
    """FCOSHead.compute_loss but for the centreness."""
    coder: Any = BoxLinearCoder(normalize_by_size=True)

    def loss(x: Outputs) -> Tensor:
        logits, boxes = permuted(x.logits, case.columns), permuted(x.boxes, 4)
        labels, targets = [], []
        for y, b, matched in zip(x.labels, x.targets, x.matched, strict=True):
            of_image = y[matched.clip(min=0)]
            of_image[matched < 0] = -1
            labels.append(of_image)
            targets.append(b[matched.clip(min=0)])
        classes, wanted = torch.stack(labels), torch.stack(targets)
        positive = classes >= 0
        count = max(1, positive.sum().item())
        hot = torch.zeros_like(logits)
        hot[positive, classes[positive]] = 1.0
        l_cls = sigmoid_focal_loss(logits, hot, reduction="sum")
        decoded = coder.decode(boxes, torch.stack([x.priors] * len(x.matched)))
        l_loc = generalized_box_iou_loss(decoded[positive], wanted[positive], reduction="sum")
        return (l_cls + l_loc) / count

    return loss


def compiled(make: Any, case: Case) -> Loss:
    """torch.compile of another."""
    made: Loss = torch.compile(make(case), dynamic=False)
    return made


# Made once: the oracle's results are kept for as long as it is the same function.
joint, base = partial(flat, "joint"), partial(flat, "none")
PROVIDERS = {
    p.name: p
    for p in (
        Provider(Name.DENSE, dense, joint),
        Provider(Name.FLAT, joint, joint),
        Provider(Name.COMPILE_FLAT, partial(compiled, joint), joint),
        Provider(Name.TORCHVISION, torchvision, base),
        Provider(Name.COMPILE_TORCHVISION, partial(compiled, torchvision), base),
    )
}
