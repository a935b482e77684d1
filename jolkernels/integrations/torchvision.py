"""Heads of torchvision's Faster R-CNN and FCOS, trained with a JointOptimizationLoss.

Both heads keep torchvision's conventions: labels (two-stage: 1-based with background 0; FCOS:
0-based), the names of the losses, and inference. With ``weighting="none"`` and the settings of
`roi_criterion` and `fcos_criterion` they return what torchvision's heads return.

    model = fasterrcnn_resnet50_fpn(num_classes=9)
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, roi_criterion())

    head = JointFCOSHead(256, 1, num_classes=8, criterion=fcos_criterion())
    model = FCOS(backbone, num_classes=8, head=head)

Letters: B images, A anchors (points) of an image, K classes, N samples of the batch.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.roi_heads import RoIHeads

from jolkernels import JointOptimizationLoss
from jolkernels.spec import LTRB, Delta, Focal, GIoU, SmoothL1


def roi_criterion(**choices: Any) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `fastrcnn_loss`.

    Args:
        choices: what else JointOptimizationLoss takes: lam, location_score, weighting, ...
    """
    return JointOptimizationLoss(
        classification="cross_entropy",
        regression=SmoothL1(beta=1 / 9),
        coding=Delta(weights=(10, 10, 5, 5)),
        background="first",
        **choices,
    )


def fcos_criterion(**choices: Any) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `FCOSHead.compute_loss`.

    Args:
        choices: what else JointOptimizationLoss takes: lam, location_score, weighting, ...
    """
    return JointOptimizationLoss(
        classification=Focal(alpha=0.25, gamma=2.0), regression=GIoU(), coding=LTRB(), **choices
    )


class JointRoIHeads(RoIHeads):
    """torchvision's RoIHeads, boxes only, trained with `criterion`.

    Args:
        args: RoIHeads' arguments in its order; its box coder must be the criterion's.
        criterion: a loss with cross entropy, background "first" and coding Delta, see
            `roi_criterion`.
        kwargs: RoIHeads' arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
    """

    def __init__(self, *args: Any, criterion: JointOptimizationLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.mask_roi_pool is not None or self.keypoint_roi_pool is not None:
            raise ValueError("JointRoIHeads predicts boxes only: masks or keypoints were given")
        coding = criterion.settings.coding
        if not isinstance(coding, Delta) or coding.weights != tuple(self.box_coder.weights):
            raise ValueError(
                f"criterion: got coding {coding}, wanted Delta with the heads' weights "
                f"{self.box_coder.weights}"
            )
        self.criterion = criterion
        self.negative_weight: Tensor | None = None

    @classmethod
    def from_roi_heads(cls, heads: RoIHeads, criterion: JointOptimizationLoss) -> Self:
        """The same heads, their layers and weights shared, with `criterion` as the loss.

        Raises:
            ValueError: `heads` predict masks or keypoints as well.
        """
        return cls(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.proposal_matcher.high_threshold,
            heads.proposal_matcher.low_threshold,
            heads.fg_bg_sampler.batch_size_per_image,
            heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            mask_roi_pool=heads.mask_roi_pool,
            keypoint_roi_pool=heads.keypoint_roi_pool,
            criterion=criterion,
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """What RoIHeads.forward does for boxes, with the criterion as the loss.

        Args:
            features: the pyramid's maps by name.
            proposals: B tensors [R, 4], pixels of the resized image.
            image_shapes: B pairs (height, width).
            targets: B dicts of boxes [G, 4] and 1-based labels [G]; read in training only.

        Returns:
            In training ([], losses), else (B dicts of boxes, labels, scores, {}).
        """
        if self.training:
            proposals, matches, labels, _ = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_regression = self.box_predictor(box_features)
        if not self.training:
            found = self.postprocess_detections(
                class_logits, box_regression, proposals, image_shapes
            )
            keys = ("boxes", "scores", "labels")
            return [dict(zip(keys, image, strict=True)) for image in zip(*found, strict=True)], {}
        assert targets is not None  # select_training_samples has raised otherwise
        target_boxes = [_gather(t["boxes"], m) for t, m in zip(targets, matches, strict=True)]
        loss = self.criterion(
            class_logits,
            box_regression,
            torch.cat(labels),
            torch.cat(target_boxes).to(box_regression.dtype),
            torch.cat(proposals),
        )
        self.negative_weight = loss.negative_weight
        return [], {"loss_classifier": loss.classification, "loss_box_reg": loss.regression}


class JointFCOSHead(FCOSHead):
    """torchvision's FCOSHead trained with `criterion`; centreness keeps its own loss.

    Args:
        args: FCOSHead's arguments: in_channels, num_anchors, num_classes, num_convs.
        criterion: a loss with a sigmoid classification and coding LTRB, see `fcos_criterion`.
        kwargs: FCOSHead's arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
    """

    def __init__(self, *args: Any, criterion: JointOptimizationLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.criterion = criterion
        self.negative_weight: Tensor | None = None

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """FCOSHead.compute_loss with the criterion, over the points of the whole batch.

        Args:
            targets: B dicts of boxes [G, 4] and 0-based labels [G].
            head_outputs: cls_logits [B, A, K], bbox_regression [B, A, 4], bbox_ctrness [B, A, 1].
            anchors: B tensors [A, 4], pixels.
            matched_idxs: B tensors [A]: the box a point is matched to, or -1.
        """
        logits = head_outputs["cls_logits"].flatten(0, 1)
        box_preds = head_outputs["bbox_regression"].flatten(0, 1)
        priors = torch.cat(anchors)
        target_boxes = torch.cat(
            [_gather(t["boxes"], m) for t, m in zip(targets, matched_idxs, strict=True)]
        ).to(priors.dtype)
        labels = torch.cat(
            [_gather(t["labels"], m) for t, m in zip(targets, matched_idxs, strict=True)]
        )
        positive = torch.cat(matched_idxs) >= 0
        background = logits.shape[-1]
        loss = self.criterion(
            logits,
            box_preds,
            labels.where(positive, background),
            target_boxes,
            priors,
            classification_normalizer="positives",
            regression_normalizer="positives",
        )
        self.negative_weight = loss.negative_weight
        centreness = self._centreness_loss(
            head_outputs["bbox_ctrness"].flatten(), priors, target_boxes, positive
        )
        return {
            "classification": loss.classification,
            "bbox_regression": loss.regression,
            "bbox_ctrness": centreness,
        }

    def _centreness_loss(
        self, logits: Tensor, priors: Tensor, target_boxes: Tensor, positive: Tensor
    ) -> Tensor:
        """FCOSHead's centreness loss without its host sync: [N] logits to a mean of positives."""
        ltrb = self.box_coder.encode(priors, target_boxes)
        left_right, top_bottom = ltrb[:, [0, 2]], ltrb[:, [1, 3]]
        wanted = torch.sqrt(
            (left_right.amin(-1) / left_right.amax(-1))
            * (top_bottom.amin(-1) / top_bottom.amax(-1))
        )
        # A point outside every box has a square root of a negative number as its target.
        wanted = wanted.where(positive, 0.0)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (loss * positive).sum() / positive.sum().clamp(min=1)


def _gather(values: Tensor, matches: Tensor) -> Tensor:
    """values[matches], [G, ...] and [N] to [N, ...]; any row for -1, zeros without objects."""
    if values.shape[0] == 0:
        return values.new_zeros((matches.shape[0], *values.shape[1:]))
    return values[matches.clamp(min=0)]
