"""The two operators of the loss, forward and backward, and which implementation runs them.

CUDA and HIP tensors go to the Triton kernels, and so do CPU tensors where TRITON_INTERPRET=1 was
set before the import; everything else goes to the tensor operations of jolkernels.cpu.
"""

import importlib.util
import os

from torch import Tensor

from jolkernels import cpu
from jolkernels.spec import Batch, Forward, Settings

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def runs_on_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels compute the loss of this tensor."""
    return HAS_TRITON and (tensor.is_cuda or (INTERPRETED and tensor.device.type == "cpu"))


def forward(batch: Batch, settings: Settings) -> Forward:
    """Both losses and what `backward` needs beside the inputs."""
    check_labels(batch, settings)
    if runs_on_triton(batch.logits):
        from jolkernels import kernels

        return kernels.forward(batch, settings)
    return cpu.forward(batch, settings)


def backward(
    batch: Batch,
    settings: Settings,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for logits [N, C] and box_preds [N, 4S], each where `needs` asks for it."""
    saved = (rows, scalars, grad_classification, grad_regression, needs)
    if runs_on_triton(batch.logits):
        from jolkernels import kernels

        return kernels.backward(batch, settings, *saved)
    return cpu.backward(batch, settings, *saved)


def check_labels(batch: Batch, settings: Settings) -> None:
    """Raise for a label out of range, where looking costs no synchronisation with a GPU.

    On a GPU the kernels turn losses and gradients into NaN instead; JOLKERNELS_VALIDATE=1 makes
    this check run there too.

    Raises:
        ValueError: with the first bad index and its value.
    """
    labels = batch.labels
    if labels.device.type != "cpu" and os.environ.get("JOLKERNELS_VALIDATE") != "1":
        return
    last = settings.last_label(batch.logits.shape[1])
    bad = ((labels < 0) | (labels > last)) & (labels != settings.ignore_index)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"labels: got {int(labels[i])} at index {i}, wanted 0 to {last} for logits with "
            f"{batch.logits.shape[1]} columns, or ignore_index {settings.ignore_index}"
        )
