"""torch.compile: of a detector's parts, and of the heads' losses with the criterion inside."""

import copy
import itertools

import pytest
import torch
from heads import HEADS, LOSSES, head_loss
from scenes import losses_and_gradients, scene, tiny

from detectors.models.build import compile_model


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


@pytest.mark.parametrize(
    "name",  # Cascade R-CNN compiles the same parts as Faster R-CNN
    [
        "fcos",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("faster_rcnn", "retinanet", "detectors")
        ),
    ],
)
def test_compiled_equals_eager(name):
    """Losses, gradients and detections; the second image's size compiles once more."""
    eager = tiny(name)
    keys = list(eager.state_dict())
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    model = compile_model(copy.deepcopy(eager), backend=count)
    assert list(model.state_dict()) == keys
    for size in ((96, 96), (96, 128)) if name == "detectors" else ((64, 64), (64, 96)):
        images, targets = scene([3], size)
        eager.zero_grad()
        model.zero_grad()
        want, want_grad = losses_and_gradients(eager.train(), images, targets)
        got, got_grad = losses_and_gradients(model.train(), images, targets)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        for key, expected in want_grad.items():
            scale = 1.0 if expected is None else expected.abs().max().item()
            torch.testing.assert_close(got_grad[key], expected, rtol=0, atol=1e-4 * scale)
    assert len(graphs) == 4  # backbone and head, once for one size and once for any
    with torch.no_grad():
        want, got = eager.eval()(images), model.eval()(images)
    assert len(want[0]["boxes"]) > 0
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-3)
    copy.deepcopy(model).load_state_dict(eager.state_dict())


@pytest.mark.slow
def test_compiled_under_autocast_equals_eager_under_autocast():
    """A part compiled outside of autocast is compiled again within it, not run in float32."""
    eager = tiny("retinanet")
    model = compile_model(copy.deepcopy(eager), backend="eager")
    images, targets = scene([3], (64, 64))
    found = {}
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            want, want_grad = losses_and_gradients(eager.train(), images, targets)
            got, got_grad = losses_and_gradients(model.train(), images, targets)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        for key, expected in want_grad.items():
            torch.testing.assert_close(got_grad[key], expected, rtol=1e-4, atol=1e-6)
        eager.zero_grad()
        model.zero_grad()
        found[amp] = got
    assert any(not torch.equal(found[True][k], found[False][k]) for k in found[True])


BASE = "retinanet-levels", "fcos", "roi"  # one of each kind


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        pytest.param(name, loss, marks=[pytest.mark.slow] * (loss == "base" and name not in BASE))
        for name, loss in itertools.product(HEADS, LOSSES)
    ],
)
def test_the_loss_adds_no_graph_break(name, loss):
    run, leaves, rest = head_loss(name, loss)
    want = run(*leaves, *rest)
    assert all(x.isfinite() and x > 0 for x in want)
    want_grad = torch.autograd.grad(sum(want), leaves)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves, *rest)
    got_grad = torch.autograd.grad(sum(got), leaves)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    for a, b in zip(got_grad, want_grad, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
