"""Reproducible training batches: what a step sees depends on the seed and the step alone."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detectors.data.dataset import Sample, Target
from detectors.data.images import is_black
from detectors.data.loading import load
from detectors.errors import DataError

Batch = tuple[list[Tensor], list[Target]]


# ImageNet's mean colour, which the detectors' normalisation turns into (nearly) the 0 that
# torchvision pads with when it forms a batch.
PAD_COLOUR = np.array([124, 116, 104], dtype=np.uint8)
BOXES = {"boxes", "ignored"}
"""What of a target moves with the pixels."""
BLACK = "black"
"""What a target says on the way from a loading process to the main one."""
MIN_AREA_LEFT = 0.4  # a cropped box stays a target if this share of it is left, or its centre
MIN_SIDE_LEFT = 2.0  # pixels; a cropped box thinner than this is a sliver nobody could recognise


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
    leaving: Callable[[], object] = lambda: False,
    on_black: Callable[[int], object] = lambda image_id: None,
) -> Iterator[Batch]:
    """Augmented batches for the training steps start_step, start_step + 1, ..., steps - 1.

    Each epoch is a new permutation of the whole data set; a batch may span two. A sample is
    cropped at random to crop x crop pixels (a smaller image is padded to that; crop=None keeps
    images whole) and mirrored with probability one half. Batch s depends on (seed, s) only: not
    on `workers`, `start_step` or any global random state, none of which is touched either. So
    two runs see the same data, and a resumed run goes on where it stopped. Of each batch, rank 0
    of `ranks` gets the first samples, rank 1 the next, and so on. While a batch of `workers` is
    missing, `leaving` is asked every second whether to give up. `on_black` is called with the id of
    each image that came out black.

    Yields:
        (images, targets): lists of `batch_size` / `ranks` float32 [3, h, w] tensors in 0..1 and
        targets as CocoDetection gives them.

    Raises:
        ValueError: a setting out of range. DataError: an image cannot be used. LoadingError: the
            workers cannot be started, or bring no batch. RuntimeError: one of them died.
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
    mine_only = (batch[mine] for batch in schedule)  # a list of a long run's would fill memory
    return _unpack(load(_Augmented(dataset, crop, seed), mine_only, workers, leaving), on_black)


def _unpack(loaded: Iterator[list[Any]], on_black: Callable[[int], object]) -> Iterator[Batch]:
    for samples in loaded:
        for sample in samples:
            if isinstance(sample, DataError):
                raise DataError(str(sample))  # itself, it would keep this frame and the workers
        for _, target in samples:
            if target.pop(BLACK):
                on_black(target["image_id"])
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
        target = {**target, BLACK: is_black(pixels)}  # a crop of a picture may well be
        if self.crop is not None:
            pixels, target = _crop(pixels, target, self.crop, random)
        if random.random() < 0.5:
            pixels = pixels[:, :, ::-1].copy()  # torch takes no reversed view, of one column either
            for name in BOXES & target.keys():
                x1, y1, x2, y2 = target[name].unbind(1)
                width = pixels.shape[2]
                target[name] = torch.stack([width - x2, y1, width - x1, y2], dim=1)
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
    target = {**target, "boxes": inside[keep], "labels": target["labels"][keep]}
    if "ignored" in target:  # whatever is left of a region stays one
        part_left = (target["ignored"] - torch.tensor([left, top] * 2)).clamp(0, size)
        target["ignored"] = part_left[(part_left[:, 2:] > part_left[:, :2]).all(1)]
    return window, target
