"""DetectoRS' backbone: two ResNets, the second of which sees the first one's pyramid.

Qiao, Chen, Yuille, "DetectoRS", arXiv 2006.02334, on torchvision's ResNet and feature pyramid:

    step 1   C2..C5 = first(image)                       P2..P6 = fpn(C2..C5)
    step 2   D2..D5 = second(image, aspp(P3, P4, P5))    Q2..Q6 = fpn(D2..D5)
    output   g·Q + (1 - g)·P a level, g = sigmoid(1x1 convolution of Q)

Every convolution of both ResNets standardises its weight (ConvAWS); the 3x3 ones of layers 2 to 4
are switchable atrous convolutions (SAC). Loaded with a plain ResNet's weights, both start
equal to the layers they replace: at first step 1 is the plain ResNet with its pyramid.
"""

import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detectors.models.switchable_convolution import SAC, ConvAWS

CHANNELS = 256
"""Channels of every level of the pyramid."""
SMALLEST_IMAGE = 65
"""In pixels a side: stride 32 is then 3 wide, the least that can be padded by reflecting 2."""
_SAC = re.compile(r"layer[234]\.\d+\.conv2")


def swap_convolutions(body: ResNet, name: str = "") -> ResNet:
    """Replace a ResNet's convolutions in place: SAC in layers 2 to 4 (each conv2), else ConvAWS.

    The state dict keeps its keys and gains new ones, so a plain ResNet's weights load with
    strict=False. The parameters stay the same objects: frozen ones stay frozen.

    Args:
        body: torchvision's ResNet-50, 101, 152 or a ResNeXt, with plain convolutions.
        name: prefix of a layer's name in errors.

    Returns:
        body.

    Raises:
        ValueError: blocks other than Bottleneck (ResNet-18 and 34: the paper defines no SAC for
            their two 3x3 convolutions), or convolutions swapped before.
    """
    for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
        for block in layer:
            if type(block) is not Bottleneck:
                raise ValueError(
                    "DetectoRS wants a ResNet of torchvision's Bottleneck blocks (resnet50 or "
                    f"larger), got {type(block).__name__}"
                )
    plain = {key: m for key, m in body.named_modules() if isinstance(m, nn.Conv2d)}
    if any(isinstance(m, ConvAWS) for m in plain.values()):
        raise ValueError("this ResNet's convolutions have been swapped before")
    for key, conv in plain.items():
        full = f"{name}.{key}" if name else key
        body.set_submodule(key, SAC(conv, full) if _SAC.fullmatch(key) else ConvAWS(conv))
    return body


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, the connection of RFP (Sec. 3): 256 to 256 channels.

    Four convolutions of 64 channels with ReLU, concatenated: 1x1; 3x3 of dilation 3; 3x3 of
    dilation 6; 1x1 of the mean over the image. Initial weights N(0, sqrt(2 / (k²·64))), bias 0.
    """

    def __init__(self) -> None:
        super().__init__()
        part = CHANNELS // 4
        self.point = nn.Conv2d(CHANNELS, part, 1)
        self.near = nn.Conv2d(CHANNELS, part, 3, padding=3, dilation=3)
        self.far = nn.Conv2d(CHANNELS, part, 3, padding=6, dilation=6)
        self.whole = nn.Conv2d(CHANNELS, part, 1)
        for conv in (self.point, self.near, self.far, self.whole):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 256, H, W] to the same."""
        whole = self.whole(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        return torch.cat([self.point(x), self.near(x), self.far(x), whole], 1).relu()


class RecursivePyramid(nn.Module):
    """The backbone of DetectoRS: SAC, and a recursive feature pyramid of two steps (Sec. 3).

    In the first block of layers 2, 3 and 4 of the second ResNet, a 1x1 convolution of ASPP(P3),
    ASPP(P4), ASPP(P5) is added before the last ReLU. Both steps share the pyramid's and ASPP's
    weights, not the ResNets'. The feedback and the gates' logits start at 0.

    Args:
        first, second: two ResNets for swap_convolutions, usually with the same weights and frozen
            layers. They become parts of this module; their classifiers are dropped.

    Attributes:
        out_channels: 256, for torchvision's detectors.

    Raises:
        ValueError: the same ResNet given twice, or as swap_convolutions.
    """

    def __init__(self, first: ResNet, second: ResNet) -> None:
        super().__init__()
        if first is second:
            raise ValueError("wanted two ResNets with weights of their own, got one twice")
        self.out_channels = CHANNELS
        self.first = swap_convolutions(first, "first")
        self.second = swap_convolutions(second, "second")
        first.fc = second.fc = nn.Identity()
        widths = [layer[0].conv3.out_channels for layer in _layers(first)]
        self.fpn = FeaturePyramidNetwork(widths, CHANNELS, LastLevelMaxPool())
        self.aspp = ASPP()
        self.feedback = nn.ModuleList(nn.Conv2d(CHANNELS, width, 1) for width in widths[1:])
        self.gate = nn.Conv2d(CHANNELS, 1, 1)
        for parameter in (*self.feedback.parameters(), *self.gate.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images [N, 3, H, W] to '0'..'3', 'pool': [N, 256, H/s, W/s], s = 4, 8, 16, 32, 64.

        Raises:
            ValueError: images of 64 pixels or less a side.
            FloatingPointError: an offset that is NaN or infinite, see SAC.
        """
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"DetectoRS wants images larger than {SMALLEST_IMAGE - 1} pixels a side, got "
                f"{height} x {width}"
            )
        before = self.fpn(stages(self.first, images))
        feedback = {
            name: conv(self.aspp(before[name]))
            for name, conv in zip("123", self.feedback, strict=True)
        }
        after = self.fpn(stages(self.second, images, feedback))
        fused = OrderedDict()
        for name, level in after.items():
            gate = self.gate(level).sigmoid()
            fused[name] = gate * level + (1 - gate) * before[name]
        return fused


def stages(
    body: ResNet, images: Tensor, feedback: dict[str, Tensor] | None = None
) -> OrderedDict[str, Tensor]:
    """A ResNet's stages '0'..'3' (C2..C5), [N, O, H/s, W/s] with s = 4, 8, 16, 32.

    feedback: stage → tensor of its shape, added in its first block; stages may be absent.
    """
    x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
    levels = OrderedDict()
    for name, layer in zip("0123", _layers(body), strict=True):
        for index, block in enumerate(layer):
            added = feedback.get(name) if feedback and index == 0 else None
            x = block(x) if added is None else _block(block, x, added)
        levels[name] = x
    return levels


def _block(block: Bottleneck, x: Tensor, added: Tensor) -> Tensor:
    """torchvision's Bottleneck.forward, with `added` in the residual sum."""
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    out = block.bn3(block.conv3(out))
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(out + shortcut + added)


def _layers(body: ResNet) -> tuple[Any, ...]:
    return body.layer1, body.layer2, body.layer3, body.layer4
