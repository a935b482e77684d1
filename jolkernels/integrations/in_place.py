"""The Joint Optimization Loss in a stock detector of torchvision, in place.

The module that computes the boxes' losses (the second stage, the head, an SSD as a whole) changes
its class to one that differs in the loss alone. Its layers, hooks, state dict and mode stay.
"""

from collections.abc import Callable
from typing import Any, TypeVar, Unpack

from torch import nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.ssd import SSD

from jolkernels.integrations.choices import Choices, check_choices
from jolkernels.integrations.fcos import JointFCOSHead, fcos_criterion
from jolkernels.integrations.levels import LevelsInTraining
from jolkernels.integrations.retinanet import JointRetinaNetHead, retinanet_criterion
from jolkernels.integrations.roi_heads import JointRoIHeads, roi_criterion
from jolkernels.integrations.ssd import JointSSD, ssd_criterion
from jolkernels.loss import JointOptimizationLoss
from jolkernels.spec import L1, CIoU, Delta, DIoU, GIoU, Regression, SmoothL1

Model = TypeVar("Model", bound=nn.Module)
JOINT: dict[type[nn.Module], type[nn.Module]] = {
    roi_heads.RoIHeads: JointRoIHeads,
    RetinaNetHead: JointRetinaNetHead,
    FCOSHead: JointFCOSHead,
    SSD: JointSSD,
}
STOCK = {joint: stock for stock, joint in JOINT.items()}
ATTRIBUTES = "negative_weight", "sync_normalizers", "normalizer", "dense", "weigh_boxes"
"""What a joint class may have set on a module, besides the criterion."""
BOX_LOSSES: dict[str, Regression] = {
    "l1": L1(),
    "smooth_l1": SmoothL1(beta=1.0),
    "giou": GIoU(),
    "diou": DIoU(),
    "ciou": CIoU(),
}
"""By RetinaNetRegressionHead's names."""


def use_joint_loss(model: Model, **choices: Unpack[Choices]) -> Model:
    """Train a stock detector of torchvision with the Joint Optimization Loss, in place.

    w⁻ of the last training batch, 0-dim, is then in `negative_weight` of model.roi_heads,
    model.head or, of an SSD, the model.

    Args:
        model: a Faster, Mask or Keypoint R-CNN, a RetinaNet, FCOS, SSD or SSDlite; not wrapped.
        choices: lam, location_score, class_score, weighting, detach_weights and sync_group of
            JointOptimizationLoss. With a sync_group w⁻ is that of all ranks; normalisers stay
            torchvision's, each rank's own.

    Returns:
        The model.

    Raises:
        TypeError: a model that is none of these, or one whose head is not torchvision's.
        ValueError: a model that has a joint loss already, or a loss that cannot be read from it.
    """
    check_choices(choices, "use_joint_loss")
    name, module = find(model)
    check_stock(name, module)
    criterion = CRITERIA[type(module)](module, choices)
    module.__class__ = JOINT[type(module)]
    module.criterion = criterion
    if choices.get("sync_group") is not None:
        module.sync_normalizers = False
    stock = type(model) in (RetinaNet, FCOS) and "compute_loss" not in vars(model)
    if isinstance(module, LevelsInTraining) and not stock:
        module.dense = False  # the model's own code may read the outputs
    return model


def remove_joint_loss(model: Model) -> Model:
    """Undo use_joint_loss: the model is as it was, but for what it has learned.

    Raises:
        TypeError: a model that use_joint_loss does not take.
        ValueError: a model without a joint loss.
    """
    name, module = find(model)
    if type(module) not in STOCK:
        raise ValueError(f"{name}: got {type(module).__name__}, which has no joint loss to remove")
    module.__class__ = STOCK[type(module)]
    del module.criterion
    for attribute in ATTRIBUTES:
        vars(module).pop(attribute, None)
    return model


def find(model: nn.Module) -> tuple[str, Any]:
    """The module that computes the boxes' losses, and its name."""
    if isinstance(model, GeneralizedRCNN):
        return "model.roi_heads", model.roi_heads
    if isinstance(model, RetinaNet | FCOS):
        return "model.head", model.head
    if isinstance(model, SSD):
        return "model", model
    raise TypeError(
        f"model: got {type(model).__name__}, wanted torchvision's Faster, Mask or Keypoint R-CNN, "
        "RetinaNet, FCOS or SSD"
    )


def check_stock(name: str, module: nn.Module) -> None:
    """Raise unless torchvision's own code computes the losses of this module."""
    if isinstance(module, tuple(STOCK)):
        raise ValueError(f"{name}: has a joint loss already: remove_joint_loss(model) comes first")
    if type(module) not in JOINT:
        wanted = ", ".join(stock.__name__ for stock in JOINT)
        raise TypeError(f"{name}: got {type(module).__name__}, wanted one of {wanted} themselves")
    for method in ("forward", "compute_loss", "select_training_samples"):
        if method in vars(module):
            raise ValueError(f"{name}: got a {method} of its own, wanted torchvision's")


def of_roi_heads(heads: Any, choices: Choices) -> JointOptimizationLoss:
    """The loss on the terms of RoIHeads, whose losses are a function of their module."""
    if roi_heads.fastrcnn_loss.__module__ != roi_heads.__name__:
        raise ValueError(
            f"model.roi_heads: got the loss {roi_heads.fastrcnn_loss!r} in {roi_heads.__name__}, "
            "wanted torchvision's fastrcnn_loss"
        )
    return roi_criterion(coding=delta("model.roi_heads", heads.box_coder), **choices)


def of_retinanet(head: Any, choices: Choices) -> JointOptimizationLoss:
    """The loss on the terms of RetinaNet's head, whose parts compute it."""
    parts = {
        "classification_head": RetinaNetClassificationHead,
        "regression_head": RetinaNetRegressionHead,
    }
    for name, stock in parts.items():
        own = getattr(getattr(head, name), "compute_loss", None)
        if getattr(own, "__func__", None) is not stock.compute_loss:
            got, wanted = getattr(own, "__qualname__", own), stock.compute_loss.__qualname__
            raise TypeError(f"model.head.{name}: got the loss {got}, wanted {wanted}")
    part = head.regression_head
    if part._loss_type not in BOX_LOSSES:
        raise ValueError(
            f"model.head.regression_head: got the box loss {part._loss_type!r}, wanted one of "
            f"{', '.join(BOX_LOSSES)}"
        )
    coding = delta("model.head.regression_head", part.box_coder)
    return retinanet_criterion(BOX_LOSSES[part._loss_type], coding=coding, **choices)


def of_fcos(head: Any, choices: Choices) -> JointOptimizationLoss:
    """The loss on the terms of FCOS's head."""
    coder = head.box_coder
    if type(coder) is not BoxLinearCoder or not coder.normalize_by_size:
        raise ValueError(
            f"model.head.box_coder: got {coder!r}, wanted BoxLinearCoder(normalize_by_size=True)"
        )
    return fcos_criterion(**choices)


def of_ssd(model: Any, choices: Choices) -> JointOptimizationLoss:
    """The loss on the terms of an SSD."""
    return ssd_criterion(coding=delta("model", model.box_coder), **choices)


def delta(name: str, coder: Any) -> Delta:
    """torchvision's BoxCoder as a coding."""
    if type(coder) is not BoxCoder:
        raise TypeError(f"{name}.box_coder: got {coder!r}, wanted torchvision's BoxCoder")
    return Delta(weights=coder.weights, clip=coder.bbox_xform_clip)


CRITERIA: dict[type[nn.Module], Callable[[Any, Choices], JointOptimizationLoss]] = {
    roi_heads.RoIHeads: of_roi_heads,
    RetinaNetHead: of_retinanet,
    FCOSHead: of_fcos,
    SSD: of_ssd,
}
