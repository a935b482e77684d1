"""The presets of the detectors: what each means by its name."""

from dataclasses import dataclass
from typing import Any

from detectors.assigners.priors import Assigner
from detectors.models.anchor_plans import AnchorPlan

PRESETS = ("torchvision", "paper", "slim")
LOSSES = ("base", "jol")
WEIGHTS = {"torchvision": "imagenet", "paper": "imagenet", "slim": "none"}
"""Preset → backbone weights."""


def default_backbone(name: str, preset: str) -> str:
    """The backbone of a detector where none is named."""
    if preset == "slim":
        return "resnet14" if name == "detectors" else "resnet18"
    return "resnet50"


@dataclass(frozen=True)
class Plan:
    """What the builders are told."""

    preset: str
    num_classes: int
    assign: Assigner | None
    anchors: AnchorPlan
    centreness_weights: bool
    score_threshold: float
    choices: dict[str, Any]


def detections_kept(plan: Plan) -> dict[str, Any]:
    """How many detections a one-stage detector keeps of an image, where not torchvision's."""
    if plan.preset == "torchvision":
        return {}
    most = 3000 if plan.preset == "paper" else 1500
    return {"detections_per_img": most, "topk_candidates": most}
