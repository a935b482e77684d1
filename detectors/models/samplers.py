"""Random choices of a training step that depend on the image alone.

torchvision's detectors draw from the global generator, so an image's draws depend on the images
before it in the batch and on how the batch is split over processes. `seed_images` gives each image
of the next forward a seed, and all its draws come from generators with that seed. Without it,
draws are torchvision's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def seed_images(model: nn.Module, seeds: Sequence[int]) -> None:
    """Seed all draws of the next training forward: those for image i with seeds[i].

    The seeds are used once: the forward after it draws from the global generator unless seeded
    again. Unused seeds are replaced.

    Args:
        model: from build_detector, bare or wrapped (DistributedDataParallel).
        seeds: a number >= 0 for each image of this process's part of the batch.
    """
    parts = (module for module in model.modules() if isinstance(module, ImageDraws))
    for number, draws in enumerate(parts):
        draws.seed(number, seeds)


def sample_by_image(model: nn.Module) -> None:
    """Replace each torchvision sampler of a two-stage detector with an ImageSampler."""
    for module in list(model.modules()):
        sampler = getattr(module, "fg_bg_sampler", None)
        if sampler is not None:
            module.fg_bg_sampler = ImageSampler(
                sampler.batch_size_per_image, sampler.positive_fraction
            )


class ImageDraws(nn.Module):
    """The generators that one part of a detector draws from, seeded by `seed_images`."""

    def __init__(self) -> None:
        super().__init__()
        self._seeds: list[tuple[int, int]] | None = None

    def seed(self, number: int, seeds: Sequence[int]) -> None:
        """Set the seeds of the next `take`; `number` tells the parts of a detector apart."""
        self._seeds = [(seed, number) for seed in seeds]

    def take(self, images: int, device: torch.device | str) -> list[torch.Generator | None]:
        """A generator for each image of the batch; None is the global one, if nothing was seeded.

        Raises:
            ValueError: more or fewer seeds than images.
        """
        seeds, self._seeds = self._seeds, None
        if seeds is None:
            return [None] * images
        if len(seeds) != images:
            raise ValueError(f"seeds of images: got {len(seeds)}, wanted {images}, one an image")
        return [
            # Hashed, because the CPU's generator uses only the lower 32 bits of its seed.
            torch.Generator(device).manual_seed(
                int(np.random.SeedSequence(pair).generate_state(1, np.uint64)[0])
            )
            for pair in seeds
        ]


class ImageSampler(nn.Module):
    """torchvision's BalancedPositiveNegativeSampler with a generator for each image.

    Args:
        batch_size_per_image: most rows to choose of an image.
        positive_fraction: largest share of them that is positive.
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
    """A mask of the labels' shape that is 1 in `number` rows drawn from `rows`."""
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[rows[order[:number]]] = 1
    return mask
