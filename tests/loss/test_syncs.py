"""What makes a GPU wait in a training step, counted without one; the loss's share is 0.

A GPU's own count is in test_gpu.py.
"""

from collections import Counter

import pytest
import torch
from heads import HEADS, LOSSES, head_loss
from inputs import everything, leaves
from scenes import QUICK, scene, tiny
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,  # item, bool, int, float, tolist
    aten.nonzero,  # and torch.where(mask)
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.lift_fresh,  # torch.tensor(...), whose numbers are copied to the GPU
    torch.ops.torchvision.nms,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def waits(packet, args) -> bool:
    if packet in INDEXING:  # a mask is turned into indices, whose number has to be known
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if packet is aten.repeat_interleave:
        return len(args) < 3 and isinstance(args[0], Tensor)
    return packet in WAITS


class CountWaits(TorchDispatchMode):
    """Counts operators that would make a GPU wait, by the part of the step they are in."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "forward"
        self.found: dict[str, Counter] = {"forward": Counter(), "loss": Counter()}
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function._overloadpacket
        self.seen[self.part] += 1
        no_size = "output_size" not in kwargs or kwargs["output_size"] is None
        if waits(packet, args) and no_size:
            self.found.setdefault(self.part, Counter())[str(packet)] += 1
        return function(*args, **kwargs)

    def inside(self, inner, part: str = "loss"):
        """`inner`, during which the part is this one."""

        def counted(*given):
            outer, self.part = self.part, part
            try:
                return inner(*given)
            finally:
                self.part = outer

        return counted


def count_step(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> CountWaits:
    """Forward, backward, clipping and update of a step of two images."""
    images, targets = scene([3, 0], (64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    count = CountWaits()
    for module in model.modules():
        for function in ("compute_loss", "joint_loss"):
            own = module is not model and module is not getattr(model, "rpn", None)
            if own and callable(getattr(module, function, None)):
                inner = getattr(module, function)
                monkeypatch.setattr(module, function, count.inside(inner))
    torch.manual_seed(3)
    with count:
        losses = model.train()(images, targets)
        count.part = "backward"
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return count


@pytest.mark.parametrize("name", QUICK)
def test_a_steps_loss_never_waits(name, monkeypatch):
    """Neither forward nor backward; and JOL's step waits as often as the base loss's."""
    counts = {loss: count_step(tiny(name, loss=loss), monkeypatch) for loss in LOSSES}
    for count in counts.values():
        assert count.seen["loss"] > 3 and count.seen["backward"] > 100
        assert not count.found["loss"]
        assert not count.found.get("backward")
        assert count.found["forward"]  # the counter sees those of torchvision
    totals = {loss: count.found["forward"].total() for loss, count in counts.items()}
    assert totals["jol"] == totals["base"]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, x[:1].expand(4)),
        lambda x: x.unique(),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.repeat_interleave(torch.ones(4).long()),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_the_counter_counts(wait):
    count = CountWaits()
    with count:
        wait(torch.ones(4))
    assert count.found["forward"].total() >= 1


class OnDevice(TorchDispatchMode):
    """Refuses operators with tensors on another device: a copy that a GPU would wait for."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.ndim:
                assert tensor.device.type == self.device, (
                    f"{function} has a tensor on {tensor.device}"
                )
        return result


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", HEADS)
def test_fake_tensors_are_not_looked_at(name, loss, device):
    """They have no values: looking raises. On a GPU, which need not be there, nothing is copied.

    Backward passes want a device that is there: the CPU's tensors, as fake, take the same way.
    """
    run, leaves, rest = head_loss(name, loss)
    mode = FakeTensorMode()
    given = tree_map(lambda x: mode.from_tensor(x.detach()), (leaves, rest))
    with mode:
        inputs, others = tree_map(lambda x: x.to(device), given)
        for x in inputs:
            x.requires_grad_()
        with OnDevice(device):
            losses = run(*inputs, *others)
            if device == "cpu":
                gradients = torch.autograd.grad(sum(losses), inputs)
                assert [g.shape for g in gradients] == [x.shape for x in leaves]
    assert all(x.device.type == device and x.dtype == torch.float32 for x in losses)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_the_further_inputs_are_not_looked_at(name, device):
    criterion, batch = everything(name)
    rest = {"classification_normalizer": "positives", "regression_normalizer": 2.5}
    given = {k: v.detach() if isinstance(v, Tensor) else v for k, v in batch.items()}
    mode = FakeTensorMode()
    fake = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, given)
    with mode:
        fake = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, fake)
        for x in leaves(fake):
            x.requires_grad_()
        with OnDevice(device):
            loss = criterion(**fake, **rest)
            if device == "cpu":
                gradients = torch.autograd.grad(loss.total.sum(), leaves(fake))
                assert [g.shape for g in gradients] == [x.shape for x in leaves(batch)]
    assert all(x.device.type == device and x.shape == (3,) for x in loss)


def test_a_fake_gpu_raises_at_a_look():
    with FakeTensorMode():
        x = torch.ones(4, device="cuda")
        for look in (lambda: x.sum().item(), x.tolist, x.nonzero, lambda: x[x > 0]):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                look()
        with OnDevice("cuda"), pytest.raises(AssertionError, match="a tensor on cpu"):
            x[[0, 2]]
