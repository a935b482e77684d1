"""The second stage's heads: torchvision's matching without its matrix, and regions to ignore."""

from typing import Any

import torch
from torch import Tensor

from detectors.assigners.priors import IGNORED
from detectors.assigners.regions import ignore_boxes
from detectors.assigners.threshold import chunked
from jolkernels.integrations.torchvision import JointRoIHeads


class AssignedRoIHeads(JointRoIHeads):
    """JointRoIHeads that hold no [G, N] matrix and sample no negatives in regions to ignore."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._regions: list[Tensor | None] = []

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """As RoIHeads', which hands no more than boxes and labels on to the matching."""
        self._regions = [target.get("ignored") for target in targets or ()]
        selected: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
        selected = super().select_training_samples(proposals, targets)
        return selected

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each image's matched objects [N], 0 for none, and labels [N]; -1 is ignored."""
        match = chunked(self.proposal_matcher)
        matched, labels = [], []
        for boxes, objects, classes, regions in zip(
            proposals, gt_boxes, gt_labels, self._regions, strict=True
        ):
            matches = ignore_boxes(match(objects, boxes, ()), boxes, regions)
            chosen = matches.clamp(min=0)
            label = classes[chosen].to(torch.int64) if len(objects) else torch.zeros_like(chosen)
            labels.append(label.where(matches >= 0, 0).masked_fill(matches == IGNORED, -1))
            matched.append(chosen)
        return matched, labels
