"""COCO-format detection data: reading, checking, decoding, and reproducible training batches.

Everything a file can get wrong is found when `CocoDetection` is built, except what only the
pixels can tell; it is reported as a `DataError` that names the file and the annotation or image.
"""

import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detectors.coco import CocoFile, check_coco, read_coco
from detectors.errors import DataError

__all__ = ["CocoDetection", "DataError", "train_batches"]

Target = dict[str, Any]  # "boxes" float32 [n, 4], "labels" int64 [n], "image_id" int
Sample = tuple[Tensor, Target]
Detection = dict[str, Any]  # COCO result: image_id, category_id, bbox [x, y, w, h], score
Batch = tuple[list[Tensor], list[Target]]

# ImageNet's mean colour, which the detectors' normalisation turns into (nearly) the 0 that
# torchvision pads with when it forms a batch.
PAD_COLOUR = np.array([124, 116, 104], dtype=np.uint8)
# What Pillow raises on broken files: AVIF's RuntimeError, EXIF's most kinds.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError),
    *(EOFError, ArithmeticError, LookupError, AttributeError, TypeError, struct.error, zlib.error),
)
MIN_AREA_LEFT = 0.4  # a cropped box stays a target if this share of it is left, or its centre
MIN_SIDE_LEFT = 2.0  # pixels; a cropped box thinner than this is a sliver nobody could recognise


class CocoDetection(Dataset[Sample]):
    """Images and boxes of a COCO-format annotation file.

    The annotation file is read and checked in full here; an image is decoded by `dataset[i]`,
    which gives `(image, target)`: image uint8 [3, H, W]; target with "boxes" float32 [n, 4]
    (x1 y1 x2 y2, pixels), "labels" int64 [n] (0-based) and "image_id" (int).

    Image files are found by the rule of `read_coco`.
    Boxes marked `iscrowd` or `ignore` are no targets; in `ground_truth` they carry `iscrowd` 1,
    so that evaluation counts them neither as missed nor, when detected, as wrong.

    Attributes:
        class_names: label → name; labels follow the category ids in ascending order.
        category_ids: label → COCO category id.
        image_ids: index → COCO image id, in the order of the file.
        ground_truth: COCO dict (images, annotations, categories) with the boxes as used.
        skipped: a line for each box that was left out, clipped, or is crowd or ignored.
        source: what messages call the annotations, the file's path.
        digest: sha256, hexadecimal, of the annotation file; of a COCO dict: of the file that
            `jol data convert` writes of it.

    Raises:
        DataError: unusable files, ids, categories, boxes or images.
    """

    def __init__(
        self, images: Path, annotations: Path | dict[str, Any], name: str = "annotations"
    ) -> None:
        """Read and check `annotations`, whose images lie in the folder `images`.

        `annotations` may be a COCO dict, which messages then call `name`.
        """
        coco: CocoFile
        if isinstance(annotations, dict):
            self.source = name
            coco = check_coco(annotations, name, Path(images))
        else:
            self.source = str(annotations)
            coco = read_coco(Path(annotations), Path(images))
        self.category_ids: list[int] = [category["id"] for category in coco.categories]
        self.class_names: list[str] = [category["name"] for category in coco.categories]
        self.image_ids: list[int] = [image["id"] for image in coco.images]
        self.ground_truth: dict[str, Any] = coco.content()
        self.skipped: list[str] = coco.skipped
        self.digest: str = coco.digest
        self._images, self._files = coco.images, coco.files
        self._targets, self._ignored = (
            _boxes(
                [record for record in coco.annotations if record["iscrowd"] == crowd],
                self.image_ids,
                self.category_ids,
            )
            for crowd in (0, 1)
        )

    def __len__(self) -> int:
        """Number of images, those without objects included."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Decode image `index`; raises DataError if it cannot be, or has another size."""
        record = self._images[index]
        where = f"{self.source}: image {record['id']}"
        image = decode(self._files[index], (record["width"], record["height"]), where)
        boxes, labels = self._targets[index]
        target = {"boxes": boxes.clone(), "labels": labels.clone(), "image_id": record["id"]}
        return image, target

    def annotated(self, index: int) -> dict[str, Tensor]:
        """What image `index` shows, without decoding it.

        "boxes" float32 [n, 4] and "labels" int64 [n] as in `dataset[index]`; "ignored" float32
        [k, 4] and "ignored_labels" int64 [k], where a detection is neither right nor wrong.
        """
        boxes, labels = self._targets[index]
        ignored, ignored_labels = self._ignored[index]
        return {
            "boxes": boxes.clone(),
            "labels": labels.clone(),
            "ignored": ignored.clone(),
            "ignored_labels": ignored_labels.clone(),
        }

    def assemble(self, detections: list[Detection]) -> list[Detection]:
        """Detections on the images of this data set as detections for `ground_truth`: the same."""
        return detections


def _boxes(
    annotations: list[dict[str, Any]], image_ids: list[int], category_ids: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """For each image, boxes float32 [n, 4] (x1 y1 x2 y2) and labels int64 [n]."""
    label = {category: index for index, category in enumerate(category_ids)}
    boxes: dict[int, list[list[float]]] = {image_id: [] for image_id in image_ids}
    labels: dict[int, list[int]] = {image_id: [] for image_id in image_ids}
    for record in annotations:
        x, y, w, h = record["bbox"]
        boxes[record["image_id"]].append([x, y, x + w, y + h])
        labels[record["image_id"]].append(label[record["category_id"]])
    return [
        (
            torch.tensor(boxes[image_id], dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels[image_id], dtype=torch.int64),
        )
        for image_id in image_ids
    ]


def decode(file: Path, size: tuple[int, int] | None, where: str) -> Tensor:
    """The image as uint8 [3, H, W] RGB, of the (width, height) the annotation file promises.

    An EXIF orientation is followed only where that is what makes the size right: boxes are
    drawn on the pixels as stored by some tools and as shown by others, and only the size tells.
    None: nothing is promised, and the picture is as viewers show it.

    Raises:
        DataError: beginning with `where`: an image that cannot be decoded, or has another size.
    """
    try:
        with Image.open(file) as opened:
            picture: Image.Image = opened
            stored = picture.size
            if size in (None, stored, stored[::-1]):  # else refused before its pixels fill memory
                picture.load()
                if stored != size and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    picture = ImageOps.exif_transpose(picture)
            if size in (None, picture.size):
                return torch.from_numpy(np.ascontiguousarray(_rgb(picture).transpose(2, 0, 1)))
    except UNREADABLE as error:
        raise DataError(f"{where}: {file} cannot be decoded: {error}") from error
    assert size is not None
    found, wanted = f"{stored[0]}x{stored[1]}", f"{size[0]}x{size[1]}"
    raise DataError(f"{where}: {file} is {found} pixels, the annotation file says {wanted}")


def _rgb(picture: Image.Image) -> np.ndarray:
    """Pixels uint8 [H, W, 3]. Alpha is dropped; of 16-bit greys the upper 8 bits are used."""
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits at 255
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no defined range; wanted 8 or 16 bits")
    if picture.mode in ("P", "PA"):  # by way of RGBA, the form a palette's transparency fits
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


class Samples(Protocol):
    """A data set of known length, such as CocoDetection."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def train_batches(
    dataset: Samples,
    *,
    batch_size: int,
    crop: int | None,
    seed: int,
    steps: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Augmented batches for the training steps start_step, start_step + 1, ..., steps - 1.

    Each epoch is a new permutation of the whole data set; a batch may span two. A sample is
    cropped at random to crop x crop pixels (a smaller image is padded to that; crop=None keeps
    images whole) and mirrored with probability one half. Batch s depends on (seed, s) only: not
    on `workers`, `start_step` or any global random state, none of which is touched either. So
    two runs see the same data, and a resumed run goes on where it stopped. Of each batch, rank 0
    of `ranks` gets the first samples, rank 1 the next, and so on.

    Yields:
        (images, targets): lists of `batch_size` / `ranks` float32 [3, h, w] tensors in 0..1 and
        targets as CocoDetection gives them.

    Raises:
        ValueError: a setting out of range. DataError: an image cannot be used. RuntimeError: a
            loading process died.
    """
    for name, value in {"batch_size": batch_size, "crop": 1 if crop is None else crop}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if batch_size % ranks:
        raise ValueError(f"batch_size is {batch_size}, wanted a multiple of {ranks} processes")
    if min(seed, start_step, workers) < 0:
        got = f"seed {seed}, start_step {start_step}, workers {workers}"
        raise ValueError(f"wanted numbers of 0 or more, got {got}")
    share = batch_size // ranks
    mine = slice(rank * share, (rank + 1) * share)
    schedule = _schedule(len(dataset), batch_size, seed, start_step, steps)
    loader = DataLoader(
        _Augmented(dataset, crop, seed),
        batch_sampler=(batch[mine] for batch in schedule),  # a long run's would fill memory
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # its own: the loader would draw from the global one
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
    )
    return _unpack(loader)


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unpack(loader: DataLoader[Any]) -> Iterator[Batch]:
    batches = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever the program is, in the middle of an optimizer step too.
        # Without it a dead worker is noticed where its batch is missed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for samples in batches:
        for sample in samples:
            if isinstance(sample, DataError):
                raise DataError(str(sample))  # itself, it would keep this frame and the workers
        # Here, not in a worker: bytes are a quarter of what floats are to hand over.
        images = [torch.from_numpy(np.divide(i.numpy(), 255, dtype=np.float32)) for i, _ in samples]
        yield images, [target for _, target in samples]


def _schedule(
    size: int, batch_size: int, seed: int, start_step: int, steps: int
) -> Iterator[list[tuple[int, int]]]:
    """For each step the (index, position) of its samples; position counts samples since step 0."""
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(start_step, steps):
        batch = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            if position // size != epoch:
                epoch = position // size
                order = np.random.default_rng((seed, 0, epoch)).permutation(size)
            batch.append((int(order[position % size]), position))
        yield batch


class _Augmented(Dataset[Any]):
    """`dataset` seen through the augmentation; indexed by (index, position)."""

    def __init__(self, dataset: Samples, crop: int | None, seed: int) -> None:
        self.dataset, self.crop, self.seed = dataset, crop, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        index, position = key
        try:
            image, target = self.dataset[index]
        except DataError as error:
            return error  # raised, it would leave a worker wrapped in a traceback
        random = np.random.default_rng((self.seed, 1, position))
        # Pixels in numpy: on images this small torch's threads cost more than they bring.
        pixels = image.numpy()
        if self.crop is not None:
            pixels, target = _crop(pixels, target, self.crop, random)
        if random.random() < 0.5:
            pixels = pixels[:, :, ::-1].copy()  # torch takes no reversed view, of one column either
            x1, y1, x2, y2 = target["boxes"].unbind(1)
            width = pixels.shape[2]
            target["boxes"] = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        return torch.from_numpy(np.ascontiguousarray(pixels)), target


def _crop(
    image: np.ndarray, target: Target, size: int, random: np.random.Generator
) -> tuple[np.ndarray, Target]:
    """A random window of size x size pixels, padded at the right and below a smaller image."""
    height, width = image.shape[1:]
    top = int(random.integers(max(height - size, 0) + 1))
    left = int(random.integers(max(width - size, 0) + 1))
    part = image[:, top : top + size, left : left + size]
    window = np.empty((3, size, size), dtype=np.uint8)
    window[:] = PAD_COLOUR[:, None, None]
    window[:, : part.shape[1], : part.shape[2]] = part

    moved = target["boxes"] - torch.tensor([left, top, left, top], dtype=torch.float32)
    inside = moved.clamp(0, size)
    sides, full = inside[:, 2:] - inside[:, :2], moved[:, 2:] - moved[:, :2]
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    seen = ((centre >= 0) & (centre < size)).all(1)
    seen |= sides.prod(1) >= MIN_AREA_LEFT * full.prod(1)
    whole = (inside == moved).all(1)
    keep = whole | (seen & (sides >= MIN_SIDE_LEFT).all(1))
    return window, {**target, "boxes": inside[keep], "labels": target["labels"][keep]}
