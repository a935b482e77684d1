"""The generator of tiny-object scenes: same arguments, same bytes; boxes tight on the objects."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detectors.data import CocoDetection
from detectors.data.synthetic import CLASSES, Scene, _paint, _render, draw_scene, write_scenes


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng((1, number)), 192) for number in range(40)]


def test_same_arguments_give_the_same_bytes(tmp_path):
    for name, images, seed in [("a", 3, 4), ("b", 3, 4), ("other", 3, 5), ("more", 5, 4)]:
        write_scenes(tmp_path / name, images=images, seed=seed)
    first = digests(tmp_path / "a")
    assert len(first) == 4 and first == digests(tmp_path / "b")
    other = digests(tmp_path / "other")
    assert all(first[name] != other[name] for name in first)
    more = digests(tmp_path / "more")  # scene i does not depend on how many there are
    assert all(first[name] == more[name] for name in first if name.endswith(".png"))


def test_writing_again_replaces_what_was_there(tmp_path):
    write_scenes(tmp_path / "a", images=2, seed=4)
    fresh = digests(tmp_path / "a")
    write_scenes(tmp_path / "b", images=2, seed=9)
    write_scenes(tmp_path / "b", images=2, seed=4)
    assert digests(tmp_path / "b") == fresh


def test_written_scenes_are_a_sound_coco_data_set(tmp_path):
    pictures, annotations = write_scenes(tmp_path, images=4, seed=0)
    data = CocoDetection(pictures, annotations)
    assert len(data) == 4 and data.skipped == [] and tuple(data.class_names) == CLASSES
    for index in range(4):
        scene = draw_scene(np.random.default_rng((0, index + 1)), 192)
        image, target = data[index]
        assert (image.permute(1, 2, 0).numpy() == scene.image).all()
        assert target["labels"].tolist() == scene.labels.tolist()
        sizes = (target["boxes"][:, 2:] - target["boxes"][:, :2]).tolist()
        assert sizes == scene.boxes[:, 2:].tolist()
    record = json.loads(annotations.read_text())["annotations"][0]
    assert record["area"] == record["bbox"][2] * record["bbox"][3] and record["id"] == 1


def test_objects_are_tiny_and_of_every_class(scenes):
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sizes = np.sqrt(boxes[:, 2] * boxes[:, 3])
    assert boxes[:, 2:].min() >= 4 and boxes[:, 2:].max() <= 24
    assert ((sizes >= 8) & (sizes <= 16)).mean() > 0.6
    assert (sizes < 8).mean() > 0.08 and (sizes > 16).mean() > 0.04
    assert all(8 <= len(scene.boxes) <= 30 for scene in scenes)
    assert len({len(scene.boxes) for scene in scenes}) > 10
    counts = Counter(np.concatenate([scene.labels for scene in scenes]).tolist())
    assert set(counts) == set(range(len(CLASSES))) and min(counts.values()) > 100


def test_boxes_are_tight_on_the_visible_objects(scenes):
    for scene in scenes:
        for number, (x, y, w, h) in enumerate(scene.boxes.tolist(), 1):
            assert x >= 0 and y >= 0 and x + w <= 192 and y + h <= 192
            rows, columns = (scene.owner == number).nonzero()
            assert (rows.min(), rows.max() + 1) == (y, y + h)
            assert (columns.min(), columns.max() + 1) == (x, x + w)


def test_objects_do_not_touch(scenes):
    overlaps = []
    for scene in scenes:
        for rows, columns in [(slice(1, None), slice(None)), (slice(None), slice(1, None))]:
            here = scene.owner[rows, columns]
            there = scene.owner[: here.shape[0], : here.shape[1]]
            assert ((here == there) | (here == 0) | (there == 0)).all()
        boxes = torch.from_numpy(scene.boxes).double()
        boxes[:, 2:] += boxes[:, :2]
        overlaps += box_iou(boxes, boxes).triu(1).flatten().tolist()
    # the boxes of neighbours that lie aslant may share a corner
    assert max(overlaps) < 0.2 and np.count_nonzero(overlaps) < 0.1 * len(scenes) * 18


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_painted_is_what_the_coverage_says(kind):
    """On plain ground the pixels at full contrast change where the coverage is, shadow aside."""
    random = np.random.default_rng(3)
    for side in (6.0, 11.0, 20.0):
        cover, _ = _render(kind, side, random)
        colour = np.full((*cover.shape, 3), 250.0)
        canvas = np.full((80, 80, 3), 100.0, np.float32)
        _paint(canvas, 10, 12, cover, colour, contrast=1.0)
        brighter = canvas[..., 0] > 175
        expected = np.zeros((80, 80), dtype=bool)
        expected[10 : 10 + cover.shape[0], 12 : 12 + cover.shape[1]] = cover > 0.5
        # a shadow under the edge takes up to 45 % off the ground that shows through
        assert (brighter <= expected).all()
        assert (canvas[..., 0] > 145)[expected].all()
        assert (canvas[..., 0] < 99).any()  # and there is a shadow
        assert abs(np.sqrt(expected.any(0).sum() * expected.any(1).sum()) - side) < 0.35 * side + 1


def test_objects_stand_out_though_contrast_varies(scenes):
    contrasts = []
    for scene in scenes[:10]:
        grey = scene.image.mean(axis=2)
        for number, (x, y, w, h) in enumerate(scene.boxes.tolist(), 1):
            area = (slice(max(0, y - 4), y + h + 4), slice(max(0, x - 4), x + w + 4))
            ground = grey[area][scene.owner[area] == 0]
            contrasts.append(abs(grey[scene.owner == number].mean() - np.median(ground)))
    assert np.median(contrasts) > 15
    assert np.quantile(contrasts, 0.9) > 2 * np.quantile(contrasts, 0.3)


def test_other_sizes_keep_the_density():
    small = draw_scene(np.random.default_rng(0), 64)
    large = draw_scene(np.random.default_rng(0), 320)
    assert small.image.shape == (64, 64, 3) and 1 <= len(small.boxes) <= 4
    assert large.image.shape == (320, 320, 3) and 20 <= len(large.boxes) <= 84


@pytest.mark.parametrize("low, high", [(4, 8), (8, 16), (16, 32)])
def test_objects_of_these_sizes_and_classes_alone(tmp_path, low, high):
    classes = ("tank", "car")
    wanted = dict(images=12, seed=2, size=160, classes=classes, objects=(low, high))
    data = CocoDetection(*write_scenes(tmp_path, **wanted))
    assert tuple(data.class_names) == classes
    targets = [data[index][1] for index in range(12)]
    assert set(torch.cat([t["labels"] for t in targets]).tolist()) == {0, 1}
    boxes = torch.cat([t["boxes"] for t in targets])
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    assert low <= sizes.min() < 1.2 * low and 0.8 * high < sizes.max() < high
    middle = sizes.log().mean().exp().item()
    assert middle == pytest.approx((low * high) ** 0.5, rel=0.1)
    # As many objects, whatever their size: only the large ones run out of room.
    assert len(boxes) >= 0.95 * 12 * 8 * (160 / 192) ** 2


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"classes": ("car", "dog")}, "classes: got car, dog, wanted some of car, ship"),
        ({"classes": ()}, "classes: got "),
        ({"objects": (8, 8)}, "objects: got .8, 8."),
        ({"objects": (3, 8)}, "from 4 to 40 pixels"),
        ({"objects": (8, 41)}, "from 4 to 40 pixels"),
    ],
)
def test_objects_that_cannot_be_drawn(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "x", images=1, seed=0, size=80, **bad)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("bad", [{"images": 0}, {"seed": -1}, {"size": 47}])
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} {next(iter(bad.values()))}"):
        write_scenes(tmp_path / "x", **({"images": 1, "seed": 0} | bad))
    assert not (tmp_path / "x").exists()
