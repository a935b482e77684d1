"""torch.compile of a detector: the parts of fixed structure, where the time goes."""

from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN


def compile_model(model: nn.Module, **options: Any) -> nn.Module:
    """Compile the backbone with its pyramid, and the convolutions over its maps, in place.

    These are whole graphs. What depends on the data stays as it is: torchvision's transform,
    proposals, non-maximum suppression and assignment, the heads of single boxes, whose number
    changes, and the loss, which is one kernel already. Keys of the state dict stay the same.

    Args:
        model: from build_detector.
        options: what torch.compile takes, such as backend.

    Returns:
        model.
    """
    head = model.rpn.head if isinstance(model, FasterRCNN) else model.head
    for part in (model.backbone, head):
        part.compile(fullgraph=True, **options)  # type: ignore[union-attr]
    return model
