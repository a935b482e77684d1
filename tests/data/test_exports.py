"""Files as annotation tools write them, by hand after the documentation of each."""

import copy
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detectors.cli import main
from detectors.data import CocoDetection, DataError
from detectors.data.coco import check_coco, read_coco


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (90, 120, 140)).save(folder / name)
    return folder


# Roboflow: https://roboflow.com/formats/coco-json; its categories as in
# https://github.com/roboflow/roboflow-100-benchmark/issues/45
ROBOFLOW: dict[str, Any] = {
    "info": {"year": "2024", "version": "1", "contributor": "", "url": "https://example.org"},
    "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
    "categories": [
        {"id": 0, "name": "peixos", "supercategory": "none"},
        {"id": 1, "name": "peix", "supercategory": "peixos"},
        {"id": 2, "name": "taca", "supercategory": "peixos"},
    ],
    "images": [
        {
            "id": 0,
            "license": 1,
            "file_name": "a_jpg.rf.0123456789abcdef.jpg",
            "height": 48,
            "width": 64,
            "date_captured": "2024-01-02T03:04:05+00:00",
            "extra": {"name": "a.jpg"},
        }
    ],
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 1,
            "bbox": [4, 5, 10.5, 12],
            "area": 126,
            "segmentation": [],
            "iscrowd": 0,
        }
    ],
}

# CVAT: https://docs.cvat.ai/docs/manual/advanced/formats/format-coco/; rotated boxes as in
# https://github.com/cvat-ai/cvat/issues/4745
CVAT: dict[str, Any] = {
    "licenses": [{"name": "", "id": 0, "url": ""}],
    "info": {"contributor": "", "date_created": "", "description": "", "version": ""},
    "categories": [{"id": 1, "name": "ship", "supercategory": ""}],
    "images": [
        {
            "id": 1,
            "width": 64,
            "height": 48,
            "file_name": "a.png",
            "license": 0,
            "flickr_url": "",
            "coco_url": "",
            "date_captured": 0,
        }
    ],
    "annotations": [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [],
            "area": 128.0,
            "bbox": [20.0, 18.0, 16.0, 8.0],
            "iscrowd": 0,
            "attributes": {"occluded": False, "rotation": rotation},
        }
        for number, rotation in enumerate((0.0, 90.0, 45.0), start=1)
    ],
}

# Label Studio: https://github.com/HumanSignal/label-studio-converter#coco and
# https://labelstud.io/guide/export; on Windows its file names have back-slashes
LABEL_STUDIO: dict[str, Any] = {
    "images": [{"width": 64, "height": 48, "id": 0, "file_name": "images\\62a623a0-a.png"}],
    "categories": [{"id": 0, "name": "Planet"}, {"id": 1, "name": "Moonwalker"}],
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 1,
            "segmentation": [],
            "bbox": [7.7436, 7.2134, 18.785, 16.484],
            "ignore": 0,
            "iscrowd": 0,
            "area": 309.65,
        }
    ],
    "info": {"year": 2024, "version": "1.0", "description": "", "contributor": "Label Studio"},
}

# LabelMe: https://github.com/wkentaro/labelme/tree/main/examples/instance_segmentation; why its
# script once asked for a background: https://github.com/wkentaro/labelme/pull/377
LABELME: dict[str, Any] = {
    "info": {"description": None, "version": None, "year": 2024},
    "licenses": [{"url": None, "id": 0, "name": None}],
    "images": [
        {
            "license": 0,
            "url": None,
            "file_name": "JPEGImages/a.jpg",
            "height": 48,
            "width": 64,
            "date_captured": None,
            "id": 0,
        }
    ],
    "type": "instances",
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 1,
            "segmentation": [[10.0, 10.0, 30.5, 10.0, 30.5, 22.0]],
            "area": 123.0,
            "bbox": [10.0, 10.0, 20.5, 12.0],
            "iscrowd": 0,
        }
    ],
    "categories": [
        {"supercategory": None, "id": 0, "name": "_background_"},
        {"supercategory": None, "id": 1, "name": "bus"},
    ],
}

# FiftyOne: https://docs.voxel51.com/user_guide/export_datasets.html#cocodetectiondataset
FIFTYONE: dict[str, Any] = {
    "info": {"year": "", "version": "", "description": "Exported from FiftyOne"},
    "licenses": [],
    "categories": [
        {"id": 0, "name": "cat", "supercategory": None},
        {"id": 1, "name": "dog", "supercategory": "animal"},
    ],
    "images": [
        {
            "id": 1,
            "file_name": "a.png",
            "height": 48,
            "width": 64,
            "license": None,
            "coco_url": None,
        }
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [26.0, 17.7, 23.1, 19.9],
            "segmentation": [],
            "score": 0.95,
            "area": 459.69,
            "iscrowd": 0.0,
        }
    ],
}


def read(tmp_path: Path, content: dict[str, Any], folder: Path | None = None) -> CocoDetection:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    for image in content["images"]:
        pictures(folder or tmp_path, image["file_name"].replace("\\", "/"))
    return CocoDetection(folder or tmp_path, file)


def test_roboflow(tmp_path: Path):
    data = read(tmp_path, ROBOFLOW)
    assert data.class_names == ["peix", "taca"] and data.category_ids == [1, 2]
    assert data[0][1]["boxes"].tolist() == [[4, 5, 14.5, 17]] and data[0][1]["labels"] == 0
    (remark,) = data.remarks
    assert remark.endswith("no class: category 'peixos', the supercategory of the others (1)")


@pytest.mark.parametrize(
    "categories, left",
    [
        # one class, of the project's own name, as in the shared input
        ([(0, "fish", "none"), (1, "fish", "fish")], ["fish"]),
        ([(0, "objects", "none"), (1, "a", None), (2, "b", "")], ["a", "b"]),
        ([(0, "objects", "none"), (1, "a", "none")], ["objects", "a"]),
        ([(0, "x", ""), (1, "a", ""), (2, "b", "")], ["x", "a", "b"]),
        ([(1, "animal", "animal"), (2, "cat", "animal"), (3, "car", "other")], 3),
        ([(7, "animal", None), (1, "cat", "animal")], ["cat"]),
    ],
)
def test_what_is_a_root_category(tmp_path: Path, categories, left):
    content = copy.deepcopy(ROBOFLOW)
    content["annotations"][0]["category_id"] = categories[1][0]
    content["categories"] = [
        {"id": i, "name": name} | ({} if parent is None else {"supercategory": parent})
        for i, name, parent in categories
    ]
    names = read(tmp_path, content).class_names
    assert len(names) == left if isinstance(left, int) else sorted(names) == sorted(left)


def test_a_root_category_with_annotations_is_a_class(tmp_path: Path):
    content = copy.deepcopy(ROBOFLOW)
    content["annotations"][0]["category_id"] = 0
    assert read(tmp_path, content).class_names == ["peixos", "peix", "taca"]


def test_cvat(tmp_path: Path):
    """The upright box around each rotated one, whose centre is (28, 22)."""
    boxes = read(tmp_path, CVAT)[0][1]["boxes"].tolist()
    half = 12 / 2**0.5
    wanted = [[20, 18, 36, 26], [24, 14, 32, 30], [28 - half, 22 - half, 28 + half, 22 + half]]
    assert boxes == [pytest.approx(box, abs=1e-5) for box in wanted]
    (remark,) = read(tmp_path, CVAT).remarks
    assert "rotated boxes" in remark and remark.endswith("(2)")


def test_label_studio(tmp_path: Path):
    data = read(tmp_path, LABEL_STUDIO)
    assert data.class_names == ["Planet", "Moonwalker"]
    assert data[0][1]["labels"].tolist() == [1]
    assert data.remarks == ["read as its tool wrote it: file names with back-slashes (1)"]
    assert CocoDetection(tmp_path / "images", tmp_path / "boxes.json")[0][0].shape == (3, 48, 64)


@pytest.mark.parametrize("folder", ["media", "media/upload", "media/upload/1", "copied"])
def test_label_studio_leads_out_of_the_folder(tmp_path: Path, folder: str):
    """Its name is followed nowhere else; one part alone could be another image's name."""
    root, name = tmp_path / "a" / "b", "../../label-studio/media/upload/1/a.png"
    there = root / ("copied/1" if folder == "copied" else "media/upload/1")
    pictures(there, "a.png")
    content = copy.deepcopy(FIFTYONE)
    content["images"][0]["file_name"] = name
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = CocoDetection(root / folder, tmp_path / "boxes.json")
    assert data._files[0].resolve() == there.resolve() / "a.png"
    (remark,) = data.remarks
    assert "file names that leave the images folder, found in it by their last parts" in remark
    # where it leads, another image is what is meant
    meant = (root / folder / name).resolve()
    meant.parent.mkdir(parents=True)
    meant.write_bytes(b"")
    with pytest.raises(DataError, match="leaves the images folder"):
        CocoDetection(root / folder, tmp_path / "boxes.json")


def test_labelme(tmp_path: Path):
    data = read(tmp_path, LABELME)
    assert data.class_names == ["bus"]
    assert data.remarks[0].endswith("no class: category '_background_' without annotations (1)")
    content = copy.deepcopy(LABELME)
    del content["annotations"][0]["bbox"]
    del content["annotations"][0]["area"]
    boxless = read(tmp_path, content)
    assert (boxless[0][1]["boxes"] == data[0][1]["boxes"]).all()
    assert "boxes taken from outlines (1)" in boxless.remarks[0]


def test_fiftyone(tmp_path: Path):
    data = read(tmp_path, FIFTYONE)
    assert data.class_names == ["cat", "dog"] and data.remarks == []
    for whole in (tmp_path.resolve() / "a.png", Path("/on/another/machine")):
        content = copy.deepcopy(FIFTYONE)
        if whole.suffix:
            content["images"][0]["file_name"] = str(whole)
        else:  # whose folders are called the same
            parts = tmp_path.resolve().parts[-2:]
            content["images"][0]["file_name"] = str(whole.joinpath(*parts, "a.png"))
        (tmp_path / "abs.json").write_text(json.dumps(content))
        found = CocoDetection(tmp_path, tmp_path / "abs.json")
        assert found[0][0].shape == (3, 48, 64)
        assert found.remarks == ["read as its tool wrote it: absolute file names (1)"]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("/elsewhere/a.png", "file_name '/elsewhere/a.png' leaves the images folder .*, wanted"),
        ("C:\\data\\a.png", r"file_name 'C:\\\\data\\\\a.png' leaves the images folder"),
        ("https://example.org/a.png", "is a web address, wanted a file in"),
        ("..\\a.png", "leaves the images folder"),
        ("../../up/1/a.png", r"leaves the images folder .*, or the image there as '1/a\.png'$"),
        ("1/../../a.png", "leaves the images folder"),
    ],
)
def test_names_that_are_not_in_the_folder(tmp_path: Path, name: str, wanted: str):
    content = copy.deepcopy(FIFTYONE)
    content["images"][0]["file_name"] = name
    pictures(tmp_path, "a.png")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=wanted):
        CocoDetection(tmp_path, tmp_path / "boxes.json")


@pytest.mark.parametrize("on_disk, in_file", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_another_unicode_form(tmp_path: Path, on_disk, in_file):
    """macOS writes decomposed names, most tools composed ones."""
    pictures(tmp_path, unicodedata.normalize(on_disk, "Zürich é.png"))
    content = copy.deepcopy(FIFTYONE)
    content["images"][0]["file_name"] = unicodedata.normalize(in_file, "Zürich é.png")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = CocoDetection(tmp_path, tmp_path / "boxes.json")
    assert data.remarks == ["read as its tool wrote it: file names in another Unicode form (1)"]


def test_a_back_slash_may_be_part_of_a_name(tmp_path: Path):
    pictures(tmp_path, "images\\62a623a0-a.png")
    (tmp_path / "boxes.json").write_text(json.dumps(LABEL_STUDIO))
    assert CocoDetection(tmp_path, tmp_path / "boxes.json").remarks == []


def test_ids_of_other_kinds(tmp_path: Path):
    content = copy.deepcopy(ROBOFLOW)
    content["images"].append({**content["images"][0], "id": "im1", "file_name": "b.png"})
    content["images"][0]["id"] = "7"
    first = content["annotations"][0]
    first |= {"id": "3", "image_id": "7", "category_id": "2"}
    content["annotations"].append({**first, "image_id": "im1", "id": None})
    content["annotations"].append({k: v for k, v in first.items() if k != "id"})
    data = read(tmp_path, content)
    assert data.image_ids == [7, 8]
    assert [a["id"] for a in data.ground_truth["annotations"]] == [3, 4, 5]
    assert [a["image_id"] for a in data.ground_truth["annotations"]] == [7, 8, 7]
    assert data[1][1]["labels"].tolist() == [1]
    for words in ("image ids that are names, numbered (1)", "ids in quotes, read as numbers (7)"):
        assert words in data.remarks[0]
    assert "annotations without id, numbered (2)" in data.remarks[0]
    assert data.remarks[1].startswith("1 object with the image, class and box of an earlier one")


def test_numbers_in_quotes(tmp_path: Path):
    """As tables turned into JSON have them."""
    content = copy.deepcopy(CVAT)
    plain = read(tmp_path, content)
    content["images"][0] |= {"width": "64", "height": "48"}
    for record in content["annotations"]:
        record |= {"area": "128.0", "iscrowd": "0", "ignore": "0"}
        record["bbox"] = [20, "18", "16.0", "8"]
        record["attributes"]["rotation"] = str(record["attributes"]["rotation"])
    data = read(tmp_path, content)
    assert data.ground_truth == plain.ground_truth
    assert "numbers in quotes, read as numbers (20)" in data.remarks[0]
    content["annotations"][0] |= {"iscrowd": "1", "area": "1e2"}
    with pytest.raises(DataError, match="annotation 1: area is '1e2', wanted a finite number"):
        read(tmp_path, content)
    content["annotations"][0]["area"] = "9"
    crowd, *_ = read(tmp_path, content).ground_truth["annotations"]
    assert crowd["iscrowd"] == 1 and crowd["area"] == 9


def test_sizes_are_read_from_the_files(tmp_path: Path):
    content = copy.deepcopy(FIFTYONE)
    del content["images"][0]["width"]
    content["images"][0]["height"] = None
    data = read(tmp_path, content)
    assert data.ground_truth["images"][0]["width"] == 64 and data[0][0].shape == (3, 48, 64)
    assert "images without width and height, taken from their files (1)" in data.remarks[0]
    with pytest.raises(DataError, match="image 1: no width and height; wanted both where"):
        read_coco(tmp_path / "boxes.json", None)


def test_an_empty_box_is_skipped_and_counted(tmp_path: Path, capsys):
    content = copy.deepcopy(ROBOFLOW)
    content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": []})
    data = read(tmp_path, content)
    assert data.skipped == ["annotation 9: no box"] and len(data[0][1]["boxes"]) == 1
    arguments = ["--images", str(tmp_path), "--annotations", str(tmp_path / "boxes.json")]
    assert main(["data", "check", *arguments]) == 0
    assert capsys.readouterr().out.endswith("skipped: 0 of zero size, 1 without a box\n")


def test_lvis_names_files_by_their_address(tmp_path: Path):
    """https://www.lvisdataset.org/dataset: images have coco_url and no file_name."""
    content = copy.deepcopy(FIFTYONE)
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000391895.jpg"
    pictures(tmp_path, "train2017/000000391895.jpg")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert CocoDetection(tmp_path / "train2017", tmp_path / "boxes.json")[0][0].shape[0] == 3


def test_annotation_ids_that_are_names(tmp_path: Path):
    """Nothing refers to them."""
    content = copy.deepcopy(CVAT)
    for record, name in zip(content["annotations"], ("7f3e-a", "7f3e-b", 4), strict=True):
        record["id"] = name
    coco = check_coco(content, "a.json", None)
    assert [record["id"] for record in coco.annotations] == [5, 6, 4]
    assert "annotation ids that are names, numbered (2)" in coco.remarks[0]


def test_numbers_too_large_for_floats_are_named(tmp_path: Path):
    for number, turn in ((9, 10**400), (10**400, 45), (10**400, 10**400)):
        content = copy.deepcopy(CVAT)
        content["annotations"][1] |= {
            "bbox": [number, 18, 16, 8],
            "attributes": {"rotation": turn},
        }
        problems: list[str] = []
        coco = check_coco(content, "a.json", None, problems.append)
        assert len(coco.annotations) + len(problems) == len(content["annotations"])
        assert all("bbox is [1000" in problem for problem in problems)
        assert bool(problems) == (number > 9)


def test_classes_of_a_validation_file(tmp_path: Path, capsys):
    """Fewer, in another order, with other ids: they are those of the training file."""
    from detectors.commands.data_options import refuse_other_classes

    train = read(tmp_path, FIFTYONE)
    content = copy.deepcopy(FIFTYONE)
    content["categories"] = [{"id": 4, "name": "dog"}]
    content["annotations"][0]["category_id"] = 4
    content["annotations"].append({**content["annotations"][0], "id": 2, "iscrowd": 1})
    val = read(tmp_path, content)
    refuse_other_classes(val, train.source, train.class_names, train.category_ids)
    assert val.class_names == ["cat", "dog"] and val.category_ids == [0, 1]
    assert val[0][1]["labels"].tolist() == [1]
    assert val.annotated(0)["ignored_labels"].tolist() == [1]
    assert [a["category_id"] for a in val.ground_truth["annotations"]] == [1, 1]
    assert [c["name"] for c in val.ground_truth["categories"]] == ["cat", "dog"]
    assert val.remarks[-1] == f"has 1 of the 2 classes of {train.source}, used as there"
    content["categories"] = [{"id": 4, "name": "bird"}, {"id": 1, "name": "dog"}]
    wanted = r"categories \['bird'\], which .* does not have; it has \['cat', 'dog'\]"
    with pytest.raises(DataError, match=wanted):
        refuse_other_classes(read(tmp_path, content), train.source, train.class_names, [1, 2])
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["category_id"] = 1  # a class without annotations does no harm
    spare = read(tmp_path, content)
    refuse_other_classes(spare, train.source, train.class_names, [1, 2])
    assert spare.category_ids == [1, 2] and spare[0][1]["labels"].tolist() == [1]
