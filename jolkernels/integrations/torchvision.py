"""The Joint Optimization Loss in torchvision's detectors.

`use_joint_loss(model)` changes a stock model in place:

    model = use_joint_loss(maskrcnn_resnet50_fpn_v2(num_classes=9), lam=2.0)

The heads themselves take a criterion of your own:

    model = fasterrcnn_resnet50_fpn(num_classes=9)
    criterion = roi_criterion(regression="giou")
    model.roi_heads = JointRoIHeads.from_roi_heads(model.roi_heads, criterion)

    model = fcos_resnet50_fpn(num_classes=8)
    model.head = JointFCOSHead.from_head(model.head, fcos_criterion())

Both keep torchvision's conventions: labels (R-CNN and SSD: 1-based with background 0; else
0-based), the names of the losses, and inference. With ``weighting="none"`` and the settings of
`roi_criterion`, `retinanet_criterion` and `fcos_criterion` they return what torchvision's return.

With a criterion that has a sync_group, every normaliser of a head's losses is that of all ranks:
the mean over the ranks of a loss and of its gradients is that of the joined batch. use_joint_loss
leaves the normalisers to each rank, as torchvision does; w⁻ is that of all ranks.
"""

from jolkernels.integrations.choices import missing

try:
    import torchvision  # noqa: F401
except ImportError:
    raise missing(__name__, "torchvision") from None

from jolkernels.integrations.fcos import JointFCOSHead, fcos_criterion
from jolkernels.integrations.in_place import remove_joint_loss, use_joint_loss
from jolkernels.integrations.levels import at_least_float32
from jolkernels.integrations.matching import matched_boxes
from jolkernels.integrations.retinanet import JointRetinaNetHead, retinanet_criterion
from jolkernels.integrations.roi_heads import JointRoIHeads, roi_criterion
from jolkernels.integrations.ssd import JointSSD, ssd_criterion

__all__ = [
    "JointFCOSHead",
    "JointRetinaNetHead",
    "JointRoIHeads",
    "JointSSD",
    "at_least_float32",
    "fcos_criterion",
    "matched_boxes",
    "remove_joint_loss",
    "retinanet_criterion",
    "roi_criterion",
    "ssd_criterion",
    "use_joint_loss",
]
