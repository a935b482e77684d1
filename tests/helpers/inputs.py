"""Batches with class_targets, extra_regression, class_weights and groups, alone and together."""

import torch
from cases import DEVICE, random_batch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from jolkernels import JointOptimizationLoss, spec

LABEL = spec.Varifocal(detach=True, positives="label")
YOLO = ("bce", "last"), {"regression": "ciou", "coding": "ltrb"}
RCNN = ("cross_entropy", "first"), {"regression": "smooth_l1", "coding": "delta"}
DETR = ("focal", "last"), {"regression": "sum", "coding": "cxcywh"}
DEIM = ("mal", "last"), {"regression": "siou", "location_score": "giou"}
VFL = ("varifocal", "last"), {"classification": LABEL, "regression": "l1+iou:mode=log"}
CASES = {
    "targets": (*YOLO, ("class_targets",)),
    "extra": (*RCNN, ("extra_regression",)),
    "column weights": (*YOLO, ("class_weights",)),
    "row weights": (*RCNN, ("class_weights",)),
    "groups": (*RCNN, ("groups",)),
    "yolo": (*YOLO, ("class_targets", "extra_regression")),
    "rcnn": (*RCNN, ("extra_regression", "class_weights", "groups")),
    "detr": (*DETR, ("class_targets", "extra_regression", "class_weights", "groups")),
    "deim": (*DEIM, ("class_targets", "class_weights", "groups")),
    "vfl": (*VFL, ("class_targets", "extra_regression", "groups")),
}

FURTHER = ("class_targets", "extra_regression", "class_weights", "groups")
DIFFERENTIABLE = ("logits", "box_preds", "extra_regression")


def with_inputs(batch: dict, *names: str, groups: int = 3, seed: int = 1) -> dict:
    """The batch and these of class_targets, extra_regression, class_weights and groups.

    Class targets and extra box losses of rows that are not positive, which are not read, hold NaN.
    Ignored rows, which count in no group, are of group -7 or 2^40.
    """
    g = torch.Generator().manual_seed(seed)
    n, columns = batch["logits"].shape
    labels = batch["labels"].cpu()
    unread = batch["target_boxes"].isnan().any(1).cpu()
    targets = torch.rand(n, generator=g, dtype=torch.float64)
    targets[::6], targets[1::7] = 0, 1
    extra = 0.2 + torch.randn(n, generator=g, dtype=torch.float64).abs()
    targets[unread] = extra[unread] = torch.nan
    members = torch.randint(0, groups, (n,), generator=g)
    members[labels == -100] = -7
    members[::2][labels[::2] == -100] = 2**40
    weights = 0.3 + 2 * torch.rand(columns, generator=g, dtype=torch.float64)
    made = {
        "class_targets": targets,
        "extra_regression": extra,
        "class_weights": weights,
        "groups": members,
    }
    dtype = batch["logits"].dtype
    added = {
        name: t.to(DEVICE, dtype) if t.is_floating_point() else t.to(DEVICE)
        for name, t in made.items()
        if name in names
    }
    if "extra_regression" in added:
        added["extra_regression"].requires_grad_()
    return batch | added | ({"num_groups": groups} if "groups" in added else {})


def all_gradients(loss, batch: dict, up=(1.3, 0.7)) -> tuple[Tensor, ...]:
    """As `gradients`, for every differentiable input; a group's losses count g + 1 times."""
    times = torch.arange(1, loss[0].numel() + 1, device=loss[0].device).view(loss[0].shape)
    total = (times * (up[0] * loss[0] + up[1] * loss[1])).sum()
    return torch.autograd.grad(total, leaves(batch))


def leaves(batch: dict) -> tuple[Tensor, ...]:
    """What the loss of this batch is differentiated for."""
    return tuple(batch[name] for name in DIFFERENTIABLE if name in batch)


def results(loss, batch: dict) -> tuple[Tensor, ...]:
    """The fields of a loss and its gradients."""
    return *(x.detach() for x in loss), *all_gradients(loss, batch)


def case(name: str, **batch_choices) -> tuple[JointOptimizationLoss, dict]:
    """The loss and a batch of one of CASES."""
    head, choices, inputs = CASES[name]
    given = {"classification": head[0], "background": head[1]} | choices
    batch = random_batch(head, choices.get("coding", "xyxy"), **batch_choices)
    return JointOptimizationLoss(**given), with_inputs(batch, *inputs)


def everything(
    name: str = "focal",
    *,
    n: int = 40,
    num_groups: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = DEVICE,
) -> tuple[JointOptimizationLoss, dict]:
    """A loss with this classification, and a batch with every further input that it takes."""
    names = FURTHER[1:] if name == "cross_entropy" else FURTHER
    batch = random_batch((name, "last"), "delta", n=n, dtype=dtype)
    batch = {
        k: v.detach().to(device).requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v
        for k, v in with_inputs(batch, *names, groups=num_groups).items()
    }
    return JointOptimizationLoss(name, "giou", "delta"), batch


def assert_fake_tensors_see_shapes_and_dtypes(criterion: JointOptimizationLoss, batch: dict):
    """Of the loss and its gradients, as on real tensors."""
    real = criterion(**batch)
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
        loss = criterion(**fake)
        assert [(x.shape, x.dtype) for x in loss] == [(x.shape, x.dtype) for x in real]
        for g, x in zip(all_gradients(loss, fake), leaves(batch), strict=True):
            assert g.shape == x.shape and g.dtype == x.dtype
