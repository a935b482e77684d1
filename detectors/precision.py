"""torchvision's layers where autocast would harm them."""

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from jolkernels.integrations.torchvision import at_least_float32


class PreciseRPNHead(RPNHead):
    """torchvision's RPNHead, whose outputs are float32 at least.

    They are small, a number and a box an anchor, and RegionProposalNetwork decodes proposals in
    their dtype; the second stage would be trained on boxes of half precision.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """[B, A, H, W] and [B, 4 A, H, W] of each level, at_least_float32."""
        logits, deltas = super().forward(x)
        return [at_least_float32(t) for t in logits], [at_least_float32(t) for t in deltas]


class PreciseP6P7(LastLevelP6P7):
    """torchvision's LastLevelP6P7, on a CPU computed in float32 under autocast, too.

    Of a 3x3 convolution of stride 2 over a map one pixel wide, PyTorch 2.15 leaves memory that it
    has not written in the weight's gradient in bfloat16. P6 is that narrow for images of 64 pixels.
    """

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """P6 and P7 added to the pyramid's levels `p`, in their dtype, and to their names."""
        if p[-1].device.type != "cpu":
            return super().forward(p, c, names)
        with torch.autocast("cpu", enabled=False):
            top = [at_least_float32(p[-1])], [at_least_float32(c[-1])]
            (_, *made), names = super().forward(*top, names)
        return [*p, *(x.to(p[-1].dtype) for x in made)], names
