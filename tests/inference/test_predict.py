"""`jol predict`: the images it takes, its results, its pictures, its errors."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from untrained import CATEGORY_IDS, CLASSES, write_checkpoint

from detectors.cli import main
from detectors.data import CocoDetection
from detectors.errors import Unusable
from detectors.inference import detect
from detectors.inference.drawing import (
    COLOURS,
    DARK,
    LARGEST,
    READABLE,
    draw_detections,
    enlargement,
)
from detectors.inference.image_files import Found, count_skipped, find_images
from detectors.inference.predict import AHEAD, batches
from detectors.training import checkpoints

DOCUMENT = Path(__file__).parents[2] / "docs" / "using.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    write_checkpoint(path, "fcos")
    return path


def picture(file: Path, width: int, height: int, seed: int = 0) -> Image.Image:
    """Blobs of noise, different for each seed."""
    small = np.random.default_rng(seed).integers(256, size=(height // 8, width // 8, 3))
    made = Image.fromarray(small.astype(np.uint8)).resize((width, height))
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save(file)
    return made


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return (
        json.loads((out / "images.json").read_text()),
        json.loads((out / "detections.json").read_text()),
    )


def of(image_id: int, found: list[dict[str, Any]]) -> torch.Tensor:
    """Rows of category, box and score of one image, as written."""
    rows = [[f["category_id"], *f["bbox"], f["score"]] for f in found if f["image_id"] == image_id]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)


def test_results_are_what_eval_sees_and_pycocotools_loads(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In batches, with ids of its own, in a folder of two sizes that stays as it was."""
    names = [f"{i}.png" for i in range(7)]
    for i, name in enumerate(names):
        picture(tmp_path / "images" / name, 96 if i % 3 else 64, 64, seed=i)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "found"
    arguments = ["predict", "--checkpoint", str(checkpoint), str(tmp_path / "images"), "--out"]
    assert main([*arguments, str(out), "--device", "cpu", "--batch-size", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no terminal, nothing wrong
    (line,) = printed.out.splitlines()

    listed, found = results(out)
    assert line.startswith(f"7 images, {len(found)} detections, ") and "images a second" in line
    assert [image["file_name"] for image in listed["images"]] == names
    assert [image["id"] for image in listed["images"]] == list(range(1, 8))
    assert {(i["width"], i["height"]) for i in listed["images"]} == {(64, 64), (96, 64)}
    assert listed["categories"] == [
        {"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)
    ]
    loaded = COCO(str(out / "images.json")).loadRes(str(out / "detections.json"))
    assert len(loaded.anns) == len(found) > 100

    # the user's own ground truth, with other ids, in another order
    own = [
        {"id": 90 - i["id"], **{k: i[k] for k in ("file_name", "width", "height")}}
        for i in reversed(listed["images"])
    ]
    truth = {"images": own, "annotations": [], "categories": listed["categories"]}
    dataset = CocoDetection(tmp_path / "images", truth)
    model = checkpoints.load_detector(checkpoints.load(checkpoint))
    wanted = detect.predict(model, dataset, "cpu")
    for image in listed["images"]:
        here, there = of(image["id"], found), of(90 - image["id"], wanted)
        assert len(here) == len(there) > 5
        torch.testing.assert_close(here, there, rtol=0, atol=1e-3)

    after = [p for p in sorted(tmp_path.rglob("*")) if out.parent not in (p, *p.parents)]
    assert after == before
    # as the document says
    (out.parent / "annotations.json").write_text(json.dumps(truth))
    monkeypatch.chdir(out.parent)
    code = DOCUMENT.read_text().split("```python\ntruth = ")[1].split("```")[0]
    names: dict[str, Any] = {"COCO": COCO, "json": json}
    exec("truth = " + code, names)
    for image in listed["images"]:
        mine = names["detections"].imgToAnns[90 - image["id"]]
        torch.testing.assert_close(of(90 - image["id"], mine), of(image["id"], found))

    assert {p.name for p in out.iterdir()} == {"detections.json", "images.json", "pictures"}
    drawn = {i["picture"] for i in listed["images"]}
    assert {p.name for p in (out / "pictures").iterdir()} == drawn and len(drawn) == 7


def test_batches_hold_one_size_and_every_image_once() -> None:
    random = np.random.default_rng(0)
    sizes = [(1, 8, 8), (1, 8, 16), (1, 16, 8)]
    images = [
        (Found(i, f"{i}", Path(f"{i}")), torch.zeros(sizes[random.integers(3)])) for i in range(50)
    ]
    made = list(batches(iter(images), 4))
    assert all(len({p.shape for _, p in batch}) == 1 and len(batch) <= 4 for batch in made)
    assert sorted(image.id for batch in made for image, _ in batch) == list(range(50))
    assert sum(len(batch) == 4 for batch in made) >= 11

    read = 0

    def endless():
        nonlocal read
        for i in range(10_000):
            read += 1
            yield Found(i, "", Path()), torch.zeros(1, 1, i + 1)  # each has its own size

    first = batches(endless(), 4)
    for _ in range(5):
        next(first)
    assert read <= 4 * AHEAD + 5


def test_find_images(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "b/10.tif", "b/notes.txt", "b/._1.png", "b/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "folder.png").mkdir()
    (tmp_path / "scan").write_bytes(b"")
    b, scan = tmp_path / "b", tmp_path / "scan"
    found = find_images([scan, b / "2.JPG", b, Path(os.path.relpath(scan)), b / "deep"])
    assert [image.name for image in found] == ["scan", "2.JPG", "1.png", "10.tif", "3.png"]
    assert [image.id for image in found] == [1, 2, 3, 4, 5]
    assert count_skipped([scan, b, b / ".", b / "deep"]) == 2  # the notes, and a hidden file
    for name in ("a.jpe", "a.jfif", "a.AVIF", "a.pgm", "a.j2k", "a.tga", "a.eps", "a.mpg", "a.h5"):
        (tmp_path / "kinds" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "kinds" / name).write_bytes(b"")
    os.mkfifo(tmp_path / "kinds" / "fifo.png")
    found = find_images([tmp_path / "kinds"])
    names = ["a.AVIF", "a.j2k", "a.jfif", "a.jpe", "a.pgm", "a.tga"]
    assert [image.name for image in found] == names and count_skipped([tmp_path / "kinds"]) == 4
    no_images = "no image files in this folder, 1 other file"
    for given, wanted in ((tmp_path, no_images), (b / "4.png", "no such file")):
        with pytest.raises(Unusable, match=wanted):
            find_images([scan, given])


def test_same_names_and_pictures_as_shown(checkpoint: Path, tmp_path: Path) -> None:
    """Names may occur twice; 16 bits, palettes, CMYK; an EXIF orientation is followed.

    A file's name is data: the picture's name holds no control characters.
    """
    picture(tmp_path / "a" / "x.png", 64, 96, seed=1)
    upright = picture(tmp_path / "b" / "x.png", 96, 64, seed=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # and 6 turns it back
    turned.save(tmp_path / "b" / "y.png", exif=exif)
    upright.convert("CMYK").save(tmp_path / "b" / "z.tif")
    upright.convert("P").save(tmp_path / "b" / "z.png")
    upright.save(tmp_path / "b" / "\x1b[31m.png")
    grey = np.asarray(upright.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "b" / "g.png")
    out = tmp_path / "out"
    given = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["predict", *given, "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    listed, found = results(out)
    ids = {(Path(i["path"]).parent.name, i["file_name"]): i["id"] for i in listed["images"]}
    assert len(ids) == 7
    for image in listed["images"]:
        assert image["picture"].isprintable()
        assert Path(image["path"]).is_file() and (out / "pictures" / image["picture"]).is_file()
        with Image.open(out / "pictures" / image["picture"]) as drawn:
            assert drawn.size >= (image["width"], image["height"])
    assert of(ids["a", "x.png"], found).shape != of(ids["b", "x.png"], found).shape
    for same in ("y.png", "z.tif"):
        torch.testing.assert_close(
            of(ids["b", same], found), of(ids["b", "x.png"], found), rtol=0, atol=1e-3
        )
    assert all(i["width"] == 96 for i in listed["images"][1:])


def test_images_that_cannot_be_decoded(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "images"
    for i in range(3):
        picture(folder / f"{i}.png", 64, 64, seed=i)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    picture(folder / "bomb.png", 128, 96)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)  # twice as many are refused
    arguments = ["predict", str(folder), "--checkpoint", str(checkpoint), "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("2 images, ")
    cut, bomb, last = printed.err.splitlines()
    assert f"image 2: {folder / '1.png'} cannot be decoded" in cut
    assert f"image 4: {folder / 'bomb.png'} cannot be decoded" in bomb and "bomb" in bomb
    assert last == "jol predict: 2 of 4 images could not be decoded"
    listed, found = results(tmp_path / "out")
    assert [image["file_name"] for image in listed["images"]] == ["0.png", "2.png"]
    assert {f["image_id"] for f in found} == {1, 3}

    arguments[1:2] = [str(folder / "1.png"), str(folder / "bomb.png")]
    assert main([*arguments, str(tmp_path / "none")]) == 2
    assert "none of the 2 images" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "none").exists()


def test_unusable_arguments(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.png"
    picture(file, 64, 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "detections.json").write_text("[]")
    for image, out, given, wanted in (
        (tmp_path / "no.png", "out", [], f"{tmp_path / 'no.png'}: no such file or folder"),
        (tmp_path / "empty", "out", [], f"{tmp_path / 'empty'}: no image files"),
        (file, "used", [], "holds files already"),
        (file, "a.png", [], "is a file, wanted a folder"),
        (file, "out", ["--score-threshold", "1"], "--score-threshold: got '1'"),
        (file, "out", ["--batch-size", "0"], "--batch-size: got '0'"),
        (file, "out", ["--batch-size", str(2**62)], "wanted a whole number from 1 to below 65536"),
        (file, "out", ["--out", ""], "--out: got '', wanted a folder"),
        (file, "out", ["--checkpoint", str(file)], "is no checkpoint"),
    ):
        arguments = ["predict", str(image), "--checkpoint", str(checkpoint)]
        assert main([*arguments, "--out", str(tmp_path / out), *given]) == 2
        error = capsys.readouterr().err
        assert wanted in error and len(error.splitlines()) <= 2
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "used" / "detections.json").read_text() == "[]"
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["detections.json"]


def test_the_threshold_is_for_drawing_alone(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 96, 64)
    arguments = ["predict", str(tmp_path / "a.png"), "--checkpoint", str(checkpoint)]
    sizes = []
    for name, threshold in (("all", "0"), ("none", "0.99")):
        out = tmp_path / name
        assert main([*arguments, "--out", str(out), "--score-threshold", threshold]) == 0
        with Image.open(out / "pictures" / "1_a.jpg") as drawn:
            sizes.append(np.asarray(drawn).astype(int))
    assert results(tmp_path / "all") == results(tmp_path / "none")
    plain = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert abs(sizes[1][:64, :96] - plain).mean() < 4  # no box, not enlarged
    assert sizes[0].shape[0] > 128


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_drawing() -> None:
    """Frames lie just outside, in the class's colour, dashed for a second class of that colour."""
    image = torch.full((3, 60, 80), 200, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 12.0, 20.0, 22.0], [50.0, 30.0, 60.0, 40.0]])
    first, second = 1, 1 + len(COLOURS)
    scores, labels = torch.tensor([0.6, 0.9]), torch.tensor([first, second])
    names = [f"class {i}" for i in range(30)]
    scale = enlargement(boxes, (80, 60))
    assert scale == READABLE // 10
    drawn = np.asarray(draw_detections(image, boxes, scores, labels, names))
    assert drawn.shape[1] >= 80 * scale and drawn.shape[0] > 60 * scale
    colour = np.array(rgb(COLOURS[first]))
    shares = []
    for x1, y1, x2, y2 in (boxes.int() * scale).tolist():
        assert (drawn[y1:y2, x1:x2] == 200).all()  # the object
        top = drawn[y1 - 2, x1 - 2 : x2 + 2]
        shares.append((top == colour).all(-1).mean())
        assert ((top == colour).all(-1) | (top == DARK).all(-1)).all()
        assert (drawn[y1 - 4, x1:x2] == DARK).all() and (drawn[y2 + 3, x1:x2] == DARK).all()
    assert shares[0] == 1 and 0.3 < shares[1] < 0.8
    # each box's text has its class's colour and dark ground, above it
    for x1, y1, x2, _ in (boxes.int() * scale).tolist():
        above = drawn[y1 - 22 : y1 - 5, x1:x2]
        assert (above == DARK).all(-1).mean() > 0.3 and (above == colour).all(-1).any()
    elsewhere = drawn[0 : 10 * scale - 20, : 80 * scale]
    assert (elsewhere == 200).all()
    legend = drawn[60 * scale :]
    assert (legend == colour).all(-1).any() and (legend == 255).all(-1).any()


def test_drawing_cuts_long_names() -> None:
    """A name of 100,000 characters took ten seconds a picture."""
    image, found = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.tensor([[9.0, 9, 19, 19]])
    pictures = [
        draw_detections(image, found, torch.ones(1), torch.zeros(1).long(), [name])
        for name in ("x" * 100_000, "x" * 35 + "…")
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("count", [0, 1, 400])
def test_drawing_crowds_borders_and_nothing(count: int) -> None:
    """Boxes across the border, empty ones, many in one spot: no error, and a bounded picture."""
    random = np.random.default_rng(0)
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    low = torch.from_numpy(random.uniform(-5, 60, (count, 2))).float()
    boxes = torch.cat([low, low + torch.from_numpy(random.uniform(0, 9, (count, 2))).float()], 1)
    scores, labels = torch.rand(count), torch.arange(count) % 80
    drawn = draw_detections(image, boxes, scores, labels, [f"кошка {i}" for i in range(80)])
    assert 50 < drawn.height <= LARGEST + 2400 and 70 <= drawn.width <= LARGEST


def test_enlargement_is_bounded() -> None:
    tiny = torch.tensor([[0.0, 0, 4, 4]])
    assert enlargement(tiny, (80, 60)) == 10
    assert enlargement(tiny, (1920, 1080)) == 1
    assert enlargement(tiny, (5000, 3000)) == 1
    assert enlargement(10 * tiny, (80, 60)) == 1
    assert enlargement(torch.zeros(0, 4), (80, 60)) == 1
