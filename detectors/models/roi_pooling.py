"""RoI pooling over a pyramid of known strides, with or without aligned corners."""

import math

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, box_area, roi_align
from torchvision.ops.poolers import initLevelMapper

from jolkernels.integrations.torchvision import at_least_float32


def with_strides(pool: MultiScaleRoIAlign, strides: tuple[int, ...]) -> MultiScaleRoIAlign:
    """The same pooler with the strides of its maps set.

    Otherwise it infers them from its first image and keeps them. A small padded image (65 pixels
    high, say, padded to 96) gives wrong ones.
    """
    scales = [1 / stride for stride in strides]
    first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.scales = scales
    pool.map_levels = initLevelMapper(
        first, last, canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
    )
    return pool


class AlignedRoIAlign(MultiScaleRoIAlign):
    """MultiScaleRoIAlign with aligned=True and adaptive sampling, as MMDetection pools.

    A box of scale sqrt(w h) goes to level floor(4 + log2(scale / 224)), clamped to the levels
    there are, as in torchvision. Call `with_strides` first, with powers of two.
    """

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Features [N, channels, size, size] of boxes [N, 4], x1 y1 x2 y2 in pixels, of images."""
        maps = [x[name] for name in self.featmap_names]
        assert self.scales is not None, "with_strides has not been called"
        scales = self.scales
        rois = torch.cat(boxes)
        image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        size = box_area(rois).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_scale) + 1e-6)
        first = -math.log2(scales[0])
        level = level.clamp(first, first + len(maps) - 1).nan_to_num(first) - first
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            (at,) = torch.where(level == i)
            # In float32 at least, as under autocast: half precision would round the boxes.
            features = at_least_float32(features)
            here = torch.cat([image[at], rois[at]], 1).to(features.dtype)
            found = roi_align(features, here, self.output_size, scale, 0, aligned=True)
            pooled = pooled.index_put((at,), found.to(pooled.dtype))
        return pooled
