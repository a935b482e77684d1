"""torchvision's FCOS head, trained with a JointOptimizationLoss.

Letters as in levels.py.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead

from jolkernels import process_groups
from jolkernels.dense import of_images, pad_objects
from jolkernels.integrations.levels import (
    NORMALIZERS,
    LevelsInTraining,
    Outputs,
    Targets,
    centreness_of,
    check_labels,
    columns_of,
    of_this_rank,
)
from jolkernels.integrations.matching import matched_boxes, matched_labels
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import LTRB, Focal, Regression

CENTRENESS = JointOptimizationLoss("bce", "l1", "xyxy", weighting="none", ignore_index=-1)
"""The loss of FCOS's centreness: a class of its own, positives' alone; its box loss is not used."""


def fcos_criterion(regression: str | Regression = "giou", **choices: Any) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `FCOSHead.compute_loss`.

    Args:
        regression: the box loss; MMDetection's FCOS has IoU(mode="log").
        choices: what else JointOptimizationLoss takes: classification (torchvision's focal loss),
            lam, location_score, weighting, ...
    """
    return JointOptimizationLoss(
        **{"classification": Focal(alpha=0.25, gamma=2.0), **choices},
        regression=regression,
        coding=LTRB(),
    )


class JointFCOSHead(LevelsInTraining, FCOSHead):
    """torchvision's FCOSHead trained with `criterion`; centreness keeps its own loss.

    Args:
        args: FCOSHead's arguments: in_channels, num_anchors, num_classes, num_convs.
        criterion: a loss with a sigmoid classification and coding LTRB, see `fcos_criterion`.
        weigh_boxes: weigh each point's box loss by its centreness and divide by their sum, as
            MMDetection; False (default): all positive points equally, as torchvision.
        dense: in training, outputs are lists of levels [B, A * K, H, W], [B, A * 4, H, W] and
            [B, A, H, W], unless a part of the head has a forward or hooks of its own; False: always
            torchvision's flattened ones, which cost several copies.
        kwargs: FCOSHead's arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
        sync_normalizers: as LevelsInTraining's.

    Raises:
        ValueError: a criterion that is none of these.
    """

    own_parts = FCOSClassificationHead, FCOSRegressionHead
    weigh_boxes: bool = False

    def __init__(
        self,
        *args: Any,
        criterion: JointOptimizationLoss,
        weigh_boxes: bool = False,
        dense: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.criterion = criterion
        self._check_criterion("LTRB()", isinstance(criterion.settings.coding, LTRB))
        self.weigh_boxes = weigh_boxes
        self.dense = dense

    @classmethod
    def from_head(cls, head: FCOSHead, criterion: JointOptimizationLoss, **choices: Any) -> Self:
        """The same head, its layers and weights shared, with `criterion` as the loss.

        Args:
            head: torchvision's.
            criterion: as above.
            choices: weigh_boxes and dense, as above.
        """
        with torch.device("meta"):  # draws no random numbers
            made = cls(1, 1, 1, 0, criterion=criterion, **choices)
        made.box_coder = head.box_coder
        return made._take_over(head)

    def levels(self, x: list[Tensor]) -> Outputs:
        """cls_logits, bbox_regression and bbox_ctrness, levels of A * K, A * 4 and A channels."""
        classes, boxes = self.classification_head, self.regression_head
        towers = [boxes.conv(level) for level in x]
        return {
            "cls_logits": [classes.cls_logits(classes.conv(level)) for level in x],
            "bbox_regression": [F.relu(boxes.bbox_reg(tower)) for tower in towers],
            "bbox_ctrness": [boxes.bbox_ctrness(tower) for tower in towers],
        }

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: Outputs,
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """FCOSHead.compute_loss with the criterion, over the points of the whole batch.

        Args:
            targets: B dicts of boxes [G, 4] and 0-based labels [G].
            head_outputs: cls_logits, bbox_regression and bbox_ctrness, levels or [B, M, K],
                [B, M, 4] and [B, M, 1].
            anchors: B tensors [M, 4], pixels; one tensor B times is read as one.
            matched_idxs: B tensors [M]: the box a point is matched to, -1 background, -2 ignored.

        Returns:
            classification, bbox_regression and bbox_ctrness, 0-dim.
        """
        logits = head_outputs["cls_logits"]
        columns = columns_of(logits, head_outputs["bbox_regression"])
        check_labels(targets, columns, self.criterion.settings.ignore_index)
        flat = isinstance(logits, Tensor)
        loss = self._flat_losses if flat else self._dense_losses
        own, centreness = loss(targets, head_outputs, anchors, torch.stack(matched_idxs))
        self.negative_weight = own.negative_weight
        return {
            "classification": own.classification,
            "bbox_regression": own.regression,
            "bbox_ctrness": centreness,
        }

    def _dense_losses(
        self, targets: Targets, outputs: Outputs, anchors: list[Tensor], matched: Tensor
    ) -> tuple[JointLoss, Tensor]:
        given = [t["labels"] for t in targets], [t["boxes"] for t in targets]
        labels, boxes = pad_objects(*given, matched.shape[1], self.criterion.settings)
        priors = of_images(anchors)
        wanted = objects_of(boxes, matched)
        centreness = centreness_of(priors, wanted)
        loss = self.criterion.dense(
            outputs["cls_logits"],
            outputs["bbox_regression"],
            labels,
            boxes,
            priors=priors,
            matched=matched,
            **self._normalizers(centreness, matched),
        )
        own = CENTRENESS.dense(
            outputs["bbox_ctrness"],
            [level.detach() for level in outputs["bbox_regression"]],
            matched.clamp(-1, 0),
            wanted,
            class_targets=centreness,
            classification_normalizer=self._positives(loss, matched),
        )
        return loss, own.classification

    def _flat_losses(
        self, targets: Targets, outputs: Outputs, anchors: list[Tensor], matched: Tensor
    ) -> tuple[JointLoss, Tensor]:
        settings = self.criterion.settings
        logits, priors = outputs["cls_logits"], torch.cat(anchors)
        target_boxes = torch.cat(matched_boxes(targets, list(matched)))
        centreness = centreness_of(priors, target_boxes)
        loss: JointLoss = self.criterion(
            logits.flatten(0, 1),
            outputs["bbox_regression"].flatten(0, 1),
            matched_labels(targets, matched, logits.shape[-1], settings.ignore_index).flatten(),
            target_boxes,
            priors,
            **self._normalizers(centreness, matched.flatten()),
        )
        # FCOSHead's centreness loss without its host sync.
        positive = matched.flatten() >= 0
        own = F.binary_cross_entropy_with_logits(
            outputs["bbox_ctrness"].flatten(), centreness.where(positive, 0.0), reduction="none"
        )
        return loss, (own * positive).sum() / self._positives(loss, matched)

    def _normalizers(self, centreness: Tensor, matched: Tensor) -> dict[str, Any]:
        """The samples' weights and the normalisers."""
        choices: dict[str, Any] = dict.fromkeys(NORMALIZERS, "positives")
        if not self.sync_normalizers:
            choices = of_this_rank(own_positives(matched), matched.shape, centreness.dtype)
        if self.weigh_boxes:
            weights = centreness.where(matched >= 0, 0.0)
            total = process_groups.mean(weights.sum(), self.criterion.settings.sync_group)
            choices["regression_weights"] = weights
            choices["regression_normalizer"] = total.clamp(min=1e-6)
        return choices

    def _positives(self, loss: JointLoss, matched: Tensor) -> Tensor:
        """What the centreness loss is divided by."""
        group = self.criterion.settings.sync_group
        if not self.sync_normalizers:
            return own_positives(matched)
        positives = loss.num_positives.clamp(min=1)
        return positives if group is None else positives / process_groups.size(group)


def own_positives(matched: Tensor) -> Tensor:
    """max(1, those of this rank's samples that are matched to an object)."""
    return (matched >= 0).sum().clamp(min=1)


def objects_of(boxes: Tensor, matched: Tensor) -> Tensor:
    """The objects [B, M, 4] of boxes [B, G, 4] that samples are matched to; any for none."""
    if boxes.shape[1] == 0:
        return boxes.new_zeros((*matched.shape, 4))
    return boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
