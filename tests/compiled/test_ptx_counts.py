"""Of the loss and of small kernels: targets, and what is counted."""

import pytest
import torch
from cases import INTERPRETED, random_batch
from exact import assert_exact

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import small_kernels as kernels
from small_kernels import launch, vector

from bench.ptx import PtxError, compiled, compiled_kernels, run
from bench.ptx.flow import ranks
from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.compiled
RCNN = ("cross_entropy", "first"), {"regression": "smooth_l1", "coding": "delta"}
RETINANET = ("focal", "last"), {"regression": "l1", "coding": "delta"}


def problem(head, dtype=torch.float32, **shape):
    kind, choices = head
    criterion = JointOptimizationLoss(kind[0], background=kind[1], **choices)
    return criterion, random_batch(kind, choices["coding"], dtype=dtype, **shape)


@pytest.mark.parametrize("target", ["sm_80", "sm_100"])  # the latter has packed arithmetic
@pytest.mark.parametrize("head", [RCNN, RETINANET])
def test_other_gpus(head, target):
    with compiled_kernels(target=target) as done:
        assert_exact(*problem(head, n=65, classes=8))
    assert [e.name for e in done] == ["rows_kernel", "gradients_kernel"]
    assert all(e.compiled.code.program.target.startswith(target) for e in done)


def test_float64_has_loops_whose_head_comes_last():
    """Exponentials branch inside the loop over columns, and lanes meet before its shuffles."""
    with compiled_kernels() as done:
        assert_exact(*problem(RCNN, torch.float64, n=30, classes=8))
    ranked = ranks(done[0].compiled.code.program)
    assert any(ranked[a] > ranked[b] for a in ranked for b in ranked if a < b)


def test_a_tensor_that_is_used_twice():
    criterion, batch = problem(RCNN, n=20, classes=8)
    batch["priors"] = batch["target_boxes"]
    assert_exact(criterion, batch)


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
