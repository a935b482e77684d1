"""How many detections of an image a detector reports, and of how many candidates."""

from typing import Any

import pytest
from torch import nn

from detectors.models import TWO_STAGE, build_detector
from detectors.models.build import detections_of


def limits(name: str, preset: str, **given: Any) -> tuple[int, int]:
    """Detections of an image, and proposals or boxes of a level in detection."""
    model: Any = build_detector(
        name, 1, preset=preset, backbone="resnet18", backbone_weights="none", **given
    )
    if name in TWO_STAGE:
        stages = getattr(model.roi_heads, "stages", [model.roi_heads])
        (kept,) = {stage.detections_per_img for stage in stages}
        assert model.rpn._pre_nms_top_n["testing"] == model.rpn._post_nms_top_n["testing"]
        candidates = model.rpn._post_nms_top_n["testing"]
    else:
        kept, candidates = model.detections_per_img, model.topk_candidates
    assert detections_of(model) == kept
    return kept, candidates


@pytest.mark.parametrize("name", ["faster_rcnn", "cascade_rcnn", "retinanet", "fcos"])
def test_detections_are_set_with_their_candidates(name: str) -> None:
    torchvision = 1000
    assert limits(name, "torchvision", detections=4000) == (4000, 4000)
    assert limits(name, "torchvision", detections=7) == (7, torchvision)
    assert limits(name, "slim", detections=1500) == (1500, 1500)


@pytest.mark.parametrize(
    ("name", "preset", "wanted"),
    [
        ("faster_rcnn", "torchvision", (100, 1000)),
        ("cascade_rcnn", "torchvision", (100, 1000)),
        ("faster_rcnn", "slim", (1500, 1000)),
        ("faster_rcnn", "paper", (3000, 3000)),
        ("retinanet", "torchvision", (300, 1000)),
        ("retinanet", "slim", (1500, 1500)),
        ("fcos", "torchvision", (100, 1000)),
        ("fcos", "paper", (3000, 3000)),
    ],
)
def test_the_presets_have_their_own_numbers(
    name: str, preset: str, wanted: tuple[int, int]
) -> None:
    assert limits(name, preset) == wanted


def test_training_takes_the_proposals_it_took() -> None:
    """torchvision's 2,000, so that losses and gradients stay torchvision's."""
    wanted = {"torchvision": 2000, "slim": 500, "paper": 3000}
    for preset, number in wanted.items():
        model: nn.Module = build_detector(
            "faster_rcnn", 1, preset=preset, backbone="resnet18", backbone_weights="none"
        )
        rpn: Any = model.rpn
        assert rpn._pre_nms_top_n["training"] == rpn._post_nms_top_n["training"] == number
