"""Random choices of a training step that depend on the image alone.

torchvision's detectors draw from the global generator, so what is drawn for an image depends on
the images before it in the batch, and with several processes on how the batch is split. Here
`seed_images` gives each image of the next forward a number, and whatever is drawn for the image
comes from generators made of it. Without it everything is drawn as torchvision draws it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def seed_images(model: nn.Module, seeds: Sequence[int]) -> None:
    """Let all that the next training forward draws for image i come from seeds[i].

    The seeds serve one forward: the one after it, if not seeded again, draws from the global
    generator, so nothing is drawn twice. Seeds that no forward has used are replaced.

    Args:
        model: from build_detector, bare or wrapped (DistributedDataParallel).
        seeds: a number of at least 0 for each image of the batch that this process is given.
    """
    parts = (module for module in model.modules() if isinstance(module, ImageDraws))
    for number, draws in enumerate(parts):
        draws.seed(number, seeds)


def sample_by_image(model: nn.Module) -> None:
    """Put an ImageSampler in the place of each torchvision sampler of a two-stage detector."""
    for module in list(model.modules()):
        sampler = getattr(module, "fg_bg_sampler", None)
        if sampler is not None:
            module.fg_bg_sampler = ImageSampler(
                sampler.batch_size_per_image, sampler.positive_fraction
            )


class ImageDraws(nn.Module):
    """The generators that one part of a detector draws from, as `seed_images` asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._seeds: list[tuple[int, int]] | None = None

    def seed(self, number: int, seeds: Sequence[int]) -> None:
        """Make `take` return generators of these seeds; number: of the part in its detector."""
        self._seeds = [(seed, number) for seed in seeds]

    def take(self, images: int, device: torch.device | str) -> list[torch.Generator | None]:
        """A generator for each image of the batch, None (the global one) where none is seeded.

        Raises:
            ValueError: more or fewer seeds than images.
        """
        seeds, self._seeds = self._seeds, None
        if seeds is None:
            return [None] * images
        if len(seeds) != images:
            raise ValueError(f"seeds of images: got {len(seeds)}, wanted {images}, one an image")
        return [
            # The hash matters: the CPU's generator reads the lower 32 bits of its seed only.
            torch.Generator(device).manual_seed(
                int(np.random.SeedSequence(pair).generate_state(1, np.uint64)[0])
            )
            for pair in seeds
        ]


class ImageSampler(nn.Module):
    """torchvision's BalancedPositiveNegativeSampler, from a generator of each image.

    Args:
        batch_size_per_image: rows to choose of an image, fewer where it has not as many.
        positive_fraction: of them positive at most.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        super().__init__()
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.draws = ImageDraws()

    def forward(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The rows chosen among the positives (label >= 1) and the negatives (0) of each image.

        Args:
            labels: [N] of each image; rows of -1 are never chosen.

        Returns:
            Two uint8 masks [N] of each image.
        """
        generators = self.draws.take(len(labels), labels[0].device)
        chosen = [self._choose(y, g) for y, g in zip(labels, generators, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _choose(self, labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        most = int(self.batch_size_per_image * self.positive_fraction)
        positives = min(len(positive), most)
        negatives = min(len(negative), self.batch_size_per_image - positives)
        return (
            _some(positive, positives, labels, generator),
            _some(negative, negatives, labels, generator),
        )


def _some(rows: Tensor, number: int, labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A mask of the labels' shape that is 1 in `number` of the rows."""
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[rows[order[:number]]] = 1
    return mask
