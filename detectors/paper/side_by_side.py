"""Detections of two runs side by side (the paper's Figures 4 and 5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor, nn
from torchvision.ops import box_iou

from detectors.data.dataset import CocoDetection
from detectors.evaluation.curves import NAMES
from detectors.inference.detect import detect

Boxes = Mapping[str, Tensor]
Row = tuple[Tensor, Boxes, Mapping[str, Boxes]]
OBJECT: dict[str, Any] = {"edgecolor": "#FFFFFF", "linestyle": "-"}
FOUND: dict[str, Any] = {"edgecolor": "#2BE0A0", "linestyle": "-"}
WRONG: dict[str, Any] = {"edgecolor": "#56B4E9", "linestyle": "--"}
MISSED: dict[str, Any] = {"edgecolor": "#FF5A46", "linestyle": ":"}
WINDOW = 256  # pixels; of a larger image, the part of this size with the most objects is shown
SHOWN = 0.5
"""Least score of a detection that is drawn."""


def detections_figure(rows: Sequence[Row], path: Path) -> None:
    """Draw objects and detections as a PNG at `path`: a row an image, a column a run.

    The first column shows the objects alone; in a run's column each detection is found or
    wrong and each object without a detection missed, as `match` says; those of what is to be
    ignored are not drawn.

    Args:
        rows: (image uint8 [3, H, W], objects, runs), objects as `CocoDetection.annotated` gives
            them, runs mapping a name to detections as a detector gives them; all on the CPU. All
            rows have the same runs. Leave out detections with low scores.
        path: where to write.

    Raises:
        ValueError: no rows, or rows with different runs.
    """
    if not rows:
        raise ValueError("no rows to draw, wanted at least one image")
    names = list(rows[0][2])
    for index, row in enumerate(rows):
        if list(row[2]) != names:
            raise ValueError(f"row {index} has the runs {list(row[2])}, row 0 has {names}")
    columns = 1 + len(names)
    # not so narrow that the legend is cut
    size = (max(4.2 * columns, 9.8), 4.5 * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (image, objects, runs) in zip(panels, rows, strict=True):
        window = _window(image, objects["boxes"])
        shown = _inside(objects["boxes"], window)
        _panel(line[0], image, window, f"ground truth: {int(shown.sum())} objects")
        _draw(line[0], objects["boxes"][shown], OBJECT)
        for axes, (name, detections) in zip(line[1:], runs.items(), strict=True):
            found, wrong, missed = match(objects, detections)
            boxes = detections["boxes"]
            here = _inside(boxes, window)
            kinds = [
                (boxes[here & found], FOUND, "found"),
                (boxes[here & wrong], WRONG, "wrong"),
                (objects["boxes"][shown & missed], MISSED, "missed"),
            ]
            counts = ", ".join(f"{len(group)} {word}" for group, _, word in kinds)
            _panel(axes, image, window, f"{name}: {counts}")
            for group, style, _ in kinds:
                _draw(axes, group, style)
    _legend(figure)
    figure.savefig(path, dpi=130)


def match(objects: Boxes, detections: Boxes, iou: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Match detections to objects of their class, as AP does.

    By falling score, each takes the free object that it fits best. Without one, it does not count
    if it lies in what is to be ignored with a share `iou` of its area.

    Args:
        objects: "boxes" [n, 4] x1 y1 x2 y2 with "labels" [n], "ignored" [k, 4] with
            "ignored_labels" [k].
        detections: "boxes" [m, 4], "labels" [m], "scores" [m].
        iou: what a match needs at least.

    Returns:
        found: bool [m], whether the detection has an object (a true positive).
        wrong: bool [m], whether it has neither an object nor what is to be ignored (a false one).
        missed: bool [n], whether the object is left without a detection (a false negative).
    """
    boxes, labels = detections["boxes"].double(), detections["labels"]
    overlaps = box_iou(boxes, objects["boxes"].double())
    overlaps[labels[:, None] != objects["labels"]] = -1
    inside = _share_inside(boxes, objects["ignored"].double())
    inside[labels[:, None] != objects["ignored_labels"]] = -1
    ignored = (inside >= iou).any(dim=1)
    found = torch.zeros(len(boxes), dtype=torch.bool)
    missed = torch.ones(len(objects["boxes"]), dtype=torch.bool)
    order = detections["scores"].argsort(descending=True, stable=True)
    for index in order.tolist() if len(missed) else ():
        free = overlaps[index].masked_fill(~missed, -1)
        best = int(free.argmax())
        if free[best] >= iou:
            found[index], missed[best] = True, False
    return found, ~found & ~ignored, missed


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """The share [m, k] of each box's area that lies in each region."""
    start = torch.maximum(boxes[:, None, :2], regions[:, :2])
    end = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (end - start).clamp(min=0).prod(dim=2) / areas[:, None]


def _window(image: Tensor, objects: Tensor) -> tuple[int, int, int, int]:
    """The part to show, x1 y1 x2 y2: all of a small image, else the most crowded window."""
    height, width = image.shape[1:]
    w, h = min(width, WINDOW), min(height, WINDOW)
    best = (-1, 0, 0)
    for top in {*range(0, height - h + 1, WINDOW // 4), height - h}:
        for left in {*range(0, width - w + 1, WINDOW // 4), width - w}:
            count = int(_inside(objects, (left, top, left + w, top + h)).sum())
            best = max(best, (count, -top, -left))  # of equals, the upper left one
    _, top, left = best
    return -left, -top, -left + w, -top + h


def _inside(boxes: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Bool [n]: whether the box's centre lies in the window."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    start, end = centre.new_tensor(window[:2]), centre.new_tensor(window[2:])
    return ((centre >= start) & (centre < end)).all(dim=1)


def _panel(axes: Axes, image: Tensor, window: tuple[int, int, int, int], title: str) -> None:
    x1, y1, x2, y2 = window
    extent = (x1, x2, y2, y1)  # pixel edges, as the boxes have them; imshow's own are centres
    part = image[:, y1:y2, x1:x2].permute(1, 2, 0).numpy()
    axes.imshow(part, interpolation="nearest", extent=extent)
    axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
    axes.set_title(title, fontsize=12)


def _draw(axes: Axes, boxes: Tensor, style: dict[str, Any]) -> None:
    """Frames one pixel outside the boxes, so that an object of a few pixels stays in sight."""
    dark = [Stroke(linewidth=3.8, foreground="black", alpha=0.55), Normal()]
    for x1, y1, x2, y2 in boxes.tolist():
        corner, width, height = (x1 - 1, y1 - 1), x2 - x1 + 2, y2 - y1 + 2
        frame = Rectangle(corner, width, height, fill=False, linewidth=2.0, **style)
        frame.set_path_effects(dark)
        axes.add_patch(frame)


def _legend(figure: Figure) -> None:
    entries = [
        (OBJECT, "object (ground truth)"),
        (FOUND, "found: detection that fits an object (IoU ≥ 0.5, its class)"),
        (WRONG, "wrong: detection that fits none"),
        (MISSED, "missed: object without a detection"),
    ]
    handles = [
        Line2D([], [], color=style["edgecolor"], linestyle=style["linestyle"], label=label)
        for style, label in entries
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=12,
        handlelength=3,
        facecolor="#404040",
        labelcolor="white",
    )


def crowded(data: CocoDetection, images: int) -> list[int]:
    """The indices of the images with the most objects, crowds not counted."""
    order = sorted(range(len(data)), key=lambda i: -len(data.annotated(i)["boxes"]))
    return order[:images]


def detections(
    models: Mapping[str, nn.Module],
    data: CocoDetection,
    device: str,
    indices: Sequence[int],
    path: Path,
) -> None:
    """Fig. 4 and 5: images with the ground truth and each model's detections."""
    rows = []
    for index in indices:
        image, _ = data[index]
        found = {}
        for name, model in models.items():
            (result,) = detect(model, [image], device)
            shown = result["scores"] >= SHOWN
            found[NAMES[name]] = {k: v[shown] for k, v in result.items()}
        rows.append((image, data.annotated(index), found))
    detections_figure(rows, path)
