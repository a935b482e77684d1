"""How a detector normalises, resizes and pads its images."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from detectors.models.anchor_plans import longer_side
from detectors.models.samplers import ImageDraws


class _Transform(GeneralizedRCNNTransform):
    """torchvision's transform, with batches padded to at least `least` pixels a side.

    In training each image's size is drawn as described in detectors.models.samplers. Regions to
    ignore, targets' "ignored", are resized as the boxes are, or removed.
    """

    def __init__(self, *args: Any, least: int, ignore_regions: bool) -> None:
        super().__init__(*args)
        self.least = least
        self.ignore_regions = ignore_regions
        self.draws = ImageDraws()
        self._generators: Iterator[torch.Generator | None] = iter(())

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        if self.training:
            self._generators = iter(self.draws.take(len(images), "cpu"))
        if targets is not None and not self.ignore_regions:
            targets = [{k: v for k, v in t.items() if k != "ignored"} for t in targets]
        _check_regions(targets or ())
        result: tuple[ImageList, list[dict[str, Tensor]] | None] = super().forward(images, targets)
        return result

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Pad an image so thin that its shorter side would be resized to nothing."""
        height, width = image.shape[-2:]
        least = max(height, width) // self.max_size + 1
        if min(height, width) < least:
            image = F.pad(image, (0, max(0, least - width), 0, max(0, least - height)))
        size = list(image.shape[-2:])
        image, target = super().resize(image, target)
        if target is not None and "ignored" in target:
            target["ignored"] = resize_boxes(target["ignored"], size, list(image.shape[-2:]))
        return image, target

    def torch_choice(self, k: Sequence[int]) -> int:
        generator = next(self._generators, None)
        if generator is None:
            return int(super().torch_choice(k))
        return k[int(torch.randint(len(k), (), generator=generator))]

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        batch: Tensor = super().batch_images(images, size_divisible)
        height, width = batch.shape[-2:]
        return F.pad(batch, (0, max(0, self.least - width), 0, max(0, self.least - height)))


class _Native(_Transform):
    """The same without resizing; torchvision's own `_skip_resize` works in training only."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _check_regions(targets: Sequence[dict[str, Tensor]]) -> None:
    for i, target in enumerate(targets):
        shape = list(target["ignored"].shape) if "ignored" in target else [0, 4]
        if shape[1:] != [4]:
            raise ValueError(f"targets[{i}]['ignored']: got shape {shape}, wanted [n, 4]")


def make_transform(
    sizes: Sequence[int], least: int, ignore_regions: bool
) -> GeneralizedRCNNTransform:
    """Normalises, and resizes in torchvision's proportion of 800 to 1333; no sizes: does not."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if not sizes:
        return _Native(0, 0, mean, std, least=least, ignore_regions=ignore_regions)
    # Evaluation takes the last, the largest.
    longest = longer_side(max(sizes))
    return _Transform(tuple(sizes), longest, mean, std, least=least, ignore_regions=ignore_regions)
