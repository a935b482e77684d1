"""Real trainings of tiny YOLO models with JOL."""

import csv
import os
import pickle
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from PIL import Image, ImageDraw
from yolo import OBJECTS, SIZE

pytest.importorskip("ultralytics")

from ultralytics import YOLO

from jolkernels.integrations.ultralytics import JointTrainer, heads, joint_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images of three classes in their layout; one has no objects."""
    root = tmp_path_factory.mktemp("data")
    g = torch.Generator().manual_seed(0)
    colours = ("red", "lime", "blue")
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", (SIZE, SIZE), "gray")
            lines = []
            for _ in range(OBJECTS if i else 0):
                x, y = (torch.rand(2, generator=g) * 30).int().tolist()
                w, h = (torch.rand(2, generator=g) * 16 + 16).int().tolist()
                c = int(torch.randint(3, (), generator=g))
                ImageDraw.Draw(picture).rectangle((x, y, x + w, y + h), fill=colours[c])
                box = ((x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE)
                lines.append(f"{c} {' '.join(map(str, box))}\n")
            picture.save(root / "images" / split / f"{i}.png")
            (root / "labels" / split / f"{i}.txt").write_text("".join(lines))
    file = root / "data.yaml"
    file.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
    return file


def trained(model: YOLO, data, folder, **choices):
    """Train for a few steps on the CPU."""
    settings = {
        "data": data,
        "epochs": 2,
        "imgsz": SIZE,
        "batch": 3,
        "device": "cpu",
        "amp": False,
        "plots": False,
        "optimizer": "SGD",
        "project": folder,
    }
    model.train(**settings | choices)
    return model.trainer


def rows_of(trainer) -> list[dict]:
    with open(trainer.csv) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """By name of a model: its trainer after two epochs of two steps, and w⁻ of each step."""
    found = {}
    for name in ("yolo11n", "yolo26n"):
        model, weights = YOLO(f"{name}.yaml"), []

        def watch(trainer, weights=weights):
            assert torch.isfinite(trainer.loss)
            weights.append(heads(trainer.model.criterion)[-1].negative_weight)

        model.add_callback("on_train_start", joint_loss(lam=2.0))
        model.add_callback("on_train_batch_end", watch)
        found[name] = trained(model, data, tmp_path_factory.mktemp(name)), weights
    return found


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_a_callback_trains_and_logs(name, runs):
    trainer, weights = runs[name]
    assert len(weights) == 4
    assert all(1 < w < 2 for w in weights)
    for row, (a, b) in zip(rows_of(trainer), (weights[:2], weights[2:]), strict=True):
        assert float(row["train/neg_weight"]) == pytest.approx(float(a + b) / 2, abs=1e-4)
        assert 1 < float(row["val/neg_weight"]) <= 2


LOAD = """
import sys
sys.modules["jolkernels"] = None
from ultralytics import YOLO
image, *checkpoints = sys.argv[1:]
for checkpoint in checkpoints:
    model = YOLO(checkpoint)
    assert getattr(model.model, "criterion", None) is None
    assert len(model(image, imgsz=64, verbose=False, conf=0.0)[0].boxes)
"""


def test_checkpoints_load_without_us(runs, data, tmp_path):
    image = data.parent / "images" / "val" / "1.png"
    checkpoints = [trainer.last for trainer, _ in runs.values()]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, image, *checkpoints],
        env={**os.environ, "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_validation_loss_is_joint(data, tmp_path):
    """That of the same model, as the learning rate is 0, weighed or not."""
    found = {}
    for weighting in ("joint", "none"):
        model = YOLO("yolo11n.yaml")
        model.add_callback("on_train_start", joint_loss(weighting=weighting))
        trainer = trained(model, data, tmp_path / weighting, epochs=1, lr0=0.0, warmup_epochs=0)
        (found[weighting],) = rows_of(trainer)
    joint, base = (float(found[weighting]["val/cls_loss"]) for weighting in ("joint", "none"))
    weight = float(found["joint"]["val/neg_weight"])
    assert 1.2 < weight <= 2
    assert joint == pytest.approx(weight * base, rel=1e-2)  # nearly all anchors are negatives


def test_a_resumed_head_keeps_what_it_had_decayed_to(data, tmp_path):
    class Stopped(Exception):
        pass

    def stop(trainer):
        raise Stopped

    model = YOLO("yolo26n.yaml")
    model.add_callback("on_train_start", joint_loss())
    model.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(Stopped):
        trained(model, data, tmp_path, epochs=3)

    model = YOLO(model.trainer.last)
    shares = []
    model.add_callback("on_train_start", joint_loss())
    model.add_callback(
        "on_train_batch_start", lambda trainer: shares.append(trainer.model.criterion.o2m)
    )
    trainer = trained(model, data, tmp_path, epochs=3, resume=True)
    criterion = trainer.model.criterion
    assert shares == [criterion.decay(1)] * 2 + [criterion.decay(2)] * 2
    assert shares[0] < 0.5
    assert len(rows_of(trainer)) == 3
    assert all(float(row["train/neg_weight"]) > 1 for row in rows_of(trainer))


class Mine(JointTrainer):
    choices: ClassVar = {"lam": 1.5}


def test_the_trainer_trains_with_its_choices(data, tmp_path):
    model = YOLO("yolo11n.yaml")
    trainer = trained(model, data, tmp_path, epochs=1, trainer=Mine)
    (row,) = rows_of(trainer)
    assert 0.5 < float(row["train/neg_weight"]) <= 1.5
    # Several GPUs start with these, from a file, and add theirs.
    again = pickle.loads(pickle.dumps(trainer.callbacks["on_train_start"]))
    assert again[-1].keywords == {"choices": {"lam": 1.5}}
