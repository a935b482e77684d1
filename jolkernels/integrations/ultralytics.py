"""Ultralytics YOLO, trained with a JointOptimizationLoss.

Their criterion is called, never copied: it pads the targets, decodes and assigns as ever, but its
class and box losses are left out, and one call of JOL a head computes both in their place.

Letters: B images, A anchors of an image over all levels, K classes, R bins of a side, P positives.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from jolkernels.integrations.choices import Choices, check_choices, missing
from jolkernels.integrations.levels import at_least_float32
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import CIoU, Sum

OLDEST = "8.4.110"
"""The oldest version that the tests ran with."""

try:
    from ultralytics import __version__
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn.tasks import BaseModel
    from ultralytics.utils import LOGGER, RANK
    from ultralytics.utils.loss import BboxLoss, v8DetectionLoss
    from ultralytics.utils.tal import bbox2dist
    from ultralytics.utils.torch_utils import unwrap_model
except ImportError as error:
    raise missing(__name__, "ultralytics") from error


def joint_loss(**choices: Unpack[Choices]) -> Callable[[Any], None]:
    """The callback that trains a YOLO model with JOL.

        model.add_callback("on_train_start", joint_loss(lam=2.0))

    Args:
        choices: as for `use_joint_loss`.

    Raises:
        TypeError: a name that is no choice.
        ValueError: a choice that JointOptimizationLoss refuses.
    """
    check_choices(choices, "joint_loss")
    JointOptimizationLoss("bce", "ciou", **choices)  # refuses a choice now, not in the training
    return partial(on_train_start, choices=choices)


def on_train_start(trainer: Any, choices: Choices) -> None:
    """Give the loss to the model in training and to its average, whose losses are "val/..."."""
    use_joint_loss(unwrap_model(trainer.model), **choices)
    if trainer.ema is not None:
        # Ranks validate on their own, in some versions the first alone: nothing to wait for.
        use_joint_loss(trainer.ema.ema, **choices | {"sync_group": None})
    if RANK in (-1, 0):
        given = ", ".join(f"{name}={value}" for name, value in choices.items()) or "defaults"
        LOGGER.info(f"Joint Optimization Loss ({given}) in train/ and, of the EMA model, in val/")


class JointTrainer(DetectionTrainer):
    """Their trainer of detectors, with JOL: model.train(trainer=JointTrainer, data=...).

    A subclass makes other choices:

        class MyTrainer(JointTrainer):
            choices = {"lam": 1.5}
    """

    choices: ClassVar[Choices] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback("on_train_start", joint_loss(**self.choices))


def use_joint_loss(model: Any, **choices: Unpack[Choices]) -> nn.Module:
    """Train a detection, segmentation or pose model of theirs with JOL, in place.

    The criterion that it has, as after a resume, keeps its state; a model without one gets its own.
    Gains, DFL or L1, class weights and normaliser are the criterion's, and so are the losses of
    masks and keypoints.

    Args:
        model: the nn.Module that is trained. YOLO.train makes a new one: use `joint_loss` there.
        choices: arguments of JointOptimizationLoss: lam, location_score, class_score, weighting,
            detach_weights, sync_group. sync_group is for w⁻; the normaliser is the rank's own.

    Returns:
        The model. model.criterion, or its one2many and one2one, has `negative_weight`: w⁻ of the
        last batch, 0-dim and without gradient; None before.

    Raises:
        TypeError: a name that is no choice, a model (as the YOLO around one) or a criterion of
            another kind; the message names it.
        ValueError: a choice that JointOptimizationLoss refuses.
    """
    check_choices(choices, "use_joint_loss")
    check_model(model)
    criterion = getattr(model, "criterion", None) or model.init_criterion()
    for head in heads(criterion):
        take_back(head)
        # CIoU is BboxLoss's; the sum has its gain.
        boxes = Sum((head.hyp.box, CIoU()), None)
        joint = JointHead(head, JointOptimizationLoss("bce", boxes, **choices))
        head.get_assigned_targets_and_loss = joint.get_assigned_targets_and_loss
        head.loss, head.negative_weight = joint.loss, None
    model.criterion = criterion
    return model


def remove_joint_loss(model: Any) -> nn.Module:
    """Give a model its own loss back, in place; the criterion stays.

    Raises:
        TypeError: a model that use_joint_loss does not take.
        ValueError: a model without a joint loss.
    """
    check_model(model)
    criterion = getattr(model, "criterion", None)
    found = heads(criterion) if criterion else []
    if not any("negative_weight" in vars(head) for head in found):
        raise ValueError(f"model: got {type(model).__name__} without a loss of use_joint_loss")
    for head in found:
        take_back(head)
    return model


def check_model(model: Any) -> None:
    """Raise unless it is the model that is trained: another would keep the criterion to itself."""
    if not isinstance(model, BaseModel):
        raise TypeError(
            f"model: got {type(model).__name__}, wanted the nn.Module that is trained, such as "
            "YOLO(...).model, not wrapped"
        )


def take_back(head: Any) -> None:
    """Remove what `use_joint_loss` gave a head's criterion, hiding the methods of its class."""
    for name in ("get_assigned_targets_and_loss", "loss", "negative_weight"):
        vars(head).pop(name, None)


def heads(criterion: Any) -> list[Any]:
    """The criteria of a model's heads: one2many and one2one of the criterion, or itself.

    Raises:
        TypeError: one is no v8DetectionLoss, or an old one, or has other box or class losses.
    """
    names = ("one2many", "one2one")
    found = [getattr(criterion, name) for name in names if hasattr(criterion, name)] or [criterion]
    for head in found:
        name = type(head).__name__
        if not isinstance(head, v8DetectionLoss):
            raise TypeError(f"criterion: got {name}, wanted a v8DetectionLoss")
        if not hasattr(head, "loss_names"):
            raise TypeError(f"ultralytics: got {__version__}, wanted {OLDEST} or newer")
        for part, wanted in (("bbox_loss", BboxLoss), ("bce", nn.BCEWithLogitsLoss)):
            got = type(getattr(head, part))
            if got is not wanted:  # a subclass is another loss, as v8OBBLoss's
                raise TypeError(f"{name}.{part}: got {got.__name__}, wanted {wanted.__name__}")
    return found


class JointHead:
    """What stands in for two methods of a head's criterion.

    Args:
        head: the criterion.
        criterion: what computes the losses.
    """

    def __init__(self, head: Any, criterion: JointOptimizationLoss) -> None:
        self.head, self.criterion = head, criterion
        # The criterion's twin assigns as it does, and computes no losses.
        self.twin = copy(head)
        self.twin.assigner, self.twin.bce, self.twin.bbox_loss = self.assign, no_bce, self.no_boxes
        self.found: dict[str, Any] = {}

    def loss(self, preds: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The criterion's `loss`, with w⁻ among what is logged."""
        loss, items = type(self.head).loss(self.head, preds, batch)
        return loss, {**items, "neg_weight": self.head.negative_weight}

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Any], batch: Any, **others: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """The criterion's, of which `others` are further arguments.

        Args:
            preds: scores [B, K, A], boxes [B, 4 * R, A] and feats, levels [B, C, H, W].
            batch: what the data loader has.
            others: for the assigner.

        Returns:
            What was assigned; the losses [3] of boxes, classes, and DFL or L1, with their gains;
            these by name, to be logged. Only the sum of the three has the right gradient.
        """
        head = self.head
        with torch.autocast(preds["scores"].device.type, enabled=False):
            with torch.no_grad():
                assigned, _, items = self.twin.get_assigned_targets_and_loss(
                    in_float32(preds), batch, **others
                )
            joint = self.joint(preds["scores"], preds["boxes"], *assigned)
        head.negative_weight, extra = joint.negative_weight, joint.extra_regression
        loss = torch.stack((joint.regression - extra, joint.classification * head.hyp.cls, extra))
        return assigned, loss, dict(zip(items, loss.detach(), strict=True))

    def joint(
        self,
        logits: Tensor,
        distances: Tensor,
        positive: Tensor,
        matched: Tensor,
        targets: Tensor,
        points: Tensor,
        strides: Tensor,
    ) -> JointLoss:
        """JOL of a head, given its predictions and what was assigned.

        Boxes are decoded again, of positives alone and with gradient: no others are read.
        """
        head, found, self.found = self.head, self.found, {}
        positive = positive.bool()  # before 8.4.150 not in batches without objects
        images, at = positive.nonzero(as_tuple=True)
        sides, point, stride = at_least_float32(distances[images, :, at]), points[at], strides[at]
        wanted = bbox2dist(point, targets[images, at] / stride)
        if head.use_dfl:
            extra = head.bbox_loss.dfl_loss(sides.view(-1, head.reg_max), wanted)[:, 0]
        else:
            extra = ((sides - wanted) * (stride / found["size"])).abs().mean(-1)
        corners = head.bbox_decode(point, sides[None])[0] * stride
        boxes = corners.new_zeros(len(positive), 4, len(points))
        boxes[images, :, at] = corners
        extras = corners.new_zeros(positive.shape)
        extras[images, at] = extra * head.hyp.dfl
        weights, total = head.class_weights, found["total"]
        of_classes: dict[str, Any] = {"classification_normalizer": total}
        if self.criterion.settings.sync_group is not None:  # levels.of_this_rank says why
            share = found["scores"].new_ones(()) / total
            of_classes = {
                "classification_weights": share.expand(positive.shape),
                "classification_normalizer": 1.0,
            }
        return self.criterion.dense(
            [logits],
            [boxes],
            found["labels"].where(positive, logits.shape[1]),
            found["objects"],  # not `targets`, which the criterion of poses changes afterwards
            matched=matched.long(),
            class_targets=found["scores"],
            extra_regression=extras,
            regression_weights=found["scores"],
            regression_normalizer=total,
            class_weights=None if weights is None else weights.flatten(),
            **of_classes,
        )

    def assign(self, *args: Any, **kwargs: Any) -> Any:
        """The assigner; keeps what else of it is needed."""
        assigned = self.head.assigner(*args, **kwargs)
        labels, _, scores, *_ = assigned
        # In batches without objects labels are floating; before 8.4.170 no boxes are asked for.
        self.found = {"labels": labels.long(), "scores": scores.sum(-1), "objects": args[4]}
        self.found |= {"total": 1.0, "size": 1.0}
        return assigned

    def no_boxes(
        self,
        sides: Tensor,
        corners: Tensor,
        points: Tensor,
        targets: Tensor,
        scores: Tensor,
        total: Tensor | float,
        positive: Tensor,
        size: Tensor,
        stride: Tensor,
    ) -> tuple[float, float]:
        """In place of BboxLoss; keeps the normaliser and the images' size (height, width)."""
        self.found |= {"total": total, "size": size[[1, 0, 1, 0]]}
        return 0.0, 0.0


def no_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """In place of BCEWithLogitsLoss: what can be multiplied by weights of classes and summed."""
    return logits.new_zeros(1, 1, logits.shape[-1])


def in_float32(preds: dict[str, Any]) -> dict[str, Any]:
    """Predictions for the twin: in half precision corners would be pixels off."""
    scores, boxes = at_least_float32(preds["scores"]), at_least_float32(preds["boxes"])
    if scores.dtype is preds["scores"].dtype:
        return preds
    # Of the levels it reads shapes and dtype.
    feats = [scores.new_empty(()).expand(x.shape) for x in preds["feats"]]
    return {**preds, "scores": scores, "boxes": boxes, "feats": feats}
