"""`jol data stats`: counts by hand, positives by size, errors, and VisDrone's published numbers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors.assigners import BACKGROUND, IGNORED
from detectors.cli import main
from detectors.commands.data_stats import pick_assigner
from detectors.evaluation.prior_coverage import make_priors
from detectors.models import PRESETS, build_detector
from detectors.models.anchor_plans import plan_layout
from detectors.models.fcos import inside_only

VISDRONE = Path(__file__).parents[3] / "shared/data/visdrone_boxes"
needs_visdrone = pytest.mark.skipif(not VISDRONE.is_dir(), reason="VisDrone's boxes are not here")
Box = tuple[float, float, float, float]


def write(
    path: Path,
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[tuple[int, int, Box, bool]],
    names: Sequence[str] = ("car", "ship"),
) -> Path:
    """Images of (width, height); boxes (image, class, x y w h, crowd); ids from 1."""
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height}
            for i, (width, height) in enumerate(sizes, start=1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "iscrowd": int(crowd),
            }
            for i, (image, category, box, crowd) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }
    path.write_text(json.dumps(content))
    return path


# Sizes 4, 8, 16, 32 and 31, a crowd and one of zero size.
OBJECTS: list[tuple[int, int, Box, bool]] = [
    (1, 1, (0, 0, 2, 8), False),
    (1, 1, (10, 10, 8, 8), False),
    (2, 2, (10, 10, 16, 16), False),
    (2, 1, (5, 5, 32, 32), False),
    (2, 1, (20, 20, 31, 31), False),
    (1, 1, (0, 0, 50, 50), True),
    (2, 2, (3, 3, 0, 9), False),
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.json", [(100, 80), (120, 90)], OBJECTS)


def stats(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    """The words of each printed line; no line is wider than a terminal of 100 columns."""
    assert main(["data", "stats", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 100
    return [line.split() for line in lines]


def row(lines: list[list[str]], *label: str) -> list[str]:
    """What follows `label` on the one line that begins with it."""
    found = [line[len(label) :] for line in lines if line[: len(label)] == list(label)]
    assert len(found) == 1, (label, lines)
    return found[0]


def test_counts_by_hand(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = stats(capsys, "--annotations", small)
    counts = "2 images, 5 objects; skipped: 1 crowd or ignored, 1 of zero size"
    assert " ".join(lines[0]) == counts
    # sizes 4 8 16 32 31: sum 91; squares 16 64 256 1024 961: sum 2321
    std = math.sqrt(2321 / 5 - (91 / 5) ** 2)
    assert row(lines, "mean") == ["18.20", "±", f"{std:.2f}"]
    shares = row(lines, "share", "of", "the", "objects")
    assert shares == ["20.0", "%", "20.0", "%", "40.0", "%", "20.0", "%"]
    assert row(lines, "car") == ["4"] and row(lines, "ship") == ["1"]
    assert not any("positives" in line for line in lines)


def test_files_are_pooled(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = write(tmp_path / "more.json", [(64, 64), (64, 64)], [(2, 2, (0, 0, 40, 10), False)])
    lines = stats(capsys, "--annotations", small, more)
    assert lines[0][:4] == ["4", "images,", "6", "objects;"]
    assert row(lines, "mean")[0] == f"{(91 + 20) / 6:.2f}"
    assert row(lines, "car") == ["4"] and row(lines, "ship") == ["2"]
    objects: list[tuple[int, int, Box, bool]] = [(1, 2, (0, 0, 9, 9), False)]
    spare = write(tmp_path / "spare.json", [(64, 64)], objects, names=("tank", "ship"))
    assert row(stats(capsys, "--annotations", small, more, spare), "ship") == ["3"]
    other = write(tmp_path / "other.json", [(64, 64)], objects, names=("ship", "tank"))
    assert main(["data", "stats", "--annotations", str(small), str(other)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jol data stats: ") and str(other) in error
    assert f"categories ['tank'], which {small} does not have" in error


def test_simd_constants_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object in the middle of a 64 x 64 image that stays as it is, anchors of 1 stride."""
    file = write(tmp_path / "one.json", [(64, 64)], [(1, 1, (24, 24, 16, 16), False)])
    sums, pairs = 0.0, 0
    for stride in (4, 8, 16, 32, 64):
        for ratio in (0.5, 1, 2):
            for column in range(64 // stride):
                distance = abs(column * stride - 32)
                sums += 64 // stride * distance / (16 + stride / math.sqrt(ratio))
                pairs += 64 // stride
    lines = stats(capsys, "--annotations", file, "--image-size", 64, "--anchor-scale", 1)
    assert lines[0][:4] == ["1", "image,", "1", "object;"]
    mean = f"{sums / pairs:.3f}"
    assert [f"m={mean}", f"n={mean}"] in lines


def test_positives_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that stay as they are; the anchors have sides of 2 strides: 8, 16, 32, 64, 128."""
    boxes: list[tuple[int, int, Box, bool]] = [
        (1, 1, (28, 28, 8, 8), False),  # P2's square at (32, 32), exactly: 1
        (1, 1, (88, 86, 16, 20), False),  # P3's square at (96, 96): IoU .8; its neighbours less
        (2, 1, (61, 61, 6, 6), False),  # P2's square at (64, 64): IoU .56, by low quality only
        (3, 1, (28, 28, 8, 8), False),
    ]
    file = write(tmp_path / "some.json", [(128, 128)] * 3, boxes)
    given = ("--annotations", file, "--image-size", 128, "--anchor-scale", 2, "--positives")
    given += ("--preset", "paper")
    lines = stats(capsys, *given)
    assert row(lines, "objects") == ["1", "2", "1", "0", "0"]
    assert row(lines, "with", "low-quality", "matches") == ["1.00", "1.00", "1.00", "-", "-"]
    assert row(lines, "without", "them") == ["0", "1.00", "1.00", "-", "-"]
    said = [" ".join(line) for line in lines[-2:]]
    assert said == [
        "iou with low-quality matches: objects of every size get positives.",
        "iou without them: objects of <8 px get no positives.",
    ]
    # a bar above the IoU of every anchor, which no longer fit: nothing is left
    unlike = ("--anchor-scale", 2.1, "--assigner", "iou", "--assigner-settings", "high=1")
    none = stats(capsys, *given, *unlike)
    assert row(none, "without", "them") == ["0", "0", "0", "-", "-"]
    assert " ".join(none[-1]) == "iou without them: objects of <8 px, 8-16 px and 16-32 px" + (
        " get no positives."
    )
    # every second image: the second is skipped
    lines = stats(capsys, *given, "--every", 2)
    assert row(lines, "objects") == ["0", "2", "1", "0", "0"]
    assert ["image", "1", "of", "every", "2:", "2", "of", "3"] in lines


def test_images_are_resized(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100 x 80 to twice the size, 120 x 90 to 213 x 160: sizes 8 16 28.4 56.9 55.1."""
    given = ("--image-size", 160, "--positives", "--assigner", "nwd-rka")
    lines = stats(capsys, "--annotations", small, *given)
    assert row(lines, "objects") == ["0", "1", "2", "2", "0"]
    # no low-quality matches here: one row, of the assigner's name
    assert len(row(lines, "nwd-rka")) == 5
    assert ["nwd-rka:", "k=2", "constant=12.7", "low=0.3"] in lines
    assert not any(line[:1] == ["without"] for line in lines)


def test_detectors_bring_their_settings(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--annotations", small, "--image-size", 90, "--positives", "--preset", "paper")
    given += ("--detector",)
    lines = stats(capsys, *given, "retinanet")
    assert row(lines, "iou:") == ["high=0.5", "low=0.4", "min_low_quality=0"]
    assert ["retinanet's", "anchors", "(preset", "paper):", "scale", "4"] in [x[:6] for x in lines]
    lines = stats(
        capsys, *given, "cascade_rcnn", "--assigner", "simd", "--assigner-settings", "m=6"
    )
    assert row(lines, "simd:")[:3] == ["m=6", "n=4.59", "high=0.7"]
    lines = stats(capsys, *given, "fcos", "--assigner", "atss")
    assert row(lines, "none", "with", "fcos,")
    assert row(lines, "fcos's", "points", "(preset", "paper):")[:2] == ["scale", "8,"]


def test_fcos_own_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stride 8's points at 4, 12, 20, ... within 12 pixels of the centre and inside the box."""
    boxes: list[tuple[int, int, Box, bool]] = [
        (1, 1, (9, 9, 6, 6), False),  # the point (12, 12) alone
        (1, 1, (60, 60, 20, 40), False),  # centre (70, 80): x 68 76, y 76 84
        (1, 1, (34, 34, 1, 1), False),  # holds no point
    ]
    file = write(tmp_path / "some.json", [(128, 128)], boxes)
    given = ("--annotations", file, "--image-size", 128, "--detector", "fcos", "--positives")
    given += ("--preset", "paper")
    lines = stats(capsys, *given)
    assert row(lines, "centre", "sampling")[:3] == ["0.50", "-", "4.00"]


def test_no_bar_for_low_quality_and_images_without_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "some.json", [(64, 64)] * 2, [(2, 1, (8, 8, 16, 16), False)])
    given = ("--annotations", file, "--positives", "--assigner", "iou")
    lines = stats(capsys, *given, "--assigner-settings", "min_low_quality=none")
    assert "min_low_quality=none" in row(lines, "iou:")
    lines = stats(capsys, *given, "--every", 2)
    assert ["These", "images", "hold", "no", "objects."] in lines
    assert not any("get" in line for line in lines)


def test_strides_and_ratios_reach_the_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A box of 16 x 64: an anchor of stride 8, ratio 4, scale 4 is that box; two have IoU 0.78."""
    file = write(tmp_path / "one.json", [(128, 128)], [(1, 1, (56, 32, 16, 64), False)])
    given = ("--annotations", file, "--image-size", 128, "--positives", "--anchor-scale", 4)
    label = ("without", "them")
    assert row(stats(capsys, *given), *label)[3] == "0"
    assert row(stats(capsys, *given, "--anchor-ratios", 1, 4), *label)[3] == "3.00"
    shifted = (*given, "--anchor-ratios", 4, "--strides", 4, 8, 16, 32)
    assert row(stats(capsys, *shifted), *label)[3] == "3.00"


def test_fcos_points_outside_their_object_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 x 4 around (4, 4), a point of stride 8: of RFLA's three points the nearest alone is in."""
    file = write(tmp_path / "one.json", [(64, 64)], [(1, 1, (2, 2, 4, 4), False)])
    given = ("--annotations", file, "--image-size", 64, "--positives", "--assigner", "rfla")
    given += ("--preset", "paper")
    assert row(stats(capsys, *given, "--detector", "fcos"), "rfla")[0] == "1.00"
    assert float(row(stats(capsys, *given, "--detector", "retinanet"), "rfla")[0]) >= 3


def test_inside_only() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    points = torch.tensor([[2.0, 2], [6, 6], [6, 6], [4, 2], [2, 2]])
    matches = torch.tensor([0, 0, 1, 0, BACKGROUND])
    wanted = [0, IGNORED, 1, IGNORED, BACKGROUND]
    assert inside_only(matches, boxes, points).tolist() == wanted
    none = torch.full((5,), BACKGROUND)
    assert torch.equal(inside_only(none, boxes[:0], points), none)


@pytest.mark.parametrize("assigner", [None, "rfla"])
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_layouts_are_the_models_anchors(
    name: str, preset: str, scale: float | None, assigner: str | None
) -> None:
    model = build_detector(
        name,
        1,
        assigner=assigner,
        preset=preset,
        backbone="resnet18",
        backbone_weights="none",
        anchor_scale=scale,
        image_size=96,
    )
    layout = plan_layout(name, preset, assigner, anchor_scale=scale, image_size=96)
    generator = model.rpn.anchor_generator if name == "faster_rcnn" else model.anchor_generator
    grids = [[math.ceil(128 / s), math.ceil(160 / s)] for s in generator.strides]
    strides = [[torch.tensor(s)] * 2 for s in generator.strides]
    priors, levels = make_priors(layout, 128, 160)
    assert torch.equal(priors, torch.cat(generator.grid_anchors(grids, strides)))
    assert levels == generator.describe(grids)
    transform = model.transform
    assert layout.fit == (transform.max_size, transform.min_size[0]) == (160, 96)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "preset torchvision, images resized to 1333 x 800"),
        (["--preset", "paper", "--image-size", "480", "640"], "paper, images resized to 800 x 480"),
        (["--preset", "slim"], "preset slim, crops of 192 x 192 as they are"),
        (["--preset", "slim", "--crop", "0"], "preset slim, images as they are"),
        (["--crop", "64"], "preset torchvision, crops of 64 x 64 resized to 1333 x 800"),
    ],
)
def test_the_verdict_is_for_what_jol_train_would_use(
    given: list[str], said: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was for preset paper, whatever was given."""
    lines = stats(capsys, "--annotations", small, "--positives", *given)
    sentences = [" ".join(line) for line in lines[-3:]]
    assert sentences[0].startswith("As jol train with these arguments: ")
    assert sentences[0].endswith(f"{said}.")
    assert sentences[1].startswith("iou with low-quality matches: objects of ")


def test_it_takes_the_losses_of_jol_train(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--annotations", small, "--positives", "--detector", "fcos", "--preset", "paper"]
    said = [" ".join(line) for line in stats(capsys, *given, "--classification", "bce")]
    assert "losses of the head: bce and iou:mode=log" in said
    assert main(["data", "stats", *map(str, given), "--classification", "cross_entropy"]) == 2
    assert "its head has no column for the background" in capsys.readouterr().err


def test_presets_give_other_positives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An object of 10 pixels: slim has anchors of that size; of crops of 80, scaled by ten, 100."""
    file = write(tmp_path / "one.json", [(160, 160)], [(1, 1, (59, 59, 10, 10), False)])
    given = ("--annotations", file, "--positives")
    slim = stats(capsys, *given, "--preset", "slim", "--anchor-ratios", 1)
    words = "faster_rcnn's anchors (preset slim): 6 to 90 pixels by level, crops of 192 x 192"
    assert [*words.split(), "as", "they", "are"] in slim
    assert float(row(slim, "without", "them")[1]) >= 1
    crop = ("--crop", 80, "--image-size", 800)
    assert row(stats(capsys, *given, *crop), "objects") == ["0", "0", "0", "0", "1"]
    native = ("--image-size", 160)
    assert row(stats(capsys, *given, *native), "objects") == ["0", "1", "0", "0", "0"]
    assert row(stats(capsys, *given, *native), "without", "them")[1] == "0"


@pytest.mark.parametrize("preset", PRESETS)
def test_fcos_has_the_rule_of_its_preset(preset: str) -> None:
    """The points that an object gets are those that the detector trains on."""
    model: Any = build_detector(
        "fcos", 1, preset=preset, backbone="resnet18", backbone_weights="none", image_size=128
    )
    taken: list[list[torch.Tensor]] = []
    model.head.compute_loss = lambda *given: taken.append(given[-1]) or {}
    boxes = torch.tensor([[9.0, 9, 15, 15], [60, 60, 80, 100], [20, 40, 60, 64]])
    target = {"boxes": boxes, "labels": torch.zeros(3, dtype=torch.int64)}
    model.train()([torch.rand(3, 128, 128)], [target])
    layout = plan_layout("fcos", preset, image_size=128)
    _, rule = pick_assigner("fcos", None, {}, preset)
    priors, levels = make_priors(layout, 128, 128)
    assert torch.equal(rule(boxes, priors, levels), taken[0][0])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--annotations", "nowhere.json"], "--annotations: nowhere.json: no such file"),
        (["--detector", "yolo"], "detector: got 'yolo', wanted one of retinanet, fcos"),
        (["--detector", "fcos", "--assigner", "simd"], "got 'simd' with fcos, wanted one of atss"),
        (["--detector", "fcos", "--assigner-settings", "k=9"], "wanted none without an assigner"),
        (["--strides", "4", "16"], "strides: got (4, 16), wanted two or more, each twice the one"),
        (["--detector", "fcos", "--anchor-scale", "2"], "anchor_scale: got 2.0, wanted none"),
        (["--assigner", "best"], "--assigner: got 'best', wanted one of iou, simd"),
        (["--assigner", "simd", "--assigner-settings", "mm=6"], "got 'mm', wanted one of m, n"),
        (["--assigner-settings", "m=6"], "setting of assigner iou: got 'm', wanted one of high"),
        (["--assigner-settings", "low=0.9"], "low: got 0.9, wanted at most high, 0.7"),
        (["--assigner", "atss", "--assigner-settings", "k=0"], "got k=0, wanted a whole number"),
        (["--assigner", "nwd-rka", "--assigner-settings", "k=1.5"], "setting of assigner nwd-rka"),
        (["--every", "0"], "--every: got '0', wanted a whole number of 1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(
    given: list[str], wanted: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stats", "--annotations", str(small), *given]) == 2
    printed = capsys.readouterr()
    assert wanted in printed.err and printed.err.startswith("jol data stats: ")
    assert len(printed.err.splitlines()) <= 2 and printed.out == ""


def test_no_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "none.json", [(64, 64)], [(1, 1, (0, 0, 9, 9), True)])
    assert main(["data", "stats", "--annotations", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"{file}: no objects to count; skipped: 1 crowd or ignored" in error


@pytest.mark.parametrize(("command", "count"), [("stats", 18), ("check", 6), ("convert", 6)])
def test_help_explains_every_option(
    command: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", command, "--help"]) == 0
    lines = capsys.readouterr().out.split("options:")[1].splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("  -")]
    assert len(options) == count
    for i in options:
        explained = "  " in lines[i].strip() or lines[i + 1].startswith(" " * 20)
        assert explained, lines[i]
    assert main(["data"]) == 2 and "required: COMMAND" in capsys.readouterr().err


def test_the_row_of_table_1_by_hand(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative size: the mean of sqrt(w h / (W H)) over the objects."""
    with small.open() as file:
        content = json.load(file)
    area = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    relative = [
        math.sqrt(record["bbox"][2] * record["bbox"][3] / area[record["image_id"]])
        for record in content["annotations"]
        if not record["iscrowd"] and min(record["bbox"][2:]) > 0
    ]
    assert len(set(area.values())) == 2 and len(relative) == 5
    lines = stats(capsys, "--annotations", small)
    assert ["latter", "by", "our", "definition:", "the", "paper's", "was", "not", "found"] in lines
    at = lines.index(["images", "instances", "absolute", "relative"])
    assert lines[at + 1] == ["2", "5", "18.2", f"{sum(relative) / 5:.4f}"]


@pytest.fixture(scope="module")
def visdrone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VisDrone's validation boxes as COCO JSON; without objects not to be counted."""
    with np.load(VISDRONE / "val.npz") as file:
        rows, sizes = file["rows"].tolist(), file["wh"].tolist()
    names = ["pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle"]
    names += ["awning-tricycle", "bus", "motor"]
    boxes = [
        (int(image) + 1, int(category), (x, y, w, h), False)
        for image, x, y, w, h, score, category, *_ in rows
        if score == 1 and 1 <= category <= 10
    ]
    return write(tmp_path_factory.mktemp("visdrone") / "val.json", sizes, boxes, names)


@needs_visdrone
def test_visdrone_counts(visdrone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = stats(capsys, "--annotations", visdrone)
    assert lines[0][:4] == ["548", "images,", "38,759", "objects;"]
    assert row(lines, "mean") == ["29.85", "±", "24.93"]
    shares = row(lines, "share", "of", "the", "objects")
    assert shares[::2] == ["6.0", "24.8", "37.7", "31.4"]


@pytest.mark.slow
@needs_visdrone
def test_visdrone_positives(visdrone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--annotations", visdrone, "--positives", "--assigner", "simd", "--every", 12)
    lines = stats(capsys, *given)
    objects = [int(text.replace(",", "")) for text in row(lines, "objects")]
    assert sum(objects) == 3314 and ["image", "1", "of", "every", "12:", "46", "of", "548"] in lines
    found = row(lines, "with", "low-quality", "matches")
    assert [float(text) for text in found] == pytest.approx([0, 0, 0.39, 0.81, 0.98], rel=0.1)
    assert found[:2] == ["0", "0"]
    sentence = " ".join(lines[-2])
    assert sentence == (
        "simd with low-quality matches: objects of <8 px and 8-16 px get no positives."
    )
