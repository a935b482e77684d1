"""Feature pyramids on a ResNet."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from detectors.models.plan import Plan
from jolkernels.integrations.torchvision import at_least_float32


def pyramid(
    body: ResNet, stages: list[int], channels: int, extra: ExtraFPNBlock | None
) -> BackboneWithFPN:
    """A feature pyramid on the named stages (1: C2, stride 4) of a ResNet."""
    widths = [stage_width(body, stage) for stage in stages]
    layers = {f"layer{stage}": str(i) for i, stage in enumerate(stages)}
    fpn = BackboneWithFPN(body, layers, widths, channels, extra)
    if extra is None:
        fpn.fpn.extra_blocks = None  # the constructor would have put a max-pool level
    return fpn


def stage_width(body: ResNet, stage: int) -> int:
    """Channels of a stage's output."""
    return int(body.inplanes // 2 ** (4 - stage))


def one_stage_pyramid(body: ResNet, plan: Plan, *, p6_of_c5: bool = False) -> nn.Module:
    """A pyramid with the plan's strides; P6 is made of P5 or of C5."""
    channels = 64 if plan.preset == "slim" else 256
    stages = plan.anchors.stages
    extra = None
    if len(plan.anchors.strides) > len(stages):
        extra = PreciseP6P7(stage_width(body, 4) if p6_of_c5 else channels, channels)
    return pyramid(body, stages, channels, extra)


def two_stage_pyramid(body: ResNet, plan: Plan) -> BackboneWithFPN:
    """A pyramid with the plan's strides; the last level is a max-pool of the one before."""
    stages = plan.anchors.stages[: len(plan.anchors.strides) - 1]
    return pyramid(body, stages, 64 if plan.preset == "slim" else 256, LastLevelMaxPool())


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
