"""Boxes whose numbers mean something else than x, y, width and height in pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.cli import main
from detectors.data import DataError
from detectors.data.coco import read_coco

Numbers = list[float]
WIDTH, HEIGHT = 640, 480


def boxes(count: int = 30, seed: int = 0) -> list[Numbers]:
    """x, y, w, h of small objects all over the image."""
    random = np.random.default_rng(seed)
    w, h = random.integers(6, 30, (2, count))
    x, y = random.integers(0, WIDTH - w + 1), random.integers(0, HEIGHT - h + 1)
    return np.stack([x, y, w, h], axis=1).astype(float).tolist()


def content(boxes: list[Any], size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
            for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "ship"}],
    }


def write(folder: Path, *given: Any, **more: Any) -> Path:
    (folder / "boxes.json").write_text(json.dumps(content(*given, **more)))
    return folder / "boxes.json"


MEANINGS: dict[str, tuple[Callable[[Numbers], Numbers], str]] = {
    "corners": (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "as corners x1, y1, x2, y2"),
    "fractions": (
        lambda b: [b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT],
        "fractions of the image",
    ),
    "fractional corners": (
        lambda b: [b[0] / WIDTH, b[1] / HEIGHT, (b[0] + b[2]) / WIDTH, (b[1] + b[3]) / HEIGHT],
        "fractions of the image",
    ),
    "fractional centres": (
        lambda b: [
            *((b[0] + b[2] / 2) / WIDTH, (b[1] + b[3] / 2) / HEIGHT),
            *(round(b[2] / WIDTH, 2), round(b[3] / HEIGHT, 2)),
        ],
        "fractions of the image",
    ),
    "another size": (
        lambda b: [5 * n for n in b],
        r"they reach to [23]\d{3} x .* images of another size",
    ),
}


@pytest.mark.parametrize("change, wanted", MEANINGS.values(), ids=MEANINGS)
@pytest.mark.parametrize("seed", range(5))
def test_the_likely_cause_is_named_in_one_message(tmp_path: Path, change, wanted, seed, capsys):
    file = write(tmp_path, [change(box) for box in boxes(seed=seed)])
    with pytest.raises(DataError, match=f"boxes.json: .*{wanted}"):
        read_coco(file, None)
    problems: list[str] = []
    read_coco(file, None, problems.append)
    assert len(problems) == 1
    assert main(["data", "stats", "--annotations", str(file)]) == 2
    assert problems[0] in capsys.readouterr().err


@pytest.mark.parametrize("box", [[0.2, 0.3, 0.5, 0.4], [0, 0, 0.98, 1], [0.5, 0.5, 1, 0.9]])
def test_a_single_fraction_is_refused_too(tmp_path: Path, box: Numbers):
    with pytest.raises(DataError, match="fractions of the image"):
        read_coco(write(tmp_path, [box]), None)


def test_large_centres_and_exchanged_sides(tmp_path: Path):
    large = [[x, y, w, h] for x, y in ((100, 90), (90, 100)) for w in range(81, 86) for h in (82,)]
    centres = [[x + w / 2, y + h / 2, w, h] for x, y, w, h in large]
    with pytest.raises(DataError, match=r"10 of 10 boxes leave their image.* as centre and size"):
        read_coco(write(tmp_path, centres, size=(200, 190)), None)
    tall = [[20 + 2 * k, 500 + 3 * k, 15, 12] for k in range(12)]
    with pytest.raises(DataError, match=r"12 of 12 boxes .* width and height of the images, exch"):
        read_coco(write(tmp_path, tall), None)


def test_what_makes_sense_is_taken(tmp_path: Path):
    """Objects cut off at the border, large ones in the middle, one alone."""
    for given, size in (
        (boxes(), (WIDTH, HEIGHT)),
        ([[-3, -2, 20, 15], [630, 470, 16, 14], [600, 3, 42, 5]], (WIDTH, HEIGHT)),
        ([[50, 60, 100, 90]] * 12, (200, 200)),
        ([[2, 3, 38.5, 28]], (40, 30)),
        ([[10, 8, 90, 91], [5, 6, 95, 93]], (96, 96)),
        ([[0, 0, 1, 1]], (40, 30)),
        ([[30, 20, 14, 8]], (40, 30)),
        # a pixel or less, and no fractions: those would leave an image of 1 x 1
        ([[1, 1, 0.8, 0.9]], (40, 30)),
        ([[0.25, 0.25, 1, 1], [0.5, 1, 1, 0.5]], (40, 30)),
        ([[0, 0, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0.5], [1, 1, 0.5, 1]], (WIDTH, HEIGHT)),
        ([[0.5, 0.5, 1, 1], [0, 1, 0.5, 0.5], [1, 0.5, 1, 1]], (4, 4)),
    ):
        coco = read_coco(write(tmp_path, given, size=size), None)
        assert len(coco.annotations) == len(given)
        assert not any("would fit" in remark for remark in coco.remarks)


def test_odd_boxes_are_worth_a_word(tmp_path: Path):
    """Centres of tiny objects leave their image in few places only; percentages in none."""
    centres = [[x + w / 2, y + h / 2, w, h] for x, y, w, h in boxes(400)]
    coco = read_coco(write(tmp_path, centres), None)
    assert any(line.endswith("they would fit as centre and size") for line in coco.remarks)
    shares = [[100 * x / WIDTH, 100 * y / HEIGHT, w / 6.4, h / 4.8] for x, y, w, h in boxes()]
    coco = read_coco(write(tmp_path, shares), None)
    assert coco.remarks == ["no box goes beyond 100 pixels: are they percentages of the image?"]


@pytest.mark.parametrize("box, side", [([50, 50, -20, -10], "width"), ([5, 9, 4, -1], "height")])
def test_negative_sizes_are_named_and_are_no_zero_sizes(tmp_path: Path, box, side, capsys):
    file = write(tmp_path, [*boxes(3), box])
    numbers = ", ".join(map(str, box))
    with pytest.raises(DataError, match=rf"annotation 4: bbox \[{numbers}\] has a negative {side}"):
        read_coco(file, None)


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    from PIL import Image

    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 140)).save(folder / "a.png")
    arguments = ["--images", str(folder), "--annotations", str(folder / "boxes.json")]
    return main(["data", "check", *arguments]), capsys.readouterr().out


def test_a_file_of_which_nothing_is_left_is_a_problem(tmp_path: Path, capsys):
    write(tmp_path, [[1, 2, 0, 8], [5, 5, 0, 0], []])
    status, out = check(tmp_path, capsys)
    assert status == 2
    wanted = "none of its objects can be used: 2 of zero size, 1 without a box\n"
    assert wanted in out and "no objects:" not in out
    write(tmp_path, [])
    status, out = check(tmp_path, capsys)
    assert status == 0 and "no objects: nothing to learn, and AP is not defined" in out


NO_OBJECTS = "no objects: nothing to learn, and AP is not defined"


@pytest.mark.parametrize(
    "change, problems",
    [
        ({"annotations": [{**content([[700, 5, 8, 8]])["annotations"][0]}]}, 1),
        ({"annotations": content([[1, 2, "a", 4]] * 3)["annotations"]}, 3),
        ({"annotations": content([[0.1, 0.2, 0.1, 0.1]])["annotations"]}, 1),
        ({"annotations": None}, 1),
        ({"images": content([], (0, 0))["images"]}, 1),
        ({"categories": []}, 3),
        ({"images": [], "annotations": []}, 1),
    ],
)
def test_that_no_object_is_left_is_said_where_it_is_news(tmp_path, capsys, change, problems):
    (tmp_path / "boxes.json").write_text(json.dumps(content([[1, 2, 8, 8]] * 2) | change))
    status, out = check(tmp_path, capsys)
    assert status == 2 and len(out.splitlines()) == problems + 1 and NO_OBJECTS not in out
    (tmp_path / "boxes.json").write_text(json.dumps(content([]) | {"categories": []}))
    status, out = check(tmp_path, capsys)  # here the other problem explains nothing
    assert status == 2 and out.count(NO_OBJECTS) == 1


def test_repeated_boxes_are_counted(tmp_path: Path, capsys):
    one = [10, 20, 8, 9]
    write(tmp_path, [one, one, [10, 20, 8, 9.5], one])
    status, out = check(tmp_path, capsys)
    assert status == 0
    assert "2 objects with the image, class and box of an earlier one" in out
    assert "1 image, 4 objects, 0 crowd or ignored" in out
