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
from cases import INTERPRETED, gradients, random_batch

from jolkernels import JointOptimizationLoss, reference, registry, spec
from jolkernels.batch import make_batch
from jolkernels.cpu import native, tensors

needs_passes = pytest.mark.skipif(
    INTERPRETED or native.library() is None, reason="not built, or turned off"
)
CLASSIFICATIONS = [
    "cross_entropy", "bce", "focal", "focal:gamma=1.5", "focal:gamma=0.7", "focal:gamma=0",
    "quality_focal", "quality_focal:beta=1", "varifocal", "varifocal:detach=True,gamma=1.5",
    "varifocal:detach=True,positives=label", "mal", "mal:gamma=2", "mal:gamma=1",
]  # fmt: skip
REGRESSIONS = [
    "l1", "smooth_l1", "smooth_l1:beta=0", "l2", "iou", "iou:mode=log", "iou:mode=square", "giou",
    "diou", "ciou", "eiou", "siou", "shape_iou", "shape_iou:scale=0.7", "wiou", "nwd",
    "nwd:mix=0.6", "inner", "inner:loss=ciou,ratio=1.3", "focaler:low=0.2,high=0.61",
    "inner:loss=(focaler:loss=siou,low=0.3)", "5*l1+2*giou", "0.5*(inner:loss=ciou)+3*l2",
]  # fmt: skip
CODINGS = ["xyxy", "delta", "delta:weights=(10, 10, 5, 5),clip=0.1,low_clip=-0.1", "ltrb",
           "cxcywh", "cxcywh:scale=(32, 30)"]  # fmt: skip
SCORES = ["iou", "giou", "nwd", "simd", "dotd", None]
CHOICES = [
    *((loss, "l1", "xyxy", "iou") for loss in CLASSIFICATIONS),
    *((loss, "giou", "delta", None) for loss in CLASSIFICATIONS),
    *(("cross_entropy", loss, "ltrb", "iou") for loss in REGRESSIONS),
    *(("quality_focal", "5*l1+2*diou", coding, "giou") for coding in CODINGS),
    *(("bce", "l2", "delta", score) for score in SCORES),
    *(("bce", "iou", "cxcywh:scale=(32, 30)", score) for score in SCORES),
]


def more_inputs(criterion, batch, groups=3):
    """The batch with all further inputs; rows that no loss may read hold NaN, or group -7."""
    g = torch.Generator().manual_seed(1)
    (n, columns), dtype = batch["logits"].shape, batch["logits"].dtype
    counted = batch["labels"] != -100
    read = counted & (batch["labels"] != criterion.settings.background_label(columns))
    targets, extra = torch.rand(2, n, generator=g, dtype=torch.float64)
    targets[::5], targets[1::5] = 0, 1
    added = {
        "extra_regression": extra.masked_fill(~read, torch.nan).to(dtype).requires_grad_(),
        "class_weights": 2 * torch.rand(columns, generator=g, dtype=torch.float64).to(dtype),
        "groups": torch.randint(0, groups, (n,), generator=g).masked_fill(~counted, -7),
    }
    if criterion.settings.takes_targets:
        added["class_targets"] = targets.masked_fill(~read, torch.nan).to(dtype)
    return batch | added | {"num_groups": groups + 1}  # the last one is empty


def made(choices, *, more=False, dtype=torch.float64, background="last", weighting="joint", **size):
    """A loss of some CHOICES and a batch for it."""
    criterion = JointOptimizationLoss(
        *choices[:3], location_score=choices[3], background=background, weighting=weighting
    )
    names = (choices[0].partition(":")[0], background), choices[2].partition(":")[0]
    batch = random_batch(*names, dtype=dtype, **size)
    return criterion, more_inputs(criterion, batch) if more else batch


def detached(criterion, batch):
    """As the operators are given it: a Batch and a Call."""
    return make_batch(
        criterion.settings,
        **{k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()},
    )


def results(implementation, criterion, batch):
    """Forward and backward of one implementation."""
    fields, call = detached(criterion, batch)
    result = implementation.forward(fields, call)
    up = torch.linspace(0.7, 1.9, 2 * (call.num_groups or 1), dtype=result.rows.dtype)
    ups = up.view(2, *call.shape).unbind()
    needs = True, True, fields.extra_regression is not None
    saved = result.rows, result.scalars, *ups, needs
    return *result[:5], *implementation.backward(fields, call, *saved)


def by_autograd(criterion, batch):
    """What `results` returns, of the reference."""
    fields, call = make_batch(criterion.settings, **batch)
    result = reference.joint_optimization_loss(fields, call)
    up = torch.linspace(0.7, 1.9, 2 * (call.num_groups or 1), dtype=result[0].dtype)
    total = (torch.stack(result[:2]) * up.view(2, *call.shape)).sum()
    leaves = [
        t for t in (fields.logits, fields.box_preds, fields.extra_regression) if t is not None
    ]
    return [t.detach() for t in (*result, *torch.autograd.grad(total, leaves))]


def assert_equal(got, wanted, tolerance):
    """Up to a share of the largest number."""
    assert len([t for t in got if t is not None]) == len(wanted)
    for g, w in zip(got, wanted, strict=False):
        assert g.dtype == w.dtype
        scale = w.abs().max().item() if w.numel() else 0
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance * scale)


@needs_passes
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(map(str, c)))
def test_equals_the_tensor_operations_and_the_reference(choices, more):
    class_specific = choices[2] == "delta"
    for dtype in (torch.float32, torch.float64):
        criterion, batch = made(
            choices, more=more, dtype=dtype, n=150, class_specific=class_specific
        )
        assert native.available(detached(criterion, batch)[0], criterion.settings)
        got, wanted = results(native, criterion, batch), results(tensors, criterion, batch)
        wanted = [w for w in wanted if w is not None]
        assert_equal(got, wanted, 2e-5 if dtype == torch.float32 else 1e-10)
    assert_equal(got, by_autograd(criterion, batch), 1e-10)


@needs_passes
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("weighting", ["joint", "none"])
@pytest.mark.parametrize("head", [("cross_entropy", "first"), ("cross_entropy", "last"),
                                  ("focal", "last"), ("mal", "last")])  # fmt: skip
def test_several_chunks_and_tiles(head, weighting, more):
    """More rows than a thread takes at a time, and rows longer than a tile."""
    choices, options = (head[0], "smooth_l1", "delta", "iou"), {"background": head[1]}
    for size in ({"n": 5000, "classes": 33, "class_specific": True}, {"n": 3, "classes": 2500}):
        criterion, batch = made(choices, more=more, weighting=weighting, **options, **size)
        got, wanted = results(native, criterion, batch), results(tensors, criterion, batch)
        assert_equal(got, [w for w in wanted if w is not None], 1e-10)


@needs_passes
@pytest.mark.parametrize("choices", [("bce", "ciou", "xyxy", "iou"),
                                     ("cross_entropy", "l1", "delta", "nwd")])  # fmt: skip
def test_inputs_that_are_not_contiguous(choices):
    criterion, batch = made(choices, more=True, n=60)
    wanted = results(native, criterion, batch)
    for name, t in batch.items():
        if not isinstance(t, torch.Tensor):
            continue
        wide = t.new_full((2 * len(t), *(t.shape[1:])), 7)
        wide[::2] = t.detach()
        strided = {name: wide[::2]}
        if t.ndim == 2 and name != "logits":  # of which other layouts are not for C
            strided = {name: t.detach().t().contiguous().t()}
        assert native.available(detached(criterion, batch | strided)[0], criterion.settings)
        for g, w in zip(results(native, criterion, batch | strided), wanted, strict=True):
            assert torch.equal(g, w), name
    one = batch["class_weights"][:1].expand(batch["class_weights"].shape)
    got, same = (
        results(native, criterion, batch | {"class_weights": w}) for w in (one, one.clone())
    )
    assert all(map(torch.equal, got, same))


@needs_passes
@pytest.mark.parametrize("rows", ["none", "negatives", "ignored"])
@pytest.mark.parametrize("loss", ["cross_entropy", "quality_focal"])
def test_batches_without_positives(loss, rows):
    criterion, batch = made((loss, "giou", "xyxy", "iou"), more=True)
    background = criterion.settings.background_label(batch["logits"].shape[1])
    if rows == "none":
        batch = {k: v[:0] if k not in ("class_weights", "num_groups") else v
                 for k, v in batch.items()}  # fmt: skip
    for name in ("box_preds", "target_boxes", "extra_regression", "class_targets"):
        if name in batch:
            batch[name] = torch.full_like(batch[name], torch.nan).requires_grad_()
    batch["labels"] = torch.full_like(batch["labels"], -100 if rows == "ignored" else background)
    batch["groups"] = batch["groups"].clamp(min=0)
    got = results(native, criterion, batch)
    assert_equal(got, by_autograd(criterion, batch), 1e-12)
    assert (got[1] == 0).all() and (got[2] == 1).all() and (got[3] == 0).all()
    assert not got[6].any() and not got[7].any()
    if rows == "ignored":
        assert not got[0].any() and not got[5].any()


@needs_passes
@pytest.mark.parametrize("group", [-1, 4, 2**40])
def test_a_group_out_of_range_raises(group):
    criterion, batch = made(("focal", "l1", "delta", "iou"), more=True)
    at = int((batch["labels"] != -100).nonzero()[-1])
    batch["groups"][at] = group
    with pytest.raises(ValueError, match=rf"groups: got {group} at index {at}, wanted 0 to 3"):
        criterion(**batch)
    fields, call = detached(criterion, batch)
    result = native.forward(fields, call)  # bad in every group
    assert result.classification.isnan().all() and result.scalars[:, 4].isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="the kernels run")
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("in_c", [True, False])
def test_the_number_of_threads_does_not_change_the_bits(in_c, more, monkeypatch):
    """With the softmax loss; docs/using.md says what it changes with sigmoid losses."""
    if not in_c:
        monkeypatch.setattr(native, "library", lambda: None)
    choices = "cross_entropy", "l1", "delta", "iou"
    criterion, batch = made(choices, more=more, n=40_000, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = criterion(**batch)
            found.append((*loss, *gradients([part.sum() for part in loss[:2]], batch)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_passes
def test_what_is_not_in_c_runs_in_tensor_operations(monkeypatch):
    """A registered choice, other dtypes, columns that do not follow each other, many terms."""

    @dataclass(frozen=True)
    class Quartic:
        on_codes: ClassVar[bool] = True

    def available(criterion, batch):
        return native.available(detached(criterion, batch)[0], criterion.settings)

    monkeypatch.setitem(registry.CHOICES["regression"], "quartic", Quartic)
    assert not available(JointOptimizationLoss(regression="quartic"), random_batch())
    criterion = JointOptimizationLoss()
    assert not available(criterion, random_batch(dtype=torch.float16))
    batch = random_batch(dtype=torch.float32)
    assert available(criterion, batch)
    weights = torch.ones(6, dtype=torch.float64)
    assert not available(criterion, batch | {"class_weights": weights})
    assert not available(criterion, batch | {"logits": batch["logits"].t().contiguous().t()})
    loss = spec.IoU()
    for terms in range(2, native.TERMS + 2):
        loss = spec.Inner(loss)
        criterion = JointOptimizationLoss(regression=loss)
        assert len(criterion.settings.terms) == terms
        assert available(criterion, batch) == (terms <= native.TERMS)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [2.0, 1.5, 0.0, 3.0])
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
