"""The two operators of the loss, jolkernels::forward and jolkernels::backward.

CUDA and HIP tensors go to the Triton kernels, and so do CPU tensors where TRITON_INTERPRET=1 was
set before the import; everything else goes to jolkernels.cpu.

Operators are what torch.compile, torch.export and fake tensors see. Plain tensors in eager mode go
past them, straight to the implementation: the boundary costs more than a small batch's kernels.
"""

import importlib.util
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from jolkernels import cpu
from jolkernels.batch import Batch, Forward, accumulator
from jolkernels.spec import Settings

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

# The fields of a Batch, normalisers by name as None, and a key that names them and the settings.
BATCH = (
    "Tensor logits, Tensor box_preds, Tensor labels, Tensor target_boxes, Tensor? priors, "
    "Tensor? classification_weights, Tensor? regression_weights, "
    "Tensor? classification_normalizer, Tensor? regression_normalizer, str key"
)
torch.library.define(
    "jolkernels::forward", f"({BATCH}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    "jolkernels::backward",
    f"({BATCH}, Tensor rows, Tensor scalars, Tensor grad_classification, Tensor grad_regression, "
    "bool needs_logits, bool needs_boxes) -> (Tensor, Tensor)",
)

Tensors = Sequence[Tensor | None]


def pack(batch: Batch, settings: str) -> tuple[list[Tensor | None], str]:
    """A batch and its encoded settings as the operators take them: tensors and a key."""
    *tensors, z_cls, z_loc = batch
    if torch.compiler.is_compiling():  # its autograd Functions take no tensor twice
        tensors[2:] = [t if t is None else t.detach() for t in tensors[2:]]
    names = [z if isinstance(z, str) else "" for z in (z_cls, z_loc)]
    numbers = [None if isinstance(z, str) else z for z in (z_cls, z_loc)]
    return [*tensors, *numbers], f"{names[0]},{names[1]},{settings}"


@lru_cache
def parse(key: str) -> tuple[str, str, Settings]:
    """What a key names: the two normalisers ("": a number is given) and the settings."""
    z_cls, z_loc, settings = key.split(",", 2)
    return z_cls, z_loc, Settings.decode(settings)


def unpack(tensors: Tensors, key: str) -> tuple[Batch, Settings]:
    """The batch and settings that `pack` took apart."""
    z_cls, z_loc, settings = parse(key)
    # Kernels and C read memory as it lies, which a lazily negated tensor's is not.
    tensors = [t if t is None else t.resolve_neg() for t in tensors]
    fields: Any = (*tensors[:7], z_cls or tensors[7], z_loc or tensors[8])
    return Batch(*fields), settings


def in_eager_mode(tensors: Tensors) -> bool:
    """Whether nobody watches: no compiler, no dispatch mode, no tensor subclass."""
    return (
        not torch.compiler.is_compiling()
        and not any(t.is_meta for t in tensors if t is not None)
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors if t is not None)
    )


def implementation(logits: Tensor) -> Any:
    """The module whose `forward` and `backward` compute this: kernels or cpu."""
    if HAS_TRITON and (logits.is_cuda or (INTERPRETED and logits.device.type == "cpu")):
        from jolkernels import kernels

        return kernels
    return cpu


def forward(tensors: Tensors, key: str) -> tuple[Tensor, ...]:
    """The fields of jolkernels.batch.Forward."""
    if in_eager_mode(tensors):
        return run_forward(*tensors, key)
    return torch.ops.jolkernels.forward(*tensors, key)


def backward(
    tensors: Tensors, key: str, saved: Sequence[Tensor], needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients for logits [N, C] and box_preds [N, 4S], empty where `needs` does not ask.

    `saved` are rows, scalars and the upstream gradients of both losses.
    """
    if in_eager_mode([*tensors, *saved]):
        return run_backward(*tensors, key, *saved, *needs)
    return torch.ops.jolkernels.backward(*tensors, key, *saved, *needs)


def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """jolkernels::forward on real tensors."""
    *tensors, key = arguments
    batch, settings = unpack(tensors, key)
    result = implementation(batch.logits).forward(batch, settings)
    looks = batch.labels.device.type == "cpu" or os.environ.get("JOLKERNELS_VALIDATE") == "1"
    if looks and math.isnan(result.scalars[4]):  # of all ranks: they raise together
        check_labels(batch, settings)
        raise ValueError("labels: a label is out of range on another rank of sync_group")
    return tuple(result)


def run_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """jolkernels::backward on real tensors."""
    batch, settings = unpack(arguments[:9], arguments[9])
    *saved, needs_logits, needs_boxes = arguments[10:]
    grad_logits, grad_boxes = implementation(batch.logits).backward(
        batch, settings, *(t.resolve_neg() for t in saved), (needs_logits, needs_boxes)
    )
    nothing = batch.logits.new_empty(0)
    return (
        nothing if grad_logits is None else grad_logits,
        nothing.clone() if grad_boxes is None else grad_boxes,
    )


def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Shapes and dtypes of jolkernels::forward."""
    *tensors, key = arguments
    batch, settings = unpack(tensors, key)

    def empty(*shape: int) -> Tensor:
        return batch.logits.new_empty(shape, dtype=accumulator(batch))

    return tuple(
        Forward(
            classification=empty(),
            regression=empty(),
            negative_weight=empty(),
            num_positives=batch.labels.new_empty(()),
            rows=empty(settings.kept, batch.labels.shape[0]),
            scalars=empty(5),
        )
    )


def fake_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of jolkernels::backward."""
    logits, box_preds = arguments[:2]
    needs_logits, needs_boxes = arguments[-2:]
    return (
        logits.new_empty(logits.shape if needs_logits else 0),
        box_preds.new_empty(box_preds.shape) if needs_boxes else logits.new_empty(0),
    )


torch.library.impl("jolkernels::forward", "default", run_forward)
torch.library.impl("jolkernels::backward", "default", run_backward)
torch.library.register_fake("jolkernels::forward", fake_forward)
torch.library.register_fake("jolkernels::backward", fake_backward)


def check_labels(batch: Batch, settings: Settings) -> None:
    """Raise for a label out of range.

    Every implementation turns both losses and all gradients into NaN then, and a GPU, for which
    looking means waiting, leaves it at that unless JOLKERNELS_VALIDATE=1.

    Raises:
        ValueError: with the first bad index and its value.
    """
    labels, last = batch.labels, settings.last_label(batch.logits.shape[1])
    bad = ((labels < 0) | (labels > last)) & (labels != settings.ignore_index)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"labels: got {int(labels[i])} at index {i}, wanted 0 to {last} for logits with "
            f"{batch.logits.shape[1]} columns, or ignore_index {settings.ignore_index}"
        )
