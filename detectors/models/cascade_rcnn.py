"""Cascade R-CNN: a second stage of three heads, each on the boxes that the one before refined.

Cai and Vasconcelos, "Cascade R-CNN", arXiv 1712.00726. Thresholds, coders and loss weights are
those of MMDetection's configuration. Each head has its own Joint Optimization Loss.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from detectors.models.plan import Plan
from detectors.models.pyramids import two_stage_pyramid
from detectors.models.roi_heads import AssignedRoIHeads
from detectors.models.two_stage import two_stage
from jolkernels.integrations.torchvision import JointRoIHeads, matched_boxes, roi_criterion

THRESHOLDS = (0.5, 0.6, 0.7)
CODERS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)


class AgnosticPredictor(nn.Module):
    """Class logits and one box for all classes: [N, width] → [N, classes], [N, 4]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, background first, and deltas."""
        return self.cls_score(x), self.bbox_pred(x)


class CascadeRoIHeads(nn.Module):
    """Three AssignedRoIHeads one after another, in place of a FasterRCNN's roi_heads.

    Args:
        pool: pools the boxes' features [N, channels, size, size] from the pyramid.
        channels: channels of the pyramid.
        width: width of the heads' two layers.
        num_classes: number of classes with the background.
        samples: boxes of an image that each head is trained on, at most a quarter of them positive.
        detections: most detections of an image.
        score_threshold: least score of a detection.
        choices: other arguments of JointOptimizationLoss: regression, lam, weighting, ...
    """

    def __init__(
        self,
        pool: MultiScaleRoIAlign,
        channels: int,
        width: int,
        num_classes: int,
        *,
        samples: int = 512,
        detections: int = 100,
        score_threshold: float = 0.05,
        **choices: Any,
    ) -> None:
        super().__init__()
        inputs = channels * pool.output_size[0] * pool.output_size[1]
        self.heads = nn.ModuleList()
        for threshold, coder in zip(THRESHOLDS, CODERS, strict=True):
            head = TwoMLPHead(inputs, width)
            for layer in (head.fc6, head.fc7):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.heads.append(
                AssignedRoIHeads(
                    pool,
                    head,
                    AgnosticPredictor(width, num_classes),
                    threshold,
                    threshold,
                    samples,
                    0.25,
                    coder,
                    score_threshold,
                    0.5,
                    detections,
                    criterion=roi_criterion(coder, **choices),
                )
            )

    @classmethod
    def from_roi_heads(cls, plain: RoIHeads, **choices: Any) -> Self:
        """Three heads with the settings of `plain`, whose pool they share."""
        pool, head = plain.box_roi_pool, plain.box_head
        return cls(
            pool,
            head.fc6.in_features // (pool.output_size[0] * pool.output_size[1]),
            head.fc7.out_features,
            plain.box_predictor.cls_score.out_features,
            samples=plain.fg_bg_sampler.batch_size_per_image,
            detections=plain.detections_per_img,
            score_threshold=plain.score_thresh,
            **choices,
        )

    @property
    def stages(self) -> list[JointRoIHeads]:
        """The three heads, first to last."""
        return [head for head in self.heads if isinstance(head, JointRoIHeads)]

    @property
    def negative_weight(self) -> Tensor | None:
        """w⁻ of the last training batch, the mean over the heads; None before the first."""
        found = [s.negative_weight for s in self.stages if s.negative_weight is not None]
        return torch.stack(found).mean() if found else None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As JointRoIHeads.forward; the losses are weighted sums over the heads."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        every = []
        for number, stage in enumerate(self.stages):
            logits, deltas = stage.predict(features, proposals, image_shapes)
            every.append(logits)
            if number < len(self.stages) - 1:
                proposals = refine(stage, deltas, proposals, image_shapes)
        logits = torch.stack(every).mean(0)
        return stage.detections(logits, deltas, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        classification, regression = [], []
        for stage, factor in zip(self.stages, LOSS_WEIGHTS, strict=True):
            proposals, matches, labels, _ = stage.select_training_samples(proposals, targets)
            assert targets is not None  # select_training_samples has raised otherwise
            logits, deltas = stage.predict(features, proposals, image_shapes)
            boxes = matched_boxes(targets, matches)
            loss = stage.joint_loss(logits, deltas, proposals, labels, boxes)
            classification.append(factor * loss.classification)
            regression.append(factor * loss.regression)
            refined = refine(stage, deltas, proposals, image_shapes)
            proposals = [
                new[~is_appended(old, box, label)]
                for new, old, box, label in zip(refined, proposals, boxes, labels, strict=True)
            ]
        return {
            "loss_classifier": torch.stack(classification).sum(),
            "loss_box_reg": torch.stack(regression).sum(),
        }


def refine(
    stage: JointRoIHeads,
    deltas: Tensor,
    proposals: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """The boxes that a head predicts from its proposals, clipped, without gradient."""
    counts = [len(p) for p in proposals]
    boxes = stage.box_coder.decode_single(deltas.detach(), torch.cat(list(proposals)))
    return [
        clip_boxes_to_image(b, shape)
        for b, shape in zip(boxes.split(counts), image_shapes, strict=True)
    ]


def is_appended(proposals: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Which proposals are the object itself that they are matched to, bool [N].

    select_training_samples appends the objects to the proposals. Refined by one head after another,
    they would train later heads on boxes that never occur at inference.
    """
    return (proposals == boxes.to(proposals.dtype)).all(1) & (labels > 0)


def build(bodies: list[ResNet], plan: Plan) -> nn.Module:
    """Cascade R-CNN on this ResNet."""
    make_heads = partial(CascadeRoIHeads.from_roi_heads, **plan.choices)
    return two_stage(two_stage_pyramid(bodies[0], plan), plan, make_heads)
