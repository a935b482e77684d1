"""sync_group: two processes equal one process on the joined batch.

Normalisers by name are the joined batch's over the number of ranks, so that the mean over the ranks
is the joined batch's loss. A number or tensor is taken as it is: frameworks hand over the mean over
the ranks, so for a joined batch's normaliser Z each rank is given Z / RANKS.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from cases import random_batch
from processes import RANKS, in_processes

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels

ROW_FIELDS = ("logits", "box_preds", "labels", "target_boxes", "priors", "classification_weights",
              "regression_weights")  # fmt: skip
CASES = [
    (("cross_entropy", "first"), {"coding": "delta", "regression": "smooth_l1"}, {}),
    (
        ("focal", "last"),
        {"coding": "ltrb", "regression": "giou"},
        {"classification_normalizer": "positives", "regression_normalizer": "positives"},
    ),
    (
        ("cross_entropy", "last"),
        {"detach_weights": True},
        {"classification_normalizer": "sum", "regression_normalizer": 7.5},
    ),
    (("varifocal", "last"), {"weighting": "none"}, {}),
    (
        ("bce", "last"),
        {"regression": "iou"},
        {"classification_normalizer": torch.tensor(9.0), "regression_normalizer": 3},
    ),
]
SPLITS = {"equal": 12, "unequal": 3, "empty": 0, "all": 23}  # rows of rank 0, of 23


def shard(batch, rank, first):
    """The rows of one rank, as leaves of their own."""
    rows = slice(0, first) if rank == 0 else slice(first, None)
    return {
        k: batch[k].detach()[rows].requires_grad_(batch[k].requires_grad)
        if k in ROW_FIELDS
        else batch[k]
        for k in batch
    }


def per_rank(batch):
    """Normalisers that are numbers, as each rank is given them: the joined batch's over RANKS."""
    return {
        k: v / RANKS if k.endswith("_normalizer") and not isinstance(v, str) else v
        for k, v in batch.items()
    }


def one_rank(rank):
    """Every case and split in one start of the processes."""
    results = []
    for head, choices, normalizers in CASES:
        batch = random_batch(head, choices.get("coding", "xyxy")) | normalizers
        criterion = JointOptimizationLoss(
            head[0], background=head[1], sync_group=dist.group.WORLD, **choices
        )
        for first in SPLITS.values():
            mine = per_rank(shard(batch, rank, first))
            loss = copy.deepcopy(criterion)(**mine)
            (1.3 * loss.classification + 0.7 * loss.regression).backward()
            results.append(
                ([x.detach() for x in loss], mine["logits"].grad, mine["box_preds"].grad)
            )
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    ranks = in_processes(one_rank)
    i = 0
    for head, choices, normalizers in CASES:
        batch = random_batch(head, choices.get("coding", "xyxy")) | normalizers
        expected = JointOptimizationLoss(head[0], background=head[1], **choices)(**batch)
        (1.3 * expected.classification + 0.7 * expected.regression).backward()
        for name, first in SPLITS.items():
            (loss_0, *grads_0), (loss_1, *grads_1) = ranks[0][i], ranks[1][i]
            i += 1
            close = dict(rtol=1e-12, atol=1e-12, msg=lambda m, case=(head, name): f"{case}: {m}")
            for k in (0, 1):
                mean = (loss_0[k] + loss_1[k]) / RANKS
                torch.testing.assert_close(mean, expected[k].detach(), **close)
            for k in (2, 3):
                assert loss_0[k] == loss_1[k]
                torch.testing.assert_close(loss_0[k], expected[k], **close)
            # DistributedDataParallel takes the mean of the ranks' gradients.
            for k, field in enumerate(("logits", "box_preds")):
                joined = torch.cat((grads_0[k], grads_1[k])) / RANKS
                assert len(grads_0[k]) == first
                torch.testing.assert_close(joined, batch[field].grad, **close)


def bad_label_on_rank_1(rank):
    batch = shard(random_batch(), rank, 12)
    if rank == 1:
        batch["labels"][2] = 77
    try:
        JointOptimizationLoss(sync_group=dist.group.WORLD)(**batch)
    except ValueError as error:
        return str(error)
    return "no error"


def test_a_bad_label_is_raised_by_all_ranks_and_none_hangs():
    messages = in_processes(bad_label_on_rank_1)
    assert "out of range on another rank" in messages[0]
    assert "labels: got 77 at index 2" in messages[1]


def test_a_sync_group_has_to_be_one():
    with pytest.raises(TypeError, match=r"sync_group: got 'world', wanted a .* ProcessGroup"):
        JointOptimizationLoss(sync_group="world")
