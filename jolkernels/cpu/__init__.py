"""The loss and its gradient without Triton: in C where possible, else in tensor operations.

`forward` returns the results and what `backward` needs in addition to the inputs, `backward` the
two gradients; docs/mathematics.md has the derivation. The tensor operations run on any device that
has float64.
"""

from types import ModuleType

from torch import Tensor

from jolkernels.batch import Batch, Forward
from jolkernels.cpu import native, tensors
from jolkernels.settings import Call, Settings

__all__ = ["backward", "forward"]


def implementation(batch: Batch, settings: Settings) -> ModuleType:
    """The module that computes this call, in both directions."""
    return native if native.available(batch, settings) else tensors


def forward(batch: Batch, call: Call) -> Forward:
    """Both losses, and for `backward` what it needs of each row and the scalars."""
    return implementation(batch, call.settings).forward(batch, call)


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for logits [N, C], box_preds [N, 4S] and extra_regression [N].

    Each is None where `needs` is False.
    """
    return implementation(batch, call.settings).backward(
        batch, call, rows, scalars, grad_classification, grad_regression, needs
    )
