"""Whether the boxes of a file, taken together, are x, y, width and height in pixels.

A single box that leaves its image is cut off and counted. Where most of them do, the numbers mean
something else, and what they would fit is the likely cause.
"""

from collections.abc import Callable, Sequence

Box = tuple[float, float, float, float, int, int]
"""x, y, w, h as the file has them, of positive size, and width and height of their image."""

OVERHANG = 2.0
"""Pixels that a box may leave its image by without counting as leaving."""
FITTING = 0.95
"""The share of the boxes that a reading of the numbers has to fit to be the likely cause."""
FEWEST, FEWEST_CORNERS = 10, 5
"""Fewer boxes than this are not judged; for corners, a few are enough. Two or three large objects
that are cut off at the right and below fit as corners by chance."""
SUSPECT = 3
"""N boxes that leave their image are worth a remark if all fit another reading."""
PERCENT = 100.0
LARGE = 300
"""Pixels: no object beyond the first hundred of the sides of such images is odd."""


def _leaves(box: Box) -> bool:
    x, y, w, h, width, height = box
    return x < -OVERHANG or y < -OVERHANG or x + w > width + OVERHANG or y + h > height + OVERHANG


def _stays(box: Box) -> bool:
    return not _leaves(box)


def _as_corners(box: Box) -> bool:
    x1, y1, x2, y2, width, height = box
    return x2 > x1 and y2 > y1 and not _leaves((x1, y1, x2 - x1, y2 - y1, width, height))


def _as_centre(box: Box) -> bool:
    x, y, w, h, width, height = box
    return not _leaves((x - w / 2, y - h / 2, w, h, width, height))


def _as_exchanged(box: Box) -> bool:
    x, y, w, h, width, height = box
    return not _leaves((x, y, w, h, height, width))


_READINGS: tuple[tuple[Callable[[Box], bool], str, int], ...] = (
    (_as_corners, "they would fit as corners x1, y1, x2, y2", FEWEST_CORNERS),
    (_as_centre, "they would fit as centre and size", FEWEST),
    (
        _as_exchanged,
        "they would fit with x and y, or width and height of the images, exchanged",
        FEWEST,
    ),
)
"""Another meaning of the numbers: whether a box fits it, in words, how many boxes it takes."""


def fault(boxes: Sequence[Box]) -> str | None:
    """What is wrong with the boxes as a whole, and its likely cause; None: they make sense."""
    if boxes and _are_fractions(boxes):
        return (
            "all boxes are numbers from 0 to 1: fractions of the image; wanted x, y, width and "
            "height in pixels"
        )
    leaving = sum(map(_leaves, boxes))
    if 2 * leaving <= len(boxes):
        return None
    cause = _reading(boxes, FITTING)
    if cause is None:
        if len(boxes) < FEWEST:
            return None
        wide, high = (max(box[k] + box[k + 2] for box in boxes) for k in (0, 1))
        cause = f"they reach to {wide:g} x {high:g}: are they those of images of another size?"
    return (
        f"{leaving:,} of {len(boxes):,} boxes leave their image, wanted x, y, width and height in "
        f"pixels; {cause}"
    )


def doubt(boxes: Sequence[Box]) -> str | None:
    """What is odd about boxes that make sense as they are."""
    leaving = sum(map(_leaves, boxes))
    cause = _reading(boxes, 1) if leaving >= SUSPECT else None
    if cause is not None:
        return f"{leaving:,} of {len(boxes):,} boxes leave their image; {cause}"
    if len(boxes) >= 2 * FEWEST and min(min(box[4:]) for box in boxes) >= LARGE:
        farthest = max(max(box[0] + box[2], box[1] + box[3]) for box in boxes)
        whole = all(number == int(number) for box in boxes for number in box[:4])
        if PERCENT / 2 < farthest <= PERCENT and not whole:
            return "no box goes beyond 100 pixels: are they percentages of the image?"
    return None


def _reading(boxes: Sequence[Box], share: float) -> str | None:
    """In words the first other meaning that this share of the boxes fits."""
    for fits, words, fewest in _READINGS:
        if len(boxes) >= fewest and sum(map(fits, boxes)) >= share * len(boxes):
            return words
    return None


def _are_fractions(boxes: Sequence[Box]) -> bool:
    """Whether all numbers are from 0 to 1, some of them not whole, and boxes of a 1 x 1 image.

    The others with such numbers are boxes of a pixel or less.
    """
    if not all(min(box[:4]) >= 0 and max(box[:4]) <= 1 < min(box[4:]) for box in boxes):
        return False
    if all(number == int(number) for box in boxes for number in box[:4]):
        return False
    shares = [(100 * x, 100 * y, 100 * w, 100 * h, 100, 100) for x, y, w, h, *_ in boxes]
    return any(
        sum(map(fits, shares)) >= FITTING * len(shares)
        for fits in (_stays, _as_corners, _as_centre)
    )
