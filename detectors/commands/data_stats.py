"""What `jol data stats` prints: objects and their sizes, SimD's constants, positives by size."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from detectors.assigners.make import make_assigner
from detectors.assigners.priors import Assigner, Level
from detectors.assigners.similarities import centres
from detectors.data.object_counts import Image, Pool, not_counted, sizes
from detectors.data.object_sizes import LIMITS, size_name, size_range
from detectors.evaluation.prior_coverage import (
    Bucket,
    positives,
    simd_constants,
    without_positives,
)
from detectors.models.anchor_plans import Layout
from detectors.models.assigner_choice import choose_assigner
from detectors.models.fcos import centre_sampling, inside_only
from detectors.models.presets import DETECTORS
from detectors.training.settings import TrainSettings
from detectors.utils.names import shortened
from detectors.utils.printable import counted
from detectors.utils.progress import Progress
from detectors.utils.text_tables import aligned

LOW_QUALITY = "min_low_quality"


def describe(pool: Pool) -> Iterator[str]:
    """The lines on images, objects, sizes and classes."""
    size, relative = sizes(pool)
    shares = torch.bincount(size_range(size), minlength=len(LIMITS) - 1) / len(size)
    held = f"{counted(len(pool.images), 'image')}, {counted(len(size), 'object')}"
    yield f"{held}; {not_counted(pool)}"
    yield ""
    yield "Row of the paper's Table 1; sizes: means of sqrt(w h) and of sqrt(w h / (W H)), the"
    yield "latter by our definition: the paper's was not found"
    cells = [f"{len(pool.images):,}", f"{len(size):,}", f"{size.mean():.1f}"]
    cells.append(f"{relative.mean():.4f}")
    yield from _table([["images", "instances", "absolute", "relative"], cells], labels=0)
    yield ""
    yield "Size sqrt(w h) in pixels of the images as they are"
    yield f"  mean {size.mean():.2f} ± {size.std(correction=0):.2f}"
    names = [size_name(*limits) for limits in pairwise(LIMITS)]
    cells = [f"{100 * share:.1f} %" for share in shares.tolist()]
    yield from _table([["", *names], ["share of the objects", *cells]])
    yield ""
    yield "Objects of each class"
    yield from _table([[shortened(name), f"{count:,}"] for name, count in pool.classes.items()])


def describe_simd(pool: Pool, settings: TrainSettings, layout: Layout) -> Iterator[str]:
    """The lines on SimD's m and n, written as --assigner-settings takes them."""
    yield "SimD's constants"
    if DETECTORS[settings.detector].has_points:
        yield f"  none with {settings.detector}, whose points have no boxes to compare"
        return
    m, n = simd_constants(pool.images, layout)
    yield f"  {_words(settings, layout)}"
    yield f"  m={m:.3f} n={n:.3f}"


def pick_assigner(
    detector: str, name: str | None, settings: Mapping[str, float], preset: str
) -> tuple[str, Assigner]:
    """The assigner that `detector` would train with, and its name; None: the detector's own.

    Raises:
        ValueError: an unknown name or setting, or one that cannot be used.
    """
    row = DETECTORS[detector]
    if settings and not row.has_points:
        name = name or "iou"
    assign = choose_assigner(detector, name, dict(settings), preset)
    if assign is None and row.has_points:
        return "centre sampling", partial(_centre_sampling, row.scale[preset] or 1.0)
    if assign is None:  # torchvision's own rule
        lowest = {"min_low_quality": 0.0}
        assign = make_assigner("iou", **{**lowest, **row.assigner_settings.get("iou", {})})
    return name or "iou", assign


def _centre_sampling(
    scale: float, boxes: Tensor, priors: Tensor, levels: Sequence[Level]
) -> Tensor:
    """FCOS's rule with ranges that are measured in `scale` strides and a radius of 1.5 strides."""
    middle, half = centres(priors), scale * (priors[:, 2:] - priors[:, :2]) / 2
    squares = torch.cat([middle - half, middle + half], 1).to(priors.dtype)
    return centre_sampling(boxes, squares, levels, 1.5 / scale)


def describe_positives(
    pool: Pool,
    settings: TrainSettings,
    name: str,
    assign: Assigner,
    layout: Layout,
    every: int,
) -> Iterator[str]:
    """The table of the positives an object gets by size, and which sizes get none."""
    images = pool.images[::every]
    numbers = {
        key: parameter.default
        for key, parameter in inspect.signature(assign).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    rules = {name: assign}
    if LOW_QUALITY in numbers:
        rules = {
            "with low-quality matches": assign,
            "without them": partial(assign, **{LOW_QUALITY: None}),
        }
    by_rule: dict[str, list[Bucket]] = {}
    points = DETECTORS[settings.detector].has_points
    with Progress("assigning", 0, len(rules) * len(images), quiet=True) as progress:
        for done, (label, rule) in enumerate(rules.items()):
            seen = _ticking(images, progress, done * len(images))
            by_rule[label] = positives(seen, _at_points(rule) if points else rule, layout)
    buckets = next(iter(by_rule.values()))

    yield "Positives an object gets, by its size sqrt(w h) in pixels of the resized image"
    yield f"  {_words(settings, layout)}"
    losses = settings.classification or "its own", settings.regression or "its own"
    yield f"  losses of the head: {' and '.join(losses)}"
    if numbers:
        values = {k: "none" if v is None else f"{v:g}" for k, v in numbers.items()}
        yield f"  {name}: " + " ".join(f"{key}={value}" for key, value in values.items())
    if every > 1:
        yield f"  image 1 of every {every}: {len(images):,} of {len(pool.images):,}"
    rows = [["", *(bucket.name for bucket in buckets)]]
    rows.append(["objects", *(f"{bucket.objects:,}" for bucket in buckets)])
    rows += [[label, *map(_mean, found)] for label, found in by_rule.items()]
    yield from _table(rows)
    yield ""
    yield f"As jol train with these arguments: preset {settings.preset}, {_images(layout)}."
    for label, found in by_rule.items():
        which = "" if label == name else f" {label}"
        if any(bucket.objects for bucket in found):
            yield _sentence(name, which, without_positives(found))
        else:
            yield "These images hold no objects."


def _sentence(name: str, which: str, empty: Sequence[str]) -> str:
    if not empty:
        return f"{name}{which}: objects of every size get positives."
    sizes = " and ".join([", ".join(empty[:-1]), empty[-1]] if len(empty) > 1 else empty)
    return f"{name}{which}: objects of {sizes} get no positives."


def _mean(bucket: Bucket) -> str:
    """0 only where there is none at all; a dash where there are no objects."""
    if not bucket.objects:
        return "-"
    return f"{bucket.positives:.2f}" if bucket.positives else "0"


def _at_points(assign: Assigner) -> Assigner:
    """As FCOS is trained: a point outside the object it is matched to is ignored."""

    def inside(boxes: Tensor, priors: Tensor, levels: Sequence[Level]) -> Tensor:
        return inside_only(assign(boxes, priors, levels), boxes, centres(priors))

    return inside


def _ticking(images: Iterable[Image], progress: Progress, done: int) -> Iterator[Image]:
    for number, image in enumerate(images, start=done + 1):
        yield image
        progress.step(number)


def _words(settings: TrainSettings, layout: Layout) -> str:
    detector = settings.detector
    what = "points" if DETECTORS[detector].has_points else "anchors"
    sizes = "scale " + " ".join(f"{scale:.3g}" for scale in layout.scales)
    if not layout.scales:
        sizes = f"{layout.sizes[0][0]:g} to {layout.sizes[-1][-1]:g} pixels by level"
    return f"{detector}'s {what} (preset {settings.preset}): {sizes}, {_images(layout)}"


def _images(layout: Layout) -> str:
    """How images come to the detector."""
    what = f"crops of {layout.crop} x {layout.crop}" if layout.crop else "images"
    if layout.fit is None:
        return f"{what} as they are"
    return f"{what} resized to {max(layout.fit)} x {min(layout.fit)}"


def _table(rows: Iterable[Sequence[str]], labels: int = 1) -> Iterator[str]:
    return (f"  {line}" for line in aligned(rows, labels))
