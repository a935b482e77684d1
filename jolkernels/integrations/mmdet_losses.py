"""What the configs of MMDetection's heads say, as a JointOptimizationLoss.

Losses and coders are recognised by their exact class: what a subclass computes is not known.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from mmdet.models.losses import (
    CrossEntropyLoss,
    DIoULoss,
    FocalLoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder

from jolkernels.integrations.choices import check_choices
from jolkernels.loss import JointOptimizationLoss
from jolkernels.spec import (
    BCE,
    L1,
    L2,
    LTRB,
    Classification,
    CrossEntropy,
    Delta,
    DIoU,
    Focal,
    GIoU,
    IoU,
    Regression,
    SmoothL1,
)

CLIP = math.log(1000 / 16)
"""DeltaXYWHBBoxCoder.decode's limit of log sizes, on both sides."""
BOX_LOSSES: dict[type, Callable[[Any], Regression]] = {
    L1Loss: lambda loss: L1(),
    SmoothL1Loss: lambda loss: SmoothL1(loss.beta),
    MSELoss: lambda loss: L2(),
    IoULoss: lambda loss: IoU(mode=loss.mode),
    GIoULoss: lambda loss: GIoU(),
    DIoULoss: lambda loss: DIoU(),
}
"""Not CIoULoss, EIoULoss and SIoULoss, whose formulas differ from those of jolkernels.spec."""


def criterion_of(head: Any, joint: Mapping[str, Any] | None) -> JointOptimizationLoss:
    """The loss that a head's loss_cls, loss_bbox and bbox_coder are, with the user's choices.

    Args:
        head: has these, and num_classes; reg_decoded_bbox, if its boxes are not always decoded;
            cls_out_channels, if its columns are not always one more than the classes.
        joint: see `Choices`; sync_group may be "world".

    Raises:
        TypeError: a class of loss or coder, or a choice, that is not known; the message names it.
        ValueError: an argument of theirs that cannot be mapped; the message names it.
    """
    choices = dict(joint or {})
    check_choices(choices, "joint")
    if choices.get("sync_group") == "world":  # which a config file can say
        choices["sync_group"] = dist.group.WORLD  # None in a single process
    regression = box_loss(head.loss_bbox)
    decoded = getattr(head, "reg_decoded_bbox", True)
    if decoded == regression.on_codes:
        raise ValueError(
            f"loss_bbox: got {name(head.loss_bbox)} with "
            f"reg_decoded_bbox={decoded}, wanted {not regression.on_codes}"
        )
    classification = class_loss(head.loss_cls)
    columns = getattr(head, "cls_out_channels", head.num_classes + 1)
    wanted = head.num_classes + classification.softmax
    if columns != wanted:  # the background's would be one more class of a sigmoid loss
        raise ValueError(
            f"loss_cls: got {name(head.loss_cls)} as {classification} with {columns} columns, "
            f"wanted {wanted}: num_classes is {head.num_classes}"
        )
    return JointOptimizationLoss(classification, regression, coding_of(head.bbox_coder), **choices)


def coding_of(coder: Any) -> Delta | LTRB:
    """What a coder of MMDetection's decodes."""
    known("bbox_coder", coder, [DeltaXYWHBBoxCoder, DistancePointBBoxCoder])
    if type(coder) is DistancePointBBoxCoder:
        return LTRB()
    require("bbox_coder", coder, means=[0.0] * 4, add_ctr_clamp=False)
    return Delta(tuple(1 / std for std in coder.stds), CLIP, -CLIP)


def class_loss(loss: Any) -> Classification:
    """The classification loss of an object of MMDetection's."""
    known("loss_cls", loss, [CrossEntropyLoss, FocalLoss])
    require("loss_cls", loss, reduction="mean")
    if type(loss) is FocalLoss:
        require("loss_cls", loss, activated=False)
        return Focal(loss.alpha, loss.gamma)
    require("loss_cls", loss, use_mask=False, class_weight=None, ignore_index=None)
    return BCE() if loss.use_sigmoid else CrossEntropy()


def box_loss(loss: Any) -> Regression:
    """The box loss of an object of MMDetection's."""
    known("loss_bbox", loss, BOX_LOSSES)
    require("loss_bbox", loss, reduction="mean")
    if hasattr(loss, "eps"):  # of the IoULoss the least IoU, of the others a part of areas
        require("loss_bbox", loss, eps=1e-6)
    return BOX_LOSSES[type(loss)](loss)


def known(where: str, given: Any, classes: Any) -> None:
    """Raise TypeError unless an object is of one of these classes, and not of a subclass."""
    if type(given) not in classes:
        wanted = ", ".join(c.__name__ for c in classes)
        raise TypeError(f"{where}: got {name(given)}, wanted one of {wanted}")


def require(where: str, given: Any, **arguments: Any) -> None:
    """Raise ValueError unless an object's attributes have these values."""
    for argument, wanted in arguments.items():
        got = getattr(given, argument)
        if isinstance(wanted, list):
            got = list(got)
        if got != wanted:
            raise ValueError(f"{where}: {name(given)}: {argument}: got {got!r}, wanted {wanted!r}")


def name(given: Any) -> str:
    """The name of an object's class."""
    return type(given).__name__
