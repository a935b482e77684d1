"""torchvision's SSD and SSDlite, trained with a JointOptimizationLoss.

Letters: B images, M default boxes of an image, C classes with the background, G objects.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.ssd import SSD

from jolkernels.dense_checks import IGNORED
from jolkernels.integrations.levels import NORMALIZERS, at_least_float32, of_this_rank
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import Delta, SmoothL1


def ssd_criterion(**choices: Any) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `SSD.compute_loss`.

    Args:
        choices: what else JointOptimizationLoss takes: coding (Delta(weights=(10, 10, 5, 5))), lam,
            location_score, weighting, ...
    """
    return JointOptimizationLoss(
        **{"coding": Delta(weights=(10, 10, 5, 5)), **choices},
        classification="cross_entropy",
        regression=SmoothL1(beta=1.0),
        background="first",
    )


class JointSSD(SSD):
    """torchvision's SSD trained with `criterion`: use_joint_loss makes a model one in place.

    Attributes:
        criterion: a loss with cross entropy, background "first" and coding Delta.
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
        sync_normalizers: as LevelsInTraining's.
    """

    criterion: JointOptimizationLoss
    negative_weight: Tensor | None = None
    sync_normalizers: bool = True

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """SSD.compute_loss with the criterion; negatives that are not mined are ignored.

        Args:
            targets: B dicts of boxes [G, 4] and 1-based labels [G].
            head_outputs: cls_logits [B, M, C] and bbox_regression [B, M, 4].
            anchors: B tensors [M, 4], pixels.
            matched_idxs: B tensors [M]: the object a default box is matched to, -1 background.

        Returns:
            bbox_regression and classification, 0-dim.
        """
        # torchvision's SSD ignores no default box: what a matcher leaves out is background
        logits, matched = head_outputs["cls_logits"], torch.stack(matched_idxs).clamp(min=-1)
        positive = matched >= 0
        counts = positive.sum(1, keepdim=True)
        mined = hardest(logits, positive, self.neg_to_pos_ratio * counts)
        choices: dict[str, Any] = dict.fromkeys(NORMALIZERS, "positives")
        if not self.sync_normalizers:
            dtype = at_least_float32(anchors[0]).dtype
            choices = of_this_rank(counts.sum().clamp(min=1), matched.shape, dtype)
        loss: JointLoss = self.criterion.dense(  # the joined levels are one
            [logits.mT],
            [head_outputs["bbox_regression"].mT],
            [t["labels"] for t in targets],
            [t["boxes"] for t in targets],
            priors=anchors,
            matched=matched.where(positive | mined, IGNORED),
            **choices,
        )
        self.negative_weight = loss.negative_weight
        return {"bbox_regression": loss.regression, "classification": loss.classification}

    def postprocess_detections(
        self,
        head_outputs: dict[str, Tensor],
        image_anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """As SSD's, in float32 at least."""
        outputs = {name: at_least_float32(x) for name, x in head_outputs.items()}
        found: list[dict[str, Tensor]]
        found = super().postprocess_detections(outputs, image_anchors, image_shapes)
        return found


@torch.no_grad()
def hardest(logits: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    """The `count` [B, 1] of an image's negatives that have the largest loss, bool [B, M].

    Ranked as torchvision ranks them, equal losses too; positives come last.
    """
    losses = -logits.log_softmax(-1)[..., 0]
    ranked = losses.masked_fill(positive, -torch.inf).sort(1, descending=True)[1]
    first = torch.arange(ranked.shape[1], device=ranked.device) < count
    return torch.zeros_like(positive).scatter_(1, ranked, first)
