"""torchvision's region proposal network with another assigner, in float32 under autocast.

The normaliser of its losses is taken over all ranks of a group. Assigners are those of
detectors.assigners. The anchor generator must be a LevelledAnchors, for its `levels`.
"""

from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from detectors.assigners.priors import IGNORED, Assigner
from detectors.assigners.regions import ignore_boxes
from detectors.assigners.threshold import chunked
from jolkernels import process_groups
from jolkernels.integrations.torchvision import at_least_float32


class AssignedRPN(RegionProposalNetwork):
    """A region proposal network with another assigner and torchvision's losses.

    Attributes:
        assigner: assigns objects to its anchors.
        sync_group: name of the process group over whose ranks its losses are normalised; None:
            this process alone.
    """

    assigner: Assigner
    sync_group: str | None

    @classmethod
    def from_rpn(
        cls,
        rpn: RegionProposalNetwork,
        assigner: Assigner | None,
        sync_group: dist.ProcessGroup | None = None,
    ) -> Self:
        """The same network, sharing its layers; without an assigner, torchvision's rule."""
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
        made.assigner = assigner or chunked(rpn.proposal_matcher)
        made.sync_group = None if sync_group is None else sync_group.group_name
        return made

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each image's labels [A], 1, 0 or -1 (ignored), and matched boxes [A, 4]."""
        labels, boxes = [], []
        for priors, target in zip(anchors, targets, strict=True):
            objects = target["boxes"]
            matches = self.assigner(objects, priors, self.anchor_generator.levels)
            matches = ignore_boxes(matches, priors, target.get("ignored"))
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
        # Row numbers: with masks the backward pass would search for them again.
        positive, sampled = torch.where(positives)[0], torch.where(chosen)[0]
        box = F.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=1 / 9,
            reduction="sum",
        )
        # With float32 labels the loss of float64 logits would be float32.
        wanted = torch.cat(labels)[sampled].to(objectness.dtype)
        own = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], wanted, reduction="sum"
        )
        ranks = process_groups.size(self.sync_group)
        samples = process_groups.total(chosen.sum(), self.sync_group).clamp(min=1)
        return ranks * own / samples, ranks * box / samples


class PreciseRPNHead(RPNHead):
    """torchvision's RPNHead with outputs in float32 at least.

    RegionProposalNetwork decodes proposals in their dtype: under autocast, the second stage would
    be trained on boxes of half precision. The outputs are small, a number and a box an anchor.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """[B, A, H, W] and [B, 4 A, H, W] of each level, at_least_float32."""
        logits, deltas = super().forward(x)
        return [at_least_float32(t) for t in logits], [at_least_float32(t) for t in deltas]
