"""The loss as compiled, run on the CPU: values, orders, layouts of the inputs, counts."""

import pytest
import torch
from cases import INTERPRETED, random_batch
from torch import Tensor

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import small_kernels as kernels
from small_kernels import launch, vector

from bench.ptx import PtxError, compiled, in_all_orders, run, run_loss
from bench.ptx.flow import ranks
from jolkernels import JointOptimizationLoss
from jolkernels.batch import make_batch

pytestmark = pytest.mark.compiled
RCNN = ("cross_entropy", "first"), {"regression": "smooth_l1", "coding": "delta"}
RETINANET = ("focal", "last"), {"regression": "l1", "coding": "delta"}
UP = 1.3, 0.7


def problem(head, dtype=torch.float32, **shape):
    """A criterion and its arguments, without gradients."""
    kind, choices = head
    criterion = JointOptimizationLoss(kind[0], background=kind[1], **choices)
    batch = random_batch(kind, choices["coding"], dtype=dtype, **shape)
    return criterion, {name: t.detach() for name, t in batch.items()}


def on_the_machine(criterion, batch, **options):
    """`run_loss` with upstream gradients UP."""
    fields, call = make_batch(criterion.settings, **batch)
    kind = torch.float64 if batch["logits"].dtype == torch.float64 else torch.float32
    return run_loss(fields, call, tuple(torch.tensor(u, dtype=kind) for u in UP), **options)


def in_float64(criterion, batch):
    """Losses and gradients of the same numbers in float64."""
    given = {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
    leaves = [given[k].requires_grad_() for k in ("logits", "box_preds")]
    loss = criterion(**given)
    total = UP[0] * loss.classification + UP[1] * loss.regression
    return loss, torch.autograd.grad(total, leaves)


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    if not wanted.numel():
        return 0.0
    return float((got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))


def assert_agrees(criterion, batch, losses=2e-6, gradients=1e-5, **options):
    """The machine's results are those of float64."""
    result, (by_logits, by_boxes, _), done = on_the_machine(criterion, batch, **options)
    loss, wanted = in_float64(criterion, batch)
    assert error(result.classification, loss.classification.detach()) <= losses
    assert error(result.regression, loss.regression.detach()) <= losses
    assert int(result.num_positives) == int(loss.num_positives)
    assert error(by_logits, wanted[0]) <= gradients
    assert error(by_boxes, wanted[1]) <= gradients
    return done


CASES = {
    "faster_rcnn": (RCNN, {"n": 65, "classes": 8, "class_specific": True}, "sm_90"),
    "retinanet": (RETINANET, {"n": 64, "classes": 80}, "sm_90"),
    "one row": (RETINANET, {"n": 1, "classes": 8}, "sm_80"),
    "packed arithmetic": (RCNN, {"n": 63, "classes": 8}, "sm_100"),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name):
    head, shape, target = CASES[name]
    done = assert_agrees(*problem(head, **shape), target=target)
    assert [e.name for e in done] == ["rows_kernel", "finish_kernel", "gradients_kernel"]


def test_float64_has_loops_whose_head_comes_last():
    """Exponentials branch inside the loop over columns, and lanes meet before its shuffles."""
    criterion, batch = problem(RCNN, torch.float64, n=30, classes=8)
    done = assert_agrees(criterion, batch, losses=1e-14, gradients=1e-13)
    ranked = ranks(done[0].compiled.code.program)
    assert any(ranked[a] > ranked[b] for a in ranked for b in ranked if a < b)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_half_precision_rounds_gradients_once(dtype, bits):
    assert_agrees(*problem(RETINANET, dtype, n=40, classes=8), gradients=1.01 * 2.0**-bits)


def test_no_rows():
    criterion, batch = problem(RCNN, n=0, classes=8)
    result, gradients, done = on_the_machine(criterion, batch)
    assert result.classification == result.regression == result.num_positives == 0
    assert gradients[0].shape == (0, 9) and [e.programs for e in done] == [0, 1, 0]


def test_every_order_gives_the_same_bits():
    criterion, batch = problem(RCNN, n=65, classes=8, class_specific=True)

    def compute(**options):
        made = on_the_machine(criterion, batch, **options)
        return made.tensors, made

    in_all_orders(compute)


def strided(t):
    return torch.stack((t, torch.full_like(t, torch.nan if t.is_floating_point() else 99)), -1)[
        ..., 0
    ]


def transposed(t):
    return t.t().contiguous().t()


def shifted(t):
    return torch.cat((t.new_zeros(1), t.reshape(-1)))[1:].view(t.shape)


@pytest.mark.parametrize("layout", [strided, transposed, shifted])
def test_layouts(layout):
    """The gaps of a view are not read: they hold NaN, and labels that are none."""
    criterion, batch = problem(RETINANET, n=40, classes=8)
    batch = {name: layout(t) for name, t in batch.items()}
    assert_agrees(criterion, batch)


def test_a_bad_label_makes_everything_nan():
    criterion, batch = problem(RETINANET, n=40, classes=8)
    batch["labels"][7] = 2**40
    result, gradients, _ = on_the_machine(criterion, batch)
    assert result.classification.isnan() and result.regression.isnan()
    assert all(g.isnan().all() for g in gradients[:2])


def test_a_tensor_that_is_used_twice():
    criterion, batch = problem(RCNN, n=20, classes=8)
    batch["priors"] = batch["target_boxes"]
    assert_agrees(criterion, batch)


def test_the_bits_of_nan():
    """Those of a GPU, 0x7FFFFFFF, whatever this CPU makes; what is only copied stays as it is."""
    x = torch.tensor([torch.inf, 1.0, -torch.inf, torch.nan])
    out = torch.empty(4)
    run(launch(kernels.difference, 1, x, out, 4, BLOCK=4), ["out"])
    assert out.view(torch.int32).tolist() == [0x7FFFFFFF, 0, 0x7FFFFFFF, 0x7FFFFFFF]
    payload = torch.tensor([0x7FC00001, -1, 0x7F800001, 5], dtype=torch.int32).view(torch.float32)
    run(launch(kernels.copy, 1, payload, out, 4, BLOCK=4), ["out"])
    assert torch.equal(out.view(torch.int32), payload.view(torch.int32))


# Counts.


def lines(execution, *kinds):
    return [line for line in execution.counts if line.instruction.parts[0] in kinds]


def test_counts_of_a_copy():
    x, out = vector(1024), torch.empty(1024)
    done = run(launch(kernels.copy, 4, x, out, 1024, BLOCK=256), ["out"])
    (load,) = [line for line in lines(done, "ld") if line.width]
    (store,) = lines(done, "st")
    for line in (load, store):  # 4 programs of 4 warps, each lane two numbers
        assert (line.warps, line.lanes, line.requests, line.width) == (16, 512, 16, 8)
        assert line.sectors == 1024 * 4 // 32
    assert done.loaded_sectors == done.stored_sectors == 1024 * 4 // 32
    assert load.instruction.source[0].file == "small_kernels.py"
    assert all(line.warps == 16 for line in done.counts)


def test_counts_of_a_part():
    """Of 1,000 numbers the last program has 232, the first 116 lanes of its 128."""
    x, out = vector(1000), torch.empty(1000)
    done = run(launch(kernels.copy, 4, x, out, 1000, BLOCK=256), ["out"])
    loads = [line for line in lines(done, "ld") if line.width]
    assert sum(line.lanes * line.width for line in loads) == 4000
    assert all(line.warps == 16 for line in loads)
    assert done.loaded_sectors == done.stored_sectors == 125


def test_counts_follow_the_path():
    """Program i has i + 1 rounds: 1 + 2 + 3 + 4 + 5 in all, of 4 warps."""
    x = vector(5 * 256)
    done = run(launch(kernels.uneven_loops, 5, x, torch.empty(5), 5, BLOCK=256), ["out"])
    loads = [line for line in lines(done, "ld") if "global" in line.instruction.parts]
    assert sum(line.lanes * line.width for line in loads) == 15 * 256 * 4
    assert {line.warps for line in loads} == {15 * 4}
    assert done.loaded_sectors == 5 * 256 * 4 // 32 < sum(line.sectors for line in loads)


def test_sectors_of_a_stride():
    """Numbers 32 bytes apart need a sector each."""
    x = vector(8 * 128).view(128, 8)[:, 0]
    done = run(launch(kernels.row_sums, 128, x, torch.empty(128), 128, 1, 8, BLOCK=2), ["out"])
    assert done.loaded_sectors == 128


def test_a_kernel_is_compiled_once_for_a_signature():
    a, b = (launch(kernels.copy, 4, vector(1024), torch.empty(1024), n, BLOCK=256)
            for n in (1024, 512))  # fmt: skip
    assert compiled(a) is compiled(b)
    odd = launch(kernels.copy, 4, vector(1025)[1:], torch.empty(1024), 1024, BLOCK=256)
    assert compiled(odd) is not compiled(a)
    assert compiled(a, "sm_80") is not compiled(a)


def test_a_target_without_ptx():
    with pytest.raises(PtxError, match="target: got 'gfx942', wanted sm_80, sm_90 or sm_100"):
        compiled(launch(kernels.copy, 1, vector(4), torch.empty(4), 4, BLOCK=4), "gfx942")


@pytest.mark.parametrize("step", [2**26, 2**30])
def test_rows_beyond_32_bits(step):
    """64 rows 2^26 numbers apart, and 64 rows 2^30 apart, of which little is real memory."""
    criterion, batch = problem(RETINANET, n=64, classes=8)
    batch["logits"] = kernels.far_apart(batch["logits"], step)
    assert batch["logits"].stride(0) * len(batch["logits"]) > 2**31
    assert_agrees(criterion, batch)
