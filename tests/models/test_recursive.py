"""DetectoRS' backbone against torchvision's plain ResNets and its own definition."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from detectors.models.recursive_pyramid import ASPP, RecursivePyramid, stages, swap_convolutions
from detectors.models.switchable_convolution import SAC, ConvAWS

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def random_resnet(
    factory: Callable[..., ResNet] | None = None,
    seed: int = 0,
    norm: type[nn.Module] = FrozenBatchNorm2d,
) -> ResNet:
    """In eval; random weights of unequal means and spreads, random statistics, frozen as usual."""
    torch.manual_seed(seed)
    body = (
        factory(norm_layer=norm) if factory else ResNet(Bottleneck, [1, 2, 1, 1], norm_layer=norm)
    )
    for key, value in body.state_dict().items():
        if "bn" in key or "downsample.1" in key:
            if key.endswith(("var", "weight")):
                nn.init.uniform_(value, 0.5, 1.5)
            elif key.endswith(("mean", "bias")):
                nn.init.normal_(value, std=0.2)
        elif value.ndim == 4:
            filters = len(value)
            value *= torch.empty(filters, 1, 1, 1).uniform_(0.5, 1.5)
            value += value.std() * torch.randn(filters, 1, 1, 1) / 20
    for key, parameter in body.named_parameters():
        parameter.requires_grad_(not key.startswith(("conv1", "bn1", "layer1")))
    return body.eval()


def plain_stages(
    body: ResNet, images: Tensor, feedback: dict[str, Tensor] | None = None
) -> OrderedDict[str, Tensor]:
    """A plain ResNet's stages by its own forward; feedback enters through the downsampling."""
    levels: OrderedDict[str, Tensor] = OrderedDict()
    hooks = []
    for index in range(4):
        name, layer = str(index), body.get_submodule(f"layer{index + 1}")
        hooks.append(
            layer.register_forward_hook(lambda _m, _x, y, n=name: levels.__setitem__(n, y))
        )
        if feedback and name in feedback:
            shortcut = layer.get_submodule("0.downsample")
            hooks.append(
                shortcut.register_forward_hook(lambda _m, _x, y, added=feedback[name]: y + added)
            )
    body(images)
    for hook in hooks:
        hook.remove()
    return levels


def shake(module: nn.Module, std: float) -> None:
    """Add noise to every parameter that learns, above all to those that start at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn_like(parameter)


def assert_levels(got: dict[str, Tensor], want: dict[str, Tensor], relative: float) -> None:
    assert list(got) == list(want)
    for name, level in want.items():
        scale = level.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(got[name], level, rtol=0, atol=relative * scale)


@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)
def test_swapped_resnet50_starts_as_the_plain_one(dtype: torch.dtype, relative: float) -> None:
    plain = random_resnet(resnet50).to(dtype)
    swapped = swap_convolutions(copy.deepcopy(plain))
    assert plain.state_dict().keys() <= swapped.state_dict().keys()
    kinds = [type(m) for m in swapped.modules() if isinstance(m, ConvAWS)]
    assert (len(kinds), kinds.count(SAC)) == (53, 4 + 6 + 3)
    images = torch.randn(1, 3, 96, 96, dtype=dtype)
    with torch.no_grad():
        assert_levels(stages(swapped, images), plain_stages(plain, images), relative)


def test_plain_weights_load_and_calibrate() -> None:
    plain = random_resnet(seed=1)
    swapped = swap_convolutions(random_resnet(seed=2))
    missing, unexpected = swapped.load_state_dict(plain.state_dict(), strict=False)
    added = ("weight_diff", "context", "switch", "offset_s", "offset_l")
    assert not unexpected and all(any(part in key for part in added) for key in missing)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert_levels(stages(swapped, images), plain_stages(plain, images), 1e-5)


def test_without_calibration_activations_explode() -> None:
    images = torch.randn(1, 3, 96, 96)
    swapped = swap_convolutions(random_resnet(resnet50))
    x = swapped.maxpool(swapped.bn1(swapped.conv1(images)).relu())
    usual = swapped.layer1(x).abs().max()
    for module in swapped.modules():
        if isinstance(module, ConvAWS):
            module.gamma.fill_(1)
            module.beta.fill_(0)
    assert swapped.layer1(x).abs().max() > 1e4 * usual


def test_aspp_is_its_definition() -> None:
    torch.manual_seed(0)
    aspp = ASPP()
    weights = {k: p for k, p in aspp.named_parameters() if k.endswith("weight")}
    for weight in weights.values():
        out, _, k, _ = weight.shape
        assert out == 64 and weight.std().item() == pytest.approx((2 / (k * k * 64)) ** 0.5, 0.03)
    shake(aspp, 0.1)
    x = torch.randn(2, 256, 7, 9)
    want = [
        F.conv2d(x, aspp.point.weight, aspp.point.bias),
        F.conv2d(x, aspp.near.weight, aspp.near.bias, padding=3, dilation=3),
        F.conv2d(x, aspp.far.weight, aspp.far.bias, padding=6, dilation=6),
        F.linear(x.mean((2, 3)), aspp.whole.weight[:, :, 0, 0], aspp.whole.bias)[
            :, :, None, None
        ].expand(2, 64, 7, 9),
    ]
    torch.testing.assert_close(aspp(x), torch.cat(want, 1).clamp(min=0))


def twin_pyramid(seed: int = 0) -> tuple[RecursivePyramid, ResNet]:
    """From two equal ResNets, in float64; and the plain one."""
    plain = random_resnet(seed=seed).double()
    model = RecursivePyramid(copy.deepcopy(plain), copy.deepcopy(plain)).double().eval()
    return model, plain


@pytest.mark.parametrize("size", [(96, 160), (65, 65), (70, 97)])
def test_pyramid_starts_as_the_plain_one(size: tuple[int, int]) -> None:
    """Equal ResNets make equal steps, and the mean of two equal pyramids is the pyramid."""
    model, plain = twin_pyramid()
    images = torch.randn(2, 3, *size).double()
    with torch.no_grad():
        got = model(images)
        assert_levels(got, model.fpn(plain_stages(plain, images)), 1e-12)
    assert list(got) == ["0", "1", "2", "3", "pool"]
    for stride, level in zip((4, 8, 16, 32, 64), got.values(), strict=True):
        assert level.shape == (2, model.out_channels, *(-(-side // stride) for side in size))


def test_two_steps_with_feedback_and_gates() -> None:
    """Own weights a step, random feedback and gates; the ResNets are torchvision's plain ones."""
    one, two = (random_resnet(seed=seed).double() for seed in (1, 2))
    model = RecursivePyramid(copy.deepcopy(one), copy.deepcopy(two)).double()
    images = torch.randn(1, 3, 96, 96).double()
    with torch.no_grad():
        first, second = plain_stages(one, images), plain_stages(two, images)
        p, q = model.fpn(first), model.fpn(second)
        assert_levels(model(images), {name: (p[name] + q[name]) / 2 for name in p}, 1e-12)

        shake(model.feedback, 0.05)
        shake(model.gate, 0.05)
        feedback = {
            name: F.conv2d(model.aspp(p[name]), model.feedback[i].weight, model.feedback[i].bias)
            for i, name in enumerate("123")
        }
        q = model.fpn(plain_stages(two, images, feedback))
        want = {}
        for name in p:
            logit = torch.einsum("nchw,c->nhw", q[name], model.gate.weight.flatten())
            gate = 1 / (1 + torch.exp(-logit - model.gate.bias))[:, None]
            assert gate.std() > 0.01 or name == "pool"
            want[name] = p[name] + gate * (q[name] - p[name])
        assert_levels(model(images), want, 1e-12)


def test_what_learns_gets_a_gradient_and_what_is_frozen_none() -> None:
    model = RecursivePyramid(random_resnet(seed=1), random_resnet(seed=2))
    images = torch.rand(1, 3, 96, 96)
    torch.stack([level.square().mean() for level in model(images).values()]).sum().backward()
    frozen = {key for key, p in model.named_parameters() if p.grad is None}
    assert frozen == {
        f"{body}.{layer}.weight"
        for body in ("first", "second")
        for layer in ["conv1", *(f"layer1.0.conv{i}" for i in (1, 2, 3)), "layer1.0.downsample.0"]
    }
    # At the start S = 1 hides the second convolution and zero weights hide ASPP. Little noise, or
    # the offsets leave the image.
    shake(model, 0.001)
    model.zero_grad()
    torch.stack([level.square().mean() for level in model(images).values()]).sum().backward()
    for key, parameter in model.named_parameters():
        if key not in frozen:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key


def test_parameter_count() -> None:
    """DetectoRS-Cascade at 80 classes has 123.8 M parameters, Cascade R-CNN 69.3 M."""
    with torch.device("meta"):
        model = RecursivePyramid(resnet50(), resnet50())
        plain = resnet50()
    plain.fc = nn.Identity()
    total, body, fpn = (sum(p.numel() for p in m.parameters()) for m in (model, plain, model.fpn))
    assert total == 81_348_675
    assert total - (body + fpn) == pytest.approx(123.8e6 - 69.3e6, abs=0.1e6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["offset_s", "offset_l"])
def test_an_offset_that_is_not_finite_is_named(part: str, value: float) -> None:
    model, _ = twin_pyramid()
    conv = model.second.get_submodule(f"layer3.0.conv2.{part}")
    with torch.no_grad():
        conv.bias[4] = value
    wanted = rf"second\.layer3\.0\.conv2: {part} gave 36 of 648 offsets .* 0 of 36864 values"
    with pytest.raises(FloatingPointError, match=wanted):
        model(torch.randn(1, 3, 96, 96).double())


def test_an_image_with_nan_is_named() -> None:
    model, _ = twin_pyramid()
    images = torch.randn(1, 3, 96, 96).double()
    images[0, 0, 40, 40] = torch.nan
    with pytest.raises(FloatingPointError, match=r"first\.layer2\.0\.conv2: offset_s gave"):
        model(images)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_gpu_does_not_wait_and_marks_nan(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, a NaN offset reaches every level and gradient; here on the CPU."""
    monkeypatch.setattr(SAC, "_check", lambda *_args, **_offsets: None)
    model, _ = twin_pyramid()
    images = torch.randn(1, 3, 96, 96).double()
    with torch.no_grad():
        want = model(images)
        model, images = model.to(device), images.to(device)
        assert_levels({name: x.cpu() for name, x in model(images).items()}, want, 1e-10)
        model.second.get_submodule("layer3.0.conv2.offset_l").bias[4] = torch.nan
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        got = model(images)
        got["0"].sum().backward()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert all(level.isnan().all() for level in got.values())
    assert model.gate.weight.grad.isnan().all()


@pytest.mark.parametrize("size", [(64, 200), (200, 33)])
def test_small_images_are_refused(size: tuple[int, int]) -> None:
    model, _ = twin_pyramid()
    with pytest.raises(
        ValueError, match=rf"larger than 64 pixels a side, got {size[0]} x {size[1]}"
    ):
        model(torch.zeros(1, 3, *size).double())


def test_unusable_resnets_are_named() -> None:
    with pytest.raises(ValueError, match=r"Bottleneck blocks .* got BasicBlock"):
        swap_convolutions(resnet18())
    body = random_resnet()
    with pytest.raises(ValueError, match="got one twice"):
        RecursivePyramid(body, body)
    with pytest.raises(ValueError, match="swapped before"):
        swap_convolutions(swap_convolutions(body))


def test_state_survives_saving(tmp_path: pytest.TempPathFactory) -> None:
    """Trained weights come back with the γ and β they were trained with, not newly calibrated."""
    one = RecursivePyramid(random_resnet(seed=1), random_resnet(seed=2))
    shake(one, 0.001)
    other = RecursivePyramid(random_resnet(seed=3), random_resnet(seed=4))
    path = f"{tmp_path}/backbone.pt"
    torch.save(one.state_dict(), path)
    other.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(1, 3, 70, 96)
    with torch.no_grad():
        want, got, copied = one(images), other(images), copy.deepcopy(one)(images)
    assert all(torch.equal(got[k], want[k]) and torch.equal(copied[k], want[k]) for k in want)


def test_a_detector_trains_on_it() -> None:
    bodies = [random_resnet(seed=seed, norm=nn.BatchNorm2d) for seed in (1, 2)]
    model = FasterRCNN(RecursivePyramid(*bodies), 3, min_size=96, max_size=160).train()
    target = {"boxes": torch.tensor([[10.0, 12, 40, 50]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 96, 130)], [target])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert model.backbone.gate.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert model.eval()([torch.rand(3, 96, 130)])[0].keys() == {"boxes", "labels", "scores"}
