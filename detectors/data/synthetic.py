"""Synthetic aerial scenes full of tiny objects, in COCO format, for demonstrations and tests.

Cars, ships, storage tanks and planes of 4 to 24 pixels lie at random angles on textured ground
with roads; bushes, sheds and road markings look a little like them and are not annotated.

Everything is drawn from signed distances: negative inside a shape, in pixels. Around an object
u runs along its axis (forward) and v across, both in pixels from its centre.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("car", "ship", "tank", "plane")


SMALLEST, LARGEST = 4, 24  # pixels, both sides of every box


_MARGIN = 20  # pixels drawn around the scene, so that nothing needs clipping while drawn


_SHADOW = 2  # pixels, to the right and below: the sun stands at the upper left


_GROUNDS = np.array(
    [[98, 112, 74], [134, 118, 92], [124, 124, 120], [118, 126, 82], [66, 88, 102]], np.float32
)


_PAINTS = {
    "car": [[226, 226, 224], [170, 172, 178], [48, 50, 56], [168, 52, 46], [58, 84, 148]],
    "ship": [[226, 222, 214], [176, 92, 70], [92, 104, 120], [196, 178, 120]],
    "tank": [[230, 230, 226], [198, 190, 172], [150, 160, 164]],
    "plane": [[236, 236, 238], [204, 206, 210], [140, 146, 152]],
    "bush": [[58, 78, 44], [78, 88, 50], [96, 84, 56]],
    "shed": [[166, 110, 88], [150, 150, 148], [196, 190, 176]],
    "marking": [[206, 206, 198], [188, 178, 116]],
}


# (u, v, length) → signed distance, brightness
Shape = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Scene:
    """One drawn scene with n objects; H = W = size.

    Attributes:
        image: uint8 [H, W, 3].
        boxes: int64 [n, 4], x y w h in pixels, tight on the objects.
        labels: int64 [n], indices into the scene's classes.
        owner: int64 [H, W], 1 + the index of the object that covers half the pixel or more,
            0 elsewhere.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    owner: np.ndarray


def write_scenes(
    folder: Path,
    *,
    images: int,
    seed: int,
    size: int = 192,
    classes: Sequence[str] = CLASSES,
    objects: tuple[float, float] | None = None,
) -> tuple[Path, Path]:
    """Write `images` scenes of size x size pixels below `folder`.

    The same arguments give the same bytes (for one version of Pillow, which packs the PNGs).
    Scene i does not depend on how many there are.

    Args:
        folder: where to write.
        images: how many.
        seed: of what is drawn.
        size: height and width in pixels.
        classes: those of CLASSES that are annotated; the others are not drawn.
        objects: sizes from .. to below .., sqrt(w h) in pixels, of objects and clutter, evenly
            spread over their logarithm; None: 4 to 24 pixels a side, most of 8 to 16.

    Returns:
        The folder of images and the COCO annotation file. The file is written last, so where
        it exists the images do too.

    Raises:
        ValueError: no images wanted, a negative seed, a size below 48 pixels, an unknown class or
            none, or sizes of objects that are none.
    """
    if images < 1 or seed < 0 or size < 48:
        got = f"images {images}, seed {seed}, size {size}"
        raise ValueError(f"wanted at least 1 image, a seed of 0 or more, size 48 or more; {got}")
    if not classes or not set(classes) <= set(CLASSES):
        raise ValueError(f"classes: got {', '.join(classes)}, wanted some of {', '.join(CLASSES)}")
    if objects and not 4 <= objects[0] < objects[1] <= size / 2:
        raise ValueError(f"objects: got {objects}, wanted two sizes from 4 to {size / 2:g} pixels")
    folder = Path(folder)
    pictures, annotation_file = folder / "images", folder / "annotations.json"
    pictures.mkdir(parents=True, exist_ok=True)
    annotation_file.unlink(missing_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        scene = draw_scene(np.random.default_rng((seed, number)), size, classes, objects)
        name = f"{number:06d}.png"
        Image.fromarray(scene.image).save(pictures / name, compress_level=1)
        records.append({"id": number, "file_name": name, "width": size, "height": size})
        for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": "synthetic aerial scenes", "seed": seed},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
    }
    annotation_file.write_text(json.dumps(content), encoding="utf-8")
    return pictures, annotation_file


def draw_scene(
    random: np.random.Generator,
    size: int,
    classes: Sequence[str] = CLASSES,
    objects: tuple[float, float] | None = None,
) -> Scene:
    """Draw one scene: up to 8 to 30 objects on 192 x 192 pixels, as densely on other sizes."""
    canvas = _background(random, size + 2 * _MARGIN)
    # 0: free, -1: clutter, else 1 + the object's index
    owner = np.zeros(canvas.shape[:2], dtype=np.int64)
    count = max(1, round(int(random.integers(8, 31)) * (size / 192) ** 2))
    labels: list[int] = []
    boxes: list[list[int]] = []
    for label in random.permutation(np.arange(count) % len(classes)):
        box = _place(canvas, owner, classes[label], len(boxes) + 1, random, objects)
        if box is not None:
            labels.append(label)
            boxes.append(box)
    for _ in range(round(int(random.integers(10, 26)) * (size / 192) ** 2)):
        clutter = str(random.choice(["bush", "shed", "marking"]))
        _place(canvas, owner, clutter, -1, random, objects)
    inner = slice(_MARGIN, _MARGIN + size)
    image = canvas[inner, inner] * random.uniform(0.8, 1.1)
    image += random.uniform(2, 6) * random.standard_normal(image.shape, dtype=np.float32)
    return Scene(
        image=np.clip(image, 0, 255).astype(np.uint8),
        boxes=np.array(boxes, dtype=np.int64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        owner=np.maximum(owner[inner, inner], 0),
    )


def _place(
    canvas: np.ndarray,
    owner: np.ndarray,
    kind: str,
    number: int,
    random: np.random.Generator,
    objects: tuple[float, float] | None,
) -> list[int] | None:
    """Draw one thing where there is room; its box in the scene, or None where none was found."""
    size = canvas.shape[0] - 2 * _MARGIN
    for _ in range(50):
        if objects:
            side = float(np.exp(random.uniform(*np.log(objects))))
        else:  # the mean of the sides of most objects: 7 in 10 from 8 to 16 pixels
            side = float(np.clip(random.lognormal(np.log(11), 0.33), 5, 22))
        cover, colour = _render(kind, side, random)
        rows, columns = (np.flatnonzero((cover >= 0.5).any(axis)) for axis in (1, 0))
        if len(rows) == 0:
            continue
        y, h = int(rows[0]), int(rows[-1] - rows[0] + 1)
        x, w = int(columns[0]), int(columns[-1] - columns[0] + 1)
        if objects:
            fits = objects[0] <= np.sqrt(w * h) < objects[1]
        else:
            fits = min(w, h) >= SMALLEST and max(w, h) <= LARGEST
        if number > 0 and not fits:
            continue
        # Where the box begins in the scene; clutter may hang over the border.
        over = 0 if number > 0 else 6
        left = int(random.integers(-over, size - w + over + 1))
        top = int(random.integers(-over, size - h + over + 1))
        a, b = top + _MARGIN, left + _MARGIN
        if owner[a - 2 : a + h + 2, b - 2 : b + w + 2].any():
            continue
        _paint(canvas, a - y, b - x, cover, colour, random.uniform(0.45, 1.0))
        part = owner[a - y : a - y + cover.shape[0], b - x : b - x + cover.shape[1]]
        part[cover >= 0.5] = number
        return [left, top, w, h]
    return None


def _render(kind: str, side: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [H, W] in 0..1 and colour [H, W, 3] of one thing about `side` pixels large."""
    shape, stretch = _SHAPES[kind]
    length = side * stretch
    half = int(np.ceil(length / 2 * 1.2)) + 2
    at = np.arange(-half, half + 1, dtype=np.float32)
    x = at[None, :] - random.uniform(-0.5, 0.5)
    y = at[:, None] - random.uniform(-0.5, 0.5)
    # A tank is round and its shading belongs to the sun, not to its axis.
    angle = 0.0 if kind == "tank" else random.uniform(0, 2 * np.pi)
    u = x * np.cos(angle) + y * np.sin(angle)
    v = y * np.cos(angle) - x * np.sin(angle)
    distance, brightness = shape(u, v, length)
    paint = _PAINTS[kind][random.integers(len(_PAINTS[kind]))] + random.uniform(-12, 12, 3)
    cover = np.clip(0.5 - distance, 0, 1)
    seen = np.ix_(*(np.flatnonzero((cover > 0).any(axis)) for axis in (1, 0)))
    return cover[seen], (paint * brightness[..., None])[seen]


def _paint(
    canvas: np.ndarray, top: int, left: int, cover: np.ndarray, colour: np.ndarray, contrast: float
) -> None:
    """Put a thing and its shadow on the canvas; at contrast 0 it would not be seen."""
    height, width = cover.shape
    ground = canvas[top + _SHADOW :, left + _SHADOW :][:height, :width]
    ground *= (1 - 0.45 * contrast * cover[: ground.shape[0], : ground.shape[1]])[..., None]
    ground = canvas[top : top + height, left : left + width]
    ground += contrast * cover[..., None] * (colour - ground)


def _bar(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    """Signed distance (near enough) to a rectangle around the origin."""
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _car(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    distance = _bar(u, v, length / 2, 0.25 * length)
    front, rear = np.abs(u - 0.14 * length), np.abs(u + 0.32 * length)
    glass = (front < 0.09 * length) | (rear < 0.06 * length)
    return distance, np.where(glass & (distance < -0.7), 0.35, 1.0)


def _ship(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    to_bow = np.clip((length / 2 - u) / (0.45 * length), 0, 1)
    distance = np.maximum(np.abs(u) - length / 2, np.abs(v) - 0.18 * length * np.sqrt(to_bow))
    bridge = _bar(u + 0.25 * length, v, 0.12 * length, 0.12 * length) < 0
    return distance, np.where(bridge, 1.1, np.where(distance < -1, 0.6, 1.0))


def _tank(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    distance = np.hypot(u, v) - length / 2
    sunlit = 1 - 0.22 * (u + v) / length
    return distance, np.where(distance > -1.2, 0.62 * sunlit, sunlit)


def _plane(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    thick = max(0.075 * length, 0.8)
    body = _bar(u, v, length / 2, thick)
    wings = _bar(u + 0.4 * np.abs(v) - 0.12 * length, v, 1.2 * thick, 0.47 * length)
    tail = _bar(u + 0.3 * np.abs(v) + 0.38 * length, v, 0.8 * thick, 0.19 * length)
    distance = np.minimum(np.minimum(body, wings), tail)
    return distance, np.where(body < 0, 1.0, 0.88)


def _bush(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arctan2(v, u)
    ragged = 1 + 0.16 * np.sin(3 * angle) + 0.1 * np.sin(7 * angle + 1)
    distance = np.hypot(u, v) - length / 2 * ragged
    return distance, 1 + 0.25 * np.sin(1.9 * u) * np.sin(2.3 * v)


def _shed(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    distance = _bar(u, v, length / 2, 0.36 * length)
    return distance, np.where(v > 0, 0.82, 1.0)  # the two halves of a gabled roof


def _marking(u: np.ndarray, v: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    line = _bar(u, v, length / 2, 0.8)
    cross = _bar(u - 0.3 * length, v, 0.8, 0.25 * length)
    return np.minimum(line, cross), np.ones_like(line)


# Each shape, and its length over the mean side wanted of its box (in which it lies aslant).
_SHAPES: dict[str, tuple[Shape, float]] = {
    "car": (_car, 1.2),
    "ship": (_ship, 1.3),
    "tank": (_tank, 1.0),
    "plane": (_plane, 1.0),
    "bush": (_bush, 1.0),
    "shed": (_shed, 1.0),
    "marking": (_marking, 1.2),
}


def _background(random: np.random.Generator, size: int) -> np.ndarray:
    """Textured ground float32 [size, size, 3]: two soils that meet, furrows, roads."""
    first, second = _GROUNDS[random.choice(len(_GROUNDS), 2, replace=False)]
    border = _smooth(random, size, 4)
    share = np.clip(0.5 + 4 * border, 0, 1)[..., None]
    x = np.arange(size, dtype=np.float32)[None, :]
    y = np.arange(size, dtype=np.float32)[:, None]
    angle = random.uniform(0, np.pi)
    across = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    furrows = random.uniform(0, 7) * np.sin(across * random.uniform(0.5, 1.3))
    relief = 12 * _smooth(random, size, 10) + 12 * _smooth(random, size, size // 5)
    grain = 9 * _smooth(random, size, size // 2)
    texture = relief + grain + furrows * share[..., 0]
    canvas = first + (second - first) * share + texture[..., None]
    for _ in range(int(random.integers(0, 3))):
        _road(canvas, x, y, grain, random)
    return canvas


def _smooth(random: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise float32 [size, size] of about unit variance that varies over size / cells pixels."""
    grid = random.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _road(
    canvas: np.ndarray, x: np.ndarray, y: np.ndarray, grain: np.ndarray, random: np.random.Generator
) -> None:
    """A straight road across the canvas with a broken line in its middle."""
    size = canvas.shape[0]
    angle = random.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    px, py = random.uniform(0.2, 0.8) * size, random.uniform(0.2, 0.8) * size
    along, across = (x - px) * cosine + (y - py) * sine, (y - py) * cosine - (x - px) * sine
    half = random.uniform(5, 9)
    on = np.abs(across) < half
    along, across = along[on], across[on]
    asphalt = random.uniform(84, 122) + 0.5 * grain[on]
    line = 0.6 * np.clip(1.1 - np.abs(across), 0, 1) * (along % 14 < 6)
    surface = asphalt + line * (200 - asphalt)
    edge = np.clip(half - np.abs(across), 0, 1)
    canvas[on] += edge[:, None] * (surface[:, None] - canvas[on])
