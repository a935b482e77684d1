"""How large objects and images are: detectors find objects of the sizes they were trained on."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectors.data.dataset import CocoDetection
from detectors.data.object_sizes import box_sizes
from detectors.models.anchor_plans import Layout, image_fit

OFTEN = 1.5
"""How many times as large objects or images may be as in training without a word."""
Scale = dict[str, float | None]
"""Medians in pixels: "objects", sqrt(w h) as the detector gets them; "images", sqrt(w h)."""


def scale_of(dataset: CocoDetection, settings: Mapping[str, Any], *, training: bool) -> Scale:
    """The scale of a data set for a detector with these settings of TrainSettings.

    `training`: of the crops that it is trained on, where it is; else of whole images.
    """
    fit = image_fit(settings["preset"], settings["image_size"], largest=True)
    layout = Layout(fit=fit, crop=settings["crop"] if training else None)
    objects = []
    for index, (width, height) in enumerate(dataset.image_sizes):
        sizes = box_sizes(dataset.annotated(index)["boxes"])
        objects += (sizes * layout.scale(height, width)).tolist()
    return {
        "objects": statistics.median(objects) if objects else None,
        **image_scale(dataset.image_sizes),
    }


def image_scale(sizes: Sequence[tuple[int, int]]) -> Scale:
    """The scale of images of these widths and heights, without their objects."""
    return {"images": statistics.median((w * h) ** 0.5 for w, h in sizes)}


def other_scale(now: Scale, trained: object) -> Iterator[str]:
    """What is of another scale than in training: objects or, if they are not known, images.

    `trained`: what a checkpoint says; nothing comes of one that does not.
    """
    known = trained if isinstance(trained, Mapping) else {}
    for what, name in (("objects", "sqrt(w h) as the detector gets them"), ("images", "sqrt(w h)")):
        here, before = now.get(what), known.get(what)
        if not here or not isinstance(before, int | float) or not before > 0:
            continue
        ratio = here / before
        if not 1 / OFTEN <= ratio <= OFTEN:
            yield (
                f"{what} are {ratio:.2g} times as large as in training: median {name} {here:.0f}, "
                f"was {before:.0f} pixels; detectors find objects of the sizes they were trained on"
            )
        return
