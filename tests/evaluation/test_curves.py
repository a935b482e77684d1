"""Precision-recall curves."""

import math

import numpy as np
import pytest
import torch
from evaluation_cases import random_case
from matplotlib.figure import Figure
from matplotlib.text import Text
from pictures import opened

from detectors.evaluation import Evaluation, evaluate
from detectors.evaluation.curves import (
    THRESHOLDS,
    class_curves,
    mean_curve,
    pr_classes,
    pr_curves,
    pr_thresholds,
)
from detectors.paper.figures import loss_by_size
from detectors.paper.loss_samples import Samples


def evaluation(level: float) -> Evaluation:
    """Three classes, the last without objects; precision falls with recall and with IoU."""
    recall, ious = np.linspace(0, 1, 101), np.linspace(0.5, 0.95, 10)
    curve = level * (1 - recall)[None, :, None] * (1.5 - ious)[:, None, None]
    precision = np.concatenate([curve, curve / 2, np.full_like(curve, math.nan)], axis=2)
    names = ["car", "awning-tricycle", "motor"]
    return Evaluation({"AP": level}, {name: {} for name in names}, precision, recall, ious)


def test_mean_curve_averages_the_classes_with_objects():
    found = mean_curve(evaluation(0.8), 0.5)
    assert found == pytest.approx(0.8 * 0.75 * (1 - np.linspace(0, 1, 101)))
    assert mean_curve(evaluation(0.8), 0.75)[0] == pytest.approx(0.8 * 0.75 * 0.75)
    nothing = Evaluation({}, {}, np.full((10, 101, 2), math.nan), *(evaluation(1).__dict__[k]
        for k in ("recall_points", "iou_thresholds")))  # fmt: skip
    assert np.isnan(mean_curve(nothing, 0.5)).all()


def test_the_area_under_a_curve_is_ap():
    """On a real evaluation, for the mean and for each class."""
    for seed in range(5):
        found = evaluate(*random_case(seed))
        for iou, name in ((0.5, "AP50"), (0.75, "AP75"), (None, "AP")):
            wanted = pytest.approx(found.metrics[name], abs=1e-12, nan_ok=True)
            assert mean_curve(found, iou).mean() == wanted
            areas = class_curves(found, iou).mean(axis=0)
            wanted = [metrics[name] for metrics in found.per_class.values()]
            assert areas == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.filterwarnings("error")
def test_pr_curves_are_written(tmp_path):
    pr_curves({"base": evaluation(0.7), "jol": evaluation(0.9)}, tmp_path / "both.png")
    pixels = opened(tmp_path / "both.png")
    assert 400 < pixels.shape[0] < 1200 and 900 < pixels.shape[1] < 2000
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    for colour in (blue, orange):
        assert (pixels == colour).all(axis=2).sum() > 300
    pr_curves({"jol": evaluation(0.9)}, tmp_path / "one.png")  # looks as it does beside "base"
    pixels = opened(tmp_path / "one.png")
    assert (pixels == orange).all(axis=2).any() and not (pixels == blue).all(axis=2).any()
    nothing = Evaluation({}, {}, np.full((10, 101, 1), math.nan), np.arange(101) / 100,
                         np.linspace(0.5, 0.95, 10))  # fmt: skip
    pr_curves({"base": nothing}, tmp_path / "none.png")
    pr_curves({}, tmp_path / "empty.png")
    assert opened(tmp_path / "none.png").size and opened(tmp_path / "empty.png").size


def test_what_is_not_there_is_a_dash(tmp_path, monkeypatch):
    """In the legend of curves without objects, and over a panel of scores without samples."""
    texts = []
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *_, **__: texts.extend(t.get_text() for t in f.findobj(Text))
    )
    pr_curves({"base": evaluation(math.nan)}, tmp_path / "x")
    one = torch.ones(1)
    own = torch.ones(1, dtype=torch.bool)
    samples = Samples(torch.zeros(1, dtype=torch.int64), *[one] * 4, own, one)
    loss_by_size({"jol": samples}, tmp_path / "x")
    assert {"base: AP50 = -", "b  small objects (<16 px), r = -"} <= set(texts)
    assert not [text for text in texts if "nan" in text]


@pytest.mark.filterwarnings("error")
def test_a_panel_for_each_class(tmp_path):
    pr_classes({"base": evaluation(0.7), "jol": evaluation(0.9)}, tmp_path / "both.png")
    pixels = opened(tmp_path / "both.png")
    thirds = [third[: int(0.85 * len(pixels))] for third in np.array_split(pixels, 3, axis=1)]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        drawn = [int((third == colour).all(axis=2).sum()) for third in thirds]
        assert drawn[0] > 300 and drawn[1] > 300 and drawn[2] == 0, drawn
    pr_classes({"jol": evaluation(0.9)}, tmp_path / "one.png")
    one = opened(tmp_path / "one.png")
    assert not (one == (0x00, 0x72, 0xB2)).all(axis=2).any()


@pytest.mark.parametrize(
    "classes, shape",
    [(1, (1, 1)), (5, (2, 4)), (10, (3, 4)), pytest.param(20, (4, 5), marks=pytest.mark.slow)],
)
def test_the_grid_of_classes(tmp_path, classes, shape):
    """Its height and width in panels of 2.7 by 2.9 inches, 150 dots an inch."""
    one = evaluation(0.9)
    wide = np.repeat(one.precision[:, :, :1], classes, axis=2)
    names = {f"class {k}": {} for k in range(classes)}
    many = Evaluation({}, names, wide, one.recall_points, one.iou_thresholds)
    pr_classes({"jol": many}, tmp_path / "grid.png")
    height, width = opened(tmp_path / "grid.png").shape[:2]
    assert height == pytest.approx(150 * (2.7 * shape[0] + 0.8), abs=1)
    assert width == pytest.approx(150 * max(3.8, 2.9 * shape[1]), abs=1)


@pytest.mark.filterwarnings("error")
def test_a_colour_for_each_threshold(tmp_path, monkeypatch):
    """The mean over classes first, then each class; base solid, JOL dashed, also alone."""
    figures = []
    saved = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *a, **k: (figures.append(f), saved(f, *a, **k))
    )
    runs = {"base": evaluation(0.7), "jol": evaluation(0.9)}
    pr_thresholds(runs, tmp_path / "both.png")
    panels = figures[0].axes
    titles = [axes.get_title().split("\n")[0] for axes in panels]
    assert titles == ["mean over classes", "car", "awning-tricycle", "motor"]
    assert panels[0].get_title().endswith("AP 0.20 / 0.26")  # 0.75 * 0.5 * 0.775 * level
    assert len(set(THRESHOLDS.values())) == len(THRESHOLDS) == 5
    for share, axes in zip((0.75, 1, 0.5, math.nan), panels, strict=True):
        lines = iter(axes.get_lines())
        for level, style in ((0.7, "-"), (0.9, "--")):
            for iou, colour in THRESHOLDS.items():
                line = next(lines)
                assert (line.get_color(), line.get_linestyle()) == (colour, style)
                wanted = share * level * (1 - np.linspace(0, 1, 101)) * (1.5 - iou)
                assert line.get_ydata() == pytest.approx(wanted, nan_ok=True)
        assert next(lines, None) is None
    assert [text.get_text() for text in panels[3].texts] == ["no objects"]
    styles, colours = figures[0].legends
    assert [(h.get_label(), h.get_linestyle()) for h in styles.legend_handles] == [
        ("base", "-"), ("JOL", "--")]  # fmt: skip
    assert [(h.get_label(), h.get_color()) for h in colours.legend_handles] == [
        (f"IoU ≥ {iou:g}", colour) for iou, colour in THRESHOLDS.items()]  # fmt: skip
    pr_thresholds({"jol": evaluation(0.9)}, tmp_path / "one.png")
    assert {line.get_linestyle() for line in figures[1].axes[0].get_lines()} == {"--"}
    assert opened(tmp_path / "both.png").size and opened(tmp_path / "one.png").size


@pytest.mark.parametrize(
    "classes, shape", [(1, (1, 2)), (8, (3, 3)), pytest.param(10, (3, 4), marks=pytest.mark.slow)]
)
def test_the_grid_of_thresholds(tmp_path, classes, shape):
    """Of the mean and the classes, as square as it can be."""
    one = evaluation(0.9)
    wide = np.repeat(one.precision[:, :, :1], classes, axis=2)
    names = {f"class {k}": {} for k in range(classes)}
    pr_thresholds({"jol": Evaluation({}, names, wide, one.recall_points, one.iou_thresholds)},
                  tmp_path / "grid.png")  # fmt: skip
    height, width = opened(tmp_path / "grid.png").shape[:2]
    assert height == pytest.approx(150 * (2.7 * shape[0] + 0.8), abs=1)
    assert width == pytest.approx(150 * max(6.2, 2.9 * shape[1]), abs=1)


@pytest.mark.parametrize("draw, top", [(pr_classes, 0), (pr_thresholds, 60)])
def test_odd_class_names(tmp_path, draw, top):
    one = evaluation(0.9)
    names = {"$never^$": {}, "a_$b": {}, "pedestrian on a motor, " * 9: {}}
    odd = Evaluation({}, names, one.precision, one.recall_points, one.iou_thresholds)
    draw({"jol": odd}, tmp_path / "odd.png")
    pixels = opened(tmp_path / "odd.png")
    assert (pixels[: top + 50, -9:] == 255).all()  # the long one ends before the picture


@pytest.mark.parametrize("draw", [pr_classes, pr_thresholds])
def test_runs_of_the_figure_of_classes_must_agree(tmp_path, draw):
    one = evaluation(0.9)
    other = Evaluation({}, {"ship": {}}, one.precision, one.recall_points, one.iou_thresholds)
    with pytest.raises(ValueError, match=r"different classes: .*motor.*ship"):
        draw({"base": one, "jol": other}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no runs"):
        draw({}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
