"""Which assigner a detector trains with, and with which settings."""

from detectors.assigners.make import make_assigner
from detectors.assigners.names import ASSIGNERS
from detectors.assigners.priors import Assigner
from detectors.models.presets import find_detector

FOR_POINTS = ("atss", "rfla")
"""Assigners that compare objects with something other than the priors' own boxes."""


def choose_assigner(
    detector: str, name: str | None, settings: dict[str, float], preset: str
) -> Assigner | None:
    """The assigner that a detector trains with; None: torchvision's own rule.

    Raises:
        ValueError: an unknown name or setting, or an assigner that the detector cannot take.
    """
    row = find_detector(detector)
    if name is None:
        if settings:
            raise ValueError(f"assigner_settings: got {settings}, wanted none without an assigner")
        name = row.assigner[preset]
        return None if name is None else make_assigner(name)
    if name not in ASSIGNERS:
        raise ValueError(f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}")
    if row.has_points and name not in FOR_POINTS:
        raise ValueError(
            f"assigner: got {name!r} with {detector}, wanted one of {', '.join(FOR_POINTS)} or "
            "none: its points have no boxes to compare"
        )
    return make_assigner(name, **{**row.assigner_settings.get(name, {}), **settings})
