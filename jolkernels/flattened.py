"""A dense batch as a flat one, for what has no kernel and no C pass, and for the checks of values.

It costs the copies that the dense entrance is there to avoid.
"""

import torch
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Batch, accumulator
from jolkernels.dense import BACKGROUND, IGNORED, DenseBatch, Levels
from jolkernels.settings import Call


def flatten(batch: DenseBatch, call: Call) -> tuple[Batch, Call]:
    """The batch of B * M samples, and the call of the flat entrance that is the same loss."""
    rows = batch.images * batch.samples
    labels, targets = labels_and_targets(batch, call)
    priors = batch.priors
    if priors is not None:
        priors = priors.expand(batch.images, batch.samples, 4).reshape(rows, 4)

    def flat(of_samples: Tensor | None) -> Tensor | None:
        return None if of_samples is None else of_samples.reshape(rows)

    weights = [flat(batch.classification_weights), flat(batch.regression_weights)]
    normalizers = [batch.classification_normalizer, batch.regression_normalizer]
    kinds = [call.classification_normalizer, call.regression_normalizer]
    if "image" in kinds:
        by_image, images = image_weights(batch, call, labels)
        for i, kind in enumerate(kinds):
            if kind == "image":
                given = weights[i]
                weights[i] = by_image if given is None else given * by_image
                kinds[i], normalizers[i] = "number", images
    return Batch(
        in_rows(batch.logits, batch.columns),
        in_rows(batch.box_preds, 4),
        labels,
        targets,
        priors,
        *weights,
        *normalizers,
        flat(batch.class_targets),
        flat(batch.extra_regression),
        batch.class_weights,
    ), Call(call.settings, *kinds)


def in_rows(levels: Levels, columns: int) -> Tensor:
    """Levels [B, A * columns, ...] as [B * M, columns]."""
    parts = [
        x.unflatten(1, (-1, columns)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2) for x in levels
    ]
    return torch.cat(parts, 1).flatten(0, 1)


def in_levels(rows: Tensor, like: Levels) -> Levels:
    """Rows [B * M, columns] as levels of these shapes and memory formats."""
    columns, images, found, start = rows.shape[1], like[0].shape[0], [], 0
    rows = rows.unflatten(0, (images, -1))
    for x in like:
        count = x[0].numel() // columns
        part = rows[:, start : start + count].unflatten(1, (-1, x.shape[1] // columns))
        found.append(torch.empty_like(x).copy_(part.permute(0, 2, 3, 1).reshape(x.shape)))
        start += count
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
    bad = -1 if ignore != -1 else -2
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


def image_weights(batch: DenseBatch, call: Call, labels: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(1, positives of the image) of each sample [B * M], and the images of a rank."""
    settings = call.settings
    positive = (labels != settings.background_label(batch.columns)) & (
        labels != settings.ignore_index
    )
    counts = positive.view(batch.images, -1).sum(1, keepdim=True).clamp(min=1)
    weights = (1 / counts.to(accumulator(batch))).expand(-1, batch.samples).reshape(-1)
    images = torch.full((), float(max(1, batch.images)), device=labels.device)
    return weights, process_groups.mean(images, settings.sync_group)
