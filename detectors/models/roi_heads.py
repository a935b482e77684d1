"""The second stage's heads with regions to ignore."""

from typing import Any

from torch import Tensor

from detectors.assigners.regions import ignore_boxes
from jolkernels.integrations.torchvision import JointRoIHeads


class AssignedRoIHeads(JointRoIHeads):
    """JointRoIHeads that sample no negatives in regions to ignore."""

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
        """As JointRoIHeads', with labels of -1, ignored, for background in a region."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        # one less than these labels are BACKGROUND and IGNORED
        found = zip(labels, proposals, self._regions, strict=True)
        return matched, [ignore_boxes(y - 1, boxes, regions) + 1 for y, boxes, regions in found]
