"""The C passes: where they run, what happens where they were not built, threads."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import pytest
import torch
from cases import HEADS, ON_KERNELS, random_batch

from jolkernels import JointOptimizationLoss, registry
from jolkernels.batch import make_batch
from jolkernels.cpu import native

needs_passes = pytest.mark.skipif(
    ON_KERNELS or native.library() is None, reason="not built, or turned off"
)


@needs_passes
def test_what_is_not_in_c_runs_in_tensor_operations(monkeypatch):
    """A registered choice, other dtypes, columns that do not follow each other."""

    @dataclass(frozen=True)
    class Quartic:
        on_codes: ClassVar[bool] = True

    def available(criterion, batch):
        fields, _ = make_batch(criterion.settings, **batch)
        return native.available(fields, criterion.settings)

    monkeypatch.setitem(registry.CHOICES["regression"], "quartic", Quartic)
    assert not available(JointOptimizationLoss(regression="quartic"), random_batch())
    criterion = JointOptimizationLoss()
    assert not available(criterion, random_batch(dtype=torch.float16))
    batch = random_batch(dtype=torch.float32)
    assert available(criterion, batch)
    weights = torch.ones(6, dtype=torch.float64)
    assert not available(criterion, batch | {"class_weights": weights})
    assert not available(criterion, batch | {"logits": batch["logits"].t().contiguous().t()})


@pytest.mark.skipif(os.environ.get("JOLKERNELS_NATIVE") == "0", reason="turned off")
def test_they_are_built_where_there_is_a_compiler():
    """Else the tests of C would be skipped without a word."""
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        wanted = "pip install --editable . builds rows.c; python setup.py build_ext --inplace too"
        assert native.library() is not None, wanted


@needs_passes
def test_only_a_library_built_from_this_source_is_loaded(tmp_path, monkeypatch):
    """No other's: neither a planted nor a truncated nor an older one; and none if turned off."""
    load, built = native.library.__wrapped__, native.FOLDER.glob("rows*.so")
    assert load() is not None
    monkeypatch.setenv("JOLKERNELS_NATIVE", "0")
    assert load() is None
    monkeypatch.delenv("JOLKERNELS_NATIVE")
    sources = [shutil.copy(path, tmp_path) for path in native.FOLDER.glob("*.[ch]")]
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert load() is None
    copies = [tmp_path / library.name for library in built]
    for copy in copies:
        copy.write_bytes(b"\x7fELF")
    assert load() is None
    for copy in copies:
        copy.unlink()
        shutil.copy(native.library()._name, copy)
    for source in sources:
        assert load() is not None
        text = Path(source).read_text()
        Path(source).write_text(text + "/* newer */")
        assert load() is None, source
        Path(source).write_text(text)


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


@pytest.mark.skipif(ON_KERNELS, reason="the kernels run")
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
    from jolkernels.cpu import native, rows_call
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

    def described(batch, call, rows):
        written.append(weakref.ref(rows))
        return describe(batch, call, rows)

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


@needs_passes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_vectors_of_twice_the_width_change_no_bit(head, dtype, monkeypatch):
    """AVX-512's loops add in AVX2's order."""
    here = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    narrow, wide = native.library.__wrapped__(), native.library()
    if here != "AVX512":
        pytest.skip(f"this processor has {here}")
    assert "avx2" in narrow._name and "avx512" in wide._name
    criterion = JointOptimizationLoss(head[0], background=head[1])
    for classes in (2, 80, 5000):
        batch = random_batch(head, n=200, classes=classes, dtype=dtype)
        bits = []
        for library in (narrow, wide):
            monkeypatch.setattr(native, "library", lambda loaded=library: loaded)
            loss = criterion(**batch)
            leaves = batch["logits"], batch["box_preds"]
            bits.append((*loss, *torch.autograd.grad(loss.total, leaves)))
        assert all(map(torch.equal, *bits))
