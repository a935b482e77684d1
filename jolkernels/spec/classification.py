"""Classification losses."""

from dataclasses import dataclass
from typing import ClassVar

from jolkernels.checks import check_fields, one_of, real


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax at the label; C = K + 1 columns, one of them the background."""

    softmax: ClassVar[bool] = True
    soft: ClassVar[bool] = False


@dataclass(frozen=True)
class BCE:
    """Binary cross entropy summed over the C = K columns."""

    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = False
    takes_targets: ClassVar[bool] = True


@dataclass(frozen=True)
class Focal:
    """Focal loss summed over the C = K columns, as torchvision's sigmoid_focal_loss."""

    alpha: float = 0.25
    gamma: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = False
    takes_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that alpha is a share, 0 to 1, and gamma an exponent >= 0."""
        check_fields(self)
        real("Focal: alpha", self.alpha, 0, 1)


@dataclass(frozen=True)
class QualityFocal:
    """Quality focal loss (Generalized Focal Loss, arXiv 2006.04388, Eq. 3)."""

    beta: float = 2.0
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the exponent is not negative."""
        check_fields(self)


@dataclass(frozen=True)
class Varifocal:
    """Varifocal loss (VarifocalNet, arXiv 2008.13367, Eq. 2).

    As VarifocalNet and MMDetection have it, p^gamma has a gradient, and the column of a positive
    whose target is 0 counts as a negative's. RT-DETR's (transformers' RTDetrLoss.loss_labels_vfl)
    is Varifocal(detach=True, positives="label"): p^gamma is a constant, and a positive is one by
    its label, so that with target 0 its own column has no loss.
    """

    alpha: float = 0.75
    gamma: float = 2.0
    detach: bool = False
    positives: str = "target"
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that factor and exponent are not negative, and the two switches."""
        check_fields(self, "alpha", "gamma")
        check_switch(self)
        one_of("Varifocal: positives", self.positives, ("target", "label"))


@dataclass(frozen=True)
class MAL:
    """Matchability-aware loss (DEIM, arXiv 2412.04234), as its code has it.

    BCE against q^gamma in a positive's column, q the IoU of its box, and p^gamma BCE against 0 in
    the others, p^gamma a constant. Source: engine/deim/deim_criterion.py, loss_labels_mal, of
    Intellindust-AI-Lab/DEIM at 09d35d5; gamma is that of its configurations.

    With detach=False p^gamma has a gradient. MAL(gamma=2, detach=False) with class_targets sqrt(t),
    as here the target is q^gamma, is the IA-BCE of LW-DETR and RF-DETR, whose target of a positive
    is t = max(0.01, p^alpha IoU^(1 - alpha)), a constant. Source: src/rfdetr/models/criterion.py,
    loss_labels with ia_bce_loss, of roboflow/rf-detr at 94c5028.
    """

    gamma: float = 1.5
    detach: bool = True
    softmax: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the exponent is not negative, and the switch."""
        check_fields(self, "gamma")
        check_switch(self)


def check_switch(choice: Varifocal | MAL) -> None:
    """Raise TypeError unless `detach` is one."""
    if not isinstance(choice.detach, bool):
        name = type(choice).__name__
        raise TypeError(f"{name}: detach: got {choice.detach!r}, wanted True or False")
