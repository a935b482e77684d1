"""torchvision's RetinaNet head, trained with a JointOptimizationLoss.

Letters as in levels.py.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)

from jolkernels import process_groups
from jolkernels.integrations.levels import (
    NORMALIZERS,
    WEIGHTS,
    LevelsInTraining,
    Outputs,
    Targets,
    at_least_float32,
    check_labels,
    columns_of,
    of_this_rank,
)
from jolkernels.integrations.matching import matched_boxes, matched_labels
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import Delta, Focal, Regression


def retinanet_criterion(
    regression: str | Regression = "l1", **choices: Any
) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `RetinaNetHead.compute_loss`.

    Args:
        regression: the box loss; torchvision's v2 has "giou".
        choices: what else JointOptimizationLoss takes: classification (torchvision's focal loss),
            lam, location_score, weighting, ...
    """
    return JointOptimizationLoss(
        **{"classification": Focal(alpha=0.25, gamma=2.0), "coding": Delta(), **choices},
        regression=regression,
    )


class JointRetinaNetHead(LevelsInTraining, RetinaNetHead):
    """torchvision's RetinaNetHead trained with `criterion`.

    Args:
        args: RetinaNetHead's arguments: in_channels, num_anchors, num_classes.
        criterion: a loss with a sigmoid classification and coding Delta(), see
            `retinanet_criterion`.
        normalizer: what the losses are divided by. "image": an image's by its own positives, then
            their mean, as torchvision; "batch": the batch's positives, as MMDetection.
        dense: in training, outputs are lists of levels [B, A * K, H, W] and [B, A * 4, H, W],
            unless a part of the head has a forward or hooks of its own; False: always torchvision's
            flattened ones, which cost several copies.
        kwargs: RetinaNetHead's arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
        sync_normalizers: as LevelsInTraining's.

    Raises:
        ValueError: a criterion or normalizer that is none of these.
    """

    own_parts = RetinaNetClassificationHead, RetinaNetRegressionHead
    normalizer: str = "image"

    def __init__(
        self,
        *args: Any,
        criterion: JointOptimizationLoss,
        normalizer: str = "image",
        dense: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if normalizer not in ("image", "batch"):
            raise ValueError(f"normalizer: got {normalizer!r}, wanted one of image, batch")
        self.criterion = criterion
        coding = criterion.settings.coding
        self._check_criterion("Delta()", isinstance(coding, Delta) and coding.weights == (1,) * 4)
        self.normalizer = normalizer
        self.dense = dense

    @classmethod
    def from_head(
        cls, head: RetinaNetHead, criterion: JointOptimizationLoss, **choices: Any
    ) -> Self:
        """The same head, its layers and weights shared, with `criterion` as the loss.

        Args:
            head: torchvision's, of version 1 or 2.
            criterion: as above.
            choices: normalizer and dense, as above.
        """
        with torch.device("meta"):  # draws no random numbers
            made = cls(1, 1, 1, criterion=criterion, **choices)
        return made._take_over(head)

    def levels(self, x: list[Tensor]) -> Outputs:
        """cls_logits and bbox_regression, levels [B, A * K, H, W] and [B, A * 4, H, W]."""
        classes, boxes = self.classification_head, self.regression_head
        return {
            "cls_logits": [classes.cls_logits(classes.conv(level)) for level in x],
            "bbox_regression": [boxes.bbox_reg(boxes.conv(level)) for level in x],
        }

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: Outputs,
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """RetinaNetHead.compute_loss with the criterion, over the anchors of the whole batch.

        Args:
            targets: B dicts of boxes [G, 4] and 0-based labels [G].
            head_outputs: cls_logits and bbox_regression, levels or [B, M, K] and [B, M, 4].
            anchors: B tensors [M, 4], pixels; one tensor B times is read as one.
            matched_idxs: B tensors [M]: the box an anchor is matched to, -1 background, -2 ignored.

        Returns:
            classification and bbox_regression, 0-dim.
        """
        logits, boxes = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        check_labels(targets, columns_of(logits, boxes), self.criterion.settings.ignore_index)
        if isinstance(logits, Tensor):
            loss = self._flat_loss(targets, logits, boxes, anchors, matched_idxs)
        else:
            name = "image" if self.normalizer == "image" else "positives"
            choices: dict[str, Any] = dict.fromkeys(NORMALIZERS, name)
            if not self.sync_normalizers:
                matched = torch.stack(matched_idxs)
                choices = self._normalizers(matched >= 0, at_least_float32(anchors[0]).dtype)
            loss = self.criterion.dense(
                logits,
                boxes,
                [t["labels"] for t in targets],
                [t["boxes"] for t in targets],
                priors=anchors,
                matched=matched_idxs,
                **choices,
            )
        self.negative_weight = loss.negative_weight
        return {"classification": loss.classification, "bbox_regression": loss.regression}

    def _flat_loss(
        self,
        targets: Targets,
        logits: Tensor,
        boxes: Tensor,
        anchors: list[Tensor],
        matches: list[Tensor],
    ) -> JointLoss:
        settings = self.criterion.settings
        priors, columns = torch.cat(anchors), logits.shape[-1]
        labels = matched_labels(targets, torch.stack(matches), columns, settings.ignore_index)
        positive = (labels != columns) & (labels != settings.ignore_index)
        choices = self._normalizers(positive, at_least_float32(priors).dtype)
        choices |= {name: choices[name].flatten() for name in WEIGHTS if name in choices}
        loss: JointLoss = self.criterion(
            logits.flatten(0, 1),
            boxes.flatten(0, 1),
            labels.flatten(),
            torch.cat(matched_boxes(targets, matches)),
            priors,
            **choices,
        )
        return loss

    def _normalizers(self, positive: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """For samples positive [B, M] or not; an image's own normaliser as weights [B, M]."""
        counts = positive.sum(1, keepdim=True)
        if not self.sync_normalizers:
            by_image = counts.clamp(min=1) * len(positive)
            number = by_image if self.normalizer == "image" else counts.sum().clamp(min=1)
            return of_this_rank(number, positive.shape, dtype)
        if self.normalizer == "batch":
            return dict.fromkeys(NORMALIZERS, "positives")
        weights = (1 / counts.clamp(min=1).to(dtype)).expand_as(positive)
        images = torch.full((), len(positive), device=weights.device)
        images = process_groups.mean(images, self.criterion.settings.sync_group)
        return dict.fromkeys(WEIGHTS, weights) | dict.fromkeys(NORMALIZERS, images)
