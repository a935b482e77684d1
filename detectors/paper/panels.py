"""Pictures of images with boxes in them: the part to show, and frames around small boxes."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection
from detectors.inference.detect import detect
from detectors.utils.printable import printable

WINDOW = 256
"""Pixels a side: of a larger image, the part of this size with the most objects is shown."""
FILE_NAME = 27
"""Characters of the name of an image's file above a panel."""
SHOWN = 0.5
"""Least score of a detection that is drawn."""
Window = tuple[int, int, int, int]
Style = tuple[str, Literal["-", "--", ":"]]
"""Colour and line style."""


def crowded(data: CocoDetection, images: int) -> list[int]:
    """The indices of the images with the most objects, crowds not counted."""
    order = sorted(range(len(data)), key=lambda i: -len(data.annotated(i)["boxes"]))
    return order[:images]


def shown_detections(model: nn.Module, image: Tensor, device: str) -> dict[str, Tensor]:
    """Detections worth drawing on an image uint8 [3, H, W], on the CPU."""
    (result,) = detect(model, [image], device)
    kept = result["scores"] >= SHOWN
    return {name: value[kept] for name, value in result.items()}


def crowded_window(image: Tensor, boxes: Tensor) -> Window:
    """The part to show, x1 y1 x2 y2: all of a small image, else the most crowded window."""
    height, width = image.shape[1:]
    w, h = min(width, WINDOW), min(height, WINDOW)
    best = (-1, 0, 0)
    for top in {*range(0, height - h + 1, WINDOW // 4), height - h}:
        for left in {*range(0, width - w + 1, WINDOW // 4), width - w}:
            count = int(inside(boxes, (left, top, left + w, top + h)).sum())
            best = max(best, (count, -top, -left))  # of equals, the upper left one
    _, top, left = best
    return -left, -top, -left + w, -top + h


def inside(boxes: Tensor, window: Window) -> Tensor:
    """Bool [n]: whether the box's centre lies in the window."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    start, end = centre.new_tensor(window[:2]), centre.new_tensor(window[2:])
    return ((centre >= start) & (centre < end)).all(dim=1)


def show(axes: Axes, image: Tensor, window: Window, title: str) -> None:
    """Draw the window of the image."""
    x1, y1, x2, y2 = window
    extent = (x1, x2, y2, y1)  # pixel edges, as the boxes have them; imshow's own are centres
    part = image[:, y1:y2, x1:x2].permute(1, 2, 0).numpy()
    axes.imshow(part, interpolation="nearest", extent=extent)
    axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
    axes.set_title(title, fontsize=12, parse_math=False)  # names of files may hold dollars


def note(axes: Axes, text: str) -> None:
    """Say in the middle of a panel what is not there."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12,
        color="white", bbox={"facecolor": "#404040", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def frame(axes: Axes, boxes: Tensor, style: Style) -> None:
    """Frames one pixel outside the boxes, so that an object of a few pixels stays in sight."""
    colour, line = style
    dark = [Stroke(linewidth=4.2, foreground="black", alpha=0.6), Normal()]
    for x1, y1, x2, y2 in boxes.tolist():
        corner, width, height = (x1 - 1, y1 - 1), x2 - x1 + 2, y2 - y1 + 2
        rectangle = Rectangle(
            corner, width, height, fill=False, linewidth=2.2, edgecolor=colour, linestyle=line
        )
        rectangle.set_path_effects(dark)
        axes.add_patch(rectangle)


def legend(figure: Figure, entries: Sequence[tuple[Style, str]], columns: int) -> None:
    """A legend below the panels, on grey, as bright colours are hard to see on white.

    It says from which score on detections are drawn.
    """
    handles = [
        Line2D([], [], color=colour, linestyle=line, linewidth=2.2) for (colour, line), _ in entries
    ]
    made = figure.legend(
        handles,
        [" "] * len(handles),  # as labels, names would be read: "_" first hides, "$" is mathematics
        title=f"detections with a score of {SHOWN:g} or more",
        title_fontsize=12,
        loc="outside lower center",
        ncols=columns,
        fontsize=12,
        handlelength=3,
        facecolor="#404040",
        labelcolor="white",
    )
    made.get_title().set_color("white")
    for text, (_, label) in zip(made.get_texts(), entries, strict=True):
        text.set(text=printable(label), parse_math=False)
