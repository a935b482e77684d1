"""The study's figures: all differences, the gain by size of objects, what the loss sees."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from bench.study.analysis import Effect, effect
from bench.study.answers import Answer
from bench.study.data import SCENES
from bench.study.mechanism import Seen, known
from bench.study.training import SIZES
from detectors.data.object_sizes import size_name
from detectors.evaluation.curves import NAMES
from detectors.utils.figures import save_figure
from detectors.utils.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION

GREY = "#888888"
COLOURS = {"faster_rcnn": BLUE, "fcos": VERMILION, "retinanet": GREEN}
OF_SIZES = {"vt": PURPLE, "t": BLUE, "s": GREEN, "m": ORANGE}


def effects(answers: Sequence[Answer], family: int, path: Path) -> None:
    """A point a cell and one for all of a comparison, with both intervals, in AP."""
    lines: list[tuple[str, Effect | None]] = []
    overall: list[int] = []
    for a in answers:
        lines.append(
            (f"{a.comparison.question}  {a.comparison.loss} less {a.comparison.other}", None)
        )
        lines += [(str(cell), found["AP"]) for cell, found in a.cells.items()]
        lines += [(f"all, {name}", own.overall()) for name, own in a.detectors.items()]
        if len(a.cells) > 1:
            overall.append(len(lines))
            lines.append(("all of these", a.overall()))
    figure = Figure(figsize=(9, 1.4 + 0.24 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for y, (_, e) in enumerate(lines):
        if e is not None:
            _draw(axes, y, e, family if y in overall else 1)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(lines)), [text for text, _ in lines], fontsize=8)
    for (_, e), label in zip(lines, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if e is None else "normal")
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlabel="difference in AP, points")
    known = [abs(e.mean) + 3 * e.error for _, e in lines if e is not None and e.freedom > 0]
    most = max(1.0, min(6.0, max(known, default=1.0)))
    axes.set_xlim(-1.6 * most, 1.6 * most)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        f"Thick: 95 %; thin: all {family} questions together; grey: 0 is within", fontsize=9
    )
    save_figure(figure, path, 130)


def _draw(axes: Axes, y: int, e: Effect, family: int) -> None:
    clear = e.is_clear(family)
    colour = GREY if not clear else BLUE if e.mean > 0 else VERMILION
    if e.freedom > 0:
        axes.plot(e.interval(family), (y, y), color=colour, linewidth=0.9)
        axes.plot(e.interval(), (y, y), color=colour, linewidth=3.2, solid_capstyle="butt")
    axes.plot(e.mean, y, "o", color=colour, markersize=5, markeredgecolor="white")


def by_size(main: Answer, path: Path) -> None:
    """JOL's gain on scenes over the size of their objects, a line a detector."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for shift, (detector, colour) in enumerate(COLOURS.items()):
        found = [
            (math.sqrt(math.prod(SCENES[cell.data])) * 1.04 ** (shift - 1), e["AP"])
            for cell, e in main.cells.items()
            if cell.detector == detector and cell.data in SCENES and e["AP"].freedom > 0
        ]
        if found:
            found.sort(key=lambda point: point[0])
            at, gains = zip(*found, strict=True)
            half = [e.interval()[1] - e.mean for e in gains]
            axes.errorbar(at, [e.mean for e in gains], half, color=colour, marker="o", capsize=3,
                          label=detector)  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for sizes in SCENES.values() for x in sizes})
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(ticks[0], ticks[-1]), xlabel="size of the scenes' objects, pixels",
             ylabel="AP: JOL less base, points, 95 %")  # fmt: skip
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    save_figure(figure, path, 130)


def mechanism(seen: Sequence[Seen], path: Path) -> None:
    """Share of the loss, and correlation of the scores, over training, by size of the objects."""
    every = list(dict.fromkeys((x["data"], x["detector"]) for x in seen))
    wheres = [where for where in every if where[0] not in SCENES] or every  # of several sizes
    figure = Figure(figsize=(9, 0.6 + 3 * len(wheres)), layout="constrained")
    rows = figure.subplots(len(wheres), 2, squeeze=False)
    names = {"share": "share of the loss, %", "correlation": "correlation of class score and IoU"}
    for panels, where in zip(rows, wheres, strict=True):
        for axes, (name, label) in zip(panels, names.items(), strict=True):
            here = [x for x in seen if (x["data"], x["detector"]) == where and known(x, name)]
            for size, colour in OF_SIZES.items():
                for loss, style in {"base": "--", "jol": "-"}.items():
                    _line(axes, [x for x in here if (x["size"], x["loss"]) == (size, loss)], name,
                          color=colour, linestyle=style,
                          label=f"{size_name(*SIZES[size])}, {NAMES[loss]}")  # fmt: skip
            axes.set(title=", ".join(where), xlabel="step", ylabel=label)
            axes.grid(alpha=0.3)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, path, 130)


def _line(axes: Axes, lines: Sequence[Seen], name: str, **look: Any) -> None:
    """The mean over seeds at each step."""
    steps = sorted({x["step"] for x in lines})
    if steps:
        means = [effect([x[name] for x in lines if x["step"] == step]).mean for step in steps]
        axes.plot(steps, means, marker="o", markersize=3, **look)
