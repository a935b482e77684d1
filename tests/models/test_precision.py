"""Mixed precision: half inside, losses, gradients, boxes and scores in float32; the scaler."""

import itertools

import pytest
import torch
from scenes import scene, tiny
from torch import Tensor, nn
from torch.amp import GradScaler

from detectors.models import DETECTORS, TWO_STAGE
from detectors.models.pyramids import PreciseP6P7
from detectors.models.roi_pooling import AlignedRoIAlign, with_strides

HALVES = [torch.bfloat16, torch.float16]


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Replay:
    """Records the calls of loss functions, to repeat them with their tensors in float32.

    `half` becomes whether a call was given half precision.
    """

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list = []
        self.half = False
        for module in model.modules():
            for function in ("compute_loss", "joint_loss"):
                if callable(getattr(module, function, None)) and module is not model:
                    inner = getattr(module, function)
                    monkeypatch.setattr(module, function, self.noting(inner))

    def noting(self, inner):
        def noted(*given):
            state = torch.get_rng_state()  # the RPN's loss draws its samples
            result = inner(*given)
            self.calls.append((inner, given, state, result))
            return result

        return noted

    def check(self) -> None:
        assert self.calls
        for inner, given, state, result in self.calls:
            torch.set_rng_state(state)
            want = inner(*self.in_float32(given))
            for got, wanted in zip(losses_of(result), losses_of(want), strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)

    def in_float32(self, value):
        if isinstance(value, dict):
            return {k: self.in_float32(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.in_float32(v) for v in value]
        if not value.is_floating_point():
            return value
        self.half |= value.dtype in HALVES
        return value.detach().float()


def losses_of(result) -> list[Tensor]:
    return [*(result.values() if isinstance(result, dict) else result)][:3]


def cases() -> list:
    """float16 of large layers is slow on a CPU, and DetectoRS always is."""
    found = []
    for name, preset, dtype in itertools.product(DETECTORS, ("slim", "paper"), HALVES):
        slow = name == "detectors" or (preset == "paper" and dtype == torch.float16)
        mark = (pytest.mark.slow,) if slow else ()
        found.append(pytest.param(name, preset, dtype, id=f"{name}-{preset}-{dtype}", marks=mark))
    return found


@pytest.mark.parametrize(("name", "preset", "dtype"), cases())
def test_a_step_and_a_detection(name, preset, dtype, monkeypatch):
    """Losses are those of the rounded predictions in float32, whatever rounded them."""
    model = tiny(name, preset).train()
    replay = Replay(model, monkeypatch)
    images, targets = scene([3], (32, 32))
    halves = []
    model.backbone.register_forward_hook(
        lambda _, __, maps: halves.extend(m.dtype for m in maps.values())
    )
    with autocast(dtype):
        losses = model(images, targets)
    assert set(halves) == {dtype}
    for key, value in losses.items():
        assert value.dtype == torch.float32 and value.isfinite(), key
    replay.check()
    assert replay.half == (name not in TWO_STAGE)
    torch.stack(list(losses.values())).sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32, key
            assert parameter.grad.isfinite().all(), key
    assert model.backbone.get_parameter(
        next(k for k, p in model.backbone.named_parameters() if p.requires_grad)
    ).grad.any()

    with torch.no_grad(), autocast(dtype):
        found = model.eval()(images)[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    # Neither has been through the half: it would have come out unchanged.
    for values in (found["boxes"], found["scores"]):
        assert (values.to(dtype).float() != values).any()


def test_boxes_of_half_precision_features_are_not_rounded():
    """At 1000 pixels bfloat16 has steps of 4: a box would be pooled next to its object."""
    pool = with_strides(AlignedRoIAlign(["0"], 3, 0), (4,))
    random = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 260, 260, generator=random).bfloat16()
    boxes = [torch.tensor([[1001.0, 990.5, 1013.0, 1003.0], [501.3, 3.3, 512.9, 17.0]])]
    want = pool({"0": features.float()}, boxes, [(1040, 1040)])
    got = pool({"0": features}, boxes, [(1040, 1040)])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=1e-6)


class Step:
    """Gradients of a model's weights on one scene, in float32 or under autocast."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = tiny(name).train()
        self.images, self.targets = scene([3], (32, 32))
        if name in TWO_STAGE:  # the same proposals however the network rounds
            kept: list = []
            inner = self.model.rpn.filter_proposals

            def first(*given):
                kept.append(kept[0] if kept else inner(*given))
                return kept[0]

            monkeypatch.setattr(self.model.rpn, "filter_proposals", first)

    def total(self, dtype: torch.dtype | None) -> Tensor:
        torch.manual_seed(3)
        self.model.zero_grad()
        with autocast(dtype):
            return torch.stack(list(self.model(self.images, self.targets).values())).sum()

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_scaled_step_has_the_gradients_of_float32(name, monkeypatch):
    """Of a loss so small that float16 alone loses most of its gradient.

    Activations of half precision, on the other side of a ReLU now and then, make a gradient that
    is 5 to 9 % away from float32's whatever the scale (bfloat16: 15 to 18 %).
    """
    step, small = Step(name, monkeypatch), 2.0**-18
    step.total(None).backward()
    want = step.gradient() * small
    step.total(torch.float16).backward()
    in_range = step.gradient() * small
    (step.total(torch.float16) * small).backward()
    assert (step.gradient() - want).norm() > 0.5 * want.norm()

    scaler = GradScaler("cpu", init_scale=1 / small)
    optimizer = torch.optim.SGD(step.model.parameters(), lr=1 / small)
    scaler.scale(step.total(torch.float16) * small).backward()
    scaler.unscale_(optimizer)
    assert (step.gradient() - in_range).norm() < 1e-3 * want.norm()
    assert (step.gradient() - want).norm() < 0.15 * want.norm()
    before = step.model.backbone.body.conv1.weight.clone()
    scaler.step(optimizer)
    assert (step.model.backbone.body.conv1.weight != before).any()


def test_a_scale_too_large_skips_the_step(monkeypatch):
    """The criterion's gradient overflows to infinity, not to some finite number."""
    step = Step("retinanet", monkeypatch)
    scaler = GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.1)
    before = [p.clone() for p in step.model.parameters()]
    scaler.scale(step.total(torch.float16)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(step.model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**39


def test_the_gradient_over_a_map_one_pixel_wide_is_not_left_unwritten():
    """Where the memory it is put into held NaN before, as in PyTorch's own it would."""
    extra = PreciseP6P7(64, 64)
    p6 = torch.randn(1, 64, 1, 1).bfloat16()
    for _ in range(10):
        junk = [torch.full((64, 64, 3, 3), torch.nan) for _ in range(4)]
        del junk
        extra.zero_grad()
        with autocast(torch.bfloat16):
            levels, names = extra([p6], [p6], ["top"])
        assert names == ["top", "p6", "p7"] and {x.dtype for x in levels} == {torch.bfloat16}
        levels[-1].sum().backward()
        for convolution in (extra.p6, extra.p7):
            centre = convolution.weight.grad[:, :, 1:2, 1:2].clone()
            assert centre.isfinite().all() and centre.any()
            convolution.weight.grad[:, :, 1, 1] = 0
            assert (convolution.weight.grad == 0).all()  # the others saw padding alone
