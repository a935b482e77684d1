"""Runs of the study: pairs start equal and see the same, and being watched changes nothing."""

import json

import pytest
import torch
from PIL import Image

from bench.study import data, training
from bench.study.data import PARTS, prepare
from bench.study.losses import LOSSES
from bench.study.runs import FOUND
from detectors.data.dataset import CocoDetection
from detectors.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(data, "IMAGES", dict.fromkeys(PARTS, 3))
    work = tmp_path_factory.mktemp("work")
    yield prepare("scenes-8-16", work, work)
    patch.undo()


def test_a_run_finds_what_a_row_holds(run, folder):
    found, samples = training.train(run(loss="jol", steps=3, crop=96), folder, "cpu")
    assert set(found) | {"commit", "machine"} == set(FOUND) and samples == []
    assert 0 <= found["AP"] <= 100 and found["loss_cls"] > 0 and found["seconds"] > 0
    assert 1 < found["weight"] < 2 and not found["problem"]


def test_whole_images_are_trained_on_too(run, folder):
    found, _ = training.train(run(loss="jol", crop=0), folder, "cpu")
    assert found["AP"] >= 0 and not found["problem"]


def test_runs_of_a_pair_see_the_same_batches(run, folder, monkeypatch):
    seen: list = []
    inner = training.Stepper.__call__

    def call(self, batch, *args):
        outcome = inner(self, batch, *args)
        seen[-1].append((batch, outcome.values))
        return outcome

    monkeypatch.setattr(training.Stepper, "__call__", call)
    for loss in LOSSES:
        seen.append([])
        training.train(run(loss=loss, lr=1e-30), folder, "cpu")
    first = seen[0]
    for loss, steps in zip(LOSSES, seen, strict=True):
        for (batch, values), (same, base) in zip(steps, first, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch[0], same[0], strict=True))
            # The RPN is no part of JOL: it has the same losses, from the same weights and draws.
            assert values["loss_objectness"] == base["loss_objectness"]
            total = sum(values[x] for x in ("loss_classifier", "loss_box_reg"))
            plain = sum(base[x] for x in ("loss_classifier", "loss_box_reg"))
            assert (total > 1.01 * plain) == (loss not in ("base", "base-clip-5", "lam-1")), loss


def test_being_watched_changes_nothing(run, folder, monkeypatch):
    given = run(part="report", loss="jol", steps=4)
    watched, samples = training.train(given, folder, "cpu")
    monkeypatch.setattr(training, "WATCHED", ())
    plain, none = training.train(given, folder, "cpu")
    assert none == [] and {**watched, "seconds": 0} == pytest.approx(
        {**plain, "seconds": 0}, nan_ok=True
    )
    assert {line["step"] for line in samples} == {1, 2, 4}
    for step in (1, 2, 4):
        here = [line for line in samples if line["step"] == step]
        assert sum(line["share"] for line in here) == pytest.approx(100)
        assert all(line["size"] == "t" for line in here if line["objects"])
    assert set(samples[0]) == set(training.SAMPLE_COLUMNS)


def test_a_run_that_diverges_has_no_ap(run, folder):
    found, _ = training.train(run(lr=1e20, steps=4), folder, "cpu")
    assert found["problem"].startswith("step ") and found["AP"] == 0


def test_the_parts_of_scenes_are_different_pictures(folder):
    parts = {part: CocoDetection(folder / part, folder / f"{part}.json") for part in PARTS}
    pictures = {x[i][0].numpy().tobytes() for x in parts.values() for i in range(3)}
    assert len(pictures) == 9
    for x in parts.values():
        assert x.class_names == ["car", "ship", "tank"]


@pytest.fixture
def nuclei(tmp_path):
    """Four sources of two kinds, the last in two tiles; 9 x 6 pixels and a box each."""
    names = ["a", "b", "c", "d_00", "d_01"]
    kinds = ["dark", "light", "dark", "light", "light"]
    for part in ("train", "val"):
        (tmp_path / part / "images").mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
        for number, (name, kind) in enumerate(zip(names, kinds, strict=True), 1):
            image = Image.new("RGB", (9, 6), (10 * number, 0, 0))
            image.putpixel((2, 4), (250, 0, 0))
            image.save(tmp_path / part / "images" / f"{name}.png")
            record = {"id": number, "file_name": f"images/{name}.png", "width": 9, "height": 6}
            content["images"].append(record | {"domain": kind, "source": name[0]})
            box = {"bbox": [2, 2, 5, 3], "area": 15, "category_id": 1, "iscrowd": 0}
            content["annotations"].append(box | {"id": number, "image_id": number})
        (tmp_path / part / f"{part}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("name", ["nuclei", "nuclei-half"])
def test_nuclei_are_tuned_and_reported_on_different_sources(name, nuclei, tmp_path):
    folder = prepare(name, tmp_path / "work", nuclei)
    parts = {part: CocoDetection(folder / part, folder / f"{part}.json") for part in PARTS}
    names = {part: sorted(name[7:-4] for name in x.file_names) for part, x in parts.items()}
    assert names["train"] == ["a", "b", "c", "d_00", "d_01"]
    assert names["tune"] == ["a", "b"] and names["report"] == ["c", "d_00", "d_01"]
    image, target = parts["tune"][0]
    wanted = [2.0, 2, 7, 5] if name == "nuclei" else [1, 1, 3.5, 2.5]
    assert target["boxes"].tolist() == [wanted]
    if name == "nuclei-half":
        assert image.shape == (3, 3, 5)  # half of 9 pixels are 5, of which the last is half there
        # The mean of a bright pixel and three others.
        assert abs(int(image[0, 2, 1]) - (250 + 30) / 4) <= 1 and int(image[0, 0, 0]) == 10


def test_missing_nuclei_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.json: cannot be read; wanted nuclei's"):
        prepare("nuclei", tmp_path / "work", tmp_path)
    assert not (tmp_path / "work" / "data" / "nuclei").exists()
