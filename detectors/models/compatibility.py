"""Which settings a detector takes together, for build_detector and for the command line.

Nothing here imports torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from detectors.assigners.names import ASSIGNERS
from detectors.models.presets import BOTTLENECKS, DETECTORS, Detector, find_detector
from jolkernels.registry import resolve
from jolkernels.spec import CHOICES

FOR_POINTS = ("atss", "rfla")
"""Assigners that compare objects with something other than the priors' own boxes."""


def misfits(
    detector: str,
    preset: str,
    *,
    assigner: str | None = None,
    assigner_settings: Mapping[str, float] | None = None,
    backbone: str | None = None,
    backbone_weights: object = None,
    classification: str | None = None,
    anchor_scale: float | None = None,
    anchor_ratios: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    centreness_weights: bool | None = None,
    **_: object,
) -> Iterator[str]:
    """What is wrong with these arguments of build_detector taken together, a line each.

    Raises:
        ValueError: no such detector.
    """
    row = find_detector(detector)
    if row.bottlenecks and backbone is not None and backbone not in BOTTLENECKS:
        yield (
            f"backbone: got {backbone!r} with {detector}, wanted one of {', '.join(BOTTLENECKS)}, "
            "which have Bottleneck blocks"
        )
    if preset == "slim" and backbone_weights == "imagenet":
        yield "backbone_weights: ImageNet's batch norm does not fit preset slim's GroupNorm"
    yield from misfits_of_loss(detector, classification)
    yield from misfits_of_anchors(detector, assigner, anchor_scale, anchor_ratios, strides)
    yield from misfits_of_assigner(detector, assigner, assigner_settings)
    if centreness_weights is not None and row.centreness_weights is None:
        able = ", ".join(n for n, other in DETECTORS.items() if other.centreness_weights)
        yield f"centreness_weights: got {centreness_weights}, wanted none but with {able}"


def misfits_of_loss(detector: str, classification: str | None) -> Iterator[str]:
    """What is wrong with this class loss for the detector."""
    kind, softmax = "classification", not find_detector(detector).one_stage
    if classification is not None and resolve(kind, classification).softmax != softmax:
        able = [name for name in CHOICES[kind] if resolve(kind, name).softmax == softmax]
        yield (
            f"{kind}: got {classification!r} with {detector}, wanted one of {', '.join(able)}: its "
            f"head has {'a' if softmax else 'no'} column for the background"
        )


def misfits_of_assigner(
    detector: str, name: str | None, settings: Mapping[str, float] | None
) -> Iterator[str]:
    """What is wrong with an assigner of this name for the detector."""
    if name is None and settings:
        yield f"assigner_settings: got {dict(settings)}, wanted none without an assigner"
    if name is not None and name not in ASSIGNERS:
        yield f"assigner: got {name!r}, wanted one of {', '.join(ASSIGNERS)}"
    elif name is not None and name not in FOR_POINTS and find_detector(detector).has_points:
        yield (
            f"assigner: got {name!r} with {detector}, wanted one of {', '.join(FOR_POINTS)} or "
            "none: its points have no boxes to compare"
        )


def misfits_of_anchors(
    detector: str,
    assigner: str | None,
    scale: float | None,
    ratios: Sequence[float] | None,
    strides: Sequence[int] | None,
) -> Iterator[str]:
    """What is wrong with these anchors for the detector."""
    row = find_detector(detector)
    if scale is not None and (row.has_points or not 0.25 <= scale < math.inf):
        wanted = f"none: {detector} has no anchors" if row.has_points else "at least 0.25"
        yield f"anchor_scale: got {scale}, wanted {wanted}"
    if ratios is not None and (row.has_points or assigner == "rfla"):
        who = detector if row.has_points else "rfla"
        yield f"anchor_ratios: got {ratios}, wanted none with {who}"
    elif ratios is not None and not (
        isinstance(ratios, Sequence) and ratios and all(0 < r < math.inf for r in ratios)
    ):
        yield f"anchor_ratios: got {ratios}, wanted one or more numbers > 0"
    if strides is not None:
        yield from _misfits_of_strides(detector, row, strides)


def _misfits_of_strides(detector: str, row: Detector, strides: Any) -> Iterator[str]:
    found = tuple(strides) if isinstance(strides, Sequence) else (strides,)
    if not row.last_strides:
        yield f"strides: got {found}, wanted none with {detector}: they are fixed"
        return
    *others, last = row.last_strides
    doubled = all(type(s) is int for s in found) and all(b == 2 * a for a, b in pairwise(found))
    if len(found) < 2 or not doubled or found[0] not in (4, 8) or found[-1] not in (*others, last):
        yield (
            f"strides: got {found}, wanted two or more, each twice the one before, from 4 or 8 to "
            f"{', '.join(map(str, others))} or {last} with {detector}"
        )


def refuse(problems: Iterable[str]) -> None:
    """Raise ValueError with the first problem, if there is one."""
    for problem in problems:
        raise ValueError(problem)
