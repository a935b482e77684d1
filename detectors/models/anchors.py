"""Anchor generators that know which anchors belong to which level of the pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detectors.assigners.priors import RECEPTIVE_FIELDS, Level
from detectors.models.anchor_plans import SLIM_SIZES, AnchorPlan


class LevelledAnchors(AnchorGenerator):
    """torchvision's AnchorGenerator, which remembers the levels of its last call.

    Args:
        strides: strides of the levels in pixels. RFLA needs powers of two from 4, for which the
            receptive field is known.
        sizes: sizes sqrt(w h) of each level's anchors in pixels.
        ratios: height over width.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)
        self.levels: list[Level] = []

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors [A, 4] of each image as AnchorGenerator returns them, but one tensor of all."""
        self.levels = self.describe([m.shape[-2:] for m in feature_maps])
        sizes = image_list.image_sizes
        shared = super().forward(ImageList(image_list.tensors, sizes[:1]), feature_maps)
        return shared * len(sizes)

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """In float32 at least: above 512 pixels bfloat16 has steps of 4 pixels."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)

    def describe(self, grids: Sequence[Sequence[int]]) -> list[Level]:
        """The levels of feature maps with these (rows, columns)."""
        anchors = self.num_anchors_per_location()
        fields = [RECEPTIVE_FIELDS.get(s.bit_length() - 1, 0.0) for s in self.strides]
        return [
            Level(rows * columns * n, n, field)
            for (rows, columns), n, field in zip(grids, anchors, fields, strict=True)
        ]


class PlainAnchors(LevelledAnchors):
    """Anchors as MMDetection has them: not rounded, on grids of the levels' own strides.

    Level l holds, for row i and column j of its grid, the anchors centred at
    ((j + offset) stride, (i + offset) stride): w = scale stride / sqrt(ratio), h = w ratio, for
    every ratio and scale. torchvision rounds halves of w and h to whole pixels, so that a square
    of 9 pixels becomes one of 8 or 10, and takes the image's size over the map's for the stride.

    Args:
        scales: sizes of a level's anchors in strides.
        offset: position of the first centre in strides; MMDetection has 0 for anchors and 0.5 for
            FCOS.
    """

    def __init__(
        self,
        strides: Sequence[int],
        scales: Sequence[float],
        ratios: Sequence[float],
        offset: float = 0.0,
    ) -> None:
        super().__init__(strides, [[scale * s for scale in scales] for s in strides], ratios)
        self.offset = offset

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  torchvision's signature
    ) -> Tensor:
        """The anchors [len(ratios) * len(scales), 4] of one location, around 0."""
        root = torch.tensor(aspect_ratios, dtype=torch.float64)[:, None].sqrt()
        sizes = torch.tensor(scales, dtype=torch.float64)
        w, h = (sizes / root).flatten(), (sizes * root).flatten()
        return (torch.stack([-w, -h, w, h], 1) / 2).to(device, dtype)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: object) -> list[Tensor]:
        """The levels' anchors [A, 4]. `strides`, measured by torchvision, is not used."""
        found = []
        for (rows, columns), stride, cell in zip(
            grid_sizes, self.strides, self.cell_anchors, strict=True
        ):
            y = (torch.arange(rows, device=cell.device) + self.offset) * stride
            x = (torch.arange(columns, device=cell.device) + self.offset) * stride
            y, x = torch.meshgrid(y.to(cell.dtype), x.to(cell.dtype), indexing="ij")
            at = torch.stack([x, y, x, y], -1)[:, :, None]
            found.append((at + cell).reshape(-1, 4))
        return found


def make_anchors(plan: AnchorPlan) -> LevelledAnchors:
    """The anchor generator of a detector with these priors."""
    if plan.scale is None:
        sizes = [SLIM_SIZES[s][: plan.octaves] for s in plan.strides]
        return LevelledAnchors(plan.strides, sizes, plan.ratios)
    scales = plan.scales(plan.scale)
    if plan.preset == "paper":
        return PlainAnchors(plan.strides, scales, plan.ratios, plan.offset)
    # Whole pixels, as in torchvision's RetinaNet.
    whole = [[int(scale * stride) for scale in scales] for stride in plan.strides]
    return LevelledAnchors(plan.strides, whole, plan.ratios)
