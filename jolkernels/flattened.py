"""A dense batch as a flat one, for what has no kernel and no C pass, and for the checks of values.

It costs the copies that the dense entrance is there to avoid.
"""

from typing import Any

import torch
from torch import Tensor

from jolkernels import cpu, ops
from jolkernels.batch import Batch, Forward, accumulator
from jolkernels.dense import (
    BACKGROUND,
    IGNORED,
    DenseBatch,
    Levels,
    images_of_a_rank,
    is_by_image,
    no_label,
    scalars_shape,
)
from jolkernels.dense_checks import check_dense_labels
from jolkernels.settings import Call


def forward(batch: DenseBatch, call: Call, alone: bool = False) -> Forward:
    """The flat entrance's forward pass, which looks at no labels."""
    flat, flat_call = flatten(batch, call)
    chosen = ops.implementation(flat, call.settings)
    if chosen is cpu:
        result = cpu.forward(flat, flat_call)
    else:
        result = chosen.forward(flat, flat_call, alone=alone)
    images = scalars_shape(batch, call)[:-1]
    return result._replace(scalars=result.scalars.repeat(*images, 1)) if images else result


def backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: ops.Needs,
) -> tuple[Any, Any, Tensor | None]:
    """The flat entrance's backward pass, and its gradients in the levels' memory formats."""
    flat, flat_call = flatten_samples(batch, call)
    scalars = scalars.view(-1, 5)[0]  # what differs by image is in the weights
    saved = rows, scalars, grad_classification, grad_regression
    try:
        logits, boxes, extra = ops.backward_pass(flat, flat_call, *saved, needs)
    except ValueError:  # a label went bad since the forward pass: named as it was given
        check_dense_labels(batch, call)
        raise
    nothing = (None,) * len(batch.logits)
    return (
        nothing if logits is None else in_levels(logits, batch.logits),
        nothing if boxes is None else in_levels(boxes, batch.box_preds),
        None if extra is None else extra.view(batch.images, batch.samples),
    )


def flatten(batch: DenseBatch, call: Call) -> tuple[Batch, Call]:
    """The batch of B * M samples, and the call of the flat entrance that is the same loss."""
    flat, flat_call = flatten_samples(batch, call)
    kinds, (z_cls, z_loc) = call[1:3], batch[8:10]
    if is_by_image(call):
        count = images_of_a_rank(batch, call)
        z_cls, z_loc = (
            count if kind == "image" else z for kind, z in zip(kinds, (z_cls, z_loc), strict=True)
        )
    return flat._replace(classification_normalizer=z_cls, regression_normalizer=z_loc), flat_call


def flatten_samples(batch: DenseBatch, call: Call) -> tuple[Batch, Call]:
    """The same without normalisers, which a backward pass does not need.

    An image's own normaliser is in the weights of its samples.
    """
    rows = batch.images * batch.samples
    labels, targets = labels_and_targets(batch, call)
    priors = batch.priors
    if priors is not None:
        priors = priors.expand(batch.images, batch.samples, 4).reshape(rows, 4)

    def flat(of_samples: Tensor | None) -> Tensor | None:
        return None if of_samples is None else of_samples.reshape(rows)

    weights = [flat(batch.classification_weights), flat(batch.regression_weights)]
    kinds = list(call[1:3])
    if is_by_image(call):
        by_image = image_weights(batch, call, labels)
        for i, kind in enumerate(kinds):
            if kind == "image":
                given = weights[i]
                weights[i] = by_image if given is None else given * by_image
                kinds[i] = "number"
    return Batch(
        in_rows(batch.logits, batch.columns),
        in_rows(batch.box_preds, 4),
        labels,
        targets,
        priors,
        weights[0],
        weights[1],
        None,
        None,
        flat(batch.class_targets),
        flat(batch.extra_regression),
        batch.class_weights,
    ), Call(call.settings, kinds[0], kinds[1])


def in_rows(levels: Levels, columns: int) -> Tensor:
    """Levels [B, A * columns, ...] as [B * M, columns]."""
    parts = [
        x.unflatten(1, (-1, columns)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2) for x in levels
    ]
    return torch.cat(parts, 1).flatten(0, 1)


def in_levels(rows: Tensor, like: Levels) -> Levels:
    """Rows [B * M, columns] as levels of these shapes and memory formats."""
    columns, found = rows.shape[1], []
    counts = [x.shape[1:].numel() // columns for x in like]
    parts = rows.view(like[0].shape[0], sum(counts), columns).split(counts, 1)
    for x, part in zip(like, parts, strict=True):
        anchors = x.shape[1] // columns
        level = torch.empty_like(x)
        part = part.unflatten(1, (*x.shape[2:], anchors)).movedim((-2, -1), (1, 2))
        level.unflatten(1, (anchors, columns)).copy_(part)
        found.append(level)
    return tuple(found)


def labels_and_targets(batch: DenseBatch, call: Call) -> tuple[Tensor, Tensor]:
    """Labels int64 [B * M] and target boxes [B * M, 4] of the samples.

    An index out of range makes a label that is.
    """
    rows = batch.images * batch.samples
    labels, targets, matched = batch.labels.long(), batch.target_boxes, batch.matched
    if matched is None:
        return labels.reshape(rows), targets.reshape(rows, 4)
    ignore = call.settings.ignore_index
    background = call.settings.background_label(batch.columns)
    bad = no_label(call.settings)
    matched, objects = matched.long(), targets.shape[1]
    found = (matched >= 0) & (matched < objects)
    at = matched.where(found, 0)
    if batch.labels_of_objects:
        labels = labels.gather(1, at) if objects else torch.zeros_like(at)
        labels = torch.where(found, labels, bad)
        labels = torch.where(matched == BACKGROUND, background, labels)
        labels = torch.where(matched == IGNORED, ignore, labels)
    else:
        without = ~found & (labels != background) & (labels != ignore)
        labels = torch.where(without, bad, labels)
    if objects:
        targets = targets.gather(1, at[..., None].expand(-1, -1, 4))
    else:
        targets = targets.new_zeros((*matched.shape, 4))
    return labels.reshape(rows), targets.reshape(rows, 4)


def image_weights(batch: DenseBatch, call: Call, labels: Tensor) -> Tensor:
    """1 / max(1, positives of the image) of each sample [B * M]."""
    settings = call.settings
    positive = (labels != settings.background_label(batch.columns)) & (
        labels != settings.ignore_index
    )
    counts = positive.view(batch.images, batch.samples).sum(1, keepdim=True).clamp(min=1)
    return (1 / counts.to(accumulator(batch))).expand(-1, batch.samples).reshape(-1)
