"""Batches of the dense entrance in C: levels in every layout, whose passes run by themselves."""

import torch
from cases import boxes, centered
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jolkernels import JointOptimizationLoss
from jolkernels.batch import accumulator
from jolkernels.cpu import dense_rows
from jolkernels.dense import make_dense_batch
from jolkernels.flattened import in_levels

SIZES = ((5, 7), (20, 9), (1, 1), (0, 3))
UP = 1.3, 0.7


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x: Tensor, *axes: int) -> Tensor:
    """The same numbers amid NaN along these axes."""
    larger = x.new_full([n + 3 * (d in axes) for d, n in enumerate(x.shape)], torch.nan)
    view = larger[
        tuple(slice(1, 1 + n) if d in axes else slice(None) for d, n in enumerate(x.shape))
    ]
    return view.copy_(x)


LAYOUTS = {
    "planes": Tensor.contiguous,
    "rows": channels_last,
    "positions": lambda x: x.flatten(2),
    "rows of positions": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
    "some channels": lambda x: sliced(x, 1),
    "some channels of rows": lambda x: sliced(channels_last(x).permute(0, 2, 3, 1), 3).permute(
        0, 3, 1, 2
    ),
    "some rows of a map": lambda x: sliced(x, 2),
    "part of a map": lambda x: sliced(x, 2, 3),
    "part of a map in rows": lambda x: sliced(channels_last(x).permute(0, 2, 3, 1), 1, 2).permute(
        0, 3, 1, 2
    ),
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}
IMAGE = {"classification_normalizer": "image", "regression_normalizer": "image"}
ALL = "classification_weights", "regression_weights", "extra_regression", "class_weights"


def dense_case(
    head=("focal", "last"),
    coding="delta",
    *,
    anchors=2,
    columns=8,
    images=2,
    sizes=SIZES,
    layout="planes",
    boxes_layout=None,
    dtype=torch.float64,
    labels_dtype=torch.int64,
    matched=None,
    objects=5,
    inputs=(),
    seed=0,
):
    """Arguments of JointOptimizationLoss.dense. What no pass may read is NaN.

    `matched`: None, or "objects" or "samples": whose the labels are. Labels of uint8 take 255 as
    ignore_index, others -100.
    """
    g = torch.Generator().manual_seed(seed)
    softmax, m = head[0] == "cross_entropy", anchors * sum(h * w for h, w in sizes)
    background = 0 if head[1] == "first" else columns - 1 if softmax else columns
    ignored = 255 if labels_dtype is torch.uint8 else -100
    classes = [k for k in range(columns) if k != background]

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def labels_of(*shape):
        return torch.tensor(classes)[torch.randint(len(classes), shape, generator=g)]

    u = torch.rand(images, m, generator=g)
    kinds = {"background": u < 0.5, "ignored": u > 0.85}
    given = {}
    if matched is None:
        labels, targets = labels_of(images, m), boxes(images * m, g).view(images, m, 4)
    else:
        targets = boxes(images * objects, g).view(images, objects, 4)
        at = torch.randint(objects, (images, m), generator=g)
        at[kinds["background"]], at[kinds["ignored"]] = -1, -2
        given["matched"] = at
        labels = labels_of(images, objects if matched == "objects" else m)
    if matched != "objects":
        labels[kinds["background"]], labels[kinds["ignored"]] = background, ignored
    unread = kinds["background"] | kinds["ignored"]
    if coding == "cxcywh":
        targets = centered(targets.view(-1, 4)).view(targets.shape)
    if matched is None:
        targets[unread] = torch.nan
    codes = {
        "xyxy": lambda: boxes(images * m, g),
        "delta": lambda: 0.4 * noise(images * m, 4),
        "ltrb": lambda: 0.2 + 0.5 * noise(images * m, 4).abs(),
        "cxcywh": lambda: centered(boxes(images * m, g)),
    }[coding]().view(images, m, 4)
    codes[unread] = torch.nan
    logits = 2 * noise(images, m, columns)
    logits[kinds["ignored"]] = torch.nan

    def levels(rows: Tensor, layout: str) -> list[Tensor]:
        like = [
            torch.empty(images, anchors * rows.shape[2], *s, dtype=torch.float64) for s in sizes
        ]
        return [LAYOUTS[layout](x.to(dtype)) for x in in_levels(rows.flatten(0, 1), tuple(like))]

    others = {
        "classification_weights": 0.5 + noise(images, m).abs(),
        "regression_weights": 0.5 + noise(images, m).abs(),
        "extra_regression": noise(images, m),
        "class_targets": torch.rand(images, m, generator=g, dtype=torch.float64),
        "class_weights": 0.5 + noise(columns).abs(),
    }
    given |= {name: others[name].to(dtype) for name in inputs}
    return given | {
        "logits": levels(logits, layout),
        "box_preds": levels(codes, boxes_layout or layout),
        "labels": labels.to(labels_dtype),
        "target_boxes": targets.to(dtype),
        "priors": boxes(m, g).to(dtype),
    }


def make(given, head=("focal", "last"), coding="delta", normalizers=None, **settings):
    """The batch and the call, both for the passes themselves."""
    if given["labels"].dtype is torch.uint8:
        settings["ignore_index"] = 255
    made = JointOptimizationLoss(head[0], background=head[1], coding=coding, **settings).settings
    batch, call = make_dense_batch(made, **given, **(normalizers or {}))
    assert dense_rows.available(batch, made)
    return batch, call


def upstream(batch):
    return tuple(torch.tensor(x, dtype=accumulator(batch)) for x in UP)


def passes(batch, call, needs=(True, True, True)):
    """Results and gradients of the dense passes."""
    needs = *needs[:2], needs[2] and batch.extra_regression is not None
    result = dense_rows.forward(batch, call)
    saved = result.rows, result.scalars
    return result, dense_rows.backward(batch, call, *saved, *upstream(batch), needs)


class Made(TorchDispatchMode):
    """The tensors that operators return, if they have memory."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_meta:
            self.tensors.append(result)
        return result
