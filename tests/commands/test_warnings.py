"""Detections kept and counted follow each other, and `jol` warns where data do not suit them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_cases import perfect, truth
from PIL import Image
from untrained import CLASSES, write_checkpoint

from detectors.cli import main
from detectors.commands.eval import _limits
from detectors.commands.warnings import warn_of_crowds, warn_of_slow_bfloat16
from detectors.data import CocoDetection
from detectors.evaluation import evaluate
from detectors.inference.scale import other_scale, scale_of
from detectors.models import DETECTORS, PRESETS
from detectors.training import checkpoints
from detectors.training.settings import DEFAULTS, PROTOCOLS, TrainSettings, resolve


def settings_of(**given: Any) -> TrainSettings:
    return resolve({"detector": "faster_rcnn", "loss": "jol", **given}, 100, None, {})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_new_run_reports_what_its_protocol_counts(name: str, preset: str, protocol: str) -> None:
    """Preset torchvision kept 100 of an image where 1,500 count of a class."""
    made = settings_of(detector=name, preset=preset, protocol=protocol)
    assert made.detections is not None
    assert made.detections >= PROTOCOLS[protocol].max_dets and made.counted is None
    if preset == "paper":
        assert made.detections == 3000
    assert made.model_arguments()["detections"] == made.detections


def test_detections_protocol_and_evaluation_follow_each_other() -> None:
    assert settings_of(protocol="coco").detections == 100
    for given in ({}, {"preset": "paper"}, {"protocol": "coco"}):
        made = settings_of(**given, detections=2600)
        assert (made.detections, made.counted) == (2600, 2600)
    coco = dataclasses.asdict(settings_of(protocol="coco"))
    assert resolve({}, 100, None, coco) == settings_of(protocol="coco")
    assert resolve({"protocol": "aitod"}, 100, None, coco).detections == 1500
    own = dataclasses.asdict(settings_of(detections=300))
    assert resolve({"protocol": "coco"}, 100, None, own).detections == 300


def test_an_older_run_keeps_its_numbers() -> None:
    """Its files say nothing of them."""
    older = {**dataclasses.asdict(settings_of()), "detections": DEFAULTS["detections"]}
    for given in ({}, {"protocol": "coco"}):
        again = resolve(given, 100, None, older)
        assert (again.detections, again.counted) == (None, None)
        assert again.model_arguments()["detections"] is None
    assert _limits(None, "coco", older) == (None, None)
    assert _limits(700, "coco", older) == (700, 700)


def test_an_evaluation_follows_its_protocol() -> None:
    coco = dataclasses.asdict(settings_of(protocol="coco"))
    assert _limits(None, "coco", coco) == (100, None)
    assert _limits(None, "aitod", coco) == (1500, None)
    assert _limits(7, "aitod", coco) == (7, 7)
    own = dataclasses.asdict(settings_of(detections=300))
    assert _limits(None, "coco", own) == (300, 300)
    assert _limits(None, "coco", {}) == (None, None)


@pytest.mark.parametrize("evaluator", ["faster", "pycocotools"])
def test_an_evaluation_counts_as_many_as_it_is_told(evaluator: str) -> None:
    """300 objects found: with 100 counted, AP is a third of 1."""
    boxes = [(0, 0, 12.0 * (n % 20), 12.0 * (n // 20), 8, 8) for n in range(300)]
    ground_truth = truth(boxes)
    found = {
        counted: evaluate(
            ground_truth,
            perfect(ground_truth),
            protocol="coco",
            evaluator=evaluator,
            counted=counted,
        ).metrics
        for counted in (None, 300)
    }
    assert found[None]["AP"] == pytest.approx(34 / 101)
    assert found[300]["AP"] == 1 and found[300]["oLRP"] == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDetection:
    """An image with 7 objects of the first class and 3 of the second, one with 1, one with none."""
    folder = tmp_path_factory.mktemp("data")
    counts = {(1, 3): 7, (1, 4): 3, (2, 3): 1}
    records = [
        {"image_id": i, "category_id": k, "bbox": [8 * n, 8 * k, 7, 7], "iscrowd": 0}
        for (i, k), count in counts.items()
        for n in range(count)
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2, 3)
        ],
        "annotations": [{"id": n, **record} for n, record in enumerate(records)],
        "categories": [{"id": k, "name": name} for k, name in zip((3, 4, 8), CLASSES, strict=True)],
    }
    for i in (1, 2, 3):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDetection(folder, folder / "a.json")


@pytest.mark.parametrize(
    ("detections", "counted", "lost"),
    [(10, 7, None), (9, 7, "9.1"), (10, 6, "9.1"), (4, 1500, "54.5"), (4, 1, "72.7")],
)
def test_images_with_more_objects_than_can_be_found(
    data: CocoDetection,
    detections: int,
    counted: int,
    lost: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    warn_of_crowds(data, detections, "coco", counted)
    said = capsys.readouterr().err
    if lost is None:
        assert said == ""
    else:
        assert f"1 of 3 images hold more objects than the {detections} detections" in said
        assert f"{counted:,} of a class" in said and f": {lost} % of the objects" in said
        assert said.endswith("--detections 10 takes all\n") and said.count("\n") == 1


def test_eval_warns_and_takes_detections(
    data: CocoDetection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "best.pt", "fcos", score_threshold=0.0)
    images = Path(data.source).parent
    words = ["eval", "--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu"]
    words += ["--val-images", str(images), "--val-annotations", data.source]
    assert main([*words, "--out", str(tmp_path / "a"), "--detections", "4"]) == 0
    assert "4 detections of an image that are reported" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "warning" not in capsys.readouterr().err
    predict = ["predict", str(images), "--checkpoint", str(tmp_path / "best.pt")]
    predict += ["--out", str(tmp_path / "c"), "--detections", "4", "--device", "cpu"]
    assert main(predict) == 0
    found = json.loads((tmp_path / "c" / "detections.json").read_text())
    assert [sum(each["image_id"] == i for each in found) for i in (1, 2, 3)] == [4, 4, 4]


def test_a_checkpoint_of_an_earlier_version_keeps_its_limit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "best.pt", "fcos")
    state = checkpoints.load(tmp_path / "best.pt")
    del state["settings"]["detections"], state["sha256"]
    model: Any = checkpoints.load_detector(state)
    assert (model.detections_per_img, model.topk_candidates) == (1500, 1500)
    assert checkpoints.load_detector(state, detections=20).detections_per_img == 20


@pytest.mark.parametrize(
    ("given", "objects"),
    [
        ({"preset": "slim"}, 7),
        ({"preset": "slim", "crop": 32}, 7),
        ({"image_size": 128}, 14),
        ({"image_size": [64, 128]}, 14),
        ({"image_size": 128, "crop": 32}, 28),
    ],
)
def test_objects_are_as_large_as_the_detector_gets_them(
    data: CocoDetection, given: dict[str, Any], objects: float
) -> None:
    """Images of 64 pixels with objects of 7; crops are resized as images are."""
    settings = dataclasses.asdict(settings_of(**given))
    wanted = {"objects": pytest.approx(objects), "images": 64}
    assert scale_of(data, settings, training=True) == wanted
    if settings["crop"] == 32:
        whole = 7 if settings["preset"] == "slim" else 14
        assert scale_of(data, settings, training=False)["objects"] == pytest.approx(whole)


def test_another_scale_is_told() -> None:
    trained = {"objects": 10.0, "images": 100.0}
    for size in (6.7, 10, 14.9):
        assert not list(other_scale({"objects": size, "images": 900}, trained))
    (line,) = other_scale({"objects": 24, "images": 100}, trained)
    assert line.startswith("objects are 2.4 times as large as in training: median sqrt(w h) as the")
    assert "gets them 24, was 10 pixels" in line
    (line,) = other_scale({"objects": None, "images": 50}, trained)
    assert line.startswith("images are 0.5 times as large as in training: median sqrt(w h) 50, was")
    for nothing in (None, {}, {"objects": None, "images": None}, {"images": "large"}, [3]):
        assert not list(other_scale({"objects": 24, "images": 900}, nothing))


def test_eval_and_predict_warn_of_another_scale(
    data: CocoDetection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "best.pt"
    write_checkpoint(checkpoint, "fcos")
    state = checkpoints.load(checkpoint)
    del state["sha256"]
    images = Path(data.source).parent
    evaluate_it = ["eval", "--val-images", str(images), "--val-annotations", data.source]
    for trained, told in ((7.0, []), (3.5, ["objects are 2 times", "images are 2 times"])):
        scale = {"objects": trained, "images": 64 * trained / 7}
        checkpoints.save(checkpoint, {**state, "scale": scale})
        said = []
        for words in (evaluate_it, ["predict", str(images)]):
            out = tmp_path / f"{words[0]} {trained}"
            words += ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
            assert main(words) == 0
            said += [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
            del words[-6:]
        assert len(said) == len(told)
        assert all(part in line for part, line in zip(told, said, strict=True))


def test_eval_and_predict_count_black_images(
    data: CocoDetection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks of 0 and 1 in 16 bits."""
    folder = tmp_path / "images"
    content = {**data.ground_truth, "images": data.ground_truth["images"][:3]}
    content["annotations"] = []
    folder.mkdir()
    for number, record in enumerate(content["images"]):
        pixels = np.full((record["height"], record["width"]), 9000 if number == 1 else 1, np.uint16)
        Image.fromarray(pixels).save(folder / record["file_name"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    write_checkpoint(tmp_path / "best.pt", "fcos")
    evaluate_it = [
        "eval",
        "--val-images",
        str(folder),
        "--val-annotations",
        str(tmp_path / "a.json"),
    ]
    for words in (evaluate_it, ["predict", str(folder)]):
        out = str(tmp_path / words[0])
        words += ["--checkpoint", str(tmp_path / "best.pt"), "--out", out, "--device", "cpu"]
        assert main(words) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "black" in line]
        assert "warning: " in line and "2 images of those read came out black: no pixel" in line


def test_a_run_keeps_its_scale_and_warns_once_of_one_file(
    data: CocoDetection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(Path(data.source).parent)
    words = ["train", "--detector", "fcos", "--loss", "base", "--preset", "slim", "--device", "cpu"]
    words += ["--max-steps", "1", "--batch-size", "1", "--crop", "32", "--out", str(tmp_path / "r")]
    for split in ("train", "val"):
        words += [f"--{split}-images", images, f"--{split}-annotations", data.source]
    words += ["--detections", "4"]
    assert main(words) == 0
    assert capsys.readouterr().err.count("4 detections of an image that are reported") == 1
    wanted = {"objects": 7, "images": 64}
    assert json.loads((tmp_path / "r" / "config.json").read_text())["data"]["scale"] == wanted
    for name in ("last.pt", "best.pt"):
        assert checkpoints.load(tmp_path / "r" / name)["scale"] == wanted
    assert main([*words, "--resume"]) == 0


@pytest.mark.parametrize(
    ("amp", "device", "units", "told"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "cpu", True, False),
        ("off", "cpu", False, False),
        ("bf16", "cuda", False, False),
    ],
)
def test_bfloat16_without_units_for_it(
    amp: str,
    device: str,
    units: bool,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: units)
    warn_of_slow_bfloat16(amp, device)
    assert ("no units for bfloat16" in capsys.readouterr().err) == told
