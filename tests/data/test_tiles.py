"""Tiles: boxes come back to where they were; SODA-D written, read, trained on and merged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from detectors.cli import main
from detectors.data.catalog import evaluation_data, read_split, training_data
from detectors.data.sodad import cut_image, paint
from detectors.data.tiles import NMS, OVERLAP, SIZE, clip, merge, starts
from detectors.errors import DataError
from detectors.evaluation import evaluate
from detectors.paper.side_by_side import crowded

sides = st.integers(1, 3000)
small = st.integers(1, OVERLAP)


@given(sides)
def test_tiles_cover_every_pixel_and_overlap(length: int) -> None:
    found = starts(length)
    assert found == sorted(set(found)) and found[0] == 0
    if length <= SIZE:
        assert found == [0]
        return
    assert found[-1] == length - SIZE
    gaps = np.diff(found)
    assert (gaps[:-1] == SIZE - OVERLAP).all() and gaps[-1] <= SIZE - OVERLAP


def test_starts_by_hand() -> None:
    assert starts(800) == [0] and starts(801) == [0, 1] and starts(1450) == [0, 650]
    assert starts(1451) == [0, 650, 651] and starts(4000) == [0, 650, 1300, 1950, 2600, 3200]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict, list[dict]]:
    """An image and objects, each within it and no larger than the overlap."""
    width, height = draw(sides), draw(sides)
    objects = []
    for number in range(1, draw(st.integers(0, 8)) + 1):
        w, h = min(draw(small), width), min(draw(small), height)
        x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
        objects.append(
            {
                "id": number,
                "image_id": 5,
                "category_id": draw(st.integers(1, 3)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )
    return {"id": 5, "file_name": "a.jpg", "width": width, "height": height}, objects


@settings(deadline=None, max_examples=60)
@given(scenes(), st.randoms(use_true_random=False))
def test_boxes_come_back_to_where_they_were(scene, random) -> None:
    image, objects = scene
    positions, detections, seen = {}, [], set()
    scores = {record["id"]: 1 - record["id"] / 100 for record in objects}
    for number, (tile, there) in enumerate(cut_image(image, objects), start=1):
        positions[number] = (tile["whole"], *tile["corner"])
        left, top = tile["corner"]
        for part in there:
            x, y, w, h = part["bbox"]
            assert x >= 0 and y >= 0 and x + w <= tile["width"] and y + h <= tile["height"]
            whole = objects[part["id"] - 1]["bbox"]
            assert [x + left, y + top] == [max(whole[0], left), max(whole[1], top)]
            if (w, h) == tuple(whole[2:]):
                assert not part["iscrowd"] and [x + left, y + top, w, h] == whole
                seen.add(part["id"])
                detections.append(
                    {
                        "image_id": number,
                        "category_id": part["category_id"],
                        "bbox": [x, y, w, h],
                        "score": scores[part["id"]],
                    }
                )
            else:
                assert part["iscrowd"] == (w * h <= 0.40 * whole[2] * whole[3])
    # No object is larger than the overlap: each is whole on one tile at least.
    assert seen == set(scores)
    random.shuffle(detections)
    merged = merge(detections, positions)
    assert all(record["image_id"] == 5 for record in merged)
    found = sorted((d["score"], d["category_id"], d["bbox"]) for d in merged)
    wanted = sorted((scores[r["id"]], r["category_id"], r["bbox"]) for r in survivors(objects))
    assert found == wanted


def survivors(objects: list[dict]) -> list[dict]:
    """What non-maximum suppression leaves of boxes whose scores fall with their ids."""
    kept: list[dict] = []
    for record in objects:
        if all(iou(record, other) <= NMS for other in kept):
            kept.append(record)
    return kept


def iou(one: dict, other: dict) -> float:
    if one["category_id"] != other["category_id"]:
        return 0.0
    a, b = (torch.tensor([record["bbox"]], dtype=torch.float64) for record in (one, other))
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    return float(box_iou(a, b))


def test_clip_by_hand() -> None:
    assert clip((790, 10, 20, 10), 0, 0, 800, 800) == ((790, 10, 10, 10), 0.5)
    assert clip((790, 10, 20, 10), 650, 0, 800, 800) == ((140, 10, 20, 10), 1.0)
    assert clip((800, 10, 20, 10), 0, 0, 800, 800) is None
    assert clip((0.1, 0.2, 0.3, 0.7), 0, 0, 800, 800) == ((0.1, 0.2, 0.3, 0.7), 1.0)


def test_merging_keeps_images_and_classes_apart() -> None:
    positions = {1: (7, 0, 0), 2: (7, 650, 0), 3: (8, 0, 0)}

    def found(tile: int, x: float, category: int, score: float) -> dict:
        return {"image_id": tile, "category_id": category, "bbox": [x, 5, 10, 10], "score": score}

    merged = merge(
        [found(1, 700, 1, 0.6), found(2, 51, 1, 0.9), found(2, 50, 2, 0.5), found(3, 700, 1, 0.1)],
        positions,
    )
    assert [(d["image_id"], d["category_id"], d["bbox"], d["score"]) for d in merged] == [
        (7, 1, [701, 5, 10, 10], 0.9),
        (7, 2, [700, 5, 10, 10], 0.5),
        (8, 1, [700, 5, 10, 10], 0.1),
    ]
    assert merge([], positions) == []


def test_regions_are_painted_whole_and_nothing_else() -> None:
    pixels = np.ones((3, 6, 8), dtype=np.uint8)
    paint(pixels, [(2.6, 1, 1.2, 2), (-9, -9, 10, 10), (-9, 2, 5, 2), (7, 5, 99, 99)])
    black = np.zeros((6, 8), dtype=bool)
    black[1:3, 2:4] = black[0, 0] = black[5, 7] = True
    assert ((pixels == 0) == black).all()


def test_a_region_without_a_box_is_named(tmp_path: Path) -> None:
    root = write_sodad(tmp_path)
    file = root / "Annotations" / "test.json"
    content = json.loads(file.read_text())
    for box in (
        None,
        [1, 2, 3],
        [1, 2, 3, float("nan")],
        [1, 10**400, 3, 4],
        [9, 2, -3, 4],
        "1234",
    ):
        content["annotations"][2]["bbox"] = box
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"test\.json: annotation 2: a region without a box"):
            read_split("sodad", root, "test")
    content["annotations"][2] |= {"bbox": [1, 2, 3, 4], "image_id": 77}
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotation 2: image 77 of a region is not among the im"):
        read_split("sodad", root, "test")


CLASSES = ["people", "rider"]


def write_sodad(root: Path) -> Path:
    """Two images in each split: a large one with objects and a region, and one without any."""
    (root / "Images").mkdir()
    (root / "Annotations").mkdir()
    for split in ("train", "test"):
        boxes = [(100, 100, 20, 20, 1), (790, 300, 25, 20, 2), (1000, 400, 60, 40, 10)]
        content = {
            "images": [
                {"id": 4, "file_name": f"{split}1.jpg", "width": 1450, "height": 820},
                {"id": 9, "file_name": f"{split}2.jpg", "width": 300, "height": 200},
            ],
            "annotations": [
                {"id": i, "image_id": 4, "category_id": k, "bbox": [x, y, w, h], "area": w * h}
                for i, (x, y, w, h, k) in enumerate(boxes)
            ],
            "categories": [
                *({"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)),
                {"id": 10, "name": "ignore"},
            ],
        }
        (root / "Annotations" / f"{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            picture = Image.new("RGB", (image["width"], image["height"]), (200, 120, 60))
            picture.save(root / "Images" / image["file_name"])
    return root


def convert(root: Path, split: str) -> int:
    tiles = root / "tiles"
    arguments = ["--dataset", "sodad", "--data-root", str(root), "--split", split]
    outputs = ["--out", str(tiles / f"{split}.json"), "--out-images", str(tiles / split)]
    return main(["data", "convert", *arguments, *outputs])


@pytest.fixture
def sodad(tmp_path: Path) -> Path:
    root = write_sodad(tmp_path)
    assert convert(root, "train") == convert(root, "test") == 0
    return root


def test_training_tiles(sodad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = training_data("sodad", sodad)
    assert data.class_names == CLASSES
    # 4 tiles of the first image, corners (0 or 650, 0 or 20), and none without objects
    assert [(r["whole"], r["corner"]) for r in json_images(sodad, "train")] == [
        (4, [0, 0]), (4, [650, 0]), (4, [0, 20]), (4, [650, 20])
    ]  # fmt: skip
    image, target = data[0]
    assert image.shape == (3, 800, 800)
    # (790, 300, 25, 20) keeps 10 of 25 columns here: 0.40, so it is to be ignored
    assert target["boxes"].tolist() == [[100, 100, 120, 120]]
    ignored = [a for a in data.ground_truth["annotations"] if a["iscrowd"]]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in ignored] == [
        (1, 2, [790, 300, 10, 20]),
        *((2, k, [350, 400, 60, 40]) for k in (1, 2)),
        (3, 2, [790, 280, 10, 20]),
        *((4, k, [350, 380, 60, 40]) for k in (1, 2)),
    ]
    assert target["ignored"].tolist() == [[790, 300, 800, 320]]
    assert data[1][1]["ignored"].tolist() == [[350, 400, 410, 440]]
    image, target = data[1]
    assert target["boxes"].tolist() == [[140, 300, 165, 320]] and target["labels"].tolist() == [1]
    # the region (1000, 400, 60, 40) is black on the tile that begins at 650
    assert image[:, 404:436, 354:406].max() < 12
    assert (
        image[:, 390:396, 354:406].float().mean((1, 2)) - torch.tensor([200, 120, 60])
    ).abs().max() < 4


def json_images(root: Path, split: str) -> list[dict]:
    return json.loads((root / "tiles" / f"{split}.json").read_text())["images"]


def test_evaluation_is_on_the_whole_images(sodad: Path) -> None:
    data = evaluation_data("sodad", sodad)
    assert len(data) == 5  # all tiles, those without objects too
    assert [image["id"] for image in data.ground_truth["images"]] == [4, 9]
    assert [a["bbox"] for a in data.ground_truth["annotations"]] == [
        [100, 100, 20, 20], [790, 300, 25, 20]
    ]  # fmt: skip
    found = []
    for index in range(len(data)):
        _, target = data[index]
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"], strict=True):
            found.append(
                {
                    "image_id": target["image_id"],
                    "category_id": data.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": 0.5,
                }
            )
    assert len(found) == 4  # each is whole on two tiles
    merged = data.assemble(found)
    assert len(merged) == 2
    assert evaluate(data.ground_truth, merged).metrics["AP"] == pytest.approx(1)


def test_the_most_crowded_tiles_are_found_by_their_own_objects(sodad: Path) -> None:
    """Not by those of the whole image 4, whose id is that of the tile at index 3 too."""
    data = evaluation_data("sodad", sodad)
    counts = [len(data[index][1]["boxes"]) for index in range(len(data))]
    assert counts == [1, 1, 1, 1, 0] and crowded(data, 5) == [0, 1, 2, 3, 4]


def test_whole_images_as_coco_json(sodad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", "sodad", "--data-root", str(sodad), "--split", "test"]
    out = sodad / "whole.json"
    assert main(["data", "convert", *arguments, "--out", str(out)]) == 0
    assert "skipped: 1 regions to ignore" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "Images/test1.jpg",
        "Images/test2.jpg",
    ]
    assert [record["name"] for record in content["categories"]] == CLASSES
    assert main(["data", "check", *arguments]) == 0
    assert main(["data", "stats", *arguments]) == 0
    assert "1 regions to ignore" in capsys.readouterr().out


def test_tiles_that_do_not_fit(sodad: Path) -> None:
    (sodad / "tiles" / "val.json").unlink(missing_ok=True)
    file = sodad / "tiles" / "test.json"
    content = json.loads(file.read_text())
    last = content["images"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="4 tiles, but the whole images have 5, of which 1"):
        evaluation_data("sodad", sodad)
    del last["corner"]
    file.write_text(json.dumps({**content, "images": [*content["images"], last]}))
    with pytest.raises(DataError, match="does not say where each tile is"):
        evaluation_data("sodad", sodad)
    file.unlink()
    with pytest.raises(DataError, match=r"no such file; write the tiles with jol data convert"):
        evaluation_data("sodad", sodad)
