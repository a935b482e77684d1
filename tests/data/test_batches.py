"""train_batches: the same data whatever the workers; boxes stay where the pixels are."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.data import train_batches
from detectors.data.batches import _crop


class Drawn(torch.utils.data.Dataset):
    """Noise images of several sizes with boxes; image i carries i in its first label."""

    def __init__(self, count: int = 7) -> None:
        random = np.random.default_rng(0)
        self.samples = []
        for index in range(count):
            height, width = (int(side) for side in random.integers(20, 60, 2))
            image = torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8))
            boxes = torch.tensor([[2, 3, 12, 14], [5.5, 6, 9, 18]])
            labels = torch.tensor([index, 1])
            self.samples.append((image, {"boxes": boxes, "labels": labels, "image_id": index}))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple:
        image, target = self.samples[index]
        return image.clone(), {**target, "boxes": target["boxes"].clone()}


def collect(dataset=None, **changes) -> list:
    settings_ = {"batch_size": 3, "crop": 24, "seed": 5, "steps": 6} | changes
    return list(train_batches(dataset or Drawn(), **settings_))


def same(first: list, second: list) -> bool:
    if len(first) != len(second):
        return False
    for (images, targets), (others, their) in zip(first, second, strict=True):
        for a, b in zip(images, others, strict=True):
            if not torch.equal(a, b):
                return False
        for a, b in zip(targets, their, strict=True):
            if a["image_id"] != b["image_id"] or not torch.equal(a["boxes"], b["boxes"]):
                return False
    return True


def test_batches_do_not_depend_on_workers():
    alone = collect()
    assert len(alone) == 6 and all(len(images) == 3 for images, _ in alone)
    assert same(alone, collect(workers=2))
    assert same(alone, collect())
    assert not same(alone, collect(seed=6))


def test_resumed_batches_go_on_where_they_stopped():
    whole = collect()
    for start in (1, 4, 6):
        assert same(whole[start:], collect(start_step=start))
    assert same(whole[:4], collect(steps=4))


def test_batches_neither_use_nor_move_global_random_states():
    first = collect()
    torch.manual_seed(123)
    np.random.seed(123)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(first, collect())
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


def test_an_epoch_shows_every_image_once():
    batches = collect(batch_size=5, steps=7)  # 35 samples: 5 epochs of 7
    order = [target["image_id"] for _, targets in batches for target in targets]
    epochs = [order[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Counter(target["image_id"] for _, t in collect(batch_size=9, steps=1) for target in t)


def test_samples_differ_between_epochs_and_half_are_mirrored():
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 4:9, 3:11] = 255
    target = {"boxes": torch.tensor([[3.0, 4, 11, 9]]), "labels": torch.tensor([0]), "image_id": 1}
    dataset = Drawn(1)
    dataset.samples = [(image, target)]
    batches = collect(dataset, crop=None, batch_size=1, steps=200)
    lefts = Counter(targets[0]["boxes"][0].tolist()[0] for _, targets in batches)
    assert set(lefts) == {3.0, 19.0} and 70 < lefts[3.0] < 130
    for images, targets in batches[:20]:
        x1, y1, x2, y2 = targets[0]["boxes"][0].int().tolist()
        assert images[0].dtype == torch.float32 and images[0].shape == (3, 20, 30)
        assert (images[0][:, y1:y2, x1:x2] == 1).all() and images[0].sum() == 3 * 5 * 8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_long_runs_schedule_takes_no_memory(workers):
    tracemalloc.start()
    try:
        next(train_batches(Drawn(), batch_size=8, crop=24, seed=5, steps=10_000, workers=workers))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_an_image_of_one_column_is_mirrored_too():
    batches = collect(crop=1, steps=20)
    assert len(batches) == 20 and batches[0][0][0].shape == (3, 1, 1)


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"crop": 0}, {"seed": -1}, {"start_step": -1}, {"workers": -1}]
)
def test_bad_settings_are_refused_at_once(changes):
    settings_ = {"batch_size": 3, "crop": 24, "seed": 5, "steps": 6} | changes
    with pytest.raises(ValueError, match=next(iter(changes))):
        train_batches(Drawn(), **settings_)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(10, 70),
    st.integers(10, 70),
    st.integers(8, 64),
    st.lists(st.tuples(*[st.integers(0, 65)] * 2, *[st.integers(1, 30)] * 2), max_size=6),
    st.integers(0, 2**32),
)
def test_cropped_boxes_lie_where_the_pixels_are(width, height, size, rectangles, seed):
    """Box k of an image is filled with the value k + 1 in a channel of its own image."""
    boxes = [
        (x, y, min(x + w, width), min(y + h, height))
        for x, y, w, h in rectangles
        if x < width and y < height
    ]
    planes = np.zeros((len(boxes), height, width), np.uint8)
    for plane, (x1, y1, x2, y2) in zip(planes, boxes, strict=True):
        plane[y1:y2, x1:x2] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "image_id": 0,
    }
    kept = []
    for label, plane in enumerate(planes):
        image = np.repeat(plane[None], 3, axis=0)
        # the same generator state gives the same window
        window, out = _crop(image, target, size, np.random.default_rng(seed))
        assert window.shape == (3, size, size)
        drawn = window[0] == 1
        full = plane.sum()
        if label in out["labels"].tolist():
            kept.append(label)
            box = out["boxes"][out["labels"].tolist().index(label)]
            x1, y1, x2, y2 = box.int().tolist()
            assert (box == box.int()).all() and drawn[y1:y2, x1:x2].all()
            assert drawn.sum() == (x2 - x1) * (y2 - y1)  # tight: no drawn pixel is outside
            assert drawn.sum() == full or (min(x2 - x1, y2 - y1) >= 2 and drawn.sum() > 0.2 * full)
        else:  # dropped: less than 40 % is left, or a sliver
            ys, xs = drawn.nonzero()
            sides = (np.ptp(ys) + 1, np.ptp(xs) + 1) if len(ys) else (0, 0)
            assert drawn.sum() < full and (drawn.sum() < 0.4 * full or min(sides) < 2)
    assert len(kept) == len(target["labels"]) or size < max(width, height)


def test_padding_is_the_mean_colour():
    image, target = Drawn().samples[0][0][:, :10, :10].numpy(), Drawn().samples[0][1]
    window, _ = _crop(image, target, 24, np.random.default_rng(0))
    assert (window[:, :10, :10] == image).all()
    assert (window[:, 10:] == np.array([124, 116, 104])[:, None, None]).all()


def test_regions_to_ignore_move_with_the_pixels():
    """White where an image is to be ignored: in every batch, cropped, padded or mirrored."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:30, 20:55] = 255
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "ignored": torch.tensor([[20.0, 10, 55, 30]]),
        "image_id": 0,
    }
    dataset = Drawn(1)
    seen = set()
    for crop in (None, 16, 48):
        dataset.samples = [(image, target)]
        for images, targets in collect(dataset, crop=crop, batch_size=1, steps=40):
            white, ignored = images[0][0] == 1, targets[0]["ignored"]
            assert ignored.dtype == torch.float32 and ignored.shape[1] == 4
            marked = torch.zeros_like(white)
            for x1, y1, x2, y2 in ignored.int().tolist():
                marked[y1:y2, x1:x2] = True
            assert torch.equal(white, marked)
            seen.add(len(ignored))
    assert seen == {0, 1}
