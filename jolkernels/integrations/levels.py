"""What torchvision's RetinaNet and FCOS heads share when trained with a JointOptimizationLoss.

In training they hand their levels over as the convolutions leave them: the loss reads these where
they lie, and nothing is flattened. Inference is torchvision's.

Letters: B images, M anchors (points) of an image over all levels, A of a position, K classes, G
objects of an image.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from jolkernels.loss import JointOptimizationLoss
from jolkernels.ops import in_eager_mode

NORMALIZERS = "classification_normalizer", "regression_normalizer"
WEIGHTS = "classification_weights", "regression_weights"
Targets = list[dict[str, Tensor]]
Outputs = dict[str, Any]
"""Levels by name, lists of tensors [B, A * C, H, W]; or, flattened, tensors [B, M, C]."""


class LevelsInTraining(nn.Module):
    """What the two heads share, before torchvision's head in the order of bases.

    A part whose forward is not torchvision's, or which has hooks, is called as it is, and its
    outputs are flattened: only it knows what it does.
    """

    own_parts: ClassVar[tuple[Any, Any]]
    """torchvision's classes of the two parts."""
    classification_head: Any
    regression_head: Any
    criterion: JointOptimizationLoss
    dense: bool = True
    negative_weight: Tensor | None = None
    sync_normalizers: bool = True
    """With a criterion that has a sync_group: whether normalisers are those of all ranks as well.

    False: they are this rank's own, as torchvision's; w⁻ alone is that of all ranks.
    """

    def forward(self, x: list[Tensor]) -> Outputs:
        """The head's outputs: levels in training, else torchvision's in float32 at least."""
        parts = self.classification_head, self.regression_head
        if self.training and self.dense and all(map(runs_as, parts, self.own_parts)):
            return self.levels(x)
        found: Outputs = super().forward(x)
        # In training as they are: the criterion computes in float32.
        return found if self.training else {k: at_least_float32(v) for k, v in found.items()}

    def levels(self, x: list[Tensor]) -> Outputs:
        """The outputs of torchvision's parts before they flatten them."""
        raise NotImplementedError

    def _check_criterion(self, wanted: str, decodes: bool) -> None:
        settings = self.criterion.settings
        if settings.classification.softmax:
            raise ValueError(
                f"criterion: got classification {settings.classification}, wanted a sigmoid loss"
            )
        if not decodes:
            raise ValueError(f"criterion: got coding {settings.coding}, wanted {wanted}")

    def _take_over(self, head: nn.Module) -> Self:
        for name, child in head.named_children():
            if name != "criterion":  # of a head that is one of ours already
                setattr(self, name, child)
        self.training = head.training  # train() would change the layers'
        return self


def runs_as(part: nn.Module, own: type[nn.Module]) -> bool:
    """Whether a call of `part` is `own`'s forward and nothing else."""
    hooks = (
        part._forward_hooks,
        part._forward_pre_hooks,
        part._backward_hooks,
        part._backward_pre_hooks,
    )
    return getattr(part.forward, "__func__", None) is own.forward and not any(hooks)


def columns_of(logits: Any, boxes: Any) -> int:
    """K of a head's outputs, levels or flattened."""
    if isinstance(logits, Tensor):
        return logits.shape[-1]
    return 4 * logits[0].shape[1] // boxes[0].shape[1]


def check_labels(targets: Targets, classes: int, ignore: int) -> None:
    """Raise for an object whose label is `classes`, which the loss has for the background.

    Unless it is `ignore`, which objects may have.

    It is not seen on a GPU, where to look means to wait, nor of fake tensors.

    Raises:
        ValueError: has the image and the object. torchvision raises an IndexError.
    """
    if classes == ignore or not in_eager_mode(target["labels"] for target in targets):
        return
    for image, target in enumerate(targets):
        labels = target["labels"]
        if labels.device.type == "cpu" and classes in (given := labels.tolist()):
            where = f"image {image}, object {given.index(classes)}"
            raise ValueError(f"labels: got {classes} at {where}, wanted 0 to {classes - 1}")


def of_this_rank(number: Tensor, shape: torch.Size, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a criterion that divide by a number of this rank, in spite of a sync_group.

    It is in the samples' weights: w⁻, of all ranks, scales the negatives of all ranks, so its
    gradient is the sum of what these come to after each rank's own division.

    Args:
        number: broadcasts to `shape`.
        shape: of the samples.
        dtype: of the weights.
    """
    weights = (1 / number.to(dtype)).expand(shape)
    return dict.fromkeys(WEIGHTS, weights) | dict.fromkeys(NORMALIZERS, 1.0)


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if autocast made it float16 or bfloat16.

    Boxes are decoded, and scores ranked, in the predictions' dtype: of half precision, bfloat16
    would leave multiples of 4 pixels beyond 512, and many scores equal.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def centreness_of(priors: Tensor, boxes: Tensor) -> Tensor:
    """The centreness [...] that points should have in boxes [..., 4], NaN outside of them."""
    centres = at_least_float32(priors).unflatten(-1, (2, 2)).mean(-2)
    near, far = centres - boxes[..., :2], boxes[..., 2:] - centres
    horizontal, vertical = (torch.minimum(near, far) / torch.maximum(near, far)).unbind(-1)
    return (horizontal * vertical).sqrt()
