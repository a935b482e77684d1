"""A detector is a module and a row of DETECTORS; everything else follows."""

import json
import subprocess
import sys

import pytest
import torch
from scenes import scene

from detectors.cli import main
from detectors.errors import Unusable
from detectors.models import DETECTORS, build_detector, default_backbone, joint_head
from detectors.models import retinanet as stock
from detectors.models.anchor_plans import plan_anchors
from detectors.models.build import compile_model
from detectors.models.presets import Detector, by_preset, find_detector
from detectors.training.settings import resolve
from detectors.training.step import Stepper
from detectors.utils.distributed import ALONE

NAME = "dense_retinanet"
ROW = Detector(
    __name__,  # whose `build` is below
    one_stage=True,
    strides=by_preset((8, 16, 32), slim=(4, 8)),
    last_strides=(16, 32, 128),
    scale=by_preset(3.0, slim=2.0),
    octaves=2,
    assigner=by_preset(None, slim="simd"),
    assigner_settings={"iou": {"high": 0.6, "low": 0.2}},
    backbone=by_preset("resnet50", slim="resnet14"),
    bottlenecks=True,
    least_side=80,
    learning_rate=by_preset(0.004, slim=0.03),
    score_threshold=by_preset(0.25),
)


class DenseRetinaNet(torch.nn.Sequential):
    """Marks what `build` made."""


def build(bodies, plan):
    model = stock.build(bodies, plan)
    model.mark = DenseRetinaNet()
    return model


@pytest.fixture(autouse=True)
def row(monkeypatch):
    monkeypatch.setitem(DETECTORS, NAME, ROW)


def test_it_is_listed(capsys):
    assert NAME in DETECTORS and find_detector(NAME) is ROW
    assert main(["train", "--help"]) == 0
    assert NAME in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match=f"wanted one of retinanet, .*, {NAME}"):
        build_detector("yolo", 3)


def test_it_has_its_own_priors():
    plan = plan_anchors(NAME, "paper")
    assert (plan.strides, plan.scales(plan.scale)) == ((8, 16, 32), (3.0, 3.0 * 2**0.5))
    assert plan_anchors(NAME, "slim", strides=(4, 8, 16)).strides == (4, 8, 16)
    with pytest.raises(ValueError, match=f"or 128 with {NAME}"):
        plan_anchors(NAME, "slim", strides=(4, 8))


def test_it_is_built_with_the_values_of_its_row():
    model = build_detector(NAME, 3, preset="slim")
    assert isinstance(model.mark, DenseRetinaNet)
    assert default_backbone(NAME, "slim") == "resnet14"
    assert model.anchor_generator.sizes == ((8, 11), (16, 22))  # 2 strides, half an octave apart
    assert model.score_thresh == 0.25
    assert model.assigner.func.__name__ == "simd"
    assert joint_head(model) is model.head
    assert model.transform([torch.rand(3, 16, 90)])[0].tensors.shape[-2:] == (80, 96)
    with pytest.raises(ValueError, match=f"'resnet18' with {NAME}, wanted one of resnet14"):
        build_detector(NAME, 3, preset="slim", backbone="resnet18")
    with pytest.raises(ValueError, match="wanted none but with fcos"):
        build_detector(NAME, 3, preset="slim", centreness_weights=True)


def test_it_trains_a_step():
    given = {"detector": NAME, "loss": "jol", "preset": "slim", "max_steps": 1}
    settings = resolve(given, 1, None, {})
    assert settings.lr == 0.03 and settings.backbone == "resnet14"
    torch.manual_seed(0)
    model = build_detector(NAME, 3, settings.loss, **settings.model_arguments())
    compile_model(model, backend="eager")
    before = model.head.classification_head.cls_logits.weight.detach().clone()
    images, targets = scene([3, 2], (96, 96))
    batch = (images, [{**target, "image_id": i} for i, target in enumerate(targets)])
    step = Stepper(model, settings, ALONE)(batch, 1, settings.lr)
    assert not step.problem
    assert not torch.equal(before, model.head.classification_head.cls_logits.weight)
    assert 1 < joint_head(model).negative_weight < 2
    with pytest.raises(Unusable, match="detector: got 'yolo'"):
        resolve({**given, "detector": "yolo"}, 1, None, {})


@pytest.fixture
def boxes(tmp_path):
    """A file with one object of 24 x 24, which is an anchor of stride 8 and scale 3."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 128, "height": 128}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [52, 52, 24, 24], "iscrowd": 0}
        ],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def stats(capsys, boxes, *given):
    given = ("--annotations", str(boxes), "--image-size", "128", "--positives", *given)
    status = main(["data", "stats", "--detector", NAME, "--preset", "paper", *given])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_its_positives_are_counted(capsys, boxes):
    status, text = stats(capsys, boxes)
    assert status == 0
    assert f"{NAME}'s anchors (preset paper): scale 3 4.24, images" in text
    assert "iou: high=0.6 low=0.2" in text
    (line,) = (line for line in text.splitlines() if line.startswith("  without them"))
    assert line.split()[-5:] == ["-", "-", "1.00", "-", "-"]


def test_its_points_are_counted(capsys, boxes, monkeypatch):
    monkeypatch.setitem(
        DETECTORS, NAME, Detector("detectors.models.fcos", one_stage=True, has_points=True)
    )
    status, text = stats(capsys, boxes, "--assigner", "atss")
    assert status == 0 and f"none with {NAME}, whose points have no boxes" in text
    assert f"{NAME}'s points (preset paper): scale 8, images" in text
    status, text = stats(capsys, boxes, "--assigner", "simd")
    assert status == 2 and f"got 'simd' with {NAME}, wanted one of atss, rfla" in text


@pytest.mark.parametrize(
    "module", ["models.presets", "models.anchor_plans", "assigners.names", "models", "assigners"]
)
def test_names_are_read_without_torch(module):
    code = f"import sys, detectors.{module}; print([m for m in sys.modules if 'torch' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
