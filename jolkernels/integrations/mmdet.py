"""Heads of MMDetection 3.x that train with a JointOptimizationLoss, under names of their own.

A config that inherits one of MMDetection's changes two lines; losses, coder, gains and normalisers
are what that config says:

    custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
    model = dict(bbox_head=dict(type="JointRetinaHead", joint=dict(lam=2.0)))

`joint` has the choices of jolkernels.integrations.choices; sync_group may be "world", all ranks.
A head's `negative_weight` is w⁻ of the batch; it is also in the log of MMDetection, which does not
add it to the loss. With ``weighting="none"`` a head returns what MMDetection's does.

Letters: B images, M anchors (points) of an image over all levels, A of a position, K classes, C
class columns, N proposals of the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jolkernels.integrations.choices import missing
from jolkernels.integrations.levels import at_least_float32, centreness_of
from jolkernels.loss import JointLoss

try:
    from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
    from mmdet.models.losses import accuracy
    from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead, Shared2FCBBoxHead
    from mmdet.registry import MODELS
    from mmdet.utils import reduce_mean

    from jolkernels.integrations.mmdet_losses import criterion_of, require
except ImportError as error:
    raise missing("jolkernels.integrations.mmdet", "mmdet") from error

Levels = Sequence[Tensor]
"""[B, A * C, H, W] of each level."""


class JointHead:
    """What the heads share, before MMDetection's head in the order of bases.

    Args:
        args: MMDetection's arguments.
        joint: choices of the loss.
        kwargs: MMDetection's arguments by name.

    Attributes:
        joint: the loss.
        negative_weight: w⁻ of the last training batch, 0-dim and without gradient; None before.

    Raises:
        TypeError, ValueError: what is not known, or cannot be mapped; the message names it.
    """

    loss_cls: Any
    loss_bbox: Any

    def __init__(self, *args: Any, joint: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.joint = criterion_of(self, joint)
        self.reg_decoded_bbox = True  # get_targets then returns boxes in pixels
        self.negative_weight: Tensor | None = None

    def losses(self, loss: JointLoss) -> dict[str, Tensor]:
        """A head's losses by MMDetection's names, and w⁻, which without "loss" is only logged."""
        self.negative_weight = loss.negative_weight
        return {
            "loss_cls": self.loss_cls.loss_weight * loss.classification,
            "loss_bbox": self.loss_bbox.loss_weight * loss.regression,
            "negative_weight": loss.negative_weight,
        }

    def valid_labels(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The labels, of rows without weight that of rows to ignore."""
        return labels.masked_fill(weights <= 0, self.joint.settings.ignore_index)

    def of_this_rank(self, number: Tensor | int, weights: Tensor) -> dict[str, Any]:
        """The class loss's weights and its normaliser, a number that each rank has its own of.

        With a sync_group it is in the weights; levels.of_this_rank says why. Box losses may be
        divided by any number: negatives have none.
        """
        if self.joint.settings.sync_group is not None:
            weights, number = at_least_float32(weights) / number, 1
        return {"classification_weights": weights, "classification_normalizer": number}


class JointBBoxHead(JointHead):
    """A second stage's loss, before a BBoxHead; in a cascade each stage has its own, and its w⁻."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require("bbox_head", self, with_cls=True, with_reg=True)

    def loss(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        """BBoxHead.loss.

        Args:
            cls_score: [N, K + 1], the background last.
            bbox_pred: [N, 4] or [N, 4 * K].
            rois: [N, 5], index of the image and box in pixels.
            labels: [N].
            label_weights: [N]; rows with 0 are ignored, with their boxes.
            bbox_targets: [N, 4] in pixels.
            bbox_weights: [N, 4], the same in each column.
            reduction_override: None.

        Raises:
            ValueError: reduction_override is something else.
        """
        if reduction_override is not None:
            raise ValueError(f"reduction_override: got {reduction_override!r}, wanted None")
        loss = self.joint(
            cls_score,
            bbox_pred,
            self.valid_labels(labels, label_weights),
            bbox_targets,
            rois[:, 1:],
            regression_weights=bbox_weights[:, 0],
            regression_normalizer=max(1, len(labels)),
            **self.of_this_rank((label_weights > 0).sum().clamp(min=1), label_weights),
        )
        return self.losses(loss) | {"acc": accuracy(cls_score, labels)}


@MODELS.register_module()
class JointConvFCBBoxHead(JointBBoxHead, ConvFCBBoxHead):
    """ConvFCBBoxHead with this loss."""


@MODELS.register_module()
class JointShared2FCBBoxHead(JointBBoxHead, Shared2FCBBoxHead):
    """Shared2FCBBoxHead with this loss: Faster and Cascade R-CNN's."""


class JointAnchorHead(JointHead):
    """What the two heads on anchors share."""

    get_anchors: Any
    get_targets: Any

    def targets(
        self, maps: Levels, objects: Any, metas: list[dict[str, Any]], ignored: Any
    ) -> tuple[dict[str, Tensor], int]:
        """Labels, boxes, priors and weights for `joint.dense`, and the head's avg_factor."""
        sizes = [level.shape[-2:] for level in maps]
        anchors, valid = self.get_anchors(sizes, metas, device=maps[0].device)
        priors = torch.cat(anchors[0])  # all images'; ATSSHead.get_targets changes the lists
        *_, labels, weights, boxes, _, count = self.get_targets(
            anchors, valid, objects, metas, batch_gt_instances_ignore=ignored
        )
        weight = torch.cat(weights, 1)
        return {
            "labels": self.valid_labels(torch.cat(labels, 1), weight),
            "target_boxes": torch.cat(boxes, 1),
            "priors": priors,
            "classification_weights": weight,
        }, count


@MODELS.register_module()
class JointRetinaHead(JointAnchorHead, RetinaHead):
    """RetinaHead with this loss, over the whole batch where MMDetection's is level by level."""

    def loss_by_feat(
        self,
        cls_scores: Levels,
        bbox_preds: Levels,
        batch_gt_instances: Any,
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """AnchorHead.loss_by_feat: levels [B, A * C, H, W] and [B, A * 4, H, W]."""
        targets, count = self.targets(
            cls_scores, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        targets |= self.of_this_rank(count, targets["classification_weights"])
        loss = self.joint.dense(cls_scores, bbox_preds, **targets, regression_normalizer=count)
        return self.losses(loss)


class JointCentrenessHead(JointHead):
    """What the two heads with centreness share; centreness keeps its own loss."""

    loss_centerness: Any

    def all_losses(
        self,
        maps: tuple[Levels, Levels, Levels],
        targets: dict[str, Tensor],
        positive: Tensor,
        count: Tensor,
        least: float,
    ) -> dict[str, Tensor]:
        """Losses whose box losses are weighed by centreness.

        Args:
            maps: levels of classes, boxes and centreness.
            targets: labels, boxes, priors and weights for `joint.dense`.
            positive: bool [B, M].
            count: what the class and centreness losses are divided by, 0-dim.
            least: of what the box losses are divided by.
        """
        classes, boxes, predicted = maps
        centreness = centreness_of(targets["priors"], targets["target_boxes"])
        centreness = centreness.where(positive, 0.0)
        loss = self.joint.dense(
            classes,
            boxes,
            **targets,
            regression_weights=centreness,
            classification_normalizer=count,
            regression_normalizer=reduce_mean(centreness.sum()).clamp(min=least),
        )
        flat = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in predicted], 1)
        own = self.loss_centerness(
            flat.flatten(), centreness.flatten(), positive.flatten(), avg_factor=count
        )
        return self.losses(loss) | {"loss_centerness": own}


@MODELS.register_module()
class JointATSSHead(JointCentrenessHead, JointAnchorHead, ATSSHead):
    """ATSSHead with this loss, over the whole batch where MMDetection's is level by level."""

    def loss_by_feat(
        self,
        cls_scores: Levels,
        bbox_preds: Levels,
        centernesses: Levels,
        batch_gt_instances: Any,
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """ATSSHead.loss_by_feat: levels [B, A * C, H, W], [B, A * 4, H, W] and [B, A, H, W]."""
        targets, count = self.targets(
            cls_scores, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        labels, priors = targets["labels"], targets["priors"]
        return self.all_losses(
            (cls_scores, bbox_preds, centernesses),
            targets,
            (labels >= 0) & (labels < self.num_classes),
            reduce_mean(priors.new_full((), count)),
            least=1,
        )


@MODELS.register_module()
class JointFCOSHead(JointCentrenessHead, FCOSHead):
    """FCOSHead with this loss."""

    def loss_by_feat(
        self,
        cls_scores: Levels,
        bbox_preds: Levels,
        centernesses: Levels,
        batch_gt_instances: Any,
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """FCOSHead.loss_by_feat: levels [B, C, H, W], [B, 4, H, W] and [B, 1, H, W]."""
        points = self.prior_generator.grid_priors(
            [level.shape[-2:] for level in cls_scores],
            dtype=bbox_preds[0].dtype,
            device=bbox_preds[0].device,
        )
        levels = self.get_targets(points, batch_gt_instances)
        labels, distances = (of_images(x, len(cls_scores[0])) for x in levels)
        # Distances count in pixels, or with norm_on_bbox in strides: priors of that size.
        units = self.strides if self.norm_on_bbox else [1] * len(points)
        unit = torch.cat([p.new_full((len(p), 1), u) for p, u in zip(points, units, strict=True)])
        point, near, far = torch.cat(points), *(distances * unit).chunk(2, -1)
        targets = {
            "labels": labels,
            "target_boxes": torch.cat((point - near, point + far), -1),
            "priors": torch.cat((point - unit / 2, point + unit / 2), -1),
        }
        positive = labels < self.num_classes
        count = reduce_mean(positive.sum().float()).clamp(min=1)
        maps = cls_scores, bbox_preds, centernesses
        return self.all_losses(maps, targets, positive, count, least=1e-6)


def of_images(levels: Levels, images: int) -> Tensor:
    """Levels [B * M_l, ...] as [B, M, ...]."""
    return torch.cat([level.unflatten(0, (images, -1)) for level in levels], 1)
