"""The losses that the study compares: JOL's settings, and mixtures of JOL's and the base loss's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detectors.models.build import joint_head
from jolkernels import JointLoss, JointOptimizationLoss
from jolkernels.settings import Arguments

Call = Callable[..., JointLoss]
"""A loss of a batch that is given, called with the samples' class weights, or without any."""
Mix = Callable[[Call, Call, Tensor], JointLoss]
"""A loss made of JOL's and the base loss's; the tensor says which samples are positive."""


def constant(joint: Call, plain: Call, _: Tensor) -> JointLoss:
    """Every sample has the mean of JOL's weights: a larger loss, and nothing else."""
    with torch.no_grad():
        weight = joint().negative_weight
    base = plain()
    return base._replace(
        classification=weight * base.classification,
        regression=weight * base.regression,
        negative_weight=weight,
    )


def negatives_at_one(joint: Call, plain: Call, positive: Tensor) -> JointLoss:
    """Positives are weighted as in JOL, negatives are not."""
    weights = positive.float()
    found = joint(classification_weights=weights)
    rest = plain(classification_weights=1 - weights)
    return found._replace(classification=found.classification + rest.classification)


def classification_alone(joint: Call, plain: Call, _: Tensor) -> JointLoss:
    """Weights in the class loss, none in the box loss."""
    return joint()._replace(regression=plain().regression)


def boxes_alone(joint: Call, plain: Call, _: Tensor) -> JointLoss:
    """Weights in the box loss, none in the class loss."""
    return joint()._replace(classification=plain().classification)


@dataclass(frozen=True)
class Loss:
    """A loss of the study.

    Attributes:
        settings: of a training run, by TrainSettings' names.
        mix: what is made of JOL with these settings and of the base loss; None: JOL or base alone.
    """

    settings: Mapping[str, Any] = field(default_factory=lambda: {"loss": "jol"})
    mix: Mix | None = None


def _jol(**settings: Any) -> Loss:
    return Loss({"loss": "jol", **settings})


LOSSES = {
    "base": Loss({"loss": "base"}),
    "jol": Loss(),
    "constant": Loss(mix=constant),
    "detached": _jol(detach_weights=True),
    "negatives-at-one": Loss(mix=negatives_at_one),
    "classification-alone": Loss(mix=classification_alone),
    "boxes-alone": Loss(mix=boxes_alone),
    "s-loc-alone": _jol(class_score=None),
    "s-cls-alone": _jol(location_score=None),
    "lam-1": _jol(lam=1.0),
    "lam-3": _jol(lam=3.0),
    "lam-4": _jol(lam=4.0),
    "lam-5": _jol(lam=5.0),
    "nwd": _jol(location_score="nwd"),
    "simd": _jol(location_score="simd"),
    "base-clip-5": Loss({"loss": "base", "clip": 5.0}),
}
"""Name → loss; "jol" has λ 2, IoU, the gradient through the weights, and w⁻ their mean.

The gradient's norm is clipped at 10, which a loss twice as large reaches with half the gradient:
base-clip-5 is clipped as early as JOL.
"""


class Mixed(nn.Module):
    """A criterion whose loss is a mixture; heads call it as they call a JointOptimizationLoss.

    Args:
        joint: JOL.
        mix: what is made of it.
    """

    def __init__(self, joint: JointOptimizationLoss, mix: Mix) -> None:
        super().__init__()
        self.settings, self.mix, self.joint = joint.settings, mix, joint
        given = {f.name: getattr(joint.settings, f.name) for f in fields(Arguments) if f.init}
        self.plain = JointOptimizationLoss(**(given | {"weighting": "none"}))

    def forward(self, *args: Any, **named: Any) -> JointLoss:
        """Of samples in rows."""
        logits, _, labels = args[:3]
        background = self.settings.background_label(logits.shape[1])
        positive = (labels != background) & (labels != self.settings.ignore_index)
        joint, plain = (partial(loss, *args, **named) for loss in (self.joint, self.plain))
        return self.mix(joint, plain, positive)

    def dense(self, *args: Any, **named: Any) -> JointLoss:
        """Of levels, whose samples are matched to objects."""
        positive = torch.stack(tuple(named["matched"])) >= 0
        joint, plain = (partial(loss.dense, *args, **named) for loss in (self.joint, self.plain))
        return self.mix(joint, plain, positive)


def put_in_place(model: nn.Module, loss: Loss) -> None:
    """Give a detector of build_detector, which has `loss.settings`, the mixture if it is one."""
    if loss.mix is not None:
        head = joint_head(model)
        head.criterion = Mixed(head.criterion, loss.mix)
