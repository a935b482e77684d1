"""Classification losses: (logits [n, C], labels [n], goal [n], spec) -> [n], or [n, C] by column.

Label C of a sigmoid loss is the background. `goal` is what the labelled column of a positive shall
become, a constant: class_targets where these are given, else the IoU of the row's box for the soft
losses, else 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.registry import REFERENCE


def cross_entropy(logits: Tensor, labels: Tensor, _: Tensor, __: spec.CrossEntropy) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); F.softplus is linear beyond 20, 2e-9 off there."""
    return -F.logsigmoid(-x)


def one_hot_columns(logits: Tensor, labels: Tensor) -> Tensor:
    """1 in the column of a row's true class, 0 elsewhere and for the background."""
    return F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-t log p - (1 - t) log(1 - p), its tails exact, and 0 times an infinite part 0."""
    positive = torch.where(target == 0, 0, target * softplus(-logits))
    return positive + torch.where(target == 1, 0, (1 - target) * softplus(logits))


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent for x >= 0, without a slope at 0."""
    zero = x == 0
    return torch.where(zero, float(exponent == 0), torch.where(zero, 1, x) ** exponent)


def bce(logits: Tensor, labels: Tensor, goal: Tensor, _: spec.BCE) -> Tensor:
    return binary_cross_entropy(logits, one_hot_columns(logits, labels) * goal[:, None])


def focal(logits: Tensor, labels: Tensor, goal: Tensor, spec: spec.Focal) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, whose formula takes targets between 0 and 1 too."""
    target = one_hot_columns(logits, labels) * goal[:, None]
    wrong = target * torch.sigmoid(-logits) + (1 - target) * torch.sigmoid(logits)  # 1 - p_t
    alpha = spec.alpha * target + (1 - spec.alpha) * (1 - target)
    return alpha * power(wrong, spec.gamma) * binary_cross_entropy(logits, target)


def quality_focal(logits: Tensor, labels: Tensor, goal: Tensor, spec: spec.QualityFocal) -> Tensor:
    """Generalized Focal Loss, Eq. 3: |y - sigma|^beta BCE(sigma, y), y the goal or 0."""
    target = one_hot_columns(logits, labels) * goal[:, None]
    modulation = power((target - logits.sigmoid()).abs(), spec.beta)
    return modulation * binary_cross_entropy(logits, target)


def varifocal(logits: Tensor, labels: Tensor, goal: Tensor, spec: spec.Varifocal) -> Tensor:
    """VarifocalNet, Eq. 2: q BCE(p, q) where q > 0, else alpha p^gamma BCE(p, 0)."""
    one_hot = one_hot_columns(logits, labels)
    target = one_hot * goal[:, None]
    negative = spec.alpha * power(logits.sigmoid(), spec.gamma)
    if spec.detach:
        negative = negative.detach()
    positive = one_hot == 1 if spec.positives == "label" else target > 0
    return torch.where(positive, target, negative) * binary_cross_entropy(logits, target)


def mal(logits: Tensor, labels: Tensor, goal: Tensor, spec: spec.MAL) -> Tensor:
    """DEIM's matchability-aware loss: BCE(p, q^gamma) of a positive, else p^gamma BCE(p, 0)."""
    one_hot = one_hot_columns(logits, labels)
    negative = power(logits.sigmoid(), spec.gamma)
    if spec.detach:
        negative = negative.detach()
    loss = binary_cross_entropy(logits, one_hot * goal[:, None] ** spec.gamma)
    return torch.where(one_hot == 1, 1, negative) * loss


def sum_of_columns(losses: Tensor, class_weights: Tensor | None, choice: object) -> Tensor:
    """The losses of rows, [n], from those of their columns, [n, C], and factors of these, [C].

    Raises:
        ValueError: there are factors, and a loss that gives one number a row.
    """
    if losses.ndim == 2:
        return (losses if class_weights is None else class_weights * losses).sum(1)
    if class_weights is None:
        return losses
    raise ValueError(
        f"class_weights: got a tensor, wanted None for {choice}, whose columns have no losses of "
        "their own"
    )


REFERENCE["classification"] |= {
    spec.CrossEntropy: cross_entropy,
    spec.BCE: bce,
    spec.Focal: focal,
    spec.QualityFocal: quality_focal,
    spec.Varifocal: varifocal,
    spec.MAL: mal,
}
