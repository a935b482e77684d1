"""Random batches of the dense entrance, and what they are flat, by code of their own.

Letters as in jolkernels.dense.
"""

import torch
from cases import DEVICE, boxes, centered, random_batch
from inputs import with_inputs
from torch import Tensor

SIZES = (2, 3), (2, 1), (1, 1)
PER_SAMPLE = ("classification_weights", "regression_weights", "class_targets",
              "extra_regression")  # fmt: skip
LAYOUTS = ("nchw", "channels_last", "channels", "channels of channels_last", "images",
           "images of channels_last", "positions", "positions of channels_last", "every second",
           "BCP", "BPC", "channels of BPC")  # fmt: skip


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The numbers of a level [B, channels, H, W] in another layout; NaN lies between them."""
    b, c, h, w = x.shape
    if layout in ("BCP", "BPC", "channels of BPC"):
        x = x.reshape(b, c, h * w)
        if layout == "BCP":
            return x.contiguous()
        wide = x.new_full((b, h * w, c + 3 * (layout != "BPC")), torch.nan).transpose(1, 2)
        return wide[:, :c].copy_(x)
    if layout in ("nchw", "channels_last"):
        last = layout == "channels_last"
        return x.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    kind, _, last = layout.partition(" of ")
    shape = {
        "channels": (b, c + 3, h, w),
        "images": (2 * b, c, h, w),
        "positions": (b, c, h + 2, w + 1),
        "every second": (b, c, 2 * h, 2 * w),
    }[kind]
    wide = x.new_full(shape, torch.nan)
    if last:
        wide = wide.contiguous(memory_format=torch.channels_last)
    part = {
        "channels": wide[:, 2 : 2 + c],
        "images": wide[1::2],
        "positions": wide[:, :, 1 : 1 + h, :w],
        "every second": wide[:, :, ::2, 1::2],
    }[kind]
    return part.copy_(x)


def in_levels(rows: Tensor, sizes, anchors, layouts) -> list[Tensor]:
    """Rows [B, M, K] as levels, in order of (level, position, anchor), leaves that require grad."""
    levels, start = [], 0
    for (h, w), a, layout in zip(sizes, anchors, layouts, strict=True):
        part = rows[:, start : start + h * w * a]
        start += h * w * a
        part = part.reshape(len(rows), h, w, a * rows.shape[2]).permute(0, 3, 1, 2)
        levels.append(laid_out(part.detach(), layout).detach().requires_grad_())
    assert start == rows.shape[1]
    return levels


def dense_batch(
    head: tuple[str, str] = ("focal", "last"),
    coding: str = "delta",
    *,
    images: int = 2,
    sizes=SIZES,
    anchors: int | tuple[int, ...] = 2,
    layouts: str | tuple[str, ...] = "nchw",
    matched: str | None = None,
    inputs: tuple[str, ...] = (),
    classes: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict:
    """Arguments of `dense`: positives, negatives and ignored samples; leaves that require grad.

    Priors are [M, 4], weights and the further `inputs` as in random_batch and with_inputs. With
    `matched` "objects" the labels and boxes are those of objects, with "samples" the boxes are; the
    second image has no object. What no loss may read holds NaN, or an index of no object.
    """
    each = (anchors,) * len(sizes) if isinstance(anchors, int) else anchors
    each_layout = (layouts,) * len(sizes) if isinstance(layouts, str) else layouts
    m = sum(h * w * a for (h, w), a in zip(sizes, each, strict=True))
    rows = random_batch(head, coding, n=images * m, classes=classes, dtype=dtype, seed=seed)
    rows = with_inputs(rows, *inputs)
    batch = {name: x.view(images, m, *x.shape[1:]) for name, x in rows.items() if x.ndim and name
             not in ("class_weights", "extra_regression")}  # fmt: skip
    batch |= {name: rows[name] for name in ("class_weights",) if name in rows}
    if "extra_regression" in rows:
        batch["extra_regression"] = rows["extra_regression"].detach().view(images, m)
        batch["extra_regression"].requires_grad_()
    for name in ("logits", "box_preds"):
        batch[name] = in_levels(batch[name], sizes, each, each_layout)
    g = torch.Generator().manual_seed(seed + 1)
    batch["priors"] = boxes(m, g).to(DEVICE, dtype)
    background = 0 if head[1] == "first" else classes
    return with_objects(batch, matched, background, classes, coding, g) if matched else batch


def with_objects(batch, matched, background, classes, coding, g) -> dict:
    """The batch with every positive sample matched to one of its image's objects."""
    labels, dtype = batch["labels"].cpu().clone(), batch["target_boxes"].dtype
    index = torch.full_like(labels, -1).masked_fill(labels == -100, -2)
    found = torch.tensor([c for c in range(classes + 1) if c != background])
    of_objects, targets = [], []
    for i, y in enumerate(labels):
        count = (4, 0, 7)[i % 3]
        y_objects = found[torch.randint(0, classes, (count,), generator=g)]
        positive = (y != background) & (y != -100)
        if count:
            index[i, positive] = torch.randint(0, count, (int(positive.sum()),), generator=g)
            y[positive] = y_objects[index[i, positive]]
        else:
            y[positive] = background
        corners = boxes(count, g)
        of_objects.append(y_objects.to(DEVICE))
        targets.append((centered(corners) if coding == "cxcywh" else corners).to(DEVICE, dtype))
    if matched == "samples":
        index[index < 0] = torch.tensor([-9, 100]).repeat(index.numel())[: int((index < 0).sum())]
        return batch | {
            "labels": labels.to(DEVICE), "target_boxes": targets, "matched": index.to(DEVICE)
        }  # fmt: skip
    return batch | {"labels": of_objects, "target_boxes": targets, "matched": index.to(DEVICE)}


def flat(criterion, batch: dict) -> dict:
    """The arguments of `forward` that are the same loss."""
    settings, images = criterion.settings, len(batch["logits"][0])
    columns = 4 * batch["logits"][0].shape[1] // batch["box_preds"][0].shape[1]
    background = settings.background_label(columns)
    logits, box_preds = in_rows(batch["logits"], columns), in_rows(batch["box_preds"], 4)
    labels, targets = of_samples(batch, background, settings.ignore_index)
    made = batch | {"logits": logits, "box_preds": box_preds, "labels": labels.reshape(-1)}
    made["target_boxes"] = targets.reshape(-1, 4)
    priors = batch.get("priors")
    if priors is not None:
        every = [priors[i] if len(priors) == images and priors[0].ndim == 2 else priors
                 for i in range(images)]  # fmt: skip
        made["priors"] = torch.cat([*every, logits.new_zeros(0, 4)])
    for name in PER_SAMPLE:
        if batch.get(name) is not None:
            made[name] = batch[name].reshape(-1)
    made.pop("matched", None)
    for part in ("classification", "regression"):
        if str(batch.get(f"{part}_normalizer")) == "image":
            positive = (labels != background) & (labels != settings.ignore_index)
            counts = positive.sum(1, keepdim=True).clamp(min=1).double()
            weights = (1 / counts).expand(labels.shape).reshape(-1)
            given = made.get(f"{part}_weights")
            made[f"{part}_weights"] = weights if given is None else weights * given
            made[f"{part}_normalizer"] = float(max(1, images))
    return made


def in_rows(levels: list[Tensor], columns: int) -> Tensor:
    """Levels as rows [B * M, columns]."""
    parts = []
    for x in levels:
        b, a, p = x.shape[0], x.shape[1] // columns, x.shape[2:].numel()
        rows = x.reshape(b, a, columns, p).permute(0, 3, 1, 2)
        parts.append(rows.reshape(b, p * a, columns))
    return torch.cat(parts, 1).flatten(0, 1)


def of_samples(batch: dict, background: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Labels [B, M], int64, and boxes [B, M, 4] of samples."""
    labels, targets, matched = batch["labels"], batch["target_boxes"], batch.get("matched")
    if matched is None:
        return labels.long(), targets
    ys, boxes_of = [], []
    for i, index in enumerate(matched):
        y, found = labels[i].long(), torch.full((len(index), 4), torch.nan)
        if isinstance(labels, list) or labels.shape != matched.shape:
            objects, y = y, torch.full((len(index),), background, device=index.device)
            y[index == -2] = ignore
            y[index >= 0] = objects[index[index >= 0].long()]
        positive = (y != background) & (y != ignore)
        found = found.to(targets[i])
        found[positive] = targets[i][index[positive].long()]
        ys.append(y)
        boxes_of.append(found)
    return torch.stack(ys), torch.stack(boxes_of)


def leaves(batch: dict) -> list[Tensor]:
    """What the loss of this batch is differentiated for."""
    extra = batch.get("extra_regression")
    return [*batch["logits"], *batch["box_preds"], *([] if extra is None else [extra])]


def gradients(loss, batch: dict, up=(1.3, 0.7)) -> tuple[Tensor, ...]:
    """Of every leaf, with different upstream gradients of the two parts."""
    return torch.autograd.grad(up[0] * loss[0] + up[1] * loss[1], leaves(batch))


def assert_equal_to_flat(criterion, batch: dict, tolerance: float = 1e-10) -> None:
    """Values and every gradient, which is in its level's memory format."""
    loss, wanted = criterion.dense(**batch), criterion(**flat(criterion, batch))
    close = {"rtol": tolerance, "atol": tolerance}
    assert [(x.dtype, x.shape) for x in loss] == [(x.dtype, x.shape) for x in wanted]
    torch.testing.assert_close(tuple(loss), tuple(wanted), **close)
    found = gradients(loss, batch)
    torch.testing.assert_close(found, gradients(wanted, batch), **close)
    for g, x in zip(found, leaves(batch), strict=True):
        assert g.dtype == x.dtype and g.stride() == torch.empty_like(x).stride()
