"""The queries of a DETR-type model's heads as rows of one call of the loss.

Letters: B images, H heads (decoder layers, encoder, denoising), Q queries of a head, R of all
heads, C class columns, P objects of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Labels = Sequence[dict[str, Tensor]]
"""Of B images class_labels [P] and boxes [P, 4], cx cy w h as shares of the image."""
Outputs = dict[str, Tensor]
"""logits [B, Q, C] and pred_boxes [B, Q, 4], coded as the objects' boxes; D-FINE has more."""
Matches = Sequence[tuple[Tensor, Tensor]]
"""Of B images queries and, as many, their objects: int64 on the CPU."""


@dataclass
class Head:
    """What a decoder layer predicts, the encoder, or a decoder layer of denoising queries."""

    suffix: str  # of its losses' names
    outputs: Outputs
    matches: Matches
    copies: int = 0  # denoising queries of each object; 0: the queries are matched


def number_of_objects(labels: Labels) -> float:
    """How many objects all images have."""
    return float(sum(len(image["class_labels"]) for image in labels))


def by_layer(outputs: Mapping[str, Sequence[Tensor]]) -> list[Outputs]:
    """The outputs of each decoder layer, from those of all by name; the shortest counts."""
    layers = zip(*outputs.values(), strict=False)
    return [dict(zip(outputs, layer, strict=True)) for layer in layers]


def denoising_matches(labels: Labels, positive: Sequence[Tensor], copies: int) -> Matches:
    """The matches of denoising queries.

    Args:
        labels: the objects.
        positive: of B images queries [copies * P], copy by copy.
        copies: how many queries each object has.
    """
    queries = torch.cat(list(positive)).cpu().split([len(x) for x in positive])
    counts = [len(image["class_labels"]) for image in labels]
    return [(q, torch.arange(n).tile(copies)) for q, n in zip(queries, counts, strict=True)]


class Rows(NamedTuple):
    """The queries of all heads, image by image and head by head: N = B * R rows for one call."""

    logits: Tensor  # [N, C]
    boxes: Tensor  # [N, 4]
    labels: Tensor  # [N]
    targets: Tensor  # [N, 4], 0 without an object
    groups: Tensor  # [N], the number of the head


def rows_of(heads: Sequence[Head], labels: Labels, background: int) -> Rows:
    """The rows of heads.

    Args:
        heads: H of them.
        labels: the objects.
        background: the label of queries without an object.
    """
    logits = torch.cat([head.outputs["logits"] for head in heads], 1)
    boxes = torch.cat([head.outputs["pred_boxes"] for head in heads], 1)
    classes = [image["class_labels"] for image in labels]
    targets = [image["boxes"] for image in labels]
    sizes = [head.outputs["logits"].shape[1] for head in heads]
    first = np.cumsum([0, *map(len, classes)])  # object of each image, then that which is none
    objects = np.full(logits.shape[:2], first[-1])
    for head, start in zip(heads, np.cumsum([0, *sizes[:-1]]), strict=True):
        for image, (queries, found) in enumerate(head.matches):
            objects[image, start + queries.numpy()] = first[image] + found.numpy()
    groups = np.broadcast_to(np.repeat(np.arange(len(heads)), sizes), objects.shape)
    of_rows = torch.from_numpy(np.stack((objects, groups))).to(logits.device).flatten(1)
    return Rows(
        logits.flatten(0, 1),
        boxes.flatten(0, 1),
        torch.cat([*classes, classes[0].new_full((1,), background)])[of_rows[0]],
        torch.cat([*targets, targets[0].new_zeros(1, 4)])[of_rows[0]],
        of_rows[1],
    )
