"""What the backward kernel writes: each gradient once, zeros of boxes among them, and no more.

PyTorch wants a gradient of all boxes, [N, 4 S], so its bytes are the least that can be written.
"""

import pytest
import torch
from cases import INTERPRETED, random_batch

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import compiled_kernels
from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.compiled


def stored(execution) -> int:
    """Bytes that all threads store to global memory."""
    stores = (x for x in execution.counts if x.instruction.parts[0] == "st" and x.sectors)
    return sum(line.lanes * line.width for line in stores)


@pytest.mark.parametrize("head", [("focal", "last"), ("cross_entropy", "first")])
def test_each_gradient_is_written_once(head):
    """But for the places of positives: a sigmoid loss's true column, a class-specific slot."""
    softmax = head[0] == "cross_entropy"
    criterion = JointOptimizationLoss(head[0], coding="delta", background=head[1])
    batch = random_batch(
        head, "delta", n=200, classes=8, dtype=torch.float32, class_specific=softmax
    )
    with compiled_kernels() as executions:
        criterion(**batch).total.backward()
    logits, boxes = batch["logits"].grad, batch["box_preds"].grad
    places = int(criterion(**batch).num_positives) * (4 if softmax else 1)
    assert stored(executions[-1]) == 4 * (logits.numel() + boxes.numel() + places)
    assert executions[-1].stored_sectors <= (logits.numel() + boxes.numel()) * 4 // 32 + 200
