"""Which models of which frameworks there are, and what a case is.

A module of a framework's name has `make(model)`, which returns the case of one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bench.loss.cases import Name as OfLoss
from bench.loss.providers import Loss

FRAMEWORKS = {
    "torchvision": ("faster_rcnn", "retinanet", "retinanet_v2", "fcos", "ssd300", "ssdlite"),
    "ultralytics": ("yolov8n", "yolo11n", "yolo26n"),
    "mmdet": ("faster_rcnn", "cascade_rcnn", "retinanet", "fcos", "atss"),
    "transformers": tuple(
        f"{model}-{objects}"
        for objects in (15, 1000)
        for model in ("detr", "deformable_detr", "rt_detr", "d_fine")
    ),
}
CASES = {f"{f}/{model}": (f, model) for f, models in FRAMEWORKS.items() for model in models}
CLASSES = 80


class Name(StrEnum):
    """What tables call a provider: the framework's loss, and JOL of these weightings."""

    BASE = "base"
    OURS = OfLoss.OURS
    NONE = "none"


class Outputs:
    """What a model predicts.

    Args:
        tree: floating tensors and anything else, in lists, tuples and dicts.

    Attributes:
        tree: the same, its floating tensors copied; gradients are for these.
        leaves: these.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree_map(leaf, tree)
        found = (x for x in tree_leaves(self.tree) if isinstance(x, Tensor) and x.requires_grad)
        self.leaves: tuple[Tensor, ...] = tuple(found)


def leaf(x: Any) -> Any:
    """A copy of a floating tensor that takes a gradient; anything else as it is."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().clone().requires_grad_()
    return x


Models = dict[Name, Any]


@dataclass(frozen=True)
class Case:
    """The loss of a batch.

    Attributes:
        outputs: the model's.
        losses: of these, by Name.
        rows, columns: N and C of the batch, all heads together.
        assigner: where the functions are that match objects, the same ones for every loss.
    """

    outputs: Outputs
    losses: dict[Name, Loss]
    rows: int
    columns: int = CLASSES
    assigner: tuple[tuple[Any, str], ...] = ()


def total(losses: Iterable[Any]) -> Tensor:
    """The sum that is trained on; a part may be a list of levels' losses."""
    parts = (sum(loss) if isinstance(loss, list) else loss for loss in losses)
    summed: Any = sum(parts)
    assert isinstance(summed, Tensor)
    return summed


def arguments_of(owner: Any, method: str, run: Callable[[], object]) -> tuple[list[Any], Any]:
    """The arguments, by position and by name, of the last call of a method while `run` runs."""
    found: list[tuple[list[Any], Any]] = []
    inner = getattr(owner, method)

    def seen(*args: Any, **kwargs: Any) -> Any:
        found.append((list(args), kwargs))
        return inner(*args, **kwargs)

    with torch.no_grad(), mock.patch.object(owner, method, seen):
        run()
    return found[-1]
