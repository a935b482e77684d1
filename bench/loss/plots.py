"""Three pictures of a run: time against N, distance to the roofline, launches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from bench.loss.cases import CASES, SWEEP, Name
from bench.loss.report import TIME, Row, best_measure, model_bytes, shared_measure
from detectors.utils import palette

DARK_GREEN, DARK_GREY, GREY = "#0A5C44", "#666666", "#888888"
# Colours and different marks: distinguishable without colour vision and in grey.
STYLES: dict[str, tuple[str, str]] = {
    Name.OURS: (palette.VERMILION, "o"),
    Name.EAGER: (palette.BLUE, "s"),
    Name.COMPILE: (palette.GREEN, "^"),
    Name.COMPILE_AUTOTUNE: (palette.SKY_BLUE, "v"),
    Name.COMPILE_EAGER: (DARK_GREEN, "<"),
    Name.RELEASED: (palette.PURPLE, "D"),
    Name.BASE_OURS: (palette.ORANGE, "P"),
    Name.BASE_TORCH: (palette.BLACK, "x"),
    Name.BASE_TORCHVISION: (DARK_GREY, "+"),
    Name.LIGER: (palette.YELLOW, "*"),
}
LABELS: dict[str, str] = {
    Name.OURS: "JOL, jolkernels",
    Name.EAGER: "JOL, eager",
    Name.COMPILE: "JOL, torch.compile",
    Name.COMPILE_AUTOTUNE: "JOL, torch.compile autotuned",
    Name.COMPILE_EAGER: "JOL, torch.compile of eager",
    Name.RELEASED: "released code's weights, eager",
    Name.BASE_OURS: "base loss, jolkernels",
    Name.BASE_TORCH: "base loss, torch",
    Name.BASE_TORCHVISION: "base loss, torchvision",
    Name.LIGER: "cross entropy alone, Liger",
}


matplotlib.use("Agg")


def style(provider: str) -> dict[str, Any]:
    """How a provider is drawn, and called in the legend."""
    colour, mark = STYLES.get(provider, (GREY, "."))
    return {"color": colour, "marker": mark, "label": LABELS.get(provider, provider)}


def save_all(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what the rows allow for, and return the files."""
    figures = {
        "time.png": time_plot(rows, shared_measure(rows)),
        "roofline.png": roofline_plot(rows, best_measure(rows)),
        "launches.png": launches_plot(rows),
    }
    made = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            made.append(folder / name)
    return made


def time_plot(rows: Sequence[Row], measure: str) -> plt.Figure | None:
    """Milliseconds of forward and backward against N, of the R-CNN head with 9 columns."""
    chosen = [
        r
        for r in rows
        if r.case in SWEEP and (r.measure, r.unit) == (measure, TIME) and r.dtype == "float32"
    ]
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for provider in dict.fromkeys(r.provider for r in chosen):
        mine = sorted((r for r in chosen if r.provider == provider), key=lambda r: r.rows)
        wide = 2.6 if provider == "jolkernels" else 1.3
        n, times = [r.rows for r in mine], [r.median for r in mine]
        axes.plot(n, times, linewidth=wide, **style(provider))
    axes.set(xscale="log", yscale="log", xlabel="rows N", ylabel="milliseconds, forward + backward")
    sizes = sorted({r.rows for r in chosen})
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"R-CNN head, C = 9, float32\n{chosen[0].machine}", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def roofline_plot(rows: Sequence[Row], measure: str) -> plt.Figure | None:
    """Share of the copy bandwidth: the bytes of the model 3 N C over the measured time."""
    copies = [r.median for r in rows if r.measure == "copy bandwidth"]
    chosen = [
        r
        for r in rows
        if (r.measure, r.unit) == (measure, TIME)
        and r.dtype == "float32"
        and r.case in CASES
        and r.case not in SWEEP
    ]
    if not chosen or not copies:
        return None
    cases = list(dict.fromkeys(r.case for r in chosen))
    providers = list(dict.fromkeys(r.provider for r in chosen))
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    for provider in providers:
        share = {
            r.case: 100 * model_bytes(r) / (r.median * 1e-3) / (copies[0] * 1e9)
            for r in chosen
            if r.provider == provider
        }
        at = [i for i, case in enumerate(cases) if case in share]
        values = [share[cases[i]] for i in at]
        size = 10 if provider == "jolkernels" else 6
        axes.plot(at, values, linestyle="none", markersize=size, **style(provider))
    axes.axhline(100, color="0.4", linewidth=1)
    axes.text(0.005, 100, "copy bandwidth", transform=axes.get_yaxis_transform(), va="bottom",
              fontsize=8)  # fmt: skip
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right", fontsize=9)
    axes.set(yscale="log", ylabel="% of copy bandwidth by the 3 N C model")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Distance to the roofline, float32\n{chosen[0].machine}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def launches_plot(rows: Sequence[Row]) -> plt.Figure | None:
    """Kernel launches (on a CPU operators) of one forward and backward of the R-CNN head."""
    chosen = [r for r in rows if r.measure in ("launches", "operators") and r.case == "rcnn-9"]
    chosen = [r for r in chosen if r.dtype == "float32"]
    if not chosen:
        return None
    chosen.sort(key=lambda r: -r.median)
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(chosen) + 1.2), layout="constrained")
    names = [LABELS.get(r.provider, r.provider) for r in chosen]
    colours = [STYLES.get(r.provider, (GREY, "."))[0] for r in chosen]
    bars = axes.barh(names, [r.median for r in chosen], color=colours)
    axes.bar_label(bars, [f"{r.median:.0f}" for r in chosen], padding=3, fontsize=9)
    axes.margins(x=0.1)
    axes.set_xlabel(f"{chosen[0].measure}, forward + backward")
    axes.set_title(f"R-CNN head, N = 1,024, C = 9\n{chosen[0].machine}", fontsize=10)
    return figure
