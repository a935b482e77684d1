"""Ultralytics YOLO: from a head's outputs, padding of the targets and assignment included."""

import copy
import os
from typing import Any

import torch

from bench.frameworks.cases import CLASSES, Case, Name, Outputs
from bench.loss.providers import Loss

os.environ.setdefault("YOLO_OFFLINE", "true")  # or the import would look for the network

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils.tal import TaskAlignedAssigner

from jolkernels.integrations.ultralytics import use_joint_loss

IMAGES, SIZE, OBJECTS = 4, 320, 10


def make(name: str) -> Case:
    """The case of a model: four images."""
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml", verbose=False).model.train()
    model.args = get_cfg()
    models = {
        Name.BASE: copy.deepcopy(model),
        Name.OURS: use_joint_loss(copy.deepcopy(model)),
        Name.NONE: use_joint_loss(copy.deepcopy(model), weighting="none"),
    }
    models[Name.BASE].criterion = models[Name.BASE].init_criterion()
    objects = batch()

    def loss(criterion: Any) -> Loss:
        return lambda x: criterion(x.tree, objects)[0].sum()

    with torch.no_grad():
        predictions = model(torch.rand(IMAGES, 3, SIZE, SIZE))
    heads = [predictions[n] for n in ("one2many", "one2one") if n in predictions] or [predictions]
    return Case(
        Outputs(predictions),
        {name: loss(model.criterion) for name, model in models.items()},
        sum(head["scores"][:, 0].numel() for head in heads),
        assigner=((TaskAlignedAssigner, "forward"),),
    )


def batch() -> dict[str, torch.Tensor]:
    """What a data loader has of the images' objects."""
    sizes = 0.03 + 0.2 * torch.rand(IMAGES * OBJECTS, 2)
    centres = sizes / 2 + (1 - sizes) * torch.rand(IMAGES * OBJECTS, 2)
    return {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(OBJECTS).float(),
        "cls": torch.randint(CLASSES, (IMAGES * OBJECTS, 1)).float(),
        "bboxes": torch.cat((centres, sizes), 1),
    }
