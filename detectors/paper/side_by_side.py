"""Detections of two runs side by side (the paper's Figures 4 and 5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection
from detectors.evaluation.arrays import Detections, Objects
from detectors.evaluation.curves import NAMES
from detectors.evaluation.matching import match_objects
from detectors.inference.detect import read_image
from detectors.paper.panels import (
    FILE_NAME,
    SHOWN,
    Style,
    crowded,
    crowded_window,
    frame,
    inside,
    legend,
    note,
    show,
    shown_detections,
)
from detectors.utils.figures import save_figure
from detectors.utils.names import shortened
from detectors.utils.palette import GREEN, SKY_BLUE, VERMILION

__all__ = ["SHOWN", "crowded", "detections", "detections_figure", "match"]
Boxes = Mapping[str, Tensor]
Row = tuple[Tensor, Boxes, Mapping[str, Boxes]]
NO_OBJECTS = "no objects"
TP: Style = (GREEN, "-")
FP: Style = (SKY_BLUE, "--")
FN: Style = (VERMILION, ":")
LEGEND = (
    (TP, "TP: detection of an object of its class, IoU ≥ 0.5"),
    (FP, "FP: detection of none"),
    (FN, "FN: object without a detection"),
)


def detections(
    models: Mapping[str, nn.Module],
    data: CocoDetection,
    device: str,
    indices: Sequence[int],
    path: Path,
) -> None:
    """Fig. 4 and 5: images, and what each model ("base", "jol") finds, misses and makes up."""
    rows = []
    for index in indices:
        image, _ = read_image(data, index)
        found = {NAMES[k]: shown_detections(model, image, device) for k, model in models.items()}
        rows.append((image, data.annotated(index), found))
    detections_figure(rows, path, [data.file_names[index] for index in indices])


def detections_figure(rows: Sequence[Row], path: Path, names: Sequence[str] = ()) -> None:
    """Draw detections as a PNG at `path`: a row an image, the image itself, then a column a run.

    Each detection is a TP or an FP, each object without a detection an FN, as `match` says; those
    of what is to be ignored are not drawn.

    Args:
        rows: (image uint8 [3, H, W], objects, runs), objects as `CocoDetection.annotated` gives
            them, runs mapping a name to detections as a detector gives them, without those of low
            scores; all on the CPU. All rows have the same runs.
        path: where to write.
        names: of the images' files; none: they are not shown.

    Raises:
        ValueError: no rows, or rows with different runs.
    """
    if not rows:
        raise ValueError("no rows to draw, wanted at least one image")
    runs_shown = list(rows[0][2])
    for index, row in enumerate(rows):
        if list(row[2]) != runs_shown:
            raise ValueError(f"row {index} has the runs {list(row[2])}, row 0 has {runs_shown}")
    columns = 1 + len(runs_shown)
    # not so narrow that the legend is cut
    size = (max(4.2 * columns, 9.8), 4.5 * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (image, objects, runs), name in zip(
        panels, rows, names or [""] * len(rows), strict=True
    ):
        window = crowded_window(image, objects["boxes"])
        shown = inside(objects["boxes"], window)
        title = shortened(Path(name).name, FILE_NAME) if name else "image"
        show(line[0], image, window, f"{title}: {int(shown.sum())} objects")
        if not shown.any():
            note(line[0], NO_OBJECTS)
        for axes, (run, detections) in zip(line[1:], runs.items(), strict=True):
            found, wrong, missed = match(objects, detections)
            boxes = detections["boxes"]
            here = inside(boxes, window)
            kinds = {
                "TP": (boxes[here & found], TP),
                "FP": (boxes[here & wrong], FP),
                "FN": (objects["boxes"][shown & missed], FN),
            }
            counts = ", ".join(f"{len(group)} {word}" for word, (group, _) in kinds.items())
            show(axes, image, window, f"{run}: {counts}")
            if not any(len(group) for group, _ in kinds.values()):
                note(axes, NO_OBJECTS)
            for group, style in reversed(kinds.values()):  # what is found on top
                frame(axes, group, style)
    legend(figure, LEGEND, columns=2 if columns < 3 else 3)
    save_figure(figure, path, 130)


def match(objects: Boxes, detections: Boxes, iou: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Match detections to objects of their class, as AP does.

    By falling score, each takes the free object that it fits best (match_objects). Without one, it
    does not count if it lies in what is to be ignored with a share `iou` of its area.

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
    count = len(objects["boxes"])
    boxes = torch.cat([objects["boxes"], objects["ignored"]])
    labels = torch.cat([objects["labels"], objects["ignored_labels"]])
    crowd = np.arange(len(boxes)) >= count
    theirs = Objects(*_columns(boxes, labels), area=np.zeros(len(boxes)), crowd=crowd)
    scores = detections["scores"].double().numpy()
    ours = Detections(*_columns(detections["boxes"], detections["labels"]), score=scores)
    classes = 1 + int(max([0, *labels.tolist(), *detections["labels"].tolist()]))
    order, target, _ = match_objects(theirs, ours, classes, crowd, len(scores), iou)
    found, wrong = (torch.zeros(len(scores), dtype=torch.bool) for _ in range(2))
    found[order] = torch.from_numpy((target >= 0) & (target < count))
    wrong[order] = torch.from_numpy(target < 0)
    missed = torch.ones(len(boxes), dtype=torch.bool)
    missed[target[target >= 0]] = False
    return found, wrong, missed[:count]


def _columns(boxes: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (one for all), label and x y w h, as the evaluation has them."""
    boxes = boxes.double()
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    return np.zeros(len(boxes), dtype=np.int64), labels.numpy(), xywh.numpy()
