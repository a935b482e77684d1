"""Heads of torchvision's Faster R-CNN, RetinaNet and FCOS, trained with a JointOptimizationLoss.

They keep torchvision's conventions: labels (two-stage: 1-based with background 0; else 0-based),
the names of the losses, and inference. With ``weighting="none"`` and the settings of
`roi_criterion`, `retinanet_criterion` and `fcos_criterion` they return what torchvision's return.

    model = fasterrcnn_resnet50_fpn(num_classes=9)
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, roi_criterion())

    model = fcos_resnet50_fpn(num_classes=8)
    model.head = JointFCOSHead.from_head(model.head, fcos_criterion())

With a criterion that has a sync_group, every normaliser of a head's losses is that of all ranks:
the mean over the ranks of a loss and of its gradients is that of the joined batch.
"""

from jolkernels.integrations.fcos import JointFCOSHead, fcos_criterion
from jolkernels.integrations.levels import at_least_float32
from jolkernels.integrations.matching import matched_boxes
from jolkernels.integrations.retinanet import JointRetinaNetHead, retinanet_criterion
from jolkernels.integrations.roi_heads import JointRoIHeads, roi_criterion

__all__ = [
    "JointFCOSHead",
    "JointRetinaNetHead",
    "JointRoIHeads",
    "at_least_float32",
    "fcos_criterion",
    "matched_boxes",
    "retinanet_criterion",
    "roi_criterion",
]
