"""`jol export`: every detector's program is loaded back and gives the detector's numbers."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from untrained import CLASSES, write_checkpoint

from detectors.cli import main
from detectors.inference import export
from detectors.models import transform
from detectors.models.presets import DETECTORS

SIZE = (72, 96)


def image(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    """Smooth noise."""
    small = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(small, (height, width), mode="bilinear")[0]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "faster_rcnn")) for n in DETECTORS],
)
def test_loaded_back_it_gives_the_detectors_numbers(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "best.pt", name)
    file, suppress = tmp_path / "it.pt2", torchvision.ops.boxes.batched_nms
    arguments = ["export", "--checkpoint", str(tmp_path / "best.pt"), "--out", str(file)]
    assert main([*arguments, "--image-size", *map(str, SIZE)]) == 0
    assert torchvision.ops.boxes.batched_nms is suppress  # restored
    printed = capfd.readouterr()
    assert printed.err == "" and len(printed.out.splitlines()) == 1
    assert f"{name} for images of 3 x 72 x 96 in {file}" in printed.out
    assert {p.name for p in tmp_path.iterdir()} == {"best.pt", "it.pt2"}

    extra = {"classes.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["classes.json"]) == CLASSES
    for seed in (1, 2):
        with torch.no_grad():
            wanted = model([image(seed)])[0]
        got = program(image(seed))
        assert len(got[0]) == len(wanted["boxes"]) > 20
        assert len(got[2].unique()) > 1 or name == "detectors"  # whose backbone is flatter
        apart = export.difference(got, (wanted["boxes"], wanted["scores"], wanted["labels"]))
        assert apart < 1e-3


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_picture_without_detections(name: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "best.pt", name, score_threshold=0.999999)
    program = export.export(model, SIZE)
    boxes, scores, labels = program.module()(torch.zeros(3, *SIZE))
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_batched_nms_keeps_what_torchvision_keeps() -> None:
    """Also where torchvision's own offsets would round: many classes on a large picture."""
    g = torch.Generator().manual_seed(0)
    for count in (0, 1, 300, 3000):
        low = 2000 * torch.rand(count, 2, generator=g).round(decimals=1)
        boxes = torch.cat([low, low + 4 + 8 * torch.rand(count, 2, generator=g)], 1)
        scores, classes = torch.rand(count, generator=g), torch.arange(count) % 90
        kept = export._batched_nms(boxes, scores, classes, 0.5)
        one_by_one = [
            where[torchvision.ops.nms(boxes[where], scores[where], 0.5)]
            for where in (torch.where(classes == c)[0] for c in range(90))
        ]
        assert kept.sort()[0].tolist() == torch.cat(one_by_one).sort()[0].tolist()
        assert (scores[kept].diff() <= 0).all()


def test_a_detector_that_cannot_be_exported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that branches on its pixels."""
    write_checkpoint(tmp_path / "best.pt", "retinanet")
    resize = transform._Native.resize

    def look(self: transform._Native, image: Tensor, target: Any = None) -> Any:
        return resize(self, image if image.sum() > 0 else image + 1, target)

    monkeypatch.setattr(transform._Native, "resize", look)
    arguments = ["export", "--checkpoint", str(tmp_path / "best.pt"), "--image-size", "72", "72"]
    assert main([*arguments, "--out", str(tmp_path / "it.pt2")]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("jol export: torch.export cannot: ") and "data-dependent" in line
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


class Blobs(nn.Module):
    """Stands for a detector: `count` boxes, moved by `by` pixels."""

    def __init__(self, count: int, by: float) -> None:
        super().__init__()
        self.count, self.by = count, by

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        side = torch.arange(4 * self.count).reshape(-1, 4) * images[0].mean() + self.by
        return [{"boxes": side, "scores": side[:, 0] / 100, "labels": torch.arange(self.count)}]


def test_check_refuses_other_numbers() -> None:
    program = export.export(Blobs(5, 0.0), (48, 56))
    assert export.check(program, Blobs(5, 0.0), (48, 56)) == (5, 0.0)
    for other in (Blobs(5, 0.1), Blobs(6, 0.0), Blobs(0, 0.0)):
        with pytest.raises(export.ExportError, match=r"gives 5 detections where"):
            export.check(program, other, (48, 56))


def test_difference() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12]])
    one = boxes, torch.tensor([0.5, 0.6]), torch.tensor([0, 1])
    flipped = tuple(t.flip(0) for t in one)
    assert export.difference(one, flipped) == 0
    assert export.difference(one, (boxes + 0.25, *one[1:])) == pytest.approx(0.25)
    assert export.difference(one, (boxes, one[1] + 0.01, one[2])) == pytest.approx(1, abs=1e-5)
    assert export.difference(one, (*one[:2], torch.tensor([0, 0]))) == float("inf")
    assert export.difference(one, tuple(t[:1] for t in one)) == float("inf")
    assert export.difference(tuple(t[:0] for t in one), tuple(t[:0] for t in one)) == 0


def test_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_checkpoint(tmp_path / "best.pt", "fcos")
    monkeypatch.setattr(export, "check", lambda *_: (0, 0.0))
    monkeypatch.setattr(export, "export", lambda *_: torch.export.export(Sum(), (torch.ones(2),)))
    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "it.pt2"
    arguments = ["export", "--checkpoint", str(tmp_path / "best.pt"), "--out", str(out)]
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"jol export: {out}: No space left on device\n"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_unusable_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "best.pt", "fcos")
    for out, given, wanted in (
        ("it.pt", [], "ending in .pt2"),
        ("no/it.pt2", [], "in a folder that exists"),
        ("it.pt2", ["--image-size", "64"], "expected 2 arguments"),
        ("it.pt2", ["--checkpoint", str(tmp_path / "none.pt")], "no such file"),
    ):
        arguments = ["export", "--checkpoint", str(tmp_path / "best.pt")]
        assert main([*arguments, "--out", str(tmp_path / out), *given]) == 2
        error = capsys.readouterr().err
        assert wanted in error and len(error.splitlines()) <= 2
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_a_program_says_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    """Pixels of 0 to 255 gave detections of nothing; so did bytes, and NaN none at all."""
    export.save(
        export.export(write_checkpoint(tmp_path / "best.pt", "fcos"), SIZE), CLASSES, tmp_path / "p"
    )
    program = torch.export.load(tmp_path / "p").module()
    good = image(1)
    for bad, wanted in (
        (255 * good, "its values are not RGB in 0 to 1; divide pixels of 0 to 255 by 255"),
        (good.masked_fill(good > good.max() - 1e-6, torch.nan), "its values are not RGB in 0 to 1"),
        (good - 0.6, "its values are not RGB in 0 to 1"),
        ((255 * good).byte(), "dtype mismatch! Expected: Float, Got: unsigned char"),
        (good.double(), "dtype mismatch! Expected: Float, Got: double"),
        (good.half(), "dtype mismatch! Expected: Float"),
        (image(1, 96, 72), r"image.size\(\)\[1\] == 72"),
        (good[:1], r"image.size\(\)\[0\] == 3"),
        (good[None], r"image.size\(\)\[0\] == 3"),
    ):
        with pytest.raises((RuntimeError, AssertionError), match=wanted):
            program(bad)
    assert len(program(good * 1.2 - 0.1)[0]) > 0  # as resizing may overshoot
