"""The loop of torchvision's detection references, around the harness's layers and images.

What train_one_epoch of references/detection/engine.py does, with torchvision's own classes, losses
and samplers, on images that are decoded and mirrored by its transforms. bench.training_loop
measures it against ours.
"""

import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.transforms import functional as F

from detectors.data.batches import train_batches
from detectors.data.dataset import CocoDetection
from detectors.training import loop
from detectors.training.schedule import learning_rate
from detectors.training.settings import TrainSettings

PRINT_EVERY = 20
"""Steps between two lines of the log."""


def reference(
    settings: TrainSettings, data: CocoDetection, images: Path, folder: Path
) -> Generator[float, None, None]:
    """Take a step at each `next` and give its loss; write the log to a file in `folder`."""
    device = torch.device(settings.device)
    model = torchvision_model(settings, len(data.class_names)).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, settings) / settings.lr
    )
    loader = DataLoader(
        Pictures(data, images),
        batch_sampler=choices(len(data), settings),
        num_workers=settings.workers,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )
    meters: dict[str, deque[float]] = {}
    model.train()
    with (folder / "reference.txt").open("w", buffering=1) as log:
        for step, (pictures, targets) in enumerate(loader):
            began = time.perf_counter()
            inputs = [picture.to(device) for picture in pictures]
            wanted = [{k: v.to(device) for k, v in target.items()} for target in targets]
            losses: dict[str, Tensor] = model(inputs, wanted)
            total = torch.stack(list(losses.values())).sum()
            value = total.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step + 1}: loss is {value}")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            numbers = {"loss": value, **{k: v.item() for k, v in losses.items()}}
            numbers |= {"lr": optimizer.param_groups[0]["lr"], "time": time.perf_counter() - began}
            for name, number in numbers.items():
                meters.setdefault(name, deque(maxlen=PRINT_EVERY)).append(number)
            if step % PRINT_EVERY == 0:
                means = (f"{name}: {sum(m) / len(m):.4f}" for name, m in meters.items())
                log.write(f"[{step}]  {'  '.join(means)}\n")
            yield value


def torchvision_model(settings: TrainSettings, classes: int) -> GeneralizedRCNN:
    """torchvision's classes, losses and samplers around the harness's layers and first weights.

    Labels count from 1.
    """
    own: Any = loop.make_model(settings, classes)
    rpn, heads = own.rpn, own.roi_heads
    proposals = RegionProposalNetwork(
        rpn.anchor_generator,
        rpn.head,
        rpn.proposal_matcher.high_threshold,
        rpn.proposal_matcher.low_threshold,
        rpn.fg_bg_sampler.batch_size_per_image,
        rpn.fg_bg_sampler.positive_fraction,
        rpn._pre_nms_top_n,
        rpn._post_nms_top_n,
        rpn.nms_thresh,
        rpn.score_thresh,
    )
    boxes = RoIHeads(
        heads.box_roi_pool,
        heads.box_head,
        heads.box_predictor,
        heads.proposal_matcher.high_threshold,
        heads.proposal_matcher.low_threshold,
        heads.fg_bg_sampler.batch_size_per_image,
        heads.fg_bg_sampler.positive_fraction,
        heads.box_coder.weights,
        heads.score_thresh,
        heads.nms_thresh,
        heads.detections_per_img,
    )
    return GeneralizedRCNN(own.backbone, proposals, boxes, own.transform)


class Pictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images as the references' transforms make them, by index and whether mirrored."""

    def __init__(self, data: CocoDetection, images: Path) -> None:
        self.data = data
        self.files = [images / record["file_name"] for record in data.ground_truth["images"]]

    def __getitem__(self, key: tuple[int, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        index, mirrored = key
        with Image.open(self.files[index]) as opened:
            picture = F.pil_to_tensor(opened.convert("RGB"))
        shown = self.data.annotated(index)
        boxes = shown["boxes"]
        if mirrored:
            picture = F.hflip(picture)
            boxes[:, [0, 2]] = picture.shape[-1] - boxes[:, [2, 0]]
        target = {"boxes": boxes, "labels": shown["labels"] + 1, "image_id": torch.tensor(index)}
        return F.convert_image_dtype(picture, torch.float32), target


def choices(size: int, settings: TrainSettings) -> Iterator[list[tuple[int, bool]]]:
    """For each step the indices of the harness's images, of `size`, and which it mirrors."""
    probes = train_batches(
        _Probes(size),
        batch_size=settings.batch_size,
        crop=None,
        seed=settings.seed,
        steps=settings.steps,
    )
    for images, targets in probes:
        mirrored = [bool(image[0, 0, 0] > 0) for image in images]
        yield list(zip([target["image_id"] for target in targets], mirrored, strict=True))


class _Probes:
    """Images of a black and a white pixel: that which is left tells whether they were mirrored."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2).clone()
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return pixels, {**nothing, "image_id": index}
