"""torchvision's second stage, trained with a JointOptimizationLoss.

Letters: B images, N samples of the batch.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_loss, maskrcnn_loss
from torchvision.ops import box_iou

from jolkernels.integrations.levels import at_least_float32, of_this_rank
from jolkernels.integrations.matching import gather, match_as, matched_boxes
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import Delta, Regression, SmoothL1


def roi_criterion(
    weights: tuple[float, float, float, float] = (10, 10, 5, 5),
    regression: str | Regression | None = None,
    **choices: Any,
) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `fastrcnn_loss`.

    Args:
        weights: the box coder's.
        regression: the box loss; None: torchvision's smooth L1 with beta 1/9.
        choices: what else JointOptimizationLoss takes: lam, location_score, weighting, ...; a
            coding goes before weights.
    """
    return JointOptimizationLoss(
        **{"classification": "cross_entropy", "coding": Delta(weights=weights), **choices},
        regression=regression or SmoothL1(beta=1 / 9),
        background="first",
    )


class JointRoIHeads(RoIHeads):
    """torchvision's RoIHeads trained with `criterion`; masks and keypoints keep their own losses.

    With torchvision's matcher they hold no matrix of objects times proposals; a model's RPN still
    holds one of objects times anchors.

    Args:
        args: RoIHeads' arguments in its order; its box coder must be the criterion's.
        criterion: a loss with cross entropy, background "first" and coding Delta, see
            `roi_criterion`.
        kwargs: RoIHeads' arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
        sync_normalizers: as LevelsInTraining's.
    """

    criterion: JointOptimizationLoss
    negative_weight: Tensor | None = None
    sync_normalizers: bool = True

    def __init__(self, *args: Any, criterion: JointOptimizationLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        coding = criterion.settings.coding
        if not isinstance(coding, Delta) or coding.weights != tuple(self.box_coder.weights):
            raise ValueError(
                f"criterion: got coding {coding}, wanted Delta with the heads' weights "
                f"{self.box_coder.weights}"
            )
        self.criterion = criterion

    @classmethod
    def from_roi_heads(cls, heads: RoIHeads, criterion: JointOptimizationLoss) -> Self:
        """The same heads, their layers and weights shared, with `criterion` as the loss."""
        made = cls(
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
            heads.mask_roi_pool,
            heads.mask_head,
            heads.mask_predictor,
            heads.keypoint_roi_pool,
            heads.keypoint_head,
            heads.keypoint_predictor,
            criterion=criterion,
        )
        for name in ("box_similarity", "proposal_matcher", "fg_bg_sampler", "box_coder"):
            setattr(made, name, getattr(heads, name))
        made.training = heads.training  # train() would change the layers'
        return made

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """RoIHeads.forward with the criterion as the boxes' loss; inference is torchvision's.

        Args:
            features: the pyramid's maps by name.
            proposals: B tensors [R, 4], pixels of the resized image.
            image_shapes: B pairs (height, width).
            targets: B dicts of boxes [G, 4], 1-based labels [G] and, where these are predicted,
                masks and keypoints; read in training only.

        Returns:
            In training ([], losses), else (B dicts of boxes, labels, scores, ..., {}).
        """
        if not self.training:
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
            found = super().forward(features, proposals, image_shapes)
            return found
        proposals, matches, labels, boxes = self.select_training_samples(proposals, targets)
        assert targets is not None  # select_training_samples has raised otherwise
        class_logits, box_regression = self.predict(features, proposals, image_shapes)
        loss = self.joint_loss(class_logits, box_regression, proposals, labels, boxes)
        losses = {"loss_classifier": loss.classification, "loss_box_reg": loss.regression}
        if self.has_mask() or self.has_keypoint():
            kept = [torch.where(label > 0)[0] for label in labels]
            proposals, matches = pick(proposals, kept), pick(matches, kept)
            losses |= self.other_losses(features, proposals, image_shapes, targets, matches)
        return [], losses

    def other_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        matches: list[Tensor],
    ) -> dict[str, Tensor]:
        """torchvision's losses of masks and keypoints, of proposals that are all positive."""
        losses = {}
        if self.has_mask():
            pooled = self.mask_roi_pool(features, proposals, image_shapes)
            masks, labels = ([t[name] for t in targets] for name in ("masks", "labels"))
            logits = self.mask_predictor(self.mask_head(pooled))
            losses["loss_mask"] = maskrcnn_loss(logits, proposals, masks, labels, matches)
        if self.has_keypoint():
            pooled = self.keypoint_roi_pool(features, proposals, image_shapes)
            keypoints = [t["keypoints"] for t in targets]
            logits = self.keypoint_predictor(self.keypoint_head(pooled))
            losses["loss_keypoint"] = keypointrcnn_loss(logits, proposals, keypoints, matches)
        return losses

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """As RoIHeads', with the samples' objects in place of their codes, which nothing needs.

        Returns:
            For each image proposals [N, 4], matched objects [N], labels [N], objects' boxes [N, 4].
        """
        self.check_targets(targets)
        assert targets is not None  # check_targets has raised otherwise
        boxes = [t["boxes"].to(proposals[0].dtype) for t in targets]
        proposals = self.add_gt_proposals(proposals, boxes)
        classes = [t["labels"] for t in targets]
        matches, labels = self.assign_targets_to_proposals(proposals, boxes, classes)
        kept = self.subsample(labels)
        proposals, matches, labels = (pick(x, kept) for x in (proposals, matches, labels))
        return proposals, matches, labels, matched_boxes(targets, matches)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As RoIHeads'; with torchvision's matcher without a matrix of objects times proposals.

        Returns:
            For each image the matched objects [R], 0 for none, and labels [R], -1: ignored.
        """
        if type(self.proposal_matcher) is not Matcher or self.box_similarity is not box_iou:
            found: tuple[list[Tensor], list[Tensor]]
            found = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
            return found
        matched, labels = [], []
        for boxes, objects, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            matches = match_as(self.proposal_matcher, objects, boxes)
            label = gather(classes, matches).to(torch.int64).where(matches >= 0, 0)
            labels.append(label.masked_fill(matches == Matcher.BETWEEN_THRESHOLDS, -1))
            matched.append(matches.clamp(min=0))
        return matched, labels

    def predict(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Class logits [N, C] and box deltas [N, 4 or 4C] of the proposals, at_least_float32."""
        logits, deltas = self.box_predictor(
            self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        )
        return at_least_float32(logits), at_least_float32(deltas)

    def joint_loss(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        labels: list[Tensor],
        target_boxes: list[Tensor],
    ) -> JointLoss:
        """The criterion of the samples of all images; keeps w⁻ in `negative_weight`."""
        choices: dict[str, Any] = {}
        if not self.sync_normalizers:  # no sample is ignored
            shape = class_logits.shape[:1]
            number = torch.full((), max(1, *shape), device=class_logits.device)
            choices = of_this_rank(number, shape, at_least_float32(class_logits).dtype)
        loss: JointLoss = self.criterion(
            class_logits,
            box_regression,
            torch.cat(labels),
            torch.cat(target_boxes),
            torch.cat(proposals),
            **choices,
        )
        self.negative_weight = loss.negative_weight
        return loss

    def detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image."""
        found = self.postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        keys = ("boxes", "scores", "labels")
        return [dict(zip(keys, image, strict=True)) for image in zip(*found, strict=True)]

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As RoIHeads', in float32 at least, and of class-agnostic deltas [N, 4] too."""
        class_logits, box_regression = map(at_least_float32, (class_logits, box_regression))
        if box_regression.shape[1] == 4:
            box_regression = box_regression.repeat(1, class_logits.shape[1])
        found: tuple[list[Tensor], list[Tensor], list[Tensor]]
        found = super().postprocess_detections(
            class_logits, box_regression, proposals, image_shapes
        )
        return found


def pick(values: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """Each image's rows."""
    return [x[i] for x, i in zip(values, rows, strict=True)]
