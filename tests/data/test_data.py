"""CocoDetection's checks and decoding, and the nuclei data set end to end."""

import copy
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.data import CocoDetection, DataError, train_batches
from detectors.data.coco import to_json
from detectors.data.images import decode

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei"


GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "b.png", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 5, "bbox": [1, 2, 10, 8]},
        {"id": 12, "image_id": 7, "category_id": 2, "bbox": [20.5, 3, 4, 6], "area": 13},
    ],
    "categories": [{"id": 5, "name": "ship"}, {"id": 2, "name": "car"}],
}


def write(folder: Path, content: object) -> tuple[Path, Path]:
    """A data set with the images of GOOD and the annotation file `content`."""
    for record in GOOD["images"]:
        Image.new("RGB", (record["width"], record["height"]), (9, 8, 7)).save(
            folder / record["file_name"]
        )
    file = folder / "boxes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder, file


def annotation(**changes: object) -> dict:
    """GOOD with its annotation 11 changed."""
    content = copy.deepcopy(GOOD)
    content["annotations"][0].update(changes)
    return content


def test_reads_a_good_file(tmp_path):
    data = CocoDetection(*write(tmp_path, GOOD))
    assert len(data) == 2
    assert data.image_ids == [7, 3]
    assert data.class_names == ["car", "ship"] and data.category_ids == [2, 5]
    assert data.skipped == []
    image, target = data[0]
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8
    assert image[:, 4, 5].tolist() == [9, 8, 7]
    assert target["boxes"].tolist() == [[1, 2, 11, 10], [20.5, 3, 24.5, 9]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 0] and target["labels"].dtype == torch.int64
    assert target["image_id"] == 7
    _, empty = data[1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,)
    assert empty["labels"].dtype == torch.int64
    assert [a["area"] for a in data.ground_truth["annotations"]] == [80, 13]


def test_what_is_returned_is_the_callers_own(tmp_path):
    data = CocoDetection(*write(tmp_path, GOOD))
    for value in data[0][1]["boxes"], data[0][1]["labels"], data[0][0]:
        value.zero_()
    assert data[0][1]["boxes"][0].tolist() == [1, 2, 11, 10]
    assert data[0][1]["labels"].tolist() == [1, 0] and data[0][0].any()


def test_a_coco_dict_is_as_good_as_its_file(tmp_path):
    folder, file = write(tmp_path, GOOD)
    data, read = CocoDetection(folder, copy.deepcopy(GOOD), "mine"), CocoDetection(folder, file)
    assert data.ground_truth == read.ground_truth and (data[0][0] == read[0][0]).all()
    file.write_bytes(to_json(**data.ground_truth))
    assert CocoDetection(folder, file).digest == data.digest != read.digest
    with pytest.raises(DataError, match=r"^mine: annotation 11: category 9"):
        CocoDetection(folder, annotation(category_id=9), "mine")


def test_digest_is_the_files_sha256(tmp_path):
    folder, file = write(tmp_path, GOOD)
    first = CocoDetection(folder, file).digest
    file.write_text(file.read_text() + "\n")
    assert len(first) == 64 and CocoDetection(folder, file).digest != first


BAD_ANNOTATIONS = {
    "unknown image": ({"image_id": 8}, "image 8 is not among the images"),
    "undeclared category": ({"category_id": 9}, "category 9 is not among the categories"),
    "three numbers": ({"bbox": [1, 2, 3]}, "wanted four finite numbers"),
    "not a number": ({"bbox": [1, 2, float("nan"), 4]}, "wanted four finite numbers"),
    "infinite": ({"bbox": [1, 2, float("inf"), 4]}, "wanted four finite numbers"),
    "too large for a float": ({"bbox": [1, 2, 10**400, 4]}, "wanted four finite numbers"),
    "text": ({"bbox": ["one", 2, 3, 4]}, "wanted four finite numbers"),
    "null": ({"bbox": None}, "no bbox, and no segmentation to take it from; wanted"),
    "true": ({"bbox": [True, 2, 3, 4]}, "wanted four finite numbers"),
    "outside at the right": ({"bbox": [40, 2, 3, 4]}, "lies outside image 7 (40x30)"),
    "outside above": ({"bbox": [1, -4, 3, 4]}, "lies outside image 7 (40x30)"),
    "outside by far": ({"bbox": [1e300, 1e300, 1e308, 4]}, "lies outside image 7 (40x30)"),
    "image id is a text": ({"image_id": "b"}, "image_id is 'b', wanted an integer"),
    "category is null": ({"category_id": None}, "category_id is None, wanted an integer"),
    "a mark is a text": ({"iscrowd": "no"}, "iscrowd is 'no', wanted 0 or 1"),
    "another mark": ({"ignore": 2}, "ignore is 2, wanted 0 or 1"),
    "area is a text": ({"area": "large"}, "area is 'large', wanted a finite number"),
}


@pytest.mark.parametrize("changes, fault", BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotation_is_named_with_its_file(tmp_path, changes, fault):
    folder, file = write(tmp_path, annotation(**changes))
    with pytest.raises(DataError) as caught:
        CocoDetection(folder, file)
    message = str(caught.value)
    assert str(file) in message and "annotation 11" in message and fault in message


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
def test_missing_key_of_an_annotation(tmp_path, key):
    content = annotation()
    del content["annotations"][0][key]
    with pytest.raises(DataError, match=f"boxes.json: annotation 11.*{key}"):
        CocoDetection(*write(tmp_path, content))


def changed(key: str, position: int, **changes: object) -> dict:
    content = copy.deepcopy(GOOD)
    content[key][position].update(changes)
    return content


LONG = "x" * 5000
BAD_FILES = {
    "annotation id twice": (changed("annotations", 1, id=11), "annotation 11 appears twice"),
    "image id twice": (changed("images", 1, id=7), "image 7 appears twice"),
    "category id twice": (changed("categories", 1, id=5), "category 5 appears twice"),
    "category name twice": (changed("categories", 1, name="ship"), "category 5 has the name"),
    "category without name": (changed("categories", 0, name=None), "category 5: name is None"),
    "no file": (changed("images", 0, file_name="c.png"), "image 7: no file"),
    "a folder": (changed("images", 0, file_name="."), "image 7: no file"),
    "odd name": (changed("images", 0, file_name="\0" + "x" * 5000), "image 7: no file"),
    "no name": (changed("images", 0, file_name=None), "image 7: file_name is None"),
    "above": (changed("images", 0, file_name="../a.png"), "image 7: file_name '../a.png' leaves"),
    "absolute": (changed("images", 0, file_name="/a.png"), "image 7: file_name '/a.png' leaves"),
    "same file": (changed("images", 1, file_name="a.png"), "is the file of image 7 too"),
    "no width": (changed("images", 0, width=None), "image 7: width is None"),
    "half a character": (
        changed("images", 0, file_name="\ud800.png"),
        r"file_name is '\ud800.png'",
    ),
    "half a name": (changed("categories", 0, name="\ud800"), r"category 5: name is '\ud800'"),
    "no extent": (changed("images", 0, width=0), "image 7: size 0x30"),
    "no end": (changed("images", 0, width=10**400), "wanted sides of 1 to 2147483647 pixels"),
    "no images": ({**GOOD, "images": [], "annotations": []}, "no images"),
    "no categories": ({**GOOD, "categories": [], "annotations": []}, "no categories"),
    "images missing": ({k: GOOD[k] for k in ("annotations", "categories")}, "no key 'images'"),
    "boxes missing": ({k: GOOD[k] for k in ("images", "categories")}, "no key 'annotations'"),
    "no list": ({**GOOD, "annotations": {}}, "'annotations' is a dict, wanted a list"),
    "no object": ({**GOOD, "annotations": [4]}, "annotations[0] is a int, wanted an object"),
    "no id": ({**GOOD, "images": [{}]}, "images[0]: no key 'id'"),
    "a list": ([], "a JSON list, wanted an object"),
    "not JSON": ('{"images": [\n  1,, 2]}', "not valid JSON: Expecting value at line 2, column 5"),
    "empty": ("", "not valid JSON"),
    "nested": ("[" * 100_000, "not valid JSON: nested too deeply"),
    "digits": ("1" * 5000, "not valid JSON: a number of more than 4,300 digits"),
    "long name": (changed("images", 0, file_name="x" * 5000), "image 7: no file"),
    "long path": (changed("images", 0, file_name="x/" * 2500 + "y"), "image 7: no file"),
    "far above": (changed("images", 0, file_name="../" + LONG), "file_name '../xxxx"),
    "far away": (changed("images", 0, file_name="http://" + LONG), "is a web address"),
    "list for a name": (changed("images", 0, file_name=["x"] * 2000), "and 1,995 more], wanted"),
    "long names twice": (
        {**GOOD, "categories": [{"id": k, "name": LONG} for k in (5, 2)]},
        "category 2: category 5 has the name 'xxxx",
    ),
    "escapes": (changed("categories", 0, name="\x1b" + LONG), r"category 5: name is '\x1bxxxx"),
    "long id": (changed("images", 0, id=10**4000), "images[0]: id is 1000"),
    "long number": (annotation(image_id=10**4000), "annotation 11: image 1000"),
    "long side": (changed("images", 0, width=10**4000), "image 7: size 1000"),
    "long area": (annotation(area=LONG), "annotation 11: area is 'xxxx"),
    "long mark": (annotation(iscrowd=LONG), "annotation 11: iscrowd is 'xxxx"),
    "long box": (annotation(bbox=[LONG]), "annotation 11: bbox is ['xxxx"),
    "dict for an id": (annotation(image_id={LONG: LONG}), "annotation 11: image_id is {'xxxx"),
}


@pytest.mark.parametrize("content, fault", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_named(tmp_path, content, fault):
    folder, file = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        CocoDetection(folder, file)
    assert str(file) in str(caught.value) and fault in str(caught.value)
    assert len(str(caught.value)) < 700 and "sys." not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    folder, file = write(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        CocoDetection(folder, folder / "none.json")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        CocoDetection(folder / "nowhere", file)
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match=r"boxes\.json: not valid JSON: no text in utf-16"):
        CocoDetection(folder, file)


def test_degenerate_boxes_are_skipped_and_named(tmp_path):
    content = annotation(bbox=[1, 2, 0, 8])
    content["annotations"].append(
        {"id": 13, "image_id": 3, "category_id": 2, "bbox": [1, 2, 3, -0.01]}
    )
    data = CocoDetection(*write(tmp_path, content))
    assert data.skipped == ["annotation 11: width 0", "annotation 13: height -0.01"]
    assert [a["id"] for a in data.ground_truth["annotations"]] == [12]
    assert data[0][1]["labels"].tolist() == [0] and len(data[1][1]["boxes"]) == 0


def test_overhanging_boxes_are_clipped_and_named(tmp_path):
    content = annotation(bbox=[-3, 25, 10, 8], area=1000)
    content["annotations"][1]["bbox"] = [30, 3, 10.004, 6]  # rounding, not worth a line
    data = CocoDetection(*write(tmp_path, content))
    assert data.skipped == ["annotation 11: clipped to its image"]
    first, second = data.ground_truth["annotations"]
    assert first["bbox"] == [0, 25, 7, 5] and first["area"] == 35
    assert second["bbox"] == [30, 3, 10, 6]
    assert data[0][1]["boxes"].tolist() == [[0, 25, 7, 30], [30, 3, 40, 9]]


@pytest.mark.parametrize("mark", ["iscrowd", "ignore"])
def test_crowds_are_no_targets_but_stay_in_the_ground_truth(tmp_path, mark):
    data = CocoDetection(*write(tmp_path, annotation(**{mark: 1})))
    assert data.skipped == [] and data.ignored == 1
    assert data.counts == "2 images, 1 object, 1 crowd or ignored"
    assert data[0][1]["ignored"].tolist() == [[1, 2, 11, 10]]
    assert data[1][1]["ignored"].shape == (0, 4)
    assert [a["iscrowd"] for a in data.ground_truth["annotations"]] == [1, 0]
    assert data[0][1]["labels"].tolist() == [0]


def test_annotated_tells_objects_from_what_is_ignored(tmp_path):
    data = CocoDetection(*write(tmp_path, annotation(iscrowd=1)))
    shown = data.annotated(0)
    assert shown["boxes"].tolist() == [[20.5, 3, 24.5, 9]] and shown["labels"].tolist() == [0]
    assert shown["ignored"].tolist() == [[1, 2, 11, 10]] and shown["ignored_labels"].tolist() == [1]
    assert [len(value) for value in data.annotated(1).values()] == [0] * 4


def test_file_names_count_shared_folders_once(tmp_path):
    content = copy.deepcopy(GOOD)
    for record in content["images"]:
        record["file_name"] = f"set/images/{record['file_name']}"
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    _, file = write(folder, content)
    (tmp_path / "set" / "x").mkdir()
    for images in (tmp_path, tmp_path / "set", folder, tmp_path / "set" / "x" / ".." / "images"):
        assert CocoDetection(images, file)[0][0].shape == (3, 30, 40)
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    write(elsewhere, GOOD)  # files of the same names, but not those the file speaks of
    with pytest.raises(DataError, match=r"image 7: no file .*other/set/images/a\.png"):
        CocoDetection(elsewhere, file)


def gradient(height: int = 30, width: int = 40) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width)


def save(mode: str, file: Path) -> np.ndarray:
    """Write an image of `mode`; returns the RGB pixels it should give."""
    grey = gradient().astype(np.uint8)
    rgb = np.stack([grey, 255 - grey, grey // 2], axis=2)
    if mode == "L":
        Image.fromarray(grey).save(file)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode == "1":
        Image.fromarray(grey >= 128).save(file)
        return np.repeat((grey >= 128)[..., None] * np.uint8(255), 3, axis=2)
    if mode == "I;16":
        Image.fromarray((gradient() * 257).astype(np.uint16)).save(file)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode == "P":
        picture = Image.fromarray(grey % 4).convert("P")
        picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
        picture.save(file, transparency=bytes([0, 128, 255, 255]))
        return np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[grey % 4]
    if mode in ("LA", "RGBA"):
        alpha = Image.fromarray(grey)
        picture = Image.fromarray(rgb) if mode == "RGBA" else Image.fromarray(grey)
        picture.putalpha(alpha)
        picture.save(file)
        return rgb if mode == "RGBA" else np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(rgb).convert("CMYK").save(file)
    return rgb


@pytest.mark.parametrize(
    "mode, suffix",
    [(mode, "png") for mode in ("L", "1", "P", "LA", "RGBA", "I;16")]
    + [("CMYK", "tif"), ("CMYK", "jpg"), ("I;16", "tif"), ("L", "jpg")],
)
@pytest.mark.filterwarnings("error")
def test_image_modes_become_rgb(tmp_path, mode, suffix):
    folder, file = write(tmp_path, changed("images", 0, file_name=f"a.{suffix}"))
    expected = save(mode, folder / f"a.{suffix}")
    image, _ = CocoDetection(folder, file)[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 30, 40)
    error = np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected.astype(int))
    assert error.max() <= (24 if suffix == "jpg" else 1) and error.mean() <= 4


def bomb(png, side):
    """A PNG of side x side pixels, by its header, whose few bytes no decoder should unfold."""
    size = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + size + zlib.crc32(size).to_bytes(4, "big") + png[33:]


def test_image_of_another_size_or_broken(tmp_path):
    folder, file = write(tmp_path, GOOD)
    data = CocoDetection(folder, file)
    whole = (folder / "a.png").read_bytes()
    Image.new("RGB", (41, 30)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"boxes\.json: image 7: .*a\.png is 41x30 pixels.*40x30"):
        data[0]
    (folder / "a.png").write_bytes(whole[:60])
    with pytest.raises(DataError, match=r"boxes\.json: image 7: .*a\.png cannot be decoded"):
        data[0]
    for side, wanted in (
        (9000, "is 9000x9000 pixels"),
        (60_000, "more than 178,956,970 pixels; cut it into tiles"),
    ):
        (folder / "a.png").write_bytes(bomb(whole, side))
        with pytest.raises(DataError, match=rf"image 7: .*a\.png .*{wanted}"):
            data[0]
    (folder / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"image 7: .*a\.png cannot be decoded"):
        data[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "bmp", "webp", "avif"])
def test_truncated_and_damaged_images_are_named_or_read(tmp_path, suffix):
    """Whatever the bytes are, the only thing that is ever raised is a DataError with the file."""
    folder, annotations = write(tmp_path, changed("images", 0, file_name=f"a.{suffix}"))
    file, random = folder / f"a.{suffix}", np.random.default_rng(0)
    pixels = random.integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    data, whole = CocoDetection(folder, annotations), file.read_bytes()
    named = 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            del content[random.integers(len(whole)) :]
        else:
            content[random.integers(min(len(whole), 200))] = random.integers(256)
        file.write_bytes(content)
        try:
            assert data[0][0].shape == (3, 30, 40)
        except DataError as error:
            named += f"image 7: {file} " in str(error)
    assert named >= 20


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_named_by_the_loader_too(tmp_path, workers):
    folder, file = write(tmp_path, GOOD)
    data = CocoDetection(folder, file)
    (folder / "b.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        list(train_batches(data, batch_size=2, crop=None, seed=0, steps=2, workers=workers))
    assert str(caught.value).startswith(f"{file}: image 3: ")
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="the nuclei data set is not here")
def test_nuclei_end_to_end():
    folder = NUCLEI / "train"
    data = CocoDetection(folder, folder / "train.json")
    assert len(data) == 578 and data.class_names == ["nucleus"]
    crowds = sum(record["iscrowd"] for record in data.ground_truth["annotations"])
    assert crowds == 43 and len(data.ground_truth["annotations"]) == 23_511 + 43
    assert data.skipped == [] and data.ignored == 43
    assert sum(len(data._targets[i][0]) for i in range(578)) == 23_511
    for index in range(0, 578, 40):
        image, target = data[index]
        height, width = image.shape[1:]
        assert (target["boxes"] <= torch.tensor([width, height] * 2)).all()
    assert CocoDetection(folder / "images", folder / "train.json").digest == data.digest
    batches = list(train_batches(data, batch_size=4, crop=192, seed=0, steps=3))
    assert all(image.shape == (3, 192, 192) for images, _ in batches for image in images)
    assert sum(len(target["boxes"]) for _, targets in batches for target in targets) > 50


@pytest.mark.filterwarnings("ignore")
def test_damaged_orientations_are_named_or_read(tmp_path):
    """Pillow raises struct.error, TypeError and others for them where they are followed."""
    file, random, exif = tmp_path / "a.jpg", np.random.default_rng(0), Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", (72, 1)
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    whole = file.read_bytes()
    header = whole.index(b"MM\0*")
    read = 0
    for _ in range(300):
        content = bytearray(whole)
        content[header + random.integers(60)] = random.integers(256)
        file.write_bytes(content)
        try:
            read += decode(file, None, "here").shape in ((3, 40, 30), (3, 30, 40))
        except DataError as error:
            assert str(error).startswith(f"here: {file} cannot be decoded")
    assert read > 150
