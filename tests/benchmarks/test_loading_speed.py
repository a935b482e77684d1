"""The loader's benchmark: the mosaics that it makes, and that it runs."""

import sys
from pathlib import Path

import pytest

from bench import loading_speed
from detectors.data import CocoDetection
from detectors.data.synthetic import write_scenes


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_mosaics_show_the_images_and_their_boxes(tmp_path: Path, suffix: str) -> None:
    scenes = CocoDetection(*write_scenes(tmp_path / "scenes", images=3, seed=0, size=300))
    (tmp_path / "mosaics").mkdir()
    made = CocoDetection(*loading_speed.write_mosaics(scenes, tmp_path / "mosaics", 400, 2, suffix))
    assert len(made) == 2 and made.class_names == scenes.class_names
    image, target = made[0]
    assert image.shape == (3, 400, 400) and made.skipped == []
    # the second image, cut off at the right: it begins at 256 and ends at 400
    second, boxes = scenes[1]
    error = (image[:, :256, 256:].float() - second[:, :256, :144].float()).abs()
    assert error.mean() < (8 if suffix == "jpg" else 1e-9)
    whole = [b for b in boxes["boxes"].tolist() if b[2] <= 144 and b[3] <= 256]
    there = target["boxes"].tolist()
    assert whole and all([x1 + 256, y1, x2 + 256, y2] in there for x1, y1, x2, y2 in whole)


def test_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, annotations = write_scenes(tmp_path, images=2, seed=0, size=64)
    words = ["--images", str(images), "--annotations", str(annotations), "--workers", "0"]
    small = ["--mosaic", "64", "--mosaics", "3", "--count", "8", "--rounds", "2", "--crop", "0"]
    monkeypatch.setattr(sys, "argv", ["bench.loading_speed", *words, *small])
    loading_speed.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("0 workers: ") and len(line.split("(")[1].split()) == 2
    assert float(line.split()[2]) > 0
