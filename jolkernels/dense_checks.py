"""Checks of a call of the dense entrance; an error names the argument, what came, what was wanted.

`batch` is a DenseBatch; letters as in jolkernels.dense.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jolkernels import batch as flat
from jolkernels.batch import FLOATS, OF_ROWS, check, check_normalizer, wrong
from jolkernels.checks import one_of
from jolkernels.settings import Call, Settings

Levels = tuple[Tensor, ...]
Shape = tuple[int | str, ...]  # a letter: any size
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
OF_SAMPLES = OF_ROWS
NORMALIZERS = (*flat.NORMALIZERS, "image")
BACKGROUND, IGNORED = -1, -2
"""What `matched` says of samples that have no object, where labels are the objects'."""


def read_levels(name: str, given: object) -> Levels:
    """The levels of an argument: tensors of three or four dimensions, one dtype and device."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{name}: got {type(given).__name__}, wanted a list of levels")
    if not given:
        raise ValueError(f"{name}: got an empty list, wanted a tensor for each level")
    channels = "A * C" if name == "logits" else "A * 4"
    for i, level in enumerate(given):
        if not isinstance(level, Tensor) or level.ndim not in (3, 4):
            shapes = f"[B, {channels}, H, W] or [B, {channels}, P]"
            raise wrong(f"{name}[{i}]", level, f"a tensor of shape {shapes}")
        if i == 0:
            check(f"{name}[0]", level, level.shape, level)
        else:
            alike(f"{name}[{i}]", level, given[0], f"{name}[0]'s")
    return tuple(given)


def alike(name: str, tensor: Tensor, first: Tensor, whose: str) -> None:
    """Raise unless the tensor has the dtype and device of `first`."""
    if tensor.dtype is not first.dtype:
        raise TypeError(f"{name}: got {tensor.dtype}, wanted {whose} {first.dtype}")
    if tensor.device != first.device:
        raise ValueError(f"{name}: got device {tensor.device}, wanted {whose} {first.device}")


def check_levels(logits: Levels, boxes: Levels, settings: Settings) -> None:
    """Raise unless the levels of logits and boxes belong together."""
    if len(logits) != len(boxes):
        raise ValueError(
            f"box_preds: got {len(boxes)} levels, wanted {len(logits)}, as logits have"
        )
    check("box_preds[0]", boxes[0], boxes[0].shape, logits[0])
    images, columns = logits[0].shape[0], 0
    least = 2 if settings.classification.softmax else 1
    for i, (x, box) in enumerate(zip(logits, boxes, strict=True)):
        if x.shape[0] != images:
            raise wrong(f"logits[{i}]", x, f"{images} images, as logits[0] has")
        anchors = box.shape[1] // 4
        if box.shape[1] != 4 * max(1, anchors) or (box.shape[0], *box.shape[2:]) != (
            images,
            *x.shape[2:],
        ):
            shape = listed((images, "A * 4", *x.shape[2:]))
            raise wrong(f"box_preds[{i}]", box, f"{shape}, as logits[{i}] is {list(x.shape)}")
        if i == 0:
            columns = x.shape[1] // anchors
        if columns < least or x.shape[1] != anchors * columns:
            c = f"C >= {least}" if i == 0 else f"logits[0]'s C = {columns}"
            why = f"as box_preds[{i}] has A = {anchors}"
            raise wrong(f"logits[{i}]", x, f"A * C channels with {c}, {why}")


def check_list(name: str, given: Sequence[Any], shape: Shape, like: Tensor, why: str = "") -> None:
    """Raise unless `given` has a tensor of this shape for each image, all of one dtype."""
    images = like.shape[0]
    if len(given) != images or not given:
        wanted = f"{images}, one an image" if images else "a tensor, as there are no images"
        raise ValueError(f"{name}: got a list of {len(given)}, wanted {wanted}")
    for i, x in enumerate(given):
        of_one = f"{name}[{i}]"
        if not isinstance(x, Tensor) or not fits(x.shape, shape):
            raise wrong(of_one, x, f"a tensor of shape {listed(shape)}{why}")
        if x.device != like.device:
            raise ValueError(f"{of_one}: got device {x.device}, wanted logits' {like.device}")
        alike(of_one, x, given[0], f"{name}[0]'s")


def fits(got: torch.Size, shape: Shape) -> bool:
    """Whether a shape is the wanted one."""
    if got == shape:  # a torch.Size is a tuple
        return True
    return len(got) == len(shape) and all(
        isinstance(n, str) or n == m for m, n in zip(got, shape, strict=True)
    )


def listed(shape: Shape) -> str:
    """A shape as text."""
    return f"[{', '.join(map(str, shape))}]"


def of_levels(samples: int) -> str:
    """Where M comes from, for messages."""
    return f", as the levels have {samples} samples an image"


def check_dense_batch(batch: Any, settings: Settings) -> None:
    """Raise unless every tensor has the shape, dtype and device that the dense entrance takes.

    The levels are checked before. What labels and `matched` say is another matter: to look at them
    means to wait for a GPU.
    """
    like, b, m, c = batch.logits[0], batch.images, batch.samples, batch.columns
    why = of_levels(m)

    def of_shape(
        name: str, *shapes: Shape, dtypes: tuple[torch.dtype, ...] = FLOATS, why: str = why
    ) -> None:
        tensor = getattr(batch, name)
        if not isinstance(tensor, Tensor) or not any(fits(tensor.shape, s) for s in shapes):
            raise wrong(name, tensor, f"a tensor of shape {' or '.join(map(listed, shapes))}{why}")
        check(name, tensor, tensor.shape, like, dtypes)

    if batch.matched is None:
        of_shape("labels", (b, m), dtypes=INTEGERS)
        of_shape("target_boxes", (b, m, 4))
    else:
        of_shape("matched", (b, m), dtypes=INTEGERS)
        of_shape("target_boxes", (b, "G", 4), why="")
        of_objects = (b, batch.target_boxes.shape[1])
        of_shape("labels", (b, m), of_objects, dtypes=INTEGERS, why=f"{why}, or of the objects")
    if batch.priors is not None:
        of_shape("priors", (m, 4), (b, m, 4))
    elif settings.coding.uses_priors:
        raise ValueError(f"priors: got None, wanted a [{m}, 4] tensor for {settings.coding}")
    if batch.class_targets is not None and not settings.takes_targets:
        raise ValueError(
            f"class_targets: got a tensor, wanted None for {settings.classification}, whose "
            "targets are labels"
        )
    for name in OF_SAMPLES:
        if getattr(batch, name) is not None:
            of_shape(name, (b, m))
    if batch.class_weights is not None:
        of_shape("class_weights", (c,), why="")


def check_dense_call(batch: Any, call: Call) -> None:
    """All of these checks, and that the batch holds what the call announces, and nothing else."""
    for name in ("logits", "box_preds"):
        read_levels(name, getattr(batch, name))
    check_levels(batch.logits, batch.box_preds, call.settings)
    check_dense_batch(batch, call.settings)
    if call.num_groups is not None:
        raise ValueError(f"num_groups: got {call.num_groups}, wanted None")
    for name in ("classification_normalizer", "regression_normalizer"):
        kind, number = getattr(call, name), getattr(batch, name)
        one_of(name, kind, (*NORMALIZERS, "number"))
        if (number is None) == (kind == "number"):
            got = "None" if number is None else "a tensor"
            raise ValueError(f"{name}: got {got} in the batch and {kind!r} in the call")
        if number is not None:
            check_normalizer(name, number, None, batch.logits[0])


def check_dense_labels(batch: Any, call: Call) -> None:
    """Raise for a label, or an index of `matched`, out of range.

    As jolkernels.batch.check_labels: every implementation then makes losses and gradients NaN.

    Raises:
        ValueError: with the image, the sample or object, and what it has.
    """
    settings, columns, objects = call.settings, batch.columns, batch.target_boxes.shape[1]
    ignore, last = settings.ignore_index, settings.last_label(columns)
    wanted = f"0 to {last} for logits with {columns} columns, or ignore_index {ignore}"
    labels = batch.labels.long()
    bad = ((labels < 0) | (labels > last)) & (labels != ignore)
    if batch.matched is None:
        raise_first("labels", labels, bad, "sample", wanted)
        return
    matched = batch.matched.long()
    inside = (matched >= 0) & (matched < objects)
    if batch.labels_of_objects:
        without = f"{BACKGROUND} for the background or {IGNORED} to ignore the sample"
        known = inside | (matched == BACKGROUND) | (matched == IGNORED)
        raise_first("matched", matched, ~known, "sample", f"{upto(objects)}{without}")
        used = torch.zeros(batch.images, objects + 1, dtype=torch.bool, device=labels.device)
        used.scatter_(1, matched.where(inside, objects), True)
        raise_first("labels", labels, bad & used[:, :objects], "object", wanted)
        return
    raise_first("labels", labels, bad, "sample", wanted)
    positive = (labels != settings.background_label(columns)) & (labels != ignore)
    wanted = f"{upto(objects)}a label of the background or ignore_index"
    raise_first("matched", matched, positive & ~inside, "sample", wanted)


def upto(objects: int) -> str:
    """The indices that there are, for messages."""
    return f"0 to {objects - 1}, " if objects else "no object, but "


def raise_first(name: str, values: Tensor, bad: Tensor, noun: str, wanted: str) -> None:
    """Raise ValueError for the first of `bad` [B, ...], if there is one."""
    if bad.any():
        image, i = bad.nonzero()[0].tolist()
        value = int(values[image, i])
        raise ValueError(f"{name}: got {value} at image {image}, {noun} {i}, wanted {wanted}")
