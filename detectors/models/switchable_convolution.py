"""The convolutions of DetectoRS' ResNets: standardised weights, switchable atrous convolution.

Qiao, Chen, Yuille, "DetectoRS", arXiv 2006.02334, Sec. 4. Both take over a plain convolution's
parameters and start equal to it. Initial values are those of the authors' release.

Shapes: N images, C channels in, O out, H x W pixels in, H' x W' out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

_EPS = 1e-5


class ConvAWS(nn.Conv2d):
    """A convolution with weight γ (w - mean)/sqrt(var + 1e-5) + β for each filter (Sec. 4).

    γ and β [O, 1, 1, 1] are buffers: they keep the scale of the filters when the layer was made or
    a plain layer's weights were loaded; the standardised w is learned. var is unbiased.

    Args:
        conv: the layer to replace. Its parameters are reused, not copied: names, values,
            requires_grad and device stay.
    """

    gamma: Tensor
    beta: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",  # the parameters are replaced at once
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("gamma", conv.weight.new_ones(conv.out_channels, 1, 1, 1))
        self.register_buffer("beta", conv.weight.new_zeros(conv.out_channels, 1, 1, 1))
        self.calibrate()

    @torch.no_grad()
    def calibrate(self) -> None:
        """γ ← sqrt(var + 1e-5), β ← mean: the layer becomes equal to a plain one with this w.

        With γ = 1, β = 0 instead, a pretrained ResNet's activations grow beyond 1e9.
        """
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        self.gamma.copy_((var + _EPS).sqrt())
        self.beta.copy_(mean)

    def standardized_weight(self) -> Tensor:
        """The weight the convolution uses, [O, C, k, k]."""
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        # The quotient first: right after calibration it is exactly 1.
        return (self.weight - mean) * (self.gamma / (var + _EPS).sqrt()) + self.beta

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, O, H', W']."""
        return self._conv_forward(x, self.standardized_weight(), self.bias)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Calibrate after a plain layer's weights, which come without γ and β."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        own = {prefix + "gamma", prefix + "beta"}
        if prefix + "weight" in state_dict and not own & state_dict.keys():
            self.calibrate()
            missing_keys[:] = [key for key in missing_keys if key not in own]


class SAC(ConvAWS):
    """Switchable atrous convolution, 3x3 (Sec. 4): S·conv(x, w) + (1 - S)·conv(x, w + Δw, 3).

    The second convolution has dilation 3, both are deformable, and S is a 1x1 convolution of x
    smoothed over 5x5 pixels, without a sigmoid. A global context is added before and after. S
    starts at 1, everything else that a plain convolution lacks at 0: both start equal.

    Args:
        conv: the 3x3 convolution with padding 1 to replace, as ConvAWS takes it.
        name: the layer's name in errors.

    Raises:
        ValueError: another kernel, padding or dilation, or a bias.
    """

    def __init__(self, conv: nn.Conv2d, name: str = "SAC") -> None:
        if (conv.kernel_size, conv.padding, conv.dilation) != ((3, 3), (1, 1), (1, 1)):
            raise ValueError(f"{name}: wanted kernel 3, padding 1, dilation 1, got {conv}")
        if conv.bias is not None or conv.padding_mode != "zeros":
            raise ValueError(f"{name}: wanted no bias and padding by zeros, got {conv}")
        super().__init__(conv)
        self.name = name
        of, to, stride = conv.in_channels, conv.out_channels, conv.stride
        like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.weight_diff = nn.Parameter(torch.zeros_like(conv.weight))
        self.pre_context = nn.Conv2d(of, of, 1, **like)
        self.post_context = nn.Conv2d(to, to, 1, **like)
        self.switch = nn.Conv2d(of, 1, 1, stride, **like)  # type: ignore[arg-type]
        self.offset_s = nn.Conv2d(of, 18, 3, stride, 1, **like)  # type: ignore[arg-type]
        self.offset_l = nn.Conv2d(of, 18, 3, stride, 1, **like)  # type: ignore[arg-type]
        for part in self.children():
            for parameter in part.parameters():
                nn.init.zeros_(parameter)
        assert self.switch.bias is not None
        nn.init.ones_(self.switch.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], H and W at least 3, to [N, O, H', W'].

        Raises:
            FloatingPointError: on the CPU, where an offset is NaN or infinite. Elsewhere the check
                would wait for the device, and torch.compile and torch.export cannot look at
                values; there the output is NaN instead, see deform.
        """
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1))
        smooth = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
        switch = self.switch(smooth)
        weight = self.standardized_weight()
        small, large = self.offset_s(smooth), self.offset_l(smooth)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(x, offset_s=small, offset_l=large)
        near = deform(x, small, weight, self.stride, 1)
        far = deform(x, large, weight + self.weight_diff, self.stride, 3)
        out = switch * near + (1 - switch) * far
        return out + self.post_context(F.adaptive_avg_pool2d(out, 1))

    def _check(self, x: Tensor, **offsets: Tensor) -> None:
        for what, offset in offsets.items():
            finite = offset.isfinite()
            if not finite.all():
                raise FloatingPointError(
                    f"{self.name}: {what} gave {int((~finite).sum())} of {offset.numel()} offsets "
                    f"that are NaN or infinite; of the layer's input, "
                    f"{int((~x.isfinite()).sum())} of {x.numel()} values were"
                )


def deform(x: Tensor, offset: Tensor, weight: Tensor, stride: Any, dilation: int) -> Tensor:
    """torchvision's deform_conv2d for a 3x3 kernel, in fp32 or fp64, safe with NaN offsets.

    An output pixel with a NaN or infinite offset is NaN. torchvision turns offsets into array
    indices without checking that they are finite: on the CPU, NaN reads far outside the image and
    crashes the process; on a GPU it is undefined behaviour, and infinity reads as 0. So such
    offsets are sampled as 0 and their pixels set to NaN afterwards, on every device, with
    elementwise operations that do not wait for the device.

    Args:
        x: [N, C, H, W].
        offset: [N, 18, H', W'], pixels of x, (dy, dx) for each of the kernel's taps row by row.
        weight: [O, C, 3, 3].
        stride: stride of the output in pixels of x.
        dilation: distance of the taps in pixels, and the padding.

    Returns:
        [N, O, H', W'] in x's dtype, computed in fp32 even under autocast: torchvision has no bf16
        kernel, and half precision would round the positions sampled.
    """
    finite = offset.isfinite()
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        out = deform_conv2d(
            x.to(dtype),
            offset.where(finite, 0).to(dtype),
            weight.to(dtype),
            stride=stride,
            padding=dilation,
            dilation=dilation,
        )
    return out.masked_fill(~finite.all(1, keepdim=True), torch.nan).to(x.dtype)
