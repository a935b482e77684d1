"""A picture with its detections: boxes with class and score, a legend below.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, without the blue that is
hard to read on black. If there are more classes than colours, lines are dashed. The picture is
enlarged, and boxes and texts are drawn around objects: those of a few pixels stay visible.
torchvision's draw_bounding_boxes draws both onto the object, and has no dashes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detectors.data.object_sizes import box_sizes
from detectors.utils.names import shortened
from detectors.utils.palette import CLASSES as COLOURS
from detectors.utils.printable import printable

DASHES = ((1, 0), (7, 5), (3, 3))
"""Pixels drawn and skipped along a line: for the first classes, for those after them, ..."""
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
FONT_SIZE = 13
READABLE = 40
"""Pixels that an object of median size is enlarged to, within LARGEST."""
LARGEST = 2400
"""Most pixels a side of an enlarged picture."""
NARROWEST = 320
"""Least width in pixels, for the legend."""
DARK = (20, 20, 20)
Rectangle = tuple[float, float, float, float]


def draw_detections(
    image: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, class_names: Sequence[str]
) -> Image.Image:
    """The image, enlarged by a whole number, with all these detections and a legend below.

    Texts are next to their boxes, where they cover no box and no other text. In a crowd, lower
    scores lose their class name, or the whole text.

    Args:
        image: uint8 [3, H, W].
        boxes: [n, 4] x1 y1 x2 y2 in pixels of the image.
        scores: [n].
        labels: [n], 0-based.
        class_names: label → name.
    """
    class_names = [shortened(printable(name)) for name in class_names]
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
    for frame, label in reversed(list(zip(frames, kinds, strict=True))):  # the highest score on top
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
    side = float(box_sizes(boxes, least_side=1).median())
    return max(1, min(round(READABLE / side), LARGEST // max(size)))


def _frame(box: Sequence[float], scale: int) -> Rectangle:
    """The rectangle just outside the box, in pixels of the enlarged picture."""
    x1, y1, x2, y2 = (round(v * scale) for v in box)
    return x1 - 2, y1 - 2, x2 + 1, y2 + 1


def _box(draw: ImageDraw.ImageDraw, frame: Rectangle, label: int) -> None:
    """A line of two pixels in the class's colour around `frame`, between two dark lines."""
    x1, y1, x2, y2 = map(int, frame)
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=DARK, width=4)
    colour, dash = _style(label)
    for start, end in _strokes(x1 - 1, x2 + 1, *dash):
        for y in (y1 - 1, y2):
            draw.rectangle((start, y, end, y + 1), fill=colour)
    for start, end in _strokes(y1 - 1, y2 + 1, *dash):
        for x in (x1 - 1, x2):
            draw.rectangle((x, start, x + 1, end), fill=colour)


def _strokes(start: int, end: int, drawn: int, skipped: int) -> Iterator[tuple[int, int]]:
    """First and last pixel of each dash of a line."""
    if not skipped:
        yield start, end
        return
    for at in range(start, end + 1, drawn + skipped):
        yield at, min(at + drawn - 1, end)


def _style(label: int) -> tuple[str, tuple[int, int]]:
    return COLOURS[label % len(COLOURS)], DASHES[label // len(COLOURS) % len(DASHES)]


class _Taken:
    """The pixels of the enlarged picture taken by small objects, frames and texts."""

    def __init__(self, width: int, height: int, frames: Sequence[Rectangle]) -> None:
        self._used = np.zeros((height, width), dtype=bool)
        for x1, y1, x2, y2 in frames:
            if max(x2 - x1, y2 - y1) <= 3 * READABLE:
                self._mark((x1, y1, x2, y2))
            else:  # a text may lie inside a large object
                for side in (
                    (x1, y1, x2, y1),
                    (x1, y2, x2, y2),
                    (x1, y1, x1, y2),
                    (x2, y1, x2, y2),
                ):
                    self._mark(side)

    def _mark(self, area: Rectangle) -> None:
        x1, y1, x2, y2 = (max(0, int(v)) for v in area)
        self._used[y1 : y2 + 1, x1 : x2 + 1] = True

    def take(self, area: Rectangle) -> bool:
        """Take this area if it is free and inside the picture."""
        x1, y1, x2, y2 = (int(v) for v in area)
        height, width = self._used.shape
        if x1 < 0 or y1 < 0 or x2 >= width or y2 >= height:
            return False
        if self._used[y1 : y2 + 1, x1 : x2 + 1].any():
            return False
        self._mark(area)
        return True


def _text(
    draw: ImageDraw.ImageDraw,
    frame: Rectangle,
    label: int,
    texts: Sequence[str],
    taken: _Taken,
) -> None:
    """Draw the first of the texts that has room next to the frame, if any."""
    x1, y1, x2, y2 = frame
    for text in texts:
        wide, high = draw.textlength(text) + 4, FONT_SIZE + 3
        for left, top in (
            (x1 - 2, y1 - high - 3),  # above
            (x1 - 2, y2 + 3),  # below
            (x2 + 3, y1 - 2),  # to the right
            (x1 - wide - 3, y1 - 2),  # to the left
            (x2 + 2 - wide, y1 - high - 3),  # above, aligned right
            (x2 + 2 - wide, y2 + 3),
        ):
            area = (left, top, left + wide - 1, top + high - 1)
            if taken.take(area):
                draw.rectangle(area, fill=DARK)
                draw.text((left + 2, top), text, fill=_style(label)[0])
                return


def _legend_rows(
    class_names: Sequence[str], labels: Sequence[int], width: int
) -> list[list[tuple[float, int | None, str]]]:
    """Rows of (left end, label, text): each class and its count, wrapped at `width`."""
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
