"""FCOS with the joint loss in its head."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.resnet import ResNet

from detectors.assigners.priors import IGNORED, Assigner, Level
from detectors.assigners.similarities import centres
from detectors.models.anchor_plans import ATSS_SCALE
from detectors.models.anchors import make_anchors
from detectors.models.plan import Plan, detections_kept
from detectors.models.pyramids import one_stage_pyramid
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    fcos_criterion,
)


def inside_only(matches: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Matches [A], IGNORED where a point [A, 2] lies outside its box, one of [G, 4]."""
    if len(boxes) == 0:
        return matches
    box = boxes[matches.clamp(min=0)]
    inside = torch.cat([points - box[:, :2], box[:, 2:] - points], 1).amin(1) > 0
    return matches.masked_fill((matches >= 0) & ~inside, IGNORED)


def centre_sampling(
    boxes: Tensor, priors: Tensor, levels: Sequence[Level], radius: float = 1.5
) -> Tensor:
    """torchvision's rule for FCOS as an assigner.

    The priors [A, 4] are squares around the points of ATSS_SCALE times the size that ranges and
    the radius of the centre are measured in, with preset torchvision a stride.
    """
    heard: list[Tensor] = []
    half = (priors[:, 2:] - priors[:, :2]) / (2 * ATSS_SCALE)
    points = torch.cat([centres(priors) - half, centres(priors) + half], 1)
    head = SimpleNamespace(compute_loss=lambda *given: heard.extend(given[-1]))
    asked: Any = SimpleNamespace(center_sampling_radius=radius, head=head)
    FCOS.compute_loss(asked, [{"boxes": boxes}], {}, [points], [level.priors for level in levels])
    return heard[0]


class AssignedFCOS(FCOS):
    """FCOS with another assigner.

    A point's prior is a square of ATSS_SCALE strides around it; RFLA takes the receptive field.
    A point outside the box it is matched to has no distances to the box's sides and is ignored.
    """

    def __init__(self, *args: Any, assigner: Assigner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.assigner = assigner

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        """As FCOS's."""
        levels = self.anchor_generator.levels
        sides = [
            torch.full((level.priors,), float(ATSS_SCALE * stride), device=anchors[0].device)
            for level, stride in zip(levels, self.anchor_generator.strides, strict=True)
        ]
        half = torch.cat(sides)[:, None] / 2
        matches = []
        for target, places in zip(targets, anchors, strict=True):
            points = centres(places)
            priors = torch.cat([points - half, points + half], 1).to(places.dtype)
            matched = self.assigner(target["boxes"], priors, levels)
            matches.append(inside_only(matched, target["boxes"], points))
        return self.head.compute_loss(targets, head_outputs, anchors, matches)


def build(bodies: list[ResNet], plan: Plan) -> nn.Module:
    """FCOS on this ResNet."""
    fpn = one_stage_pyramid(bodies[0], plan)
    anchors = make_anchors(plan.anchors)
    slim = plan.preset == "slim"
    head = JointFCOSHead(
        fpn.out_channels,
        1,
        plan.num_classes,
        num_convs=2 if slim else 4,
        criterion=fcos_criterion(**plan.choices),
        weigh_boxes=plan.centreness_weights,
    )
    settings = detections_kept(plan)
    if slim:
        # The box branch ends in a ReLU: with random weights and bias 0, half of it starts dead.
        nn.init.constant_(head.regression_head.bbox_reg.bias, 3.0)
        # In units of the plan's scale, half a stride with slim: the usual 1.5 strides.
        settings |= {"center_sampling_radius": 3.0}
    settings |= {"score_thresh": plan.score_threshold}
    if plan.preset == "paper":
        settings |= {"nms_thresh": 0.5}
    arguments: Any = (fpn, plan.num_classes)
    if plan.assign is None:
        return FCOS(*arguments, anchor_generator=anchors, head=head, **settings)
    return AssignedFCOS(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )
