"""What a detector is built from: build_detector's arguments, checked and completed."""

from dataclasses import dataclass
from typing import Any

from detectors.assigners.priors import Assigner
from detectors.models.anchor_plans import AnchorPlan


@dataclass(frozen=True)
class Plan:
    """Argument of a detector's `build`.

    Attributes:
        preset: one of PRESETS.
        num_classes: K, without the background.
        assign: the assigner; None: torchvision's own rule.
        anchors: its pyramid's strides and its priors.
        centreness_weights: whether box losses are weighted by centreness.
        score_threshold: least score of a detection.
        detections: most detections of an image.
        candidates: least number of proposals or, of a level, boxes that they are chosen from.
        choices: arguments of JointOptimizationLoss: classification, regression, lam, ...
    """

    preset: str
    num_classes: int
    assign: Assigner | None
    anchors: AnchorPlan
    centreness_weights: bool
    score_threshold: float
    detections: int
    candidates: int
    choices: dict[str, Any]


def detections_kept(plan: Plan) -> dict[str, Any]:
    """Most detections of an image for a one-stage detector."""
    own = {"torchvision": 1000, "paper": 3000, "slim": 1500}[plan.preset]
    return {
        "detections_per_img": plan.detections,
        "topk_candidates": max(own, plan.candidates),
    }
