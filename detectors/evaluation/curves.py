"""Precision-recall curves of runs: the mean over classes, and each class.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; runs differ in line style
too.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detectors.evaluation.average_precision import Evaluation
from detectors.utils.figures import save_figure
from detectors.utils.names import shortened, unlike_runs
from detectors.utils.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION
from detectors.utils.printable import printable

RUN_STYLES = [(BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (PURPLE, ":")]
STYLE_OF = {"base": 0, "jol": 1}  # the same in every figure, also alone
NAMES = {"base": "base", "jol": "JOL"}
"""Loss → how pictures call it."""
AREA_OF = {0.50: "AP50", 0.75: "AP75", None: "AP"}
"""What the area under a mean curve is called, by IoU."""
THRESHOLDS = {0.5: BLUE, 0.6: SKY_BLUE, 0.7: GREEN, 0.8: ORANGE, 0.9: VERMILION}
"""IoU → its colour in Figure 6."""
PANELS = 30
"""Most panels of a figure: of more classes those with the most objects are shown."""


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
    save_figure(figure, path, 150)


def pr_classes(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Draw precision over recall of the classes as a PNG at `path`: a panel each.

    Of more classes than PANELS, those with the most objects. Thick lines are IoU 0.5, thin ones
    0.75; otherwise as pr_curves. A panel's title has AP50 and AP75 of each run in the order of the
    legend.

    Raises:
        ValueError: no runs, or runs of different classes.
    """
    names, note = _class_names(evaluations, PANELS)
    columns = min(len(names), max(4, math.ceil(math.sqrt(len(names)))))
    # not so narrow that the legend is cut
    figure, panels = _grid(len(names), columns, least_width=1.9 * 2 * len(evaluations))
    for axes, (label, name) in zip(panels, names.items(), strict=True):
        _class_panel(axes, evaluations, label, name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 * len(evaluations),
        handlelength=3,
        title=note,
    )
    save_figure(figure, path, 150)


def pr_thresholds(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Draw precision over recall at the IoU thresholds of THRESHOLDS as a PNG at `path`.

    The first panel is the mean over the classes that have objects; each class has one of its own,
    at most PANELS in all. A colour is a threshold; "base" is solid and "jol" dashed. A panel's
    title has AP of each run in the order of the legend.

    Raises:
        ValueError: no runs, or runs of different classes.
    """
    names, note = _class_names(evaluations, PANELS - 1)
    columns = math.ceil(math.sqrt(1 + len(names)))
    figure, (mean, *panels) = _grid(1 + len(names), columns, least_width=6.2)  # the legend's
    _threshold_panel(mean, evaluations, None, "mean over classes")
    for axes, (label, name) in zip(panels, names.items(), strict=True):
        _threshold_panel(axes, evaluations, label, name)
    _legends(figure, evaluations, note)
    save_figure(figure, path, 150)


def _class_names(
    evaluations: Mapping[str, Evaluation], most: int
) -> tuple[dict[int, str], str | None]:
    """Label → name of the classes to show, and what to say where these are not all."""
    if not evaluations:
        raise ValueError("no runs to draw, wanted at least one")
    names = {run: list(evaluation.per_class) for run, evaluation in evaluations.items()}
    every, *others = names.values()
    if any(other != every for other in others):
        raise ValueError(f"runs of different classes: {unlike_runs(names)}")
    objects = next(iter(evaluations.values())).objects
    order = sorted(range(len(every)), key=lambda label: -objects.get(every[label], 0))
    shown = {label: every[label] for label in sorted(order[:most])}
    if len(shown) == len(every):
        return shown, None
    which = "with the most objects" if objects else "in the order of the data"
    return shown, f"{len(shown)} of {len(every):,} classes, those {which}"


def _grid(panels: int, columns: int, least_width: float) -> tuple[Figure, list[Axes]]:
    """A figure of at least that many inches and its panels, row by row, without curves."""
    rows = math.ceil(panels / columns)
    size = (max(2.9 * columns, least_width), 2.7 * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for k, axes in enumerate(every):
        if k >= panels:
            axes.set_axis_off()
            continue
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if k % columns == 0:
            axes.set_ylabel("precision")
        if k + columns >= panels:
            axes.set_xlabel("recall")
            axes.tick_params(labelbottom=True)  # also above an empty place
    return figure, list(every[:panels])


def _class_panel(axes: Axes, evaluations: Mapping[str, Evaluation], label: int, title: str) -> None:
    """The curves of one class; its runs' areas under them in the title."""
    areas: dict[str, list[str]] = {"AP50": [], "AP75": []}
    for position, (name, evaluation) in enumerate(evaluations.items()):
        for iou, width in ((0.50, 2.4), (0.75, 1.1)):
            curve = class_curves(evaluation, iou)[:, label]
            areas[AREA_OF[iou]].append(_area(curve))
            axes.plot(
                evaluation.recall_points,
                curve,
                label=f"{NAMES.get(name, name)}, IoU ≥ {iou:g}",
                linewidth=width,
                **_line(name, position),
            )
    _finish(axes, title, areas)


def _threshold_panel(
    axes: Axes, evaluations: Mapping[str, Evaluation], label: int | None, title: str
) -> None:
    """The curves of one class at every threshold; None: of the mean over classes."""

    def curve(evaluation: Evaluation, iou: float | None) -> np.ndarray:
        if label is None:
            return mean_curve(evaluation, iou)
        return class_curves(evaluation, iou)[:, label]

    for position, (name, evaluation) in enumerate(evaluations.items()):
        for iou, colour in THRESHOLDS.items():
            style = {**_line(name, position), "color": colour}
            axes.plot(evaluation.recall_points, curve(evaluation, iou), linewidth=1.5, **style)
    _finish(axes, title, {"AP": [_area(curve(e, None)) for e in evaluations.values()]})


def _legends(figure: Figure, names: Iterable[str], note: str | None) -> None:
    """Above the panels what a line style means, below them what a colour means, and the note."""
    runs = [
        Line2D([], [], **{**_line(name, position), "color": "#444444"}, label=NAMES.get(name, name))
        for position, name in enumerate(names)
    ]
    colours = [
        Line2D([], [], color=colour, linewidth=5, label=f"IoU ≥ {iou:g}")
        for iou, colour in THRESHOLDS.items()
    ]
    figure.legend(handles=runs, loc="outside upper center", ncols=len(runs), handlelength=3)
    figure.legend(
        handles=colours,
        loc="outside lower center",
        ncols=len(colours),
        handlelength=1,
        title=note,
    )


def _area(curve: np.ndarray) -> str:
    """The area under a curve in words."""
    return "-" if np.isnan(curve).any() else f"{curve.mean():.2f}"


def _finish(axes: Axes, title: str, areas: Mapping[str, list[str]]) -> None:
    """The title of a panel, with the runs' areas by their name, and a note if there are none."""
    if all(set(values) == {"-"} for values in areas.values()):
        axes.text(0.5, 0.5, "no objects", ha="center", color="#555555")
    numbers = ", ".join(f"{name} {' / '.join(values)}" for name, values in areas.items())
    title = f"{printable(shortened(title))}\n{numbers}"
    axes.set_title(title, fontsize=9, parse_math=False)  # names may hold dollars


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
