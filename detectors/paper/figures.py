"""The paper's figures from trained detectors and finished runs.

`jol figure N`: 1 (who gets the loss, and how scores agree, by size), 3 (the loss surfaces), 4 and 5
(detections of base and JOL side by side), 6 (precision and recall).
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from detectors.data.object_sizes import SMALL, TINY, size_name, size_range
from detectors.evaluation.curves import NAMES, RUN_STYLES, STYLE_OF
from detectors.evaluation.prior_coverage import BUCKETS
from detectors.paper.loss_samples import Samples
from detectors.paper.table_rows import number

PANELS = ((0.0, TINY), (TINY, SMALL), (SMALL, float("inf")))
"""Sizes of Fig. 1b, c and d, in pixels."""


def shares(values: Tensor, sizes: Tensor) -> list[float]:
    """The share of the sum of `values` [P] that each of BUCKETS gets, in per cent."""
    sums = torch.zeros(len(BUCKETS) - 1, dtype=torch.float64)
    sums.index_add_(0, size_range(sizes, BUCKETS), values.double())
    return [100 * float(s) / float(sums.sum()) for s in sums]


def loss_by_size(samples: Mapping[str, Samples], path: Path) -> None:
    """Fig. 1: a, shares of objects and of their loss by size; b to d, class score over IoU.

    b to d leave out the samples whose proposal is the object itself, which only training has.

    Args:
        samples: "base" and "jol" → what samples.collect found on the same images.
        path: PNG to write.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    first, *panels = figure.subplots(1, 1 + len(PANELS), width_ratios=[1.5, 1, 1, 1])
    names = [size_name(*limits) for limits in pairwise(BUCKETS)]
    places = np.arange(len(names))
    objects = next(iter(samples.values())).objects
    bars = {"objects": ("#999999", "", shares(torch.ones_like(objects), objects))}
    for name, s in samples.items():
        colour = RUN_STYLES[STYLE_OF[name]][0]
        hatch = "" if name == "base" else "//"
        bars[f"loss, {NAMES[name]}"] = (colour, hatch, shares(s.loss, s.size))
    width = 0.8 / len(bars)
    for i, (label, (colour, hatch, values)) in enumerate(bars.items()):
        at = places + (i - (len(bars) - 1) / 2) * width
        first.bar(at, values, width, color=colour, hatch=hatch, edgecolor="white", label=label)
    first.set_xticks(places, names, fontsize=9)
    first.set(title="a  share of objects, and of the positives' loss", ylabel="%", xlabel="size")
    first.legend(fontsize=9)
    for letter, limits, axes in zip("bcd", PANELS, panels, strict=True):
        words = []
        for name, s in samples.items():
            here = (s.size >= limits[0]) & (s.size < limits[1]) & ~s.own
            colour, mark = RUN_STYLES[STYLE_OF[name]][0], "o" if name == "base" else "x"
            axes.scatter(s.s_loc[here], s.s_cls[here], 14, colour, marker=mark, alpha=0.5,
                         linewidths=1, label=NAMES[name])  # fmt: skip
            r = correlation(s.s_loc[here], s.s_cls[here])
            words.append(f"{NAMES[name]} r = {number(r, '.2f')}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="IoU")
        axes.set_title(f"{letter}  {size_name(*limits)}\n{', '.join(words)}", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("probability of the true class")
    panels[0].legend(fontsize=9, loc="upper left")
    figure.savefig(path, dpi=130)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, NaN for fewer than two different pairs."""
    if len(a) < 2 or float(a.std()) == 0 or float(b.std()) == 0:
        return float("nan")
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def surface(iou: Tensor, p: Tensor, lam: float | None) -> Tensor:
    """A positive's loss 1 - IoU - log p, weighed by lam - IoU p; None: not weighed."""
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
    figure.colorbar(filled, ax=panels, ticks=levels[::2], label="loss: 1 - IoU - log p, weighed")
    figure.savefig(path, dpi=130)
