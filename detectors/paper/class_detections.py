"""Detections of one run, one colour per class (the paper's Figure 7)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection
from detectors.inference.detect import read_image
from detectors.paper.panels import (
    FILE_NAME,
    Style,
    crowded_window,
    frame,
    inside,
    legend,
    note,
    show,
)
from detectors.paper.panels import shown_detections as find
from detectors.utils.figures import save_figure
from detectors.utils.names import shortened
from detectors.utils.palette import BLUE, CLASSES

COLOURS = (*CLASSES, BLUE)
LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
"""Of the first classes, of those after them, ..."""
COLUMNS = 3
Row = tuple[Tensor, Tensor, Tensor]


def class_style(label: int) -> Style:
    """Colour and line of a class."""
    return COLOURS[label % len(COLOURS)], LINES[label // len(COLOURS) % len(LINES)]


def class_detections(
    model: nn.Module, data: CocoDetection, device: str, indices: Sequence[int], path: Path
) -> None:
    """Fig. 7: what a model finds on these images."""
    rows = []
    for index in indices:
        image, _ = read_image(data, index)
        found = find(model, image, device)
        rows.append((image, found["boxes"], found["labels"]))
    names = [data.file_names[index] for index in indices]
    class_figure(rows, data.class_names, path, names)


def class_figure(
    rows: Sequence[Row], class_names: Sequence[str], path: Path, names: Sequence[str] = ()
) -> None:
    """Draw images with boxes as a PNG at `path`, COLUMNS in a row, and a legend of the classes.

    Args:
        rows: (image uint8 [3, H, W], boxes [n, 4], labels [n]) on the CPU; of a large image, the
            window with the most boxes is shown.
        class_names: label → name.
        path: where to write.
        names: of the images' files; none: they are not shown.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no images to draw, wanted at least one")
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    size = (max(4.2 * columns, 6.0), 4.5 * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    seen: set[int] = set()
    titles = [f"{shortened(Path(name).name, FILE_NAME)}: " for name in names] or [""] * len(rows)
    for axes, title, (image, boxes, labels) in zip(panels, titles, rows, strict=False):
        window = crowded_window(image, boxes)
        here = inside(boxes, window)
        count = int(here.sum())
        show(axes, image, window, f"{title}{count} detection" + "s" * (count != 1))
        if not count:
            note(axes, "no detections")
        for label in torch.unique(labels[here]).tolist():
            frame(axes, boxes[here & (labels == label)], class_style(label))
            seen.add(label)
    if seen:
        entries = [(class_style(label), class_names[label]) for label in sorted(seen)]
        legend(figure, entries, columns=min(len(entries), 2 * columns))
    save_figure(figure, path, 130)
