"""A picture with its detections drawn into it: boxes with class and score, a legend below.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, without the blue that is
hard to read on black; where there are more classes than colours, the lines are dashed. Everything
is drawn on an enlarged picture and around the boxes, so that objects of a few pixels stay in sight.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detectors.utils.palette import GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION, YELLOW

COLOURS = (ORANGE, SKY_BLUE, YELLOW, PURPLE, GREEN, VERMILION)
DASHES = ((1, 0), (7, 5), (3, 3))
"""Pixels drawn and left out along a line: of the first classes, of those after them, ..."""
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
FONT_SIZE = 13
READABLE = 40
"""Pixels that an object of the median size gets by enlarging, where LARGEST allows it."""
LARGEST = 2400
"""Pixels a side that enlarging does not go beyond."""
NARROWEST = 320
"""Pixels: room for a legend."""
DARK = (20, 20, 20)
Rectangle = tuple[float, float, float, float]


def draw_detections(
    image: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, class_names: Sequence[str]
) -> Image.Image:
    """The image, enlarged by a whole number, with all these detections and a legend below.

    Texts stand beside their boxes where they cover no box and no other text; in a crowd a score
    alone, or nothing, is left of those with lower scores.

    Args:
        image: uint8 [3, H, W].
        boxes: [n, 4] x1 y1 x2 y2 in pixels of the image.
        scores: [n].
        labels: [n], 0-based.
        class_names: label → name.
    """
    scale = enlargement(boxes, (image.shape[2], image.shape[1]))
    pixels = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    width, height = pixels.width * scale, pixels.height * scale
    pixels = pixels.resize((width, height), Image.Resampling.NEAREST)
    rows = _legend_rows(class_names, labels.tolist(), max(width, NARROWEST))
    line = FONT_SIZE + 9
    canvas = Image.new("RGB", (max(width, NARROWEST), height + line * len(rows)), DARK)
    canvas.paste(pixels, (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.truetype(FONT, FONT_SIZE)
    order = scores.argsort(descending=True, stable=True)
    frames = [_frame(box, scale) for box in boxes[order].tolist()]
    kinds, values = labels[order].tolist(), scores[order].tolist()
    for frame, label in reversed(list(zip(frames, kinds, strict=True))):  # the surest on top
        _box(draw, frame, label)
    taken = _Taken(width, height, frames)
    for frame, label, score in zip(frames, kinds, values, strict=True):
        _text(draw, frame, label, (f"{class_names[label]} {score:.2f}", f"{score:.2f}"), taken)
    for number, row in enumerate(rows):
        _legend(draw, row, height + number * line)
    return canvas


def enlargement(boxes: Tensor, size: tuple[int, int]) -> int:
    """How many times to enlarge a picture of this (width, height): 1, 2, ..."""
    if not len(boxes):
        return 1
    side = float((boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1).sqrt().median())
    return max(1, min(round(READABLE / side), LARGEST // max(size)))


def _frame(box: Sequence[float], scale: int) -> Rectangle:
    """Pixels of the enlarged picture that are just outside the box."""
    x1, y1, x2, y2 = (round(v * scale) for v in box)
    return x1 - 2, y1 - 2, x2 + 1, y2 + 1


def _box(draw: ImageDraw.ImageDraw, frame: Rectangle, label: int) -> None:
    """Two pixels of the class's colour outwards from `frame`, in between two dark ones."""
    x1, y1, x2, y2 = map(int, frame)
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=DARK, width=4)
    colour, dash = _style(label)
    for start, end in _strokes(x1 - 1, x2 + 1, *dash):
        for y in (y1 - 1, y2):
            draw.rectangle((start, y, end, y + 1), fill=colour)
    for start, end in _strokes(y1 - 1, y2 + 1, *dash):
        for x in (x1 - 1, x2):
            draw.rectangle((x, start, x + 1, end), fill=colour)


def _strokes(start: int, end: int, drawn: int, left_out: int) -> Iterator[tuple[int, int]]:
    """The first and the last pixel of each piece of a line."""
    if not left_out:
        yield start, end
        return
    for at in range(start, end + 1, drawn + left_out):
        yield at, min(at + drawn - 1, end)


def _style(label: int) -> tuple[str, tuple[int, int]]:
    return COLOURS[label % len(COLOURS)], DASHES[label // len(COLOURS) % len(DASHES)]


class _Taken:
    """Which pixels of the enlarged picture carry a small object, a frame or a text."""

    def __init__(self, width: int, height: int, frames: Sequence[Rectangle]) -> None:
        self._used = np.zeros((height, width), dtype=bool)
        for x1, y1, x2, y2 in frames:
            if max(x2 - x1, y2 - y1) <= 3 * READABLE:
                self._mark((x1, y1, x2, y2))
            else:  # inside a large one there is room
                for side in (
                    (x1, y1, x2, y1),
                    (x1, y2, x2, y2),
                    (x1, y1, x1, y2),
                    (x2, y1, x2, y2),
                ):
                    self._mark(side)

    def _mark(self, place: Rectangle) -> None:
        x1, y1, x2, y2 = (max(0, int(v)) for v in place)
        self._used[y1 : y2 + 1, x1 : x2 + 1] = True

    def take(self, place: Rectangle) -> bool:
        """Take the place if it is in the picture and free."""
        x1, y1, x2, y2 = (int(v) for v in place)
        height, width = self._used.shape
        if x1 < 0 or y1 < 0 or x2 >= width or y2 >= height:
            return False
        if self._used[y1 : y2 + 1, x1 : x2 + 1].any():
            return False
        self._mark(place)
        return True


def _text(
    draw: ImageDraw.ImageDraw,
    frame: Rectangle,
    label: int,
    texts: Sequence[str],
    taken: _Taken,
) -> None:
    """The first of the texts that finds a free place around the frame, or none."""
    x1, y1, x2, y2 = frame
    for text in texts:
        wide, high = draw.textlength(text) + 4, FONT_SIZE + 3
        for left, top in (
            (x1 - 2, y1 - high - 3),  # above
            (x1 - 2, y2 + 3),  # below
            (x2 + 3, y1 - 2),  # to the right
            (x1 - wide - 3, y1 - 2),  # to the left
            (x2 + 2 - wide, y1 - high - 3),  # above, from the right end on
            (x2 + 2 - wide, y2 + 3),
        ):
            place = (left, top, left + wide - 1, top + high - 1)
            if taken.take(place):
                draw.rectangle(place, fill=DARK)
                draw.text((left + 2, top), text, fill=_style(label)[0])
                return


def _legend_rows(
    class_names: Sequence[str], labels: Sequence[int], width: int
) -> list[list[tuple[float, int | None, str]]]:
    """Rows of (left end, label, text): the classes there are and how often; cut at `width`."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    counts = Counter(labels)
    entries: list[tuple[int | None, str]] = [
        (label, f"{class_names[label]}: {counts[label]}") for label in sorted(counts)
    ]
    rows: list[list[tuple[float, int | None, str]]] = [[]]
    left = 8.0
    for label, text in entries or [(None, "no detections to draw")]:
        wide = 44 + font.getlength(text)
        if rows[-1] and left + wide > width:
            rows.append([])
            left = 8.0
        rows[-1].append((left, label, text))
        left += wide
    return rows


def _legend(
    draw: ImageDraw.ImageDraw, row: Sequence[tuple[float, int | None, str]], top: int
) -> None:
    for left, label, text in row:
        if label is not None:
            _box(draw, (left, top + 6, left + 16, top + 16), label)
        draw.text((left + 26, top + 3), text, fill="white")
