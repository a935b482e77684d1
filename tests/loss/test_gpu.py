"""What only a GPU can show: nothing waits, streams and graphs, the same bits, NaN for bad labels.

The numbers are tested everywhere else too: with JOLKERNELS_TEST_DEVICE=cuda the tests of the loss
put their batches on the GPU.
"""

import threading

import pytest
import torch
from cases import HEADS, random_batch
from heads import HEADS as DETECTOR_HEADS
from heads import LOSSES, head_loss
from inputs import everything, leaves, results

from jolkernels import JointOptimizationLoss, reference
from jolkernels.batch import make_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(head, n=700, **choices):
    batch = random_batch(head, "delta", n=n, dtype=torch.float32)
    batch = {k: v.detach().cuda().requires_grad_(v.requires_grad) for k, v in batch.items()}
    return JointOptimizationLoss(head[0], coding="delta", background=head[1], **choices), batch


@pytest.mark.parametrize("head", HEADS)
def test_a_step_does_not_wait_for_the_gpu(head):
    criterion, batch = on_gpu(head)
    criterion(**batch).total.backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(**batch, classification_normalizer="positives").total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", DETECTOR_HEADS)
def test_a_detector_heads_loss_does_not_wait_for_the_gpu(name, loss):
    run, leaves, rest = head_loss(name, loss, "cuda")
    sum(run(*leaves, *rest)).backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(run(*leaves, *rest)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("head", HEADS)
def test_a_graph_captures_forward_and_backward(head):
    criterion, batch = on_gpu(head)
    leaves = batch["logits"], batch["box_preds"]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(criterion(**batch).total, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = criterion(**batch)
        gradients = torch.autograd.grad(loss.total, leaves)
    with torch.no_grad():
        batch["logits"].mul_(0.5)
    graph.replay()
    expected = criterion(**batch)
    assert all(torch.equal(a, b) for a, b in zip(loss, expected, strict=True))
    for a, b in zip(gradients, torch.autograd.grad(expected.total, leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [-1, 7, 10**12])
def test_a_bad_label_gives_nan_everywhere(value, monkeypatch):
    criterion, batch = on_gpu(("cross_entropy", "last"))
    batch["labels"][4] = value
    loss = criterion(**batch)
    loss.total.backward()
    assert loss.classification.isnan() and loss.regression.isnan()
    assert batch["logits"].grad.isnan().all() and batch["box_preds"].grad.isnan().all()
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    with pytest.raises(ValueError, match=f"labels: got {value} at index 4"):
        criterion(**batch)


SIGMOID_AND_SOFTMAX = pytest.mark.parametrize("name", ["cross_entropy", "bce", "mal"])


@SIGMOID_AND_SOFTMAX
def test_every_further_input_gives_the_numbers_of_the_reference(name):
    criterion, batch = everything(name, n=700, device="cuda")
    clean = batch | {"groups": batch["groups"].where(batch["labels"] >= 0, 0)}
    wanted = reference.joint_optimization_loss(*make_batch(criterion.settings, **clean))
    found = results(criterion(**batch), batch)
    for got, exact in zip(found, results(wanted, batch), strict=True):
        torch.testing.assert_close(got, exact.nan_to_num(0), rtol=1e-10, atol=1e-10)


@SIGMOID_AND_SOFTMAX
def test_every_further_input_without_a_wait_and_in_a_graph(name):
    criterion, batch = everything(name, n=700, dtype=torch.float32, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results(criterion(**batch), batch)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            wanted = results(criterion(**batch), batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph, one = torch.cuda.CUDAGraph(), torch.ones(3, device="cuda")
    with torch.cuda.graph(graph):
        loss = criterion(**batch)
        gradients = torch.autograd.grad((loss[0], loss[1]), leaves(batch), (one, one))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(loss, wanted[:5], strict=True))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("value", [-1, 3, 2**40])
def test_a_bad_group_gives_nan_everywhere(value, monkeypatch):
    criterion, batch = everything(device="cuda")
    row = int((batch["labels"] == 2).nonzero()[0])
    batch["groups"][row] = value
    *fields, d_logits, d_boxes, d_extra = results(criterion(**batch), batch)
    assert fields[0].isnan().all() and fields[1].isnan().all()
    assert d_logits.isnan().all() and d_boxes.isnan().all() and d_extra.isnan().all()
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    with pytest.raises(ValueError, match=f"groups: got {value} at index {row}"):
        criterion(**batch)


def step(criterion, batch):
    """The loss and its gradients, as one list."""
    loss = criterion(**batch)
    return [*loss, *torch.autograd.grad(loss.total, (batch["logits"], batch["box_preds"]))]


def equal(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_the_same_bits_a_hundred_times(head):
    criterion, batch = on_gpu(head, n=20_000)
    wanted = step(criterion, batch)
    noise = torch.randn(2_000, 2_000, device="cuda")
    for i in range(100):
        if i % 3 == 0:  # another order of programs
            noise = (noise @ noise).clamp(-1, 1)
        assert equal(step(criterion, batch), wanted), f"run {i}"


def test_streams_and_threads_do_not_meet():
    criteria = [on_gpu(head, n=50_000) for head in HEADS]
    wanted = [step(*given) for given in criteria]
    torch.cuda.synchronize()
    wrong = []

    def run(i):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(40):
                found = step(*criteria[i % len(criteria)])
                if not equal(found, wanted[i % len(criteria)]):
                    wrong.append(i)
        stream.synchronize()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_graph_beside_eager_calls_on_the_stream_it_was_captured_on():
    criterion, batch = on_gpu(HEADS[0], n=50_000)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        wanted = [t.clone() for t in criterion(**batch)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = criterion(**batch)
    for _ in range(40):
        graph.replay()  # on the current stream
        with torch.cuda.stream(stream), torch.no_grad():
            assert equal(criterion(**batch), wanted)
        torch.cuda.current_stream().synchronize()
        assert equal(captured, wanted)


def test_a_step_is_two_launches_and_what_autograd_itself_must():
    criterion, batch = on_gpu(HEADS[0])
    criterion(**batch, regression_normalizer=3.5).total.backward()  # compiles
    batch["logits"].grad = batch["box_preds"].grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        criterion(**batch, regression_normalizer=3.5).total.backward()
        torch.cuda.synchronize()
    names = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    ours = [name for name in names if name in ("rows_kernel", "gradients_kernel")]
    assert sorted(ours) == ["gradients_kernel", "rows_kernel"]
    assert len(names) == 4, names  # total's sum, and the ones that backward() begins with


def test_compiled_steps_give_the_numbers_of_eager_ones():
    criterion, batch = on_gpu(HEADS[0])
    fixed = {k: v for k, v in batch.items() if k not in ("logits", "box_preds")}

    def total(logits, boxes):
        return criterion(logits, boxes, **fixed).total

    for mode in (None, "reduce-overhead"):
        compiled = torch.compile(total, fullgraph=True, mode=mode)
        for _ in range(4):
            found = compiled(batch["logits"], batch["box_preds"])
            gradients = torch.autograd.grad(found, (batch["logits"], batch["box_preds"]))
            wanted = [criterion(**batch).total, *step(criterion, batch)[5:]]
            torch.testing.assert_close([found, *gradients], wanted)
