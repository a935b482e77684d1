"""The C passes: where they run, what happens where they were not built, threads."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from cases import HEADS, INTERPRETED, gradients, random_batch

from jolkernels import JointOptimizationLoss, spec
from jolkernels.batch import make_batch
from jolkernels.cpu import native, tensors

needs_passes = pytest.mark.skipif(
    INTERPRETED or native.library() is None, reason="not built, or turned off"
)
HANDLED = [h for h in HEADS if h[0] in ("cross_entropy", "focal")]


def results(implementation, criterion, batch):
    """Forward and backward of one implementation."""
    fields, call = make_batch(criterion.settings, **{k: v.detach() for k, v in batch.items()})
    result = implementation.forward(fields, call)
    one = torch.ones((), dtype=result.rows.dtype)
    saved = (result.rows, result.scalars, 1.3 * one, 0.7 * one, (True, True))
    return *result[:4], *implementation.backward(fields, criterion.settings, *saved)


@needs_passes
@pytest.mark.parametrize("head", HANDLED)
@pytest.mark.parametrize("regression", ["l1", "smooth_l1", "iou", "giou"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_tensor_operations(head, regression, dtype):
    criterion = JointOptimizationLoss(head[0], regression, "delta", background=head[1])
    batch = random_batch(head, "delta", n=5000, classes=33, class_specific=True, dtype=dtype)
    fields, _ = make_batch(criterion.settings, **batch)
    assert native.available(fields, criterion.settings)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    got, wanted = results(native, criterion, batch), results(tensors, criterion, batch)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype
        scale = w.abs().max().item()
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.skipif(INTERPRETED, reason="the kernels run")
@pytest.mark.parametrize("score", ["iou", "nwd"])  # in C, and in tensor operations
def test_the_number_of_threads_does_not_change_the_bits(score):
    """With the softmax loss; docs/using.md says what it changes with sigmoid losses."""
    criterion = JointOptimizationLoss(coding="delta", location_score=score)
    batch = random_batch(coding="delta", n=40_000, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = criterion(**batch)
            found.append((*loss, *gradients(loss, batch)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_is_not_in_c_runs_in_tensor_operations():
    for choices in ({"regression": "ciou"}, {"location_score": "nwd"}, {"classification": "bce"}):
        criterion = JointOptimizationLoss(**choices)
        batch = random_batch((choices.get("classification", "cross_entropy"), "last"))
        fields, _ = make_batch(criterion.settings, **batch)
        assert not native.available(fields, criterion.settings)
    settings = JointOptimizationLoss().settings
    half, _ = make_batch(settings, **random_batch(dtype=torch.float16))
    assert not native.available(half, settings)


@pytest.mark.skipif(os.environ.get("JOLKERNELS_NATIVE") == "0", reason="turned off")
def test_they_are_built_where_there_is_a_compiler():
    """Else the tests of C would be skipped without a word."""
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        wanted = "pip install --editable . builds rows.c; python setup.py build_ext --inplace too"
        assert native.library() is not None, wanted


@needs_passes
def test_only_a_library_built_from_this_source_is_loaded(tmp_path, monkeypatch):
    """No other's: neither a planted nor a truncated nor an older one; and none if turned off."""
    load, built = native.library.__wrapped__, native.SOURCE.parent.glob("rows*.so")
    assert load() is not None
    monkeypatch.setenv("JOLKERNELS_NATIVE", "0")
    assert load() is None
    monkeypatch.delenv("JOLKERNELS_NATIVE")
    source = shutil.copy(native.SOURCE, tmp_path)
    monkeypatch.setattr(native, "SOURCE", tmp_path / "rows.c")
    assert load() is None
    copies = [tmp_path / library.name for library in built]
    for copy in copies:
        copy.write_bytes(b"\x7fELF")
    assert load() is None
    for copy in copies:
        copy.unlink()
        shutil.copy(native.library()._name, copy)
    assert load() is not None
    with open(source, "a") as file:
        file.write("/* newer */")
    assert load() is None


@needs_passes
def test_a_truncated_library_is_not_loaded(tmp_path):
    """The loader of Linux would end the process with SIGBUS."""
    whole = Path(native.library()._name).read_bytes()
    if whole[:4] != b"\x7fELF":
        pytest.skip("another format, whose loader checks")
    copy = tmp_path / "rows.so"
    copy.write_bytes(whole)
    assert not native.is_truncated(copy)
    for size in (4, 63, 64, len(whole) // 9, len(whole) // 3, len(whole) - 1):
        copy.write_bytes(whole[:size])
        assert native.is_truncated(copy), size


@pytest.mark.skipif(INTERPRETED, reason="the kernels run")
@pytest.mark.parametrize("turned_off", [False, True])
def test_without_them_a_large_batch_warns_once(turned_off, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "LARGE", 500)
    monkeypatch.setenv("JOLKERNELS_NATIVE", "0" if turned_off else "1")
    native.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (40, 200, 200):  # of 6 columns: small, large, large
            JointOptimizationLoss()(**random_batch(n=n)).total.backward()
            assert len(caught) == (n == 200 and not turned_off)
    assert all("C compiler" in str(warning.message) for warning in caught)


@pytest.mark.skipif(INTERPRETED, reason="the kernels run")
def test_a_last_chunk_of_one_row():
    """Of the tensor operations, and of C."""
    batch = random_batch(n=4097, classes=39)
    batch["labels"][-1], whole = 3, JointOptimizationLoss(weighting="none")
    batch["target_boxes"][-1] = batch["box_preds"].data[-1] = torch.tensor([0.0, 0, 4, 4])
    del batch["classification_weights"], batch["regression_weights"]
    expected = torch.nn.functional.cross_entropy(batch["logits"], batch["labels"])
    for implementation in (tensors, native) if native.library() else (tensors,):
        found = results(implementation, whole, batch)
        torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=0)


@needs_passes
def test_a_child_process_has_threads_of_its_own():
    program = """
import os, torch
from jolkernels import JointOptimizationLoss
torch.set_num_threads(3)
z, box = torch.zeros(20000, 9), torch.ones(20000, 4)
def run():
    return JointOptimizationLoss()(z, box, torch.zeros(20000, dtype=torch.long), box)
loss = run()
child = os.fork()
if child == 0:
    from jolkernels.cpu import native
    from concurrent.futures import ThreadPoolExecutor
    made = native.pool(2)
    os._exit(0 if made.submit(lambda: 7).result(timeout=20) == 7 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n", done.stderr


@pytest.fixture
def three_threads():
    """Of which two are yet to be started."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    native.pool.cache_clear()
    yield
    native.pool.cache_clear()
    torch.set_num_threads(before)


@needs_passes
@pytest.mark.parametrize("possible", [0, 1])
def test_fewer_threads_than_wanted_do_the_work(possible, three_threads, monkeypatch):
    """Where a container or the end of the program allows no more of them."""
    batch, start, started = random_batch(n=40_000), threading.Thread.start, []
    wanted = tuple(JointOptimizationLoss()(**batch))
    native.pool.cache_clear()

    def limited(thread):
        if len(started) == possible:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert all(map(torch.equal, JointOptimizationLoss()(**batch), wanted))
    assert len(started) == possible


@needs_passes
def test_an_interrupt_frees_nothing_that_threads_still_write(three_threads, monkeypatch):
    written, describe = [], native.describe
    late = Mock()  # a pool that keeps what is submitted, to begin later

    def interrupt(_):
        raise KeyboardInterrupt

    def described(batch, settings, rows):
        written.append(weakref.ref(rows))
        return describe(batch, settings, rows)

    monkeypatch.setattr(native, "describe", described)
    monkeypatch.setattr(native, "pool", lambda _: late)
    monkeypatch.setattr(native, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        JointOptimizationLoss()(**random_batch(n=40_000))
    assert late.submit.call_count == 2
    gc.collect()
    assert written[0]() is not None


@needs_passes
def test_the_operators_use_it():
    criterion, batch = JointOptimizationLoss(), random_batch()
    fields, call = make_batch(criterion.settings, **{k: v.detach() for k, v in batch.items()})
    through_operator = torch.ops.jolkernels.forward(*fields, call=call.encode())
    direct = native.forward(fields, call)
    assert all(torch.equal(a, b) for a, b in zip(through_operator, direct, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("columns", [1, 8, 80, 2047, 2500])
def test_focal_loss_of_rows_of_any_length_and_height(columns, gamma, dtype):
    """Against float64 tensor operations; logits from the far tails to 0, row by row."""
    g = torch.Generator().manual_seed(0)
    heights = torch.tensor([0.0, 1e-3, 1, 10, 60, 87.5, 200, 1e4], dtype=torch.float64)
    n = 4 * len(heights)
    logits = torch.randn(n, columns, generator=g, dtype=torch.float64) * heights.repeat(4)[:, None]
    logits = logits.to(dtype)
    labels = torch.randint(0, columns + 1, (n,), generator=g)
    boxes = torch.tensor([[0.0, 0, 9, 9]], dtype=dtype).expand(n, 4)
    criterion = JointOptimizationLoss(spec.Focal(gamma=gamma), "l1", weighting="none")

    given = logits.clone().requires_grad_()
    loss = criterion(given, boxes, labels, boxes + 1, classification_normalizer="sum")
    loss.classification.backward()

    wide = logits.double().requires_grad_()
    one_hot = torch.nn.functional.one_hot(labels, columns + 1)[:, :-1].double()
    toward = torch.where(one_hot == 1, -wide, wide)
    alpha = 0.75 - 0.5 * one_hot
    softplus = -torch.nn.functional.logsigmoid(-toward)
    expected = (alpha * toward.sigmoid() ** gamma * softplus).sum()
    expected.backward()
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(loss.classification.double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(
        given.grad.double(),
        wide.grad,
        rtol=4 * tolerance,
        atol=1e-37 if dtype == torch.float32 else 1e-290,
    )


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4097, 40_001])
def test_sums_of_tensor_operations(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(0))
    assert tensors.total(values) == pytest.approx(values.double().sum().item(), rel=1e-6)
