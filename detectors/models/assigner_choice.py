"""Which assigner a detector trains with, and with which settings."""

from detectors.assigners.make import make_assigner
from detectors.assigners.priors import Assigner
from detectors.models.compatibility import misfits_of_assigner, refuse
from detectors.models.presets import find_detector


def choose_assigner(
    detector: str, name: str | None, settings: dict[str, float], preset: str
) -> Assigner | None:
    """The assigner that a detector trains with; None: torchvision's own rule.

    Raises:
        ValueError: an unknown name or setting, or an assigner that the detector cannot take.
    """
    row = find_detector(detector)
    refuse(misfits_of_assigner(detector, name, settings))
    if name is None:
        name = row.assigner[preset]
        return None if name is None else make_assigner(name)
    return make_assigner(name, **{**row.assigner_settings.get(name, {}), **settings})
