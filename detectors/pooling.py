"""RoIAlign over a pyramid with half a pixel's correction, which torchvision's pooler lacks."""

import math

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align


class AlignedRoIAlign(MultiScaleRoIAlign):
    """MultiScaleRoIAlign with aligned=True and adaptive sampling, as MMDetection pools.

    A box of scale sqrt(w h) goes to level floor(4 + log2(scale / 224)), of those there are; both
    as in torchvision. Strides are powers of two.
    """

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Features [N, channels, size, size] of boxes [N, 4], x1 y1 x2 y2 in pixels, of images."""
        maps = [x[name] for name in self.featmap_names]
        height = max(shape[0] for shape in image_shapes)
        scales = [2.0 ** round(math.log2(m.shape[-2] / height)) for m in maps]
        rois = torch.cat(boxes)
        image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        size = ((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_scale) + 1e-6)
        first = -math.log2(scales[0])
        level = level.clamp(first, first + len(maps) - 1).nan_to_num(first) - first
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            (at,) = torch.where(level == i)
            here = torch.cat([image[at], rois[at]], 1).to(features.dtype)
            found = roi_align(features, here, self.output_size, scale, 0, aligned=True)
            pooled = pooled.index_put((at,), found.to(pooled.dtype))
        return pooled
