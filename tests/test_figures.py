"""The data behind the figures, and that the files are written."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_cases import random_case
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from detectors.evaluation import Evaluation, evaluate
from detectors.evaluation.curves import class_curves, mean_curve, pr_classes, pr_curves
from detectors.paper.figures import loss_by_size
from detectors.paper.loss_samples import Samples
from detectors.paper.side_by_side import _window, detections_figure, match


def boxes(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)


def truth(objects, labels=None, ignored=(), ignored_labels=()):
    return {
        "boxes": objects,
        "labels": torch.tensor(labels or [0] * len(objects)),
        "ignored": boxes(*ignored),
        "ignored_labels": torch.tensor(ignored_labels, dtype=torch.int64),
    }


def detected(found, scores, labels=None):
    return {
        "boxes": found,
        "labels": torch.tensor(labels or [0] * len(found), dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def matched(objects, detections, scores, **options):
    found, wrong, missed = match(truth(objects), detected(detections, scores), **options)
    assert (wrong == ~found).all()
    return found.tolist(), missed.tolist()


def test_match_keeps_to_the_class():
    objects = truth(boxes([0, 0, 10, 10], [50, 50, 60, 60]), [0, 1])
    surer_but_wrong = detected(boxes([0, 0, 10, 10], [0, 0, 10, 9]), [0.9, 0.8], [1, 0])
    found, wrong, missed = match(objects, surer_but_wrong)
    assert found.tolist() == [False, True] and wrong.tolist() == [True, False]
    assert missed.tolist() == [False, True]


def test_a_detection_of_what_is_to_be_ignored_is_neither_found_nor_wrong():
    objects = truth(boxes([0, 0, 10, 10]), [0], ignored=[[20, 20, 90, 90]], ignored_labels=[0])
    places = boxes([30, 30, 40, 40], [30, 30, 40, 40], [15, 20, 25, 30], [14, 20, 24, 30])
    found, wrong, missed = match(objects, detected(places, [0.9, 0.8, 0.7, 0.6], [0, 1, 0, 0]))
    assert not found.any() and missed.all()
    assert wrong.tolist() == [False, True, False, True]  # of its class, and half inside
    # an object in the region is found there all the same
    objects = truth(boxes([30, 30, 40, 40]), [0], ignored=[[20, 20, 90, 90]], ignored_labels=[0])
    found, wrong, missed = match(objects, detected(places[:1], [0.9]))
    assert found.all() and not wrong.any() and not missed.any()


def test_match_finds_true_false_and_missed():
    objects = boxes([0, 0, 10, 10], [50, 50, 60, 60])
    detections = boxes([1, 0, 11, 10], [80, 80, 90, 90])
    assert matched(objects, detections, [0.3, 0.9]) == ([True, False], [False, True])


def test_match_gives_an_object_to_one_detection_the_surest():
    objects = boxes([0, 0, 10, 10])
    detections = boxes([0, 0, 10, 10], [0, 0, 10, 9])
    assert matched(objects, detections, [0.3, 0.9]) == ([False, True], [False])
    assert matched(objects, detections, [0.9, 0.3]) == ([True, False], [False])


def test_match_takes_the_best_free_object():
    # Both detections fit both objects; the first takes the nearer one, the second the other.
    objects = boxes([0, 0, 10, 10], [2, 0, 12, 10])
    detections = boxes([2, 0, 12, 10], [1.9, 0, 11.9, 10])
    assert matched(objects, detections, [0.9, 0.8]) == ([True, True], [False, False])
    assert matched(objects, detections[:1], [0.9]) == ([True], [True, False])


def test_match_keeps_to_the_threshold():
    objects = boxes([0, 0, 10, 10])
    half = boxes([0, 0, 10, 5])
    assert matched(objects, half, [0.9]) == ([True], [False])
    assert matched(objects, half, [0.9], iou=0.51) == ([False], [True])


def test_match_without_objects_or_detections():
    one = boxes([0, 0, 10, 10])
    assert matched(boxes(), one, [0.5]) == ([False], [])
    assert matched(one, boxes(), []) == ([], [True])
    assert matched(boxes(), boxes(), []) == ([], [])


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


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


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
    loss_by_size({"jol": Samples(*[one] * 4, torch.ones(1, dtype=torch.bool), one)}, tmp_path / "x")
    assert {"base: AP50 = -", "b  <16 px\nJOL r = -"} <= set(texts)
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


@pytest.mark.parametrize("classes, shape", [(1, (1, 1)), (5, (2, 4)), (10, (3, 4)), (20, (4, 5))])
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


def test_odd_class_names(tmp_path):
    one = evaluation(0.9)
    names = {"$never^$": {}, "a_$b": {}, "pedestrian on a motor, " * 9: {}}
    odd = Evaluation({}, names, one.precision, one.recall_points, one.iou_thresholds)
    pr_classes({"jol": odd}, tmp_path / "odd.png")
    pixels = opened(tmp_path / "odd.png")
    assert (pixels[:50, -9:] == 255).all()  # the long one ends before the picture


def test_runs_of_the_figure_of_classes_must_agree(tmp_path):
    one = evaluation(0.9)
    other = Evaluation({}, {"ship": {}}, one.precision, one.recall_points, one.iou_thresholds)
    with pytest.raises(ValueError, match=r"different classes: .*motor.*ship"):
        pr_classes({"base": one, "jol": other}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no runs"):
        pr_classes({}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def row(runs: dict, size: tuple[int, int] = (64, 96)) -> tuple:
    image = torch.full((3, *size), 40, dtype=torch.uint8)
    return image, truth(boxes([10, 10, 18, 18], [40, 20, 52, 30])), runs


@pytest.mark.filterwarnings("error")
def test_detections_are_drawn_by_their_kind(tmp_path):
    fitting = detected(boxes([10, 10, 18, 18], [40, 20, 52, 30]), [0.9, 0.8])
    astray = detected(boxes([70, 40, 80, 50]), [0.9])
    nothing = detected(boxes(), [])
    green, blue, red, white = (0x2B, 0xE0, 0xA0), (0x56, 0xB4, 0xE9), (0xFF, 0x5A, 0x46), (255,) * 3
    expected = {
        "fitting": (fitting, {green}),
        "astray": (astray, {blue, red}),
        "nothing": (nothing, {red}),
    }
    for name, (run, colours) in expected.items():
        detections_figure([row({"run": run})], tmp_path / "one.png")
        pixels = opened(tmp_path / "one.png")
        assert (pixels[:, [0, -1]] == 255).all()  # the legend ends before the picture
        upper = pixels[: int(0.8 * len(pixels))]  # without the legend
        for colour in (green, blue, red):
            drawn = (upper == colour).all(axis=2).sum()
            assert (drawn > 50) == (colour in colours), (name, colour, drawn)
        assert (upper == white).all(axis=2).sum() > 50
    rows = [row({"base": fitting, "jol": astray}), row({"base": nothing, "jol": fitting})]
    detections_figure(rows, tmp_path / "two.png")
    pixels = opened(tmp_path / "two.png")
    assert pixels.shape[1] > 1000 and pixels.shape[0] > 600


def test_a_large_image_is_shown_where_most_objects_are():
    image = torch.zeros(3, 700, 1000, dtype=torch.uint8)
    crowd = torch.tensor([[800.0 + 9 * i, 600, 806 + 9 * i, 608] for i in range(10)])
    x1, y1, x2, y2 = _window(image, torch.cat([boxes([5, 5, 12, 12]), crowd]))
    assert x2 - x1 == y2 - y1 == 256 and x2 <= 1000 and y2 <= 700
    assert x1 <= 800 and x2 >= 887 and y1 <= 600 and y2 >= 608
    assert _window(image, boxes()) == (0, 0, 256, 256)
    assert _window(image[:, :64, :96], crowd) == (0, 0, 96, 64)


def test_rows_must_agree(tmp_path):
    run = detected(boxes(), [])
    with pytest.raises(ValueError, match="no rows"):
        detections_figure([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"row 1 has the runs \['jol'\], row 0 has \['base'\]"):
        detections_figure([row({"base": run}), row({"jol": run})], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
