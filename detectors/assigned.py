"""torchvision's detectors with another label assigner: each at its narrowest seam.

The region proposal network also takes the normaliser of its losses over all ranks of a group.
Assigners and their convention are those of detectors.assigners. The anchor generator has to be a
LevelledAnchors, which knows the levels of the pyramid.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.rpn import RegionProposalNetwork

from detectors.assigners import IGNORED, Assigner, Level, centres
from detectors.layouts import ATSS_SCALE
from jolkernels import process_groups


def inside_only(matches: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Matches [A], IGNORED where a point [A, 2] is outside the box (of [G, 4]) it is matched to."""
    if len(boxes) == 0:
        return matches
    box = boxes[matches.clamp(min=0)]
    inside = torch.cat([points - box[:, :2], box[:, 2:] - points], 1).amin(1) > 0
    return matches.masked_fill((matches >= 0) & ~inside, IGNORED)


def centre_sampling(boxes: Tensor, priors: Tensor, levels: Sequence[Level]) -> Tensor:
    """FCOS's own rule, as torchvision has it, in the form of an assigner.

    The priors [A, 4] are squares of ATSS_SCALE strides around FCOS's points.
    """
    heard: list[Tensor] = []
    half = (priors[:, 2:] - priors[:, :2]) / (2 * ATSS_SCALE)
    points = torch.cat([centres(priors) - half, centres(priors) + half], 1)
    head = SimpleNamespace(compute_loss=lambda *given: heard.extend(given[-1]))
    asked: Any = SimpleNamespace(center_sampling_radius=1.5, head=head)
    FCOS.compute_loss(asked, [{"boxes": boxes}], {}, [points], [level.priors for level in levels])
    return heard[0]


class AssignedRPN(RegionProposalNetwork):
    """A region proposal network whose losses stay plain.

    Attributes:
        assigner: what its anchors are trained on; None: torchvision's rule.
        sync_group: name of the process group over whose ranks its losses are means; None: this
            process alone.
    """

    assigner: Assigner | None
    sync_group: str | None

    @classmethod
    def from_rpn(
        cls,
        rpn: RegionProposalNetwork,
        assigner: Assigner | None,
        sync_group: dist.ProcessGroup | None = None,
    ) -> Self:
        """The same network, its layers shared."""
        sampler = rpn.fg_bg_sampler
        made = cls(
            rpn.anchor_generator,
            rpn.head,
            rpn.proposal_matcher.high_threshold,
            rpn.proposal_matcher.low_threshold,
            sampler.batch_size_per_image,
            sampler.positive_fraction,
            rpn._pre_nms_top_n,
            rpn._post_nms_top_n,
            rpn.nms_thresh,
            rpn.score_thresh,
        )
        made.assigner = assigner
        made.sync_group = None if sync_group is None else sync_group.group_name
        return made

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image 1, 0 or -1 (ignored) for its anchors [A], and boxes [A, 4]."""
        if self.assigner is None:
            assigned: tuple[list[Tensor], list[Tensor]] = super().assign_targets_to_anchors(
                anchors, targets
            )
            return assigned
        labels, boxes = [], []
        for priors, target in zip(anchors, targets, strict=True):
            objects = target["boxes"]
            matches = self.assigner(objects, priors, self.anchor_generator.levels)
            label = (matches >= 0).to(priors.dtype)
            labels.append(label.masked_fill(matches == IGNORED, -1.0))
            boxes.append(objects[matches.clamp(min=0)] if len(objects) else priors)
        return labels, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """torchvision's two losses, over the number of samples of all ranks.

        Args:
            objectness: [N, 1] logits of the anchors of all images.
            pred_bbox_deltas: [N, 4].
            labels: as assign_targets_to_anchors returns them.
            regression_targets: deltas [A, 4] of each image.
        """
        positives, negatives = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        chosen = positives | negatives
        # Row numbers, not masks, which the backward pass would look for once more.
        positive, sampled = torch.where(positives)[0], torch.where(chosen)[0]
        box = F.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=1 / 9,
            reduction="sum",
        )
        # Beside float32 labels the loss of float64 logits would be float32.
        wanted = torch.cat(labels)[sampled].to(objectness.dtype)
        own = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], wanted, reduction="sum"
        )
        ranks = process_groups.size(self.sync_group)
        samples = process_groups.total(chosen.sum(), self.sync_group).clamp(min=1)
        return ranks * own / samples, ranks * box / samples


class AssignedRetinaNet(RetinaNet):
    """RetinaNet trained on what `assigner` assigns."""

    def __init__(self, *args: Any, assigner: Assigner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.assigner = assigner

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """As RetinaNet's; the head ignores anchors matched to IGNORED."""
        levels = self.anchor_generator.levels
        matches = [
            self.assigner(t["boxes"], a, levels) for t, a in zip(targets, anchors, strict=True)
        ]
        return self.head.compute_loss(targets, head_outputs, anchors, matches)


class AssignedFCOS(FCOS):
    """FCOS trained on what `assigner` assigns to its points.

    A point's prior is a square of ATSS_SCALE strides around it, or for RFLA the receptive field.
    Points outside the box they are matched to have no distances to its sides: they are ignored.
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
