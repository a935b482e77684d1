"""torchvision's detectors: from what their heads' last layers give.

Matching, and a second stage's sampling, come before the loss and are in no figure. Where levels are
flattened, or boxes encoded, for torchvision's own loss alone, that is part of it.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.roi_heads import fastrcnn_loss

from bench.dense.providers import permuted
from bench.frameworks.cases import CLASSES, Case, Models, Name, Outputs, arguments_of, total
from bench.loss.providers import Loss
from jolkernels.integrations.torchvision import use_joint_loss

SIZE, OBJECTS = 320, 20
BUILDERS = {
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
    "retinanet": "retinanet_resnet50_fpn",
    "retinanet_v2": "retinanet_resnet50_fpn_v2",
    "fcos": "fcos_resnet50_fpn",
    "ssd300": "ssd300_vgg16",
    "ssdlite": "ssdlite320_mobilenet_v3_large",
}
COLUMNS = {"cls_logits": CLASSES, "bbox_regression": 4, "bbox_ctrness": 1}


def make(name: str) -> Case:
    """The case of a model: two images."""
    torch.manual_seed(0)
    one_stage = name.startswith(("retinanet", "fcos"))
    resized = {} if name.startswith("ssd") else {"min_size": SIZE, "max_size": SIZE}
    model = getattr(detection, BUILDERS[name])(
        weights=None, weights_backbone=None, num_classes=CLASSES + (not one_stage), **resized
    ).train()
    models = {
        Name.BASE: model,
        Name.OURS: use_joint_loss(copy.deepcopy(model)),
        Name.NONE: use_joint_loss(copy.deepcopy(model), weighting="none"),
    }
    if one_stage:
        return levels(models)
    return ssd(models) if name.startswith("ssd") else second_stage(models)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images, and objects with labels that every model has."""
    corners, sizes = 250 * torch.rand(2, OBJECTS, 2), 10 + 50 * torch.rand(2, OBJECTS, 2)
    boxes = torch.cat((corners, corners + sizes), 2)
    labels = torch.randint(1, CLASSES, (2, OBJECTS))
    targets = [{"boxes": b, "labels": y} for b, y in zip(boxes, labels, strict=True)]
    return list(torch.rand(2, 3, SIZE, SIZE)), targets


def given(models: Models, part: str, method: str) -> tuple[list[Any], Models]:
    """What our model hands to a method of a part, and these parts of all the models."""
    parts = {name: model.get_submodule(part) for name, model in models.items()}
    ours = models[Name.OURS]
    arguments, _ = arguments_of(parts[Name.OURS], method, lambda: ours(*batch()))
    return arguments, parts


def second_stage(models: Models) -> Case:
    """From the predictions for the sampled proposals, with the objects that these matched."""
    (logits, deltas, *sampled), heads = given(models, "roi_heads", "joint_loss")
    proposals, labels, objects = sampled

    def base(x: Outputs) -> Tensor:
        wanted = heads[Name.BASE].box_coder.encode(objects, proposals)
        return total(fastrcnn_loss(*x.tree, labels, wanted))

    def joint(head: Any) -> Loss:
        return lambda x: total(head.joint_loss(*x.tree, *sampled)[:2])

    losses = {name: joint(head) for name, head in heads.items()} | {Name.BASE: base}
    return Case(Outputs([logits, deltas]), losses, len(logits), logits.shape[1])


def levels(models: Models) -> Case:
    """From the levels of a one-stage head, which torchvision flattens."""
    (targets, outputs, anchors, matched), heads = given(models, "head", "compute_loss")

    def loss(head: Any, flat: bool) -> Loss:
        def of(x: Outputs) -> Tensor:
            found = x.tree
            if flat:
                found = {name: permuted(maps, COLUMNS[name]) for name, maps in found.items()}
            return total(head.compute_loss(targets, found, anchors, matched).values())

        return of

    losses = {name: loss(head, name == Name.BASE) for name, head in heads.items()}
    return Case(Outputs(outputs), losses, sum(map(len, matched)))


def ssd(models: Models) -> Case:
    """From an SSD's flattened outputs."""
    (targets, outputs, anchors, matched), parts = given(models, "", "compute_loss")

    def loss(model: Any) -> Loss:
        return lambda x: total(model.compute_loss(targets, x.tree, anchors, matched).values())

    losses = {name: loss(model) for name, model in parts.items()}
    return Case(Outputs(outputs), losses, sum(map(len, matched)), CLASSES + 1)
