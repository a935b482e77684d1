"""Data sets by name on the command line: AI-TOD's and COCO's files, defaults; `jol data check`."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detectors.cli import main
from detectors.commands.train import given_settings
from detectors.data.catalog import DATASETS, evaluation_data, read_split, training_data
from detectors.errors import DataError
from detectors.training.schedule import learning_rate
from detectors.training.settings import resolve


def write_json(file: Path, names: Sequence[str], size: int = 64) -> None:
    """A COCO JSON file of images with an object each, with keys of no use here."""
    content = {
        "info": {},
        "images": [
            {"id": i, "file_name": name, "width": size, "height": size, "license": 1}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [8 + i, 8, 12, 12],
                "area": 144,
                "segmentation": [[0] * 8],
            }
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "person"}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_pictures(folder: Path, names: Sequence[str], size: int = 64) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in names:
        pixels = random.integers(256, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def aitod(tmp_path: Path) -> Path:
    """AI-TODv2 with the images of trainval in two folders."""
    write_json(tmp_path / "annotations" / "aitodv2_trainval.json", ["a.png", "b.png", "c.png"])
    write_json(tmp_path / "annotations" / "aitodv2_test.json", ["d.png"])
    write_pictures(tmp_path / "train" / "images", ["a.png", "b.png"])
    write_pictures(tmp_path / "val" / "images", ["c.png"])
    write_pictures(tmp_path / "test" / "images", ["d.png"])
    return tmp_path


def test_aitod_finds_its_images_in_several_folders(aitod: Path) -> None:
    data = training_data("aitodv2", aitod)
    assert [image["file_name"] for image in data.ground_truth["images"]] == [
        "train/images/a.png",
        "train/images/b.png",
        "val/images/c.png",
    ]
    assert [data[i][1]["boxes"][0, 0].item() for i in range(3)] == [8, 9, 10]
    assert data.class_names == ["ship", "person"]
    assert len(evaluation_data("aitodv2", aitod)) == 1
    assert "segmentation" not in read_split("aitodv2", aitod, "test").content["annotations"][0]
    (aitod / "val" / "images" / "c.png").unlink()
    with pytest.raises(DataError, match=r"image 2: no file .*train/images/c\.png"):
        training_data("aitodv2", aitod)


@pytest.mark.parametrize("folder", ["val2017", "images/val2017"])
def test_coco(folder: str, tmp_path: Path) -> None:
    write_json(tmp_path / "annotations" / "instances_val2017.json", ["000.jpg"])
    write_pictures(tmp_path / folder, ["000.jpg"])
    assert evaluation_data("coco", tmp_path)[0][0].shape == (3, 64, 64)
    with pytest.raises(DataError, match=r"no annotations/instances_train2017\.json there"):
        training_data("coco", tmp_path)


def test_convert_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "annotations" / "instances_val2017.json"
    write_json(file, ["0.png", "1.png"])
    write_pictures(tmp_path / "val2017", ["0.png", "1.png"])
    content = json.loads(file.read_text())
    content["annotations"][1]["bbox"] = [3, 3, 0, 9]
    file.write_text(json.dumps(content))
    words = ["--dataset", "coco", "--data-root", str(tmp_path), "--split", "val"]
    assert main(["data", "convert", *words, "--out", str(tmp_path / "val.json")]) == 0
    printed = capsys.readouterr().out
    assert "skipped: 1 of zero size\n2 images, 1 object, 0 crowd or ignored in " in printed


OWN = (
    *("--train-images", ".", "--train-annotations", __file__),
    *("--val-images", ".", "--val-annotations", __file__),
)
TRAIN = ("train", "--loss", "jol", "--out", "x", "--detector")


def settings_of(*arguments: str, images: int = 100) -> Any:
    """What `jol` with these arguments would train with."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectors.commands.train.run", seen.append)
        assert main(arguments) == 0
    return resolve(given_settings(seen[0]), images, vars(seen[0]).get("dataset"), {})


@pytest.mark.parametrize(
    ("name", "epochs", "size", "protocol"),
    [
        ("visdrone", 12, 800, "aitod"),
        ("aitod", 24, 800, "aitod"),
        ("aitodv2", 24, 800, "aitod"),
        ("sodad", 12, 1200, "sodad"),
        ("coco", 12, 800, "coco"),
    ],
)
def test_the_papers_schedule(name: str, epochs: int, size: int, protocol: str) -> None:
    """Section 4.2: batch 2, 0.005 or 0.001, a tenth at 8 and 11 of 12 epochs or 16 and 22 of 24."""
    found = settings_of(*TRAIN, "faster_rcnn", "--dataset", name, "--data-root", ".")
    assert (found.preset, found.batch_size, found.lr) == ("paper", 2, 0.005)
    assert (found.steps, found.image_size, found.protocol) == (epochs * 50, size, protocol)
    falls = [8, 11] if epochs == 12 else [16, 22]
    rates = [learning_rate(step, found) for step in range(found.steps)]
    drops = [s for s in range(1, found.steps) if rates[s] < 0.5 * rates[s - 1]]
    assert drops == [50 * fall for fall in falls]
    assert settings_of(*TRAIN, "fcos", "--dataset", name, "--data-root", ".").lr == 0.001


def test_every_default_can_be_overridden() -> None:
    given = ["--epochs", "3", "--decay-epochs", "1", "2", "--lr", "0.1", "--batch-size", "4"]
    given += ["--image-size", "600", "--protocol", "coco", "--preset", "torchvision"]
    found = settings_of(*TRAIN, "faster_rcnn", "--dataset", "aitod", "--data-root", ".", *given)
    assert (found.steps, found.lr, found.batch_size, found.image_size) == (75, 0.1, 4, 600)
    assert (found.protocol, found.preset, found.decay_steps) == ("coco", "torchvision", [25, 50])
    rates = [learning_rate(step, found) for step in (24, 25, 49, 50)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])
    slim = settings_of(*TRAIN, "fcos", "--dataset", "sodad", "--data-root", ".", "--preset", "slim")
    assert slim.image_size is None
    own = settings_of(*TRAIN, "fcos", *OWN)
    assert (own.preset, own.protocol, own.image_size) == ("torchvision", "aitod", None)


def test_train_and_eval_by_name(aitod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--dataset", "aitodv2", "--data-root", str(aitod), "--device", "cpu"]
    out = aitod / "run"
    given = ["--preset", "slim", "--max-steps", "1", "--batch-size", "1", "--crop", "64"]
    train = ["train", "--detector", "fcos", "--loss", "jol", "--out", str(out), *named, *given]
    assert main(train) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["dataset"] == "aitodv2"
    assert config["data"]["train_sha256"] == training_data("aitodv2", aitod).digest
    evaluation = ["eval", "--checkpoint", str(out / "last.pt"), "--out", str(aitod / "e"), *named]
    assert main(evaluation) == 0
    assert main([*evaluation, "--split", "trainval", "--protocol", "coco"]) == 0
    assert "AP_l" in json.loads((aitod / "e" / "results.json").read_text())
    assert main([*evaluation, "--split", "mine"]) == 2
    assert "no split 'mine', wanted one of train, val" in capsys.readouterr().err
    assert main([*train, "--resume"]) == 0
    (aitod / "annotations" / "aitodv2_trainval.json").write_text("{")
    assert main([*train, "--resume"]) == 2
    assert "aitodv2_trainval.json: not valid JSON" in capsys.readouterr().err


COCO = ("--dataset", "coco", "--data-root", ".")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["train", "--detector", "fcos", "--loss", "jol", "--out", "x"], "missing --train-images"),
        (
            ["eval", "--checkpoint", __file__, "--out", "x", "--val-images", "."],
            "--val-annotations",
        ),
        (["data", "stats", "--dataset", "coco"], "--data-root is missing"),
        (["data", "stats", "--data-root", "."], "--dataset is missing"),
        (["data", "stats"], "wanted --dataset NAME --data-root DIR or --annotations"),
        (["data", "check", "--images", "x"], "missing --annotations"),
        (["data", "check", *COCO, "--images", "y"], "one or the"),
        (["data", "check", "--images", ".", "--annotations", __file__, "--split", "z"], "--split"),
        (["data", "stats", "--dataset", "cocoa", "--data-root", "."], "--dataset"),
        (["data", "convert", "--split", "val", "--out", "x"], "missing --dataset"),
        (
            ["data", "convert", *COCO, "--split", "val", "--out", "x", "--out-images", "y"],
            "coco is not cut into tiles",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(
    given: list[str], wanted: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if given[0] == "eval":
        monkeypatch.setattr("detectors.training.checkpoints.load", lambda path: {"class_names": []})
    assert main(given) == 2
    error = capsys.readouterr().err
    assert wanted in error and len(error.splitlines()) <= 2 and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


GOOD: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 6)],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 12, 12]} for i in range(1, 6)
    ],
    "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "car"}],
}


def check(
    folder: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str], str]:
    file = folder / "boxes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    arguments = ["--images", str(folder), "--annotations", str(file)]
    status = main(["data", "check", *arguments])
    printed = capsys.readouterr()
    return status, printed.out.replace(str(folder), "D").splitlines(), printed.err


def test_check_of_a_clean_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, [f"{i}.png" for i in range(1, 6)])
    content = copy.deepcopy(GOOD)
    content["annotations"][0]["bbox"] = [60, 8, 12, 12]
    content["annotations"][1]["bbox"] = [8, 8, 0, 12]
    content["annotations"][2]["iscrowd"] = 1
    assert check(tmp_path, content, capsys) == (
        0,
        [
            "D/boxes.json: 5 images, 3 objects, 1 crowd or ignored; 1 clipped; "
            "skipped: 1 of zero size"
        ],
        "",
    )


def test_check_goes_on_after_a_name_that_cannot_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**GOOD, "categories": [{"id": 1, "name": "\ud800"}, {"id": 2, "name": ""}]}
    write_pictures(tmp_path, [f"{i}.png" for i in range(1, 6)])
    status, lines, _ = check(tmp_path, content, capsys)
    assert status == 2 and "category 1: name is" in lines[0] and "category 2" in lines[1]
    # a folder whose name is no UTF-8, which every message about it has in it
    folder = tmp_path / "\udcff"
    folder.mkdir()
    arguments = ["--images", str(folder), "--annotations", str(tmp_path / "boxes.json")]
    (tmp_path / "boxes.json").write_text(json.dumps(GOOD))
    assert main(["data", "check", *arguments]) == 2
    assert r"image 1: no file" in (printed := capsys.readouterr().out) and r"\udcff" in printed


def test_check_names_every_problem_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of problem, all in one file; none hides another or is reported twice."""
    write_pictures(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:5000])
    write_pictures(tmp_path, ["3.png"], size=32)
    content = copy.deepcopy(GOOD)
    content["images"][4]["width"] = None
    content["images"] += [
        {"id": 1, "file_name": "9.png", "width": 9, "height": 9},
        {"id": 6, "file_name": "1.png", "width": 64, "height": 64},
        "image",
    ]
    content["annotations"] += [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [8, 8, 12, 12]},
        {"id": 6, "image_id": 77, "category_id": 78, "bbox": [8, 8, 12]},
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [80, 8, 12, 12]},
        {"id": 8, "image_id": 1, "category_id": 1, "bbox": [8, 8, 12, 12], "area": "a"},
        {"image_id": 1, "bbox": []},
    ]
    content["categories"].append({"id": 3, "name": "car"})
    status, lines, error = check(tmp_path, content, capsys)
    assert (status, error) == (2, "jol data check: 15 problems\n")
    assert sorted(lines) == sorted(
        [
            "D/boxes.json: category 3: category 2 has the name 'car' too",
            "D/boxes.json: image 4: no file D/4.png",
            "D/boxes.json: image 5: width is None, wanted an integer",
            "D/boxes.json: image 1 appears twice; ids must be unique",
            "D/boxes.json: image 6: D/1.png is the file of image 1 too",
            "D/boxes.json: images[7] is a str, wanted an object",
            "D/boxes.json: annotation 5 appears twice; ids must be unique",
            "D/boxes.json: annotation 6: image 77 is not among the images",
            "D/boxes.json: annotation 6: category 78 is not among the categories",
            "D/boxes.json: annotation 6: bbox is [8, 8, 12], "
            "wanted four finite numbers [x, y, w, h]",
            "D/boxes.json: annotation 7: bbox [80, 8, 12, 12] lies outside image 1 (64x64)",
            "D/boxes.json: annotation 8: area is 'a', wanted a finite number",
            "D/boxes.json: annotation 9: no key 'category_id'",
            "D/boxes.json: read as its tool wrote it: annotations without id, numbered (1)",
            "D/boxes.json: image 3: D/3.png is 32x32 pixels, the annotation file says 64x64",
            *[line for line in lines if "2.png cannot be decoded" in line],
            lines[-1],
        ]
    )
    assert lines[-1].startswith("D/boxes.json: 3 images, 4 objects, 0 crowd")


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("{", ["D/boxes.json: not valid JSON: Expecting property name enclosed in double quotes"]),
        (
            {},
            [
                f"D/boxes.json: no key '{key}'; wanted images, annotations and categories"
                for key in ("categories", "images", "annotations")
            ],
        ),
        (
            {"images": [], "annotations": {}, "categories": []},
            [
                "D/boxes.json: no categories",
                "D/boxes.json: no images",
                "D/boxes.json: 'annotations' is a dict, wanted a list",
            ],
        ),
    ],
    ids=["broken", "keys", "empty"],
)
def test_check_of_a_file_without_data(
    content: object, problems: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = check(tmp_path, content, capsys)
    assert status == 2 and len(lines) >= len(problems)
    assert all(line.startswith(problem) for line, problem in zip(lines, problems, strict=False))


def test_check_without_a_folder_still_reads_the_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(GOOD)
    content["annotations"][0]["category_id"] = 9
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    arguments = ["--images", str(tmp_path / "no"), "--annotations", str(tmp_path / "boxes.json")]
    assert main(["data", "check", *arguments]) == 2
    printed = capsys.readouterr()
    assert "no: no such folder of images" in printed.out
    assert "annotation 1: category 9 is not among the categories" in printed.out
    assert printed.err == "jol data check: 2 problems\n"


def test_every_data_set_names_its_own_splits() -> None:
    for dataset in DATASETS.values():
        assert {dataset.train, dataset.test, *dataset.counted} <= set(dataset.splits)
