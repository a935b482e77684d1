"""What `jol data stats` prints: objects and their sizes, SimD's constants, positives by size."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from detectors.assigners.priors import Assigner, Level
from detectors.assigners.similarities import centres
from detectors.data.object_counts import Image, Pool, not_counted, sizes
from detectors.evaluation.prior_coverage import (
    Bucket,
    positives,
    simd_constants,
    size_name,
    without_positives,
)
from detectors.models.anchor_plans import Layout
from detectors.models.assigner_choice import choose_assigner
from detectors.models.fcos import centre_sampling, inside_only
from detectors.models.presets import DETECTORS
from detectors.utils.progress import Progress

LIMITS = (0.0, 8.0, 16.0, 32.0, float("inf"))
"""Limits of the native sizes."""
LOW_QUALITY = "min_low_quality"


def describe(pool: Pool) -> Iterator[str]:
    """The lines on images, objects, sizes and classes."""
    size, relative = sizes(pool)
    bucket = torch.bucketize(size, size.new_tensor(LIMITS[1:-1]), right=True)
    shares = torch.bincount(bucket, minlength=len(LIMITS) - 1) / len(size)
    yield f"{len(pool.images):,} images, {len(size):,} objects; {not_counted(pool)}"
    yield ""
    yield "Row of the paper's Table 1; sizes: means of sqrt(w h) and of sqrt(w h / (W H)), the"
    yield "latter by our definition: the paper's was not found"
    yield _row("", ["images", "instances", "absolute", "relative"])
    cells = [f"{len(pool.images):,}", f"{len(size):,}", f"{size.mean():.1f}"]
    yield _row("", [*cells, f"{relative.mean():.4f}"])
    yield ""
    yield "Size sqrt(w h) in pixels of the images as they are"
    yield f"  mean {size.mean():.2f} ± {size.std(correction=0):.2f}"
    yield _row("", [size_name(*limits) for limits in pairwise(LIMITS)])
    yield _row("share of the objects", [f"{100 * share:.1f} %" for share in shares.tolist()])
    yield ""
    wide = max(map(len, pool.classes))
    yield "Objects of each class"
    for name, count in pool.classes.items():
        yield f"  {name:{wide}}  {count:9,}"


def describe_simd(pool: Pool, detector: str, layout: Layout) -> Iterator[str]:
    """The lines on SimD's m and n, written as --assigner-settings takes them."""
    yield "SimD's constants"
    if DETECTORS[detector].has_points:
        yield f"  none with {detector}, whose points have no boxes to compare"
        return
    m, n = simd_constants(pool.images, layout)
    yield f"  {_words(detector, layout)}"
    yield f"  m={m:.3f} n={n:.3f}"


def pick_assigner(
    detector: str, name: str | None, settings: Mapping[str, float]
) -> tuple[str, Assigner]:
    """The assigner that `detector` would train with, and its name; None: the detector's own.

    Raises:
        ValueError: an unknown name or setting, or one that cannot be used.
    """
    own = DETECTORS[detector].has_points and name is None
    assign = choose_assigner(detector, name if own else name or "iou", dict(settings), "paper")
    return ("centre sampling", centre_sampling) if assign is None else (name or "iou", assign)


def describe_positives(
    pool: Pool, detector: str, name: str, assign: Assigner, layout: Layout, every: int
) -> Iterator[str]:
    """The table of the positives an object gets by size, and which sizes get none."""
    images = pool.images[::every]
    settings = {
        key: parameter.default
        for key, parameter in inspect.signature(assign).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    rules = {name: assign}
    if LOW_QUALITY in settings:
        rules = {
            "with low-quality matches": assign,
            "without them": partial(assign, **{LOW_QUALITY: None}),
        }
    counted: dict[str, list[Bucket]] = {}
    points = DETECTORS[detector].has_points
    with Progress("assigning", 0, len(rules) * len(images), quiet=True) as progress:
        for done, (label, rule) in enumerate(rules.items()):
            seen = _ticking(images, progress, done * len(images))
            counted[label] = positives(seen, _at_points(rule) if points else rule, layout)
    buckets = next(iter(counted.values()))

    yield "Positives an object gets, by its size sqrt(w h) in pixels of the resized image"
    yield f"  {_words(detector, layout)}"
    if settings:
        values = {k: "none" if v is None else f"{v:g}" for k, v in settings.items()}
        yield f"  {name}: " + " ".join(f"{key}={value}" for key, value in values.items())
    if every > 1:
        yield f"  image 1 of every {every}: {len(images):,} of {len(pool.images):,}"
    yield _row("", [bucket.name for bucket in buckets])
    yield _row("objects", [f"{bucket.objects:,}" for bucket in buckets])
    for label, found in counted.items():
        yield _row(label, [_mean(bucket) for bucket in found])
    yield ""
    for label, found in counted.items():
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


def _words(detector: str, layout: Layout) -> str:
    what = "points" if DETECTORS[detector].has_points else "anchors"
    scales = " ".join(f"{scale:.3g}" for scale in layout.scales)
    long, short = layout.fit or (0, 0)
    return f"{detector}'s {what} (preset paper): scale {scales}, images resized to {long} x {short}"


def _row(label: str, cells: Iterable[str]) -> str:
    return f"  {label:24}" + "".join(f"{cell:>11}" for cell in cells)
