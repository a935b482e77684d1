"""Figures of a run: precision-recall curves, and detections drawn against the ground truth.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every distinction is made
by line style too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor
from torchvision.ops import box_iou

from detectors.evaluation.average_precision import Evaluation

Boxes = Mapping[str, Tensor]
Row = tuple[Tensor, Boxes, Mapping[str, Boxes]]
RUN_STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":")]
STYLE_OF = {"base": 0, "jol": 1}  # the same in every figure, also alone
NAMES = {"base": "base", "jol": "JOL"}
"""Loss → how pictures call it."""
AREA_OF = {0.50: "AP50", 0.75: "AP75", None: "AP"}
"""What the area under a mean curve is called, by IoU."""
OBJECT: dict[str, Any] = {"edgecolor": "#FFFFFF", "linestyle": "-"}
FOUND: dict[str, Any] = {"edgecolor": "#2BE0A0", "linestyle": "-"}
WRONG: dict[str, Any] = {"edgecolor": "#56B4E9", "linestyle": "--"}
MISSED: dict[str, Any] = {"edgecolor": "#FF5A46", "linestyle": ":"}
WINDOW = 256  # pixels; of a larger image, the part of this size with the most objects is shown
LONGEST = 36  # characters of a class's name, which has the width of a panel


def pr_curves(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Draw precision over recall, the mean over classes, as a PNG at `path`: a line for each run.

    At IoU 0.5, at 0.75 and averaged over the thresholds 0.5 to 0.95. The curves are the
    interpolated ones that AP50, AP75 and AP are the area under, over the classes that have
    objects; objects of all sizes. `evaluations`: name of the run → its evaluation, in the order
    of the legend; "base" is solid and "jol" dashed.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = {0.50: "IoU ≥ 0.5", 0.75: "IoU ≥ 0.75", None: "mean of IoU ≥ 0.5 to 0.95"}
    for axes, (iou, title) in zip(panels, titles.items(), strict=True):
        for position, (name, evaluation) in enumerate(evaluations.items()):
            curve = mean_curve(evaluation, iou)
            area = "-" if np.isnan(curve).any() else f"{curve.mean():.3f}"
            label = f"{NAMES.get(name, name)}: {AREA_OF[iou]} = {area}"
            axes.plot(
                evaluation.recall_points, curve, label=label, linewidth=2, **_line(name, position)
            )
        axes.set(title=title, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if evaluations:
            axes.legend(handlelength=3)
    panels[0].set_ylabel("precision, mean over classes")
    figure.savefig(path, dpi=150)


def pr_classes(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Draw precision over recall of every class as a PNG at `path`: a panel each.

    Thick lines are IoU 0.5, thin ones 0.75; otherwise as pr_curves. A panel's title has AP50 and
    AP75 of each run in the order of the legend.

    Raises:
        ValueError: no runs, or runs of different classes.
    """
    if not evaluations:
        raise ValueError("no runs to draw, wanted at least one")
    names = [list(evaluation.per_class) for evaluation in evaluations.values()]
    if any(other != names[0] for other in names):
        raise ValueError(f"runs of different classes: {names}")
    columns = min(len(names[0]), max(4, math.ceil(math.sqrt(len(names[0])))))
    rows = math.ceil(len(names[0]) / columns)
    # not so narrow that the legend is cut
    size = (max(2.9 * columns, 1.9 * 2 * len(evaluations)), 2.7 * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(names[0]) :]:
        axes.set_axis_off()
    for k, (axes, name) in enumerate(zip(panels, names[0], strict=False)):
        _class_panel(axes, evaluations, k, name)
        if k % columns == 0:
            axes.set_ylabel("precision")
        if k + columns >= len(names[0]):
            axes.set_xlabel("recall")
            axes.tick_params(labelbottom=True)  # also above an empty place
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 * len(evaluations), handlelength=3
    )
    figure.savefig(path, dpi=150)


def _class_panel(axes: Axes, evaluations: Mapping[str, Evaluation], label: int, title: str) -> None:
    """The curves of one class; its runs' areas under them in the title."""
    areas: dict[str, list[str]] = {"AP50": [], "AP75": []}
    for position, (name, evaluation) in enumerate(evaluations.items()):
        for iou, width in ((0.50, 2.4), (0.75, 1.1)):
            curve = class_curves(evaluation, iou)[:, label]
            text = "-" if np.isnan(curve).any() else f"{curve.mean():.2f}"
            areas[AREA_OF[iou]].append(text)
            axes.plot(
                evaluation.recall_points,
                curve,
                label=f"{NAMES.get(name, name)}, IoU ≥ {iou:g}",
                linewidth=width,
                **_line(name, position),
            )
    if set(areas["AP50"]) == {"-"}:
        axes.text(0.5, 0.5, "no objects", ha="center", color="#555555")
    numbers = ", ".join(f"{name} {' / '.join(values)}" for name, values in areas.items())
    title = " ".join(title.split())
    title = title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…"
    axes.set_title(f"{title}\n{numbers}", fontsize=9, parse_math=False)  # names may hold dollars
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)


def _line(name: str, position: int) -> dict[str, Any]:
    """Colour and style of a run's line, by its name or else its place."""
    colour, style = RUN_STYLES[STYLE_OF.get(name, position) % len(RUN_STYLES)]
    return {"color": colour, "linestyle": style}


def class_curves(evaluation: Evaluation, iou: float | None) -> np.ndarray:
    """Precision [R, K] of each class at an IoU threshold, None: the mean over all thresholds."""
    if iou is None:
        return evaluation.precision.mean(axis=0)
    (at,) = np.flatnonzero(np.isclose(evaluation.iou_thresholds, iou))
    return evaluation.precision[at]


def mean_curve(evaluation: Evaluation, iou: float | None) -> np.ndarray:
    """Precision [R] as class_curves, averaged over the classes that have objects.

    Its mean is AP at that threshold, or AP; all NaN if no class has objects.
    """
    classes = class_curves(evaluation, iou)
    known = classes[:, ~np.isnan(classes).any(axis=0)]
    return known.mean(axis=1) if known.shape[1] else np.full(len(classes), np.nan)


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
