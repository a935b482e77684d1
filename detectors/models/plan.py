"""What build_detector tells a detector's `build`, once it has checked it."""

from dataclasses import dataclass
from typing import Any

from detectors.assigners.priors import Assigner
from detectors.models.anchor_plans import AnchorPlan


@dataclass(frozen=True)
class Plan:
    """How to build a detector.

    Attributes:
        preset: one of PRESETS.
        num_classes: K, without the background.
        assign: what its priors are trained on; None: torchvision's own rule.
        anchors: its pyramid's strides and its priors.
        centreness_weights: whether box losses are weighed by centreness.
        score_threshold: least score of a detection.
        choices: what JointOptimizationLoss takes: lam, location_score, weighting, sync_group, ...
    """

    preset: str
    num_classes: int
    assign: Assigner | None
    anchors: AnchorPlan
    centreness_weights: bool
    score_threshold: float
    choices: dict[str, Any]


def detections_kept(plan: Plan) -> dict[str, Any]:
    """The detections a one-stage detector keeps of an image, if not as many as torchvision."""
    if plan.preset == "torchvision":
        return {}
    most = 3000 if plan.preset == "paper" else 1500
    return {"detections_per_img": most, "topk_candidates": most}
