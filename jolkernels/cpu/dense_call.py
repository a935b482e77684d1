"""What the C passes know of a dense call: struct level of samples.h, and how it is filled in.

A level whose positions have no single stride is copied first, as is one of logits in neither planes
nor rows; no other is.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jolkernels.cpu.rows_call import RowsCall, chunk_rows, storage, template
from jolkernels.dense import DenseBatch, Levels, positions
from jolkernels.layout import is_in_planes, is_in_rows, strides
from jolkernels.settings import Call

INTEGERS = {torch.int64: 0, torch.int32: 1, torch.int16: 2, torch.int8: 3, torch.uint8: 4}
"""As samples.h numbers them."""
RUN = 128  # as in samples.h


class Place(ctypes.Structure):
    """struct place of samples.h."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("image", ctypes.c_int64),
        ("col", ctypes.c_int64),
        ("position", ctypes.c_int64),
        ("half", ctypes.c_int64),
    )


class Level(ctypes.Structure):
    """struct level of samples.h."""

    _fields_ = (
        *((name, Place) for name in ("logits", "boxes", "grad_logits", "grad_boxes")),
        *((name, ctypes.c_int64) for name in ("first", "positions", "anchors", "planes", "chunk")),
    )


def in_rows(logits: Tensor) -> bool | None:
    """Whether the passes take a level of logits in rows, or else in planes; None: it is in neither.

    Where both would do, one column is better a plane, and one position a row.
    """
    rows, planes = is_in_rows(logits), is_in_planes(logits)
    if rows and planes:
        return logits.shape[1] > 1
    return rows if rows or planes else None


def readable(batch: DenseBatch) -> tuple[Levels, Levels]:
    """The levels of logits and boxes, copied where the passes could not read them."""
    logits = (x if in_rows(x) is not None else x.contiguous() for x in batch.logits)
    boxes = (x if strides(x) is not None else x.contiguous() for x in batch.box_preds)
    return tuple(logits), tuple(boxes)


class Layout(NamedTuple):
    """The levels as the passes see them, which must stay alive, and the table that points there."""

    logits: Levels
    box_preds: Levels
    table: ctypes.Array[Level]
    images_of_chunks: list[int]


def lay_out(
    batch: DenseBatch,
    logits: Levels,
    boxes: Levels,
    grad_logits: Sequence[Tensor | None],
    grad_boxes: Sequence[Tensor | None],
) -> Layout:
    """The table of readable levels and of what their gradients are written to.

    Raises:
        ValueError: the memory of a tensor does not hold its numbers.
    """
    columns, images, first = batch.columns, batch.images, 0
    table = (Level * len(logits))()
    of_chunks: list[int] = []
    for level, z, b, gz, gb in zip(table, logits, boxes, grad_logits, grad_boxes, strict=True):
        level.first, level.positions, level.anchors = first, positions(z), z.shape[1] // columns
        first += level.positions * level.anchors
        size_of_map = z.shape[2:]
        place(level.logits, "logits", z, (images, level.anchors * columns, *size_of_map))
        place(level.boxes, "box_preds", b, (images, level.anchors * 4, *size_of_map))
        for to, gradient in ((level.grad_logits, gz), (level.grad_boxes, gb)):
            if gradient is not None:
                place(to, "gradient", gradient, gradient.shape)
        level.planes = not in_rows(z)
        fold(level, columns)
        level.chunk = max(1, chunk_rows(columns, None) // level.anchors)
        if level.planes:
            level.chunk = max(RUN, level.chunk // RUN * RUN)
        each = -(-level.positions // level.chunk)
        of_chunks += [image for image in range(images) for _ in range(each)]
    return Layout(logits, boxes, table, of_chunks)


def place(to: Place, name: str, level: Tensor, shape: tuple[int, ...]) -> None:
    """Fill in where a level's numbers are."""
    to.at, _ = storage(name, level, shape, level.itemsize)
    to.half = level.dtype is torch.bfloat16
    found = strides(level)
    assert found is not None  # or it would have been copied
    to.image, to.col, to.position = found
    if positions(level) == 1:  # any will do: that of rows that follow each other
        to.position = level.shape[1] * to.col


def fold(level: Level, columns: int) -> None:
    """Make anchors positions where rows follow each other; a plane, if they have one column."""
    places = ((level.logits, columns), (level.boxes, 4), (level.grad_logits, columns),
              (level.grad_boxes, 4))  # fmt: skip
    given = [(p, width) for p, width in places if p.at]
    if level.planes or any(p.position != level.anchors * width * p.col for p, width in given):
        return
    for p, width in given:
        p.position = width * p.col
    level.positions, level.anchors = level.positions * level.anchors, 1
    level.planes = columns == 1 and all(p.position == 1 for p, width in given if width == 1)


def describe(batch: DenseBatch, call: Call, rows: Tensor, layout: Layout) -> RowsCall:
    """What rows.c needs to know of a call; the batch, `rows` and the layout must stay alive.

    Raises:
        ValueError: the memory of a tensor does not hold its numbers.
    """
    settings, images, samples = call.settings, batch.images, batch.samples
    shape, size = (images, samples), rows.itemsize
    known = template(settings, batch.columns, 4)
    assert known is not None  # or this would not be available
    c = RowsCall.from_buffer_copy(known)
    c.levels, c.num_levels = ctypes.addressof(layout.table), len(layout.table)
    c.images, c.samples, c.count = images, samples, images * samples
    targets, matched, labels = batch.target_boxes, batch.matched, batch.labels
    objects = targets.shape[1] if matched is not None else samples
    c.of_objects, c.objects = batch.labels_of_objects, objects
    c.labels_type = INTEGERS[labels.dtype]
    c.labels, (c.labels_image, c.labels_row) = storage(
        "labels", labels, (images, objects) if c.of_objects else shape, labels.itemsize
    )
    if matched is not None:
        c.matched_type = INTEGERS[matched.dtype]
        c.matched, (c.matched_image, c.matched_row) = storage(
            "matched", matched, shape, matched.itemsize
        )
    c.targets, (c.targets_image, c.targets_row, c.targets_col) = storage(
        "target_boxes", targets, (images, objects, 4), size
    )
    if (priors := batch.priors) is not None and settings.coding.uses_priors:
        c.priors, (*image, c.priors_row, c.priors_col) = storage(
            "priors", priors, (images, samples, 4)[3 - priors.ndim :], size
        )
        c.priors_image = image[0] if image else 0
    if (alphas := batch.classification_weights) is not None:
        c.alphas, (c.alphas_image, c.alphas_row) = storage(
            "classification_weights", alphas, shape, size
        )
    if (betas := batch.regression_weights) is not None:
        c.betas, (c.betas_image, c.betas_row) = storage("regression_weights", betas, shape, size)
    if (goals := batch.class_targets) is not None:
        c.class_targets, (c.class_targets_image, c.class_targets_row) = storage(
            "class_targets", goals, shape, size
        )
    if (extra := batch.extra_regression) is not None:
        c.extra, (c.extra_image, c.extra_row) = storage("extra_regression", extra, shape, size)
    if (weights := batch.class_weights) is not None:
        c.class_weights, (c.class_weights_row,) = storage(
            "class_weights", weights, (batch.columns,), size
        )
    c.rows, _ = storage("rows", rows, (settings.kept, c.count), size)
    return c
