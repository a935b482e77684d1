"""Heads of torchvision's Faster R-CNN, RetinaNet and FCOS, trained with a JointOptimizationLoss.

They keep torchvision's conventions: labels (two-stage: 1-based with background 0; else 0-based),
the names of the losses, and inference. With ``weighting="none"`` and the settings of
`roi_criterion`, `retinanet_criterion` and `fcos_criterion` they return what torchvision's return.

    model = fasterrcnn_resnet50_fpn(num_classes=9)
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, roi_criterion())

    head = JointFCOSHead(256, 1, num_classes=8, criterion=fcos_criterion())
    model = FCOS(backbone, num_classes=8, head=head)

With a criterion that has a sync_group, every normaliser of a head's losses is that of all ranks:
the mean over the ranks of a loss and of its gradients is that of the joined batch.

Letters: B images, A anchors (points) of an image, K classes, N samples of the batch.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads

from jolkernels import process_groups
from jolkernels.integrations.matching import gather, match_as, matched_boxes, matched_labels
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import LTRB, Delta, Focal, Regression, SmoothL1


def roi_criterion(
    weights: tuple[float, float, float, float] = (10, 10, 5, 5),
    regression: str | Regression | None = None,
    **choices: Any,
) -> JointOptimizationLoss:
    """The loss on the terms of torchvision's `fastrcnn_loss`.

    Args:
        weights: the box coder's.
        regression: the box loss; None: torchvision's smooth L1 with beta 1/9.
        choices: what else JointOptimizationLoss takes: lam, location_score, weighting, ...
    """
    return JointOptimizationLoss(
        **{"classification": "cross_entropy", **choices},
        regression=regression or SmoothL1(beta=1 / 9),
        coding=Delta(weights=weights),
        background="first",
    )


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
        **{"classification": Focal(alpha=0.25, gamma=2.0), **choices},
        regression=regression,
        coding=Delta(),
    )


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


class JointRoIHeads(RoIHeads):
    """torchvision's RoIHeads, boxes only, trained with `criterion`.

    They hold no matrix of objects times proposals; a torchvision model's RPN still holds one of
    objects times anchors.

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
        if not self.training:
            class_logits, box_regression = self.predict(features, proposals, image_shapes)
            return self.detections(class_logits, box_regression, proposals, image_shapes), {}
        proposals, matches, labels, _ = self.select_training_samples(proposals, targets)
        assert targets is not None  # select_training_samples has raised otherwise
        class_logits, box_regression = self.predict(features, proposals, image_shapes)
        loss = self.joint_loss(
            class_logits, box_regression, proposals, labels, matched_boxes(targets, matches)
        )
        return [], {"loss_classifier": loss.classification, "loss_box_reg": loss.regression}

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As RoIHeads', without its matrix of objects times proposals.

        Returns:
            For each image the matched objects [R], 0 for none, and labels [R], -1: ignored.
        """
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
        loss: JointLoss = self.criterion(
            class_logits,
            box_regression,
            torch.cat(labels),
            torch.cat(target_boxes),
            torch.cat(proposals),
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
        """Boxes, labels and scores of each image, of class-agnostic deltas too."""
        if box_regression.shape[1] == 4:
            box_regression = box_regression.repeat(1, class_logits.shape[1])
        found = self.postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        keys = ("boxes", "scores", "labels")
        return [dict(zip(keys, image, strict=True)) for image in zip(*found, strict=True)]


class JointRetinaNetHead(RetinaNetHead):
    """torchvision's RetinaNetHead trained with `criterion`.

    Args:
        args: RetinaNetHead's arguments: in_channels, num_anchors, num_classes.
        criterion: a loss with a sigmoid classification and coding Delta(), see
            `retinanet_criterion`.
        normalizer: what the losses are divided by. "image": an image's by its own positives, then
            their mean, as torchvision; "batch": the batch's positives, as MMDetection.
        kwargs: RetinaNetHead's arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
    """

    def __init__(
        self,
        *args: Any,
        criterion: JointOptimizationLoss,
        normalizer: str = "image",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if normalizer not in ("image", "batch"):
            raise ValueError(f"normalizer: got {normalizer!r}, wanted one of image, batch")
        self.criterion = criterion
        self.normalizer = normalizer
        self.negative_weight: Tensor | None = None

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """RetinaNetHead.forward; for inference in float32 at least."""
        return _outputs(self, super().forward(x))

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """RetinaNetHead.compute_loss with the criterion, over the anchors of the whole batch.

        Args:
            targets: B dicts of boxes [G, 4] and 0-based labels [G].
            head_outputs: cls_logits [B, A, K], bbox_regression [B, A, 4].
            anchors: B tensors [A, 4], pixels.
            matched_idxs: B tensors [A]: the box an anchor is matched to, -1 background, -2 ignored.
        """
        logits, priors = head_outputs["cls_logits"], torch.cat(anchors)
        matched = torch.stack(matched_idxs)
        labels = matched_labels(targets, matched, logits.shape[-1])
        target_boxes = torch.cat(matched_boxes(targets, matched_idxs))
        choices: dict[str, Any] = {
            "classification_normalizer": "positives",
            "regression_normalizer": "positives",
        }
        if self.normalizer == "image":
            positives = (matched >= 0).sum(1, keepdim=True).clamp(min=1).to(priors.dtype)
            weights = (1 / positives).expand_as(matched).flatten()
            images = torch.full((), len(targets), device=priors.device)
            images = process_groups.mean(images, self.criterion.settings.sync_group)
            choices = {
                "classification_weights": weights,
                "regression_weights": weights,
                "classification_normalizer": images,
                "regression_normalizer": images,
            }
        loss: JointLoss = self.criterion(
            logits.flatten(0, 1),
            head_outputs["bbox_regression"].flatten(0, 1),
            labels.flatten(),
            target_boxes,
            priors,
            **choices,
        )
        self.negative_weight = loss.negative_weight
        return {"classification": loss.classification, "bbox_regression": loss.regression}


class JointFCOSHead(FCOSHead):
    """torchvision's FCOSHead trained with `criterion`; centreness keeps its own loss.

    Args:
        args: FCOSHead's arguments: in_channels, num_anchors, num_classes, num_convs.
        criterion: a loss with a sigmoid classification and coding LTRB, see `fcos_criterion`.
        weigh_boxes: weigh each point's box loss by its centreness and divide by their sum, as
            MMDetection; False (default): all positive points equally, as torchvision.
        kwargs: FCOSHead's arguments by name.

    Attributes:
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.
    """

    def __init__(
        self,
        *args: Any,
        criterion: JointOptimizationLoss,
        weigh_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.criterion = criterion
        self.weigh_boxes = weigh_boxes
        self.negative_weight: Tensor | None = None

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """FCOSHead.forward; for inference in float32 at least."""
        return _outputs(self, super().forward(x))

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
            matched_idxs: B tensors [A]: the box a point is matched to, -1 background, -2 ignored.
        """
        logits = head_outputs["cls_logits"].flatten(0, 1)
        priors = torch.cat(anchors)
        target_boxes = torch.cat(matched_boxes(targets, matched_idxs))
        matched = torch.stack(matched_idxs)
        positive = matched.flatten() >= 0
        centreness = self._centreness(priors, target_boxes, positive)
        group = self.criterion.settings.sync_group
        normalizer: Tensor | str = "positives"
        if self.weigh_boxes:
            normalizer = process_groups.mean(centreness.sum(), group).clamp(min=1e-6)
        loss: JointLoss = self.criterion(
            logits,
            head_outputs["bbox_regression"].flatten(0, 1),
            matched_labels(targets, matched, logits.shape[-1]).flatten(),
            target_boxes,
            priors,
            regression_weights=centreness if self.weigh_boxes else None,
            classification_normalizer="positives",
            regression_normalizer=normalizer,
        )
        self.negative_weight = loss.negative_weight
        # FCOSHead's centreness loss without its host sync.
        own = F.binary_cross_entropy_with_logits(
            head_outputs["bbox_ctrness"].flatten(), centreness, reduction="none"
        )
        ranks = process_groups.size(group)
        return {
            "classification": loss.classification,
            "bbox_regression": loss.regression,
            "bbox_ctrness": ranks * (own * positive).sum() / loss.num_positives.clamp(min=1),
        }

    def _centreness(self, priors: Tensor, target_boxes: Tensor, positive: Tensor) -> Tensor:
        """The centreness that points [N] should have, 0 for those without an object."""
        ltrb = self.box_coder.encode(priors, target_boxes)
        # Slices: a list of columns would be copied to a GPU, which waits for it.
        left_right, top_bottom = ltrb[:, 0::2], ltrb[:, 1::2]
        wanted = torch.sqrt(
            (left_right.amin(-1) / left_right.amax(-1))
            * (top_bottom.amin(-1) / top_bottom.amax(-1))
        )
        # A point outside every box has a square root of a negative number as its target.
        return wanted.where(positive, 0.0)


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if autocast made it float16 or bfloat16.

    Boxes are decoded, and scores ranked, in the predictions' dtype: of half precision, bfloat16
    would leave multiples of 4 pixels beyond 512, and many scores equal.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _outputs(head: torch.nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A dense head's outputs; in training as they are: the criterion computes in float32."""
    return found if head.training else {k: at_least_float32(v) for k, v in found.items()}
