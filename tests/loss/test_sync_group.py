"""sync_group: two processes equal one process on the joined batch.

Normalisers by name are the joined batch's over the number of ranks, so that the mean over the ranks
is the joined batch's loss. A number or tensor is taken as it is: frameworks hand over the mean over
the ranks, so for a joined batch's normaliser Z each rank is given Z / RANKS.
"""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from cases import random_batch
from inputs import all_gradients, with_inputs
from processes import RANKS, in_processes

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels

ROW_FIELDS = ("logits", "box_preds", "labels", "target_boxes", "priors", "classification_weights",
              "regression_weights", "class_targets", "extra_regression", "groups")  # fmt: skip
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
        ("class_targets", "class_weights", "extra_regression"),
    ),
    (  # "samples" are the weights of all ranks' rows
        ("cross_entropy", "last"),
        {"regression": "giou"},
        {"regression_normalizer": "positives"},
        ("class_weights", "extra_regression"),
    ),
    (
        ("cross_entropy", "first"),
        {"coding": "delta"},
        {"regression_normalizer": torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)},
        ("class_weights", "extra_regression", "groups"),
    ),
    (
        ("focal", "last"),
        {"coding": "cxcywh", "regression": "sum"},
        {"classification_normalizer": "positives"},
        ("class_targets", "groups"),
    ),
]
SPLITS = [{"equal": 12, "empty": 0}, {"unequal": 3, "all": 23}]
"""Rows of rank 0, of 23: for every second case."""


def case(head, choices, normalizers, inputs=()):
    """What the loss is made with, and its batch."""
    batch = with_inputs(random_batch(head, choices.get("coding", "xyxy")), *inputs)
    arguments = {"classification": head[0], "background": head[1]} | choices
    return arguments, batch | normalizers


def cases():
    """Each case with its splits."""
    return zip((case(*c) for c in CASES), itertools.cycle(SPLITS), strict=False)


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
    """Every case in one start of the processes."""
    results = []
    for (arguments, batch), splits in cases():
        criterion = JointOptimizationLoss(sync_group=dist.group.WORLD, **arguments)
        for first in splits.values():
            mine = per_rank(shard(batch, rank, first))
            loss = copy.deepcopy(criterion)(**mine)
            results.append(([x.detach() for x in loss], *all_gradients(loss, mine)))
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    ranks = in_processes(one_rank)
    i = 0
    for (arguments, batch), splits in cases():
        expected = JointOptimizationLoss(**arguments)(**batch)
        wanted = all_gradients(expected, batch)
        for name, first in splits.items():
            (loss_0, *grads_0), (loss_1, *grads_1) = ranks[0][i], ranks[1][i]
            i += 1
            where = f"{arguments}, {name}"
            close = dict(rtol=1e-12, atol=1e-12, msg=lambda m, where=where: f"{where}: {m}")
            for k in (0, 1, 4):
                mean = (loss_0[k] + loss_1[k]) / RANKS
                torch.testing.assert_close(mean, expected[k].detach(), **close)
            for k in (2, 3):
                assert torch.equal(loss_0[k], loss_1[k])
                torch.testing.assert_close(loss_0[k], expected[k], **close)
            # DistributedDataParallel takes the mean of the ranks' gradients.
            for a, b, joined in zip(grads_0, grads_1, wanted, strict=True):
                assert len(a) == first
                torch.testing.assert_close(torch.cat((a, b)) / RANKS, joined, **close)


def numbers(rank):
    """Losses of a rank's rows with and without the group, divided by the same number."""
    mine = shard(random_batch(), rank, 12)
    normalizers = {"classification_normalizer": 4.0, "regression_normalizer": torch.tensor(3.0)}
    plain = {"weighting": "none"}
    return [
        [
            x.detach()
            for x in JointOptimizationLoss(sync_group=group, **plain)(**mine, **normalizers)
        ]
        for group in (dist.group.WORLD, None)
    ]


def test_numbers_as_normalizers_are_not_scaled():
    """The group then syncs w_neg alone, and with constant weights nothing."""
    for together, alone in in_processes(numbers):
        assert together[:2] == alone[:2]


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


def bad_group_on_rank_0(rank):
    batch = shard(with_inputs(random_batch(), "groups"), rank, 12)
    if rank == 0:
        batch["groups"][(batch["labels"] != -100).nonzero()[2, 0]] = 3
    try:
        JointOptimizationLoss(sync_group=dist.group.WORLD)(**batch)
    except ValueError as error:
        return str(error)
    return "no error"


def test_a_bad_group_is_raised_by_all_ranks_and_none_hangs():
    messages = in_processes(bad_group_on_rank_0)
    assert "groups: got 3 at index" in messages[0]
    assert "a label or group is out of range on another rank" in messages[1]


def test_a_sync_group_has_to_be_one():
    with pytest.raises(TypeError, match=r"sync_group: got 'world', wanted a .* ProcessGroup"):
        JointOptimizationLoss(sync_group="world")
