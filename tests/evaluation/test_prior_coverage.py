"""SimD's constants and positives per size, by hand, by loops and on VisDrone's real boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detectors.assigners import Level, make_assigner
from detectors.data.object_counts import Image
from detectors.evaluation.prior_coverage import (
    make_priors,
    positives,
    resized,
    simd_constants,
    without_positives,
)
from detectors.models.anchor_plans import Layout

VISDRONE = Path(__file__).parents[3] / "shared/data/visdrone_boxes"
needs_visdrone = pytest.mark.skipif(not VISDRONE.is_dir(), reason="VisDrone's boxes are not here")
NATIVE = {"fit": None, "multiple": 1}


def visdrone(split: str) -> list[Image]:
    """Counted objects of the ten classes, without the one of zero size."""
    with np.load(VISDRONE / f"{split}.npz") as file:
        rows, sizes = file["rows"].astype(np.float64), file["wh"].tolist()
    counted = (rows[:, 5] == 1) & (rows[:, 6] >= 1) & (rows[:, 6] <= 10)
    rows = rows[counted & (rows[:, 3:5] > 0).all(axis=1)]
    boxes = torch.from_numpy(rows[:, 1:5])
    boxes[:, 2:] += boxes[:, :2]
    per_image = np.bincount(rows[:, 0].astype(int), minlength=len(sizes)).tolist()
    return [
        (part, (height, width))
        for part, (width, height) in zip(boxes.split(per_image), sizes, strict=True)
    ]


def some_images(seed: int) -> list[Image]:
    random = torch.Generator().manual_seed(seed)
    images = []
    for height, width, count in ((90, 70, 5), (40, 120, 3), (64, 64, 0)):
        corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.9
        size = 2 + torch.rand(count, 2, generator=random) * 30
        images.append((torch.cat([corner, corner + size], dim=1), (height, width)))
    return images


def test_anchors_by_hand():
    layout = Layout(strides=(4, 8), scales=(2.0,), ratios=(0.25, 1.0), offset=0.5, **NATIVE)
    priors, levels = make_priors(layout, 8, 9)
    # stride 4: 2 rows of 3; w = 2 · 4 / sqrt(.25) = 16, h = 4, around (2, 2); then 8 x 8
    assert levels == [Level(12, 2, 45.0), Level(4, 2, 91.0)]
    assert priors[0].tolist() == [-6, 0, 10, 4] and priors[1].tolist() == [-2, -2, 6, 6]
    assert priors[2].tolist() == [-2, 0, 14, 4] and priors[6].tolist() == [-6, 4, 10, 8]
    # stride 8: 1 row of 2, square 16 x 16 around (4, 4)
    assert priors[13].tolist() == [-4, -4, 12, 12] and len(priors) == 16


def test_layout_is_torchvisions_but_for_rounding():
    sides = tuple((8.0 * stride,) for stride in (4, 8, 16, 32, 64))
    generator = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5)
    image = torch.zeros(1, 3, 128, 192)
    features = [torch.zeros(1, 1, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]
    theirs = generator(ImageList(image, [(128, 192)]), features)[0]
    ours, _ = make_priors(Layout(), 128, 192)
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 0.5
    square = slice(1, None, 3)
    assert torch.equal(ours[square], theirs[square])


def test_images_are_resized_to_fit_and_padded():
    box = torch.tensor([[0.0, 0, 700, 525]])
    boxes, size = resized((box, (1050, 1400)), Layout())
    # short side 1050 → 800: scale .762, 1400 → 1067 (1066.7), padded to 1088
    assert size == (800, 1088) and boxes.tolist() == [[0, 0, 533.5, 400]]
    boxes, size = resized((box, (765, 1360)), Layout())
    # long side 1360 → 1333: 765 → 750 (749.8), padded to 768
    assert size == (768, 1344) and boxes[0, 2].item() == pytest.approx(700 * 1333 / 1360)
    boxes, size = resized((box, (765, 1360)), Layout(**NATIVE))
    assert size == (765, 1360) and torch.equal(boxes, box.double())


def constants_by_pairs(images: list[Image], layout: Layout) -> Tensor:
    ratios = []
    for image in images:
        boxes, size = resized(image, layout)
        priors = make_priors(layout, *size)[0].double()
        offset = (boxes[:, None, :2] + boxes[:, None, 2:] - priors[:, :2] - priors[:, 2:]) / 2
        sizes = boxes[:, None, 2:] - boxes[:, None, :2] + priors[:, 2:] - priors[:, :2]
        ratios.append((offset.abs() / sizes).reshape(-1, 2))
    return torch.cat(ratios).mean(dim=0)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(**NATIVE),
        Layout(strides=(8, 16), scales=(2.0, 3.0), offset=0.5, fit=(100, 60), multiple=16),
    ],
)
def test_simd_constants_are_the_mean_over_pairs(layout):
    for seed in range(5):
        images = some_images(seed)
        # an object on a centre of the grid, and one beyond the last
        images.append((torch.tensor([[14.0, 14, 18, 18], [50.0, 50, 90, 90]]), (60, 60)))
        wanted = constants_by_pairs(images, layout)
        assert simd_constants(images, layout) == pytest.approx(wanted.tolist(), rel=1e-6)


def test_simd_constants_by_hand():
    # One anchor of 8 x 8 at (0, 0) and one at (8, 0); an object of 4 x 8 around (2, 4):
    # |dx| = 2 and 6 over 12; |dy| = 4 over 16.
    layout = Layout(strides=(8,), scales=(1.0,), ratios=(1.0,), **NATIVE)
    image = (torch.tensor([[0.0, 0, 4, 8]]), (8, 16))
    assert simd_constants([image], layout) == pytest.approx((1 / 3, 1 / 4))


def test_simd_constants_without_objects():
    with pytest.raises(ValueError, match="got no objects"):
        simd_constants([(torch.zeros(0, 4), (64, 64))])


def test_positives_are_counted_by_size():
    # sizes 7.9, 8, 40 and 96; the assigner gives prior i to object i mod 4, but for the first
    layout = Layout(strides=(8,), ratios=(1.0,), **NATIVE)
    boxes = torch.tensor([[0.0, 0, 7.9, 7.9], [0, 0, 4, 16], [0, 0, 40, 40], [0, 0, 96, 96]])

    def assign(boxes: Tensor, priors: Tensor, levels: list[Level]) -> Tensor:
        index = torch.arange(len(priors)) % 4
        return torch.where(index == 0, -1, index if len(boxes) == 4 else -2)

    empty = (torch.zeros(0, 4), (8, 8))
    buckets = positives([(boxes, (16, 32)), (boxes[:1], (8, 8)), empty], assign, layout)
    assert [bucket.objects for bucket in buckets] == [2, 1, 0, 1, 1]
    assert [bucket.positives for bucket in buckets] == [0, 2, 0, 2, 2]
    # a size without objects is not named
    assert without_positives(buckets) == ["<8 px"]
    strict = make_assigner("iou", min_low_quality=None)
    assert without_positives(positives([(boxes, (96, 96))], strict, layout)) == [
        "<8 px",
        "8-16 px",
        "32-96 px",
        ">=96 px",
    ]


@needs_visdrone
def test_simd_constants_of_visdrone():
    m, n = simd_constants(visdrone("train") + visdrone("val"))
    assert round(m, 3) == 6.126 and round(n, 2) == 4.04


TABLE = {
    "iou": (0, 0, 5.89, 4.02, 3.18),
    "simd": (0, 0, 0.39, 0.81, 0.98),
    "nwd-rka": (1.85, 1.90, 1.99, 2.00, 2.00),
    "rfla": (2.64, 2.82, 3.03, 3.13, 3.04),
}


@pytest.mark.slow
@needs_visdrone
@pytest.mark.parametrize("name", TABLE)
def test_positives_of_visdrone(name):
    images = visdrone("val")[::12]
    assert len(images) == 46 and sum(len(boxes) for boxes, _ in images) == 3314
    layout = Layout(ratios=(1.0,)) if name == "rfla" else Layout()
    buckets = positives(images, make_assigner(name), layout)
    assert [bucket.positives for bucket in buckets] == pytest.approx(TABLE[name], rel=0.1)
    tiny = ["<8 px", "8-16 px"]
    assert without_positives(buckets) == (tiny if name in ("iou", "simd") else [])


@needs_visdrone
def test_thresholds_alone_give_simd_almost_nothing():
    """Two images: without low-quality matches hardly an object has a prior .7 alike."""
    images = visdrone("val")[:24:12]
    every, strict = (
        positives(images, make_assigner("simd", min_low_quality=bar)) for bar in (0.3, None)
    )
    assert without_positives(strict)[:2] == ["<8 px", "8-16 px"]
    for bucket, alone in zip(every[2:4], strict[2:4], strict=True):
        assert alone.positives < 0.25 < bucket.positives
