"""Detections drawn side by side: what counts as found, wrong or missed."""

import pytest
import torch
from matplotlib.figure import Figure
from pictures import opened

from detectors.paper.class_detections import class_figure, class_style
from detectors.paper.panels import crowded_window
from detectors.paper.side_by_side import detections_figure, match
from detectors.utils.palette import GREEN, SKY_BLUE, VERMILION


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


def row(runs: dict, size: tuple[int, int] = (64, 96)) -> tuple:
    image = torch.full((3, *size), 40, dtype=torch.uint8)
    return image, truth(boxes([10, 10, 18, 18], [40, 20, 52, 30])), runs


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.filterwarnings("error")
def test_detections_are_drawn_by_their_kind(tmp_path):
    fitting = detected(boxes([10, 10, 18, 18], [40, 20, 52, 30]), [0.9, 0.8])
    astray = detected(boxes([70, 40, 80, 50]), [0.9])
    nothing = detected(boxes(), [])
    green, blue, red = rgb(GREEN), rgb(SKY_BLUE), rgb(VERMILION)
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
    rows = [row({"base": fitting, "jol": astray}), row({"base": nothing, "jol": fitting})]
    detections_figure(rows, tmp_path / "two.png")
    pixels = opened(tmp_path / "two.png")
    assert pixels.shape[1] > 1000 and pixels.shape[0] > 600


def test_a_large_image_is_shown_where_most_objects_are():
    image = torch.zeros(3, 700, 1000, dtype=torch.uint8)
    crowd = torch.tensor([[800.0 + 9 * i, 600, 806 + 9 * i, 608] for i in range(10)])
    x1, y1, x2, y2 = crowded_window(image, torch.cat([boxes([5, 5, 12, 12]), crowd]))
    assert x2 - x1 == y2 - y1 == 256 and x2 <= 1000 and y2 <= 700
    assert x1 <= 800 and x2 >= 887 and y1 <= 600 and y2 >= 608
    assert crowded_window(image, boxes()) == (0, 0, 256, 256)
    assert crowded_window(image[:, :64, :96], crowd) == (0, 0, 96, 64)


def test_rows_must_agree(tmp_path):
    run = detected(boxes(), [])
    with pytest.raises(ValueError, match="no rows"):
        detections_figure([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"row 1 has the runs \['jol'\], row 0 has \['base'\]"):
        detections_figure([row({"base": run}), row({"jol": run})], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.filterwarnings("error")
def test_each_class_has_its_colour(tmp_path):
    """Figure 7: boxes of two classes, of one, and of none; four images in two rows."""
    image = torch.full((3, 64, 96), 40, dtype=torch.uint8)
    two = boxes([10, 10, 18, 18], [40, 20, 52, 30])
    for labels in ([0, 1], [1, 1], []):
        row = (image, two[: len(labels)], torch.tensor(labels, dtype=torch.int64))
        class_figure([row], ["car", "ship"], tmp_path / "one.png")
        upper = opened(tmp_path / "one.png")
        upper = upper[: int(0.8 * len(upper))]  # without the legend
        for label in (0, 1):
            drawn = (upper == rgb(class_style(label)[0])).all(axis=2).sum()
            assert (drawn > 50) == (label in labels), (labels, label, drawn)
    one = opened(tmp_path / "one.png").shape
    class_figure([row] * 4, ["car", "ship"], tmp_path / "four.png")
    four = opened(tmp_path / "four.png").shape
    assert four[0] > 1.7 * one[0] and four[1] > 2 * one[1]
    assert len({class_style(label) for label in range(20)}) == 20
    with pytest.raises(ValueError, match="no images"):
        class_figure([], [], tmp_path / "x.png")


def test_panels_say_what_they_show(tmp_path, monkeypatch):
    """The file's name, the least score, and that there is nothing where nothing is drawn."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    fitting, nothing = detected(boxes([10, 10, 18, 18]), [0.9]), detected(boxes(), [])
    empty = (torch.zeros(3, 64, 96, dtype=torch.uint8), truth(boxes()), {"JOL": nothing})
    names = ["a/full$1_$.png", f"{'long ' * 9}.png"]
    detections_figure([row({"JOL": fitting}), empty], tmp_path / "x.png", names)
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles[:2] == ["full$1_$.png: 2 objects", "JOL: 1 TP, 0 FP, 1 FN"]
    assert titles[2].startswith("long long") and titles[2].endswith("…: 0 objects")
    texts = [[text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert texts == [[], [], ["no objects"], ["no objects"]]
    nobody = torch.zeros(0, dtype=torch.int64)
    one = (empty[0], boxes([1, 1, 9, 9]), torch.zeros(1, dtype=torch.int64))
    class_figure([(empty[0], boxes(), nobody), one], ["car"], tmp_path / "x.png", ["a/b.png", "c"])
    assert [axes.get_title() for axes in figures[1].axes[:2]] == [
        "b.png: 0 detections",
        "c: 1 detection",
    ]
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["no detections"]
    for figure in figures:
        (legend,) = figure.legends
        assert legend.get_title().get_text() == "detections with a score of 0.5 or more"
