"""DetectoRS' convolutions against plain, independent computations of their formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.models.switchable_convolution import SAC, ConvAWS, deform


def test_convaws_standardises_each_filter() -> None:
    torch.manual_seed(0)
    conv = ConvAWS(nn.Conv2d(4, 3, 3, stride=2, padding=1).double())
    weight = conv.weight.detach().clone()
    gamma, beta = torch.rand(3).double() + 0.5, torch.randn(3).double()
    conv.gamma.copy_(gamma.view(-1, 1, 1, 1))
    conv.beta.copy_(beta.view(-1, 1, 1, 1))
    by_hand = []
    for i, w in enumerate(weight):
        values = w.flatten()
        mean = values.sum() / 36
        variance = ((values - mean) ** 2).sum() / 35
        by_hand.append(gamma[i] * (w - mean) / (variance + 1e-5) ** 0.5 + beta[i])
    x = torch.randn(2, 4, 9, 7).double()
    torch.testing.assert_close(conv(x), F.conv2d(x, torch.stack(by_hand), conv.bias, 2, 1))


def sampled_conv(x: Tensor, offset: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A deformable 3x3 convolution by grid_sample, a tap at a time."""
    height, width = x.shape[2:]
    rows = torch.arange(0, height, stride, dtype=x.dtype).view(1, -1, 1)
    columns = torch.arange(0, width, stride, dtype=x.dtype).view(1, 1, -1)
    out = torch.zeros(())
    for tap in range(9):
        y = rows + dilation * (tap // 3 - 1) + offset[:, 2 * tap]
        z = columns + dilation * (tap % 3 - 1) + offset[:, 2 * tap + 1]
        grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        sample = F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        out = out + F.conv2d(sample, weight[:, :, tap // 3, tap % 3, None, None])
    return out


def plain_sac(m: SAC, x: Tensor, stride: int) -> Tensor:
    """Sec. 4, step by step, without deform_conv2d and without SAC's own methods."""
    x = x + m.pre_context(x.mean((2, 3), keepdim=True))
    padded = nn.ReflectionPad2d(2)(x)
    patches = padded.unfold(2, 5, 1).unfold(3, 5, 1)
    smooth = patches.mean((4, 5))
    s = m.switch(smooth)
    flat = m.weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + 1e-5).sqrt()
    w = (flat * m.gamma.flatten(1) + m.beta.flatten(1)).view_as(m.weight)
    near = sampled_conv(x, m.offset_s(smooth), w, stride, 1)
    far = sampled_conv(x, m.offset_l(smooth), w + m.weight_diff, stride, 3)
    out = s * near + (1 - s) * far
    return out + m.post_context(out.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_sac_is_its_formula_with_all_parts_at_work(stride: int) -> None:
    torch.manual_seed(0)
    m = SAC(nn.Conv2d(4, 6, 3, stride, 1, bias=False).double())
    for parameter in m.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 4, 11, 8).double()
    torch.testing.assert_close(m(x), plain_sac(m, x, stride), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("switch", [1.0, 0.0, 0.25])
def test_sac_with_whole_offsets_is_a_dilated_convolution(switch: float) -> None:
    """Taps moved by their own position double a dilation of 1; by -1 times it, 3 becomes 2."""
    torch.manual_seed(0)
    m = SAC(nn.Conv2d(4, 6, 3, 1, 1, bias=False).double())
    positions = torch.tensor([[i - 1.0, j - 1.0] for i in range(3) for j in range(3)]).flatten()
    with torch.no_grad():
        m.switch.bias.fill_(switch)
        m.weight_diff.normal_()
        m.offset_s.bias.copy_(positions)
        m.offset_l.bias.copy_(-positions)
    x = torch.randn(2, 4, 9, 8).double()
    near = F.conv2d(x, m.weight, padding=2, dilation=2)
    far = F.conv2d(x, m.weight + m.weight_diff, padding=2, dilation=2)
    torch.testing.assert_close(m(x), switch * near + (1 - switch) * far)


def test_deform_gives_nan_where_offsets_are_not_finite() -> None:
    """As on a GPU, where nothing is raised: these pixels are NaN, no others, no crash."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 6, 7), torch.randn(5, 4, 3, 3)
    offset = torch.randn(1, 18, 6, 7)
    want = deform(x, offset, weight, 1, 3)
    bad = torch.zeros(1, 5, 6, 7, dtype=torch.bool)
    for y, z, value in ((1, 2, torch.nan), (3, 3, torch.inf), (5, 6, -torch.inf)):
        offset[0, 7, y, z] = value
        bad[:, :, y, z] = True
    leaves = [t.requires_grad_() for t in (x, offset, weight)]
    got = deform(x, offset, weight, 1, 3)
    assert torch.equal(got.isnan(), bad) and torch.equal(got[~bad], want[~bad])
    got.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_autocast_keeps_the_deformable_convolution_in_fp32() -> None:
    torch.manual_seed(0)
    m = SAC(nn.Conv2d(8, 6, 3, 1, 1, bias=False))
    x = torch.randn(1, 8, 9, 8).bfloat16()
    offset = torch.randn(1, 18, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = m(x)
        got = deform(x, offset, m.weight, 1, 1)
    assert got.dtype == torch.bfloat16 and out.isfinite().all()
    want = deform(x.float(), offset.float(), m.weight, 1, 1)
    torch.testing.assert_close(got, want.bfloat16(), rtol=0, atol=0)


def test_unusable_convolutions_are_named() -> None:
    with pytest.raises(ValueError, match="wanted kernel 3, padding 1, dilation 1"):
        SAC(nn.Conv2d(4, 4, 3, dilation=2, padding=2, bias=False))
    with pytest.raises(ValueError, match="wanted no bias"):
        SAC(nn.Conv2d(4, 4, 3, padding=1))
