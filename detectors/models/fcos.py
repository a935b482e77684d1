"""FCOS with the joint loss in its head."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.resnet import ResNet

from detectors.assigners.priors import BACKGROUND, IGNORED, Assigner, Level
from detectors.assigners.regions import ignore_points
from detectors.assigners.similarities import centres
from detectors.models.anchor_plans import ATSS_SCALE
from detectors.models.anchors import make_anchors
from detectors.models.plan import Plan, detections_kept
from detectors.models.pyramids import one_stage_pyramid
from jolkernels.integrations.matching import chunks
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
    half = (priors[:, 2:] - priors[:, :2]) / (2 * ATSS_SCALE)
    squares = torch.cat([centres(priors) - half, centres(priors) + half], 1)
    return sampled_centres(boxes, squares, [level.priors for level in levels], radius)


def sampled_centres(boxes: Tensor, squares: Tensor, counts: Sequence[int], radius: float) -> Tensor:
    """torchvision's matching of FCOS, bit for bit, without its [A, G] matrices.

    torchvision matches each chunk of objects. A point with objects in several chunks goes to the
    smallest of them; sizes are compared by torchvision's number, 1e8 - area, which rounds.

    Args:
        boxes: the objects [G, 4].
        squares: squares [A, 4] around the points, of a side that torchvision takes for the stride.
        counts: points of each level.
        radius: largest distance from an object's centre, in strides.

    Returns:
        int64 [A], the object or BACKGROUND.
    """
    captured: list[Tensor] = []
    head = SimpleNamespace(compute_loss=lambda *given: captured.extend(given[-1]))
    stand_in: Any = SimpleNamespace(center_sampling_radius=radius, head=head)
    matches = torch.full((len(squares),), BACKGROUND, device=squares.device)
    best = boxes.new_zeros(len(squares))
    for start, chunk in chunks(boxes, len(squares)):
        FCOS.compute_loss(stand_in, [{"boxes": chunk}], {}, [squares], list(counts))
        found = captured.pop()
        smallness = (1e8 - (chunk[:, 2] - chunk[:, 0]) * (chunk[:, 3] - chunk[:, 1]))[found]
        smaller = (found >= 0) & (smallness > best)
        matches = torch.where(smaller, start + found, matches)
        best = torch.where(smaller, smallness, best)
    return matches


class AssignedFCOS(FCOS):
    """FCOS with this assigner, or torchvision's rule; it ignores regions.

    For an assigner, a point is a square of ATSS_SCALE strides; RFLA takes the receptive field.
    A point outside the box it is matched to has no distances to the box's sides and is ignored.
    """

    def __init__(self, *args: Any, assigner: Assigner | None, **kwargs: Any) -> None:
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
        matches = []
        for target, squares in zip(targets, anchors, strict=True):
            if self.assigner is None:
                radius = self.center_sampling_radius
                matched = sampled_centres(target["boxes"], squares, num_anchors_per_level, radius)
            else:
                matched = self._assigned(self.assigner, target["boxes"], squares)
            matches.append(ignore_points(matched, centres(squares), target.get("ignored")))
        return self.head.compute_loss(targets, head_outputs, anchors, matches)

    def _assigned(self, assigner: Assigner, boxes: Tensor, squares: Tensor) -> Tensor:
        levels, points = self.anchor_generator.levels, centres(squares)
        sides = [
            torch.full((level.priors,), float(ATSS_SCALE * stride), device=squares.device)
            for level, stride in zip(levels, self.anchor_generator.strides, strict=True)
        ]
        half = torch.cat(sides)[:, None] / 2
        priors = torch.cat([points - half, points + half], 1).to(squares.dtype)
        return inside_only(assigner(boxes, priors, levels), boxes, points)


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
    return AssignedFCOS(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )
