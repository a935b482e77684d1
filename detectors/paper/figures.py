"""The paper's Figures 1 (the loss of each object, and how scores agree) and 3 (loss surfaces)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from detectors.data.object_sizes import SMALL, TINY, size_name
from detectors.evaluation.curves import NAMES
from detectors.paper.loss_samples import Samples
from detectors.paper.table_rows import number
from detectors.utils.figures import save_figure
from detectors.utils.palette import BLUE, GREEN, ORANGE, VERMILION

PANELS = {"small": (0.0, TINY), "medium": (TINY, SMALL), "large": (SMALL, float("inf"))}
"""Sizes of Fig. 1b, c and d, in pixels."""
HIGH = 0.5
"""From where on a score is high in Fig. 1."""
GREY = "#888888"
COLOURS = {
    GREY: "both scores high or both low",
    ORANGE: "high box score, low class score",
    GREEN: "low box score, high class score",
}
"""What the colour of a sample means in Fig. 1b to d, in the order of `agreement`."""


def loss_by_size(samples: Mapping[str, Samples], path: Path) -> None:
    """Fig. 1: a, share of the loss of each object by its size; b to d, class over box score.

    b to d skip the samples whose proposal is the object itself, which only training has.

    Args:
        samples: "base" and "jol" → what loss_samples.collect found on the same images; a row each.
        path: PNG to write.
    """
    figure = Figure(figsize=(15, 0.8 + 3.6 * len(samples)), layout="constrained")
    rows = figure.subplots(
        len(samples), 1 + len(PANELS), sharex="col", sharey="col", squeeze=False,
        width_ratios=[1.5, 1, 1, 1],
    )  # fmt: skip
    for (first, *panels), (name, s) in zip(rows, samples.items(), strict=True):
        _loss_panel(first, s, f"a  {NAMES[name]}: share of the loss")
        for letter, kind, axes in zip("bcd", PANELS, panels, strict=True):
            _score_panel(axes, s, letter, kind)
        panels[0].set_ylabel("class score (probability of the true class)")
    rows[-1, 0].set_xlabel("object's size, pixels")
    for axes in rows[-1, 1:]:
        axes.set_xlabel("box score (IoU)")
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=meaning)
        for colour, meaning in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
    save_figure(figure, path, 130)


def _loss_panel(axes: Axes, s: Samples, title: str) -> None:
    """A point an object, and a trend line."""
    share = object_shares(s)
    axes.scatter(s.objects, share, 12, BLUE, alpha=0.5, linewidths=0, label="an object")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    ends = torch.stack([s.objects.min(), s.objects.max()])
    axes.plot(ends, trend(s.objects, share, ends), color=VERMILION, linewidth=2, label="trend")
    axes.set(title=title, ylabel="% of the loss of all objects")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _score_panel(axes: Axes, s: Samples, letter: str, kind: str) -> None:
    """A point a sample of the objects of one kind; where the scores disagree, in colour."""
    low, high = PANELS[kind]
    here = (s.size >= low) & (s.size < high) & ~s.own
    box, label = s.s_loc[here], s.s_cls[here]
    for at, colour in zip(agreement(box, label), COLOURS, strict=True):
        axes.scatter(box[at], label[at], 16, colour, alpha=0.6, linewidths=0)
        x, y = {ORANGE: (0.97, 0.03), GREEN: (0.03, 0.97)}.get(colour, (0.97, 0.97))
        share = "-" if len(at) == 0 else f"{100 * float(at.double().mean()):.0f} %"
        axes.text(
            x, y, share, color=colour, weight="bold", transform=axes.transAxes,
            ha="right" if x > HIGH else "left", va="top" if y > HIGH else "bottom",
            path_effects=[Stroke(linewidth=3, foreground="white"), Normal()],
        )  # fmt: skip
    axes.axhline(HIGH, color=GREY, linewidth=0.8)
    axes.axvline(HIGH, color=GREY, linewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    r = number(correlation(box, label), ".2f")
    axes.set_title(f"{letter}  {kind} objects ({size_name(low, high)}), r = {r}", fontsize=10)


def agreement(box: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool [n] each: both scores of a sample are high or both low, only box, only class high."""
    box_high, class_high = box >= HIGH, label >= HIGH
    return box_high == class_high, box_high & ~class_high, class_high & ~box_high


def object_shares(s: Samples) -> Tensor:
    """The share of the loss of all objects that each has, in per cent, [G]."""
    sums = torch.zeros(len(s.objects), dtype=torch.float64)
    sums.index_add_(0, s.object, s.loss.double())
    return 100 * sums / sums.sum()


def trend(sizes: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """The line through `values` [G] over the logarithm of `sizes` by least squares, read `at` [n].

    NaN if all sizes are the same.
    """
    x = sizes.double().log()
    centred = x - x.mean()
    slope = (centred * values).sum() / centred.square().sum()
    return values.mean() + slope * (at.double().log() - x.mean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, NaN for fewer than two different pairs."""
    if len(a) < 2 or float(a.std()) == 0 or float(b.std()) == 0:
        return float("nan")
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def surface(iou: Tensor, p: Tensor, lam: float | None) -> Tensor:
    """A positive's loss 1 - IoU - log p, weighted by lam - IoU p; None: not weighted."""
    plain = 1 - iou - torch.log(p)
    return plain if lam is None else (lam - iou * p) * plain


def loss_surfaces(path: Path, lam: float = 2.0) -> None:
    """Fig. 3: the loss of a positive sample over IoU and class score, base and JOL."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    iou = torch.linspace(0, 1, 201)
    p = torch.linspace(0.02, 1, 197)[:, None]
    values = {"base": surface(iou, p, None), f"JOL, λ = {lam:g}": surface(iou, p, lam)}
    highest = float(max(v.max() for v in values.values()))
    levels = np.arange(0, np.ceil(highest) + 0.5, 0.5)
    for axes, (title, value) in zip(panels, values.items(), strict=True):
        filled = axes.contourf(iou, p[:, 0], value, levels, cmap="viridis")
        lines = axes.contour(iou, p[:, 0], value, [0.25, 0.5, 1, 2, 4], colors="white")
        axes.clabel(lines, fontsize=9)
        axes.set(title=title, xlabel="S_loc (IoU)")
    panels[0].set_ylabel("S_cls (probability)")
    figure.colorbar(filled, ax=panels, ticks=levels[::2], label="loss: 1 - IoU - log p, weighted")
    save_figure(figure, path, 130)
