"""Which assigner a detector trains with, and with which settings."""

from detectors.assigners.make import ASSIGNERS, make_assigner
from detectors.assigners.priors import Assigner
from detectors.models.anchor_plans import TWO_STAGE

FOR_FCOS = ("atss", "rfla")
FOR_RETINANET: dict[str, dict[str, float]] = {
    **{
        name: {"high": 0.5, "low": 0.4, "min_low_quality": 0.0}
        for name in ("iou", "simd", "nwd", "dotd")
    },
    "nwd-rka": {"k": 3},
}
"""Assigner → its settings in RetinaNet where they are not an RPN's."""


def choose_assigner(
    detector: str, name: str | None, settings: dict[str, float], preset: str
) -> Assigner | None:
    """The assigner that a detector trains with; None: torchvision's own.

    Raises:
        ValueError: an unknown name or setting, or an assigner that the detector cannot take.
    """
    if name is None:
        if settings:
            raise ValueError(f"assigner_settings: got {settings}, wanted none without an assigner")
        return make_assigner("iou") if preset == "paper" and detector in TWO_STAGE else None
    if name not in ASSIGNERS:
        raise ValueError(f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}")
    if detector == "fcos" and name not in FOR_FCOS:
        raise ValueError(
            f"assigner: got {name!r} with fcos, wanted one of {', '.join(FOR_FCOS)} or none: its "
            "points have no boxes to compare"
        )
    if detector == "retinanet":
        settings = FOR_RETINANET.get(name, {}) | settings
    return make_assigner(name, **settings)
