"""sync_group of the dense entrance: two processes equal one on the joined images.

As in test_sync_group.py; "image" is then each image's own normaliser, and the mean over the images
of all ranks.
"""

import pytest
import torch
import torch.distributed as dist
from dense import dense_batch, gradients, leaves
from processes import RANKS, in_processes
from torch import Tensor

from jolkernels import JointOptimizationLoss

pytestmark = pytest.mark.kernels
IMAGES = 3
SPLITS = (1, 0)  # images of rank 0
CASES = [
    (("focal", "last"), None, "image", "image", ("class_targets", "extra_regression")),
    (("cross_entropy", "first"), "samples", "samples", "image", ("class_weights",)),
    (("varifocal", "last"), "objects", "image", 7.5, ("class_weights",)),
    (("focal", "last"), "objects", "positives", torch.tensor(2.5), ()),
]


def case(head, matched, of_classes, of_boxes, inputs):
    """What the loss is made with, and the joined batch."""
    batch = dense_batch(
        head, images=IMAGES, sizes=((2, 2), (1, 1)), matched=matched, inputs=inputs,
        layouts="channels_last",
    )  # fmt: skip
    batch |= {"classification_normalizer": of_classes, "regression_normalizer": of_boxes}
    if matched:  # lists cannot be empty
        batch["target_boxes"] = torch.nn.utils.rnn.pad_sequence(batch["target_boxes"], True)
    if matched == "objects":
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(batch["labels"], True)
    arguments = {"classification": head[0], "background": head[1], "coding": "delta"}
    return arguments | {"regression": "giou"}, batch


def shard(batch: dict, rank: int, first: int) -> dict:
    """The images of one rank, as leaves of their own; numbers are the joined batch's over RANKS."""
    images = slice(0, first) if rank == 0 else slice(first, None)

    def own(x):
        return x.detach()[images].requires_grad_(x.requires_grad)

    mine = {}
    for name, x in batch.items():
        if name.endswith("_normalizer"):
            mine[name] = x if isinstance(x, str) else x / RANKS
        elif isinstance(x, list):
            mine[name] = list(map(own, x))
        else:
            mine[name] = x if name in ("priors", "class_weights") else own(x)
    return mine


def one_rank(rank):
    results = []
    for arguments, batch in (case(*c) for c in CASES):
        criterion = JointOptimizationLoss(sync_group=dist.group.WORLD, **arguments)
        for first in SPLITS:
            mine = shard(batch, rank, first)
            loss = criterion.dense(**mine)
            results.append(([x.detach() for x in loss], *gradients(loss, mine)))
    return results


def test_two_processes_equal_one_on_the_joined_images():
    ranks = in_processes(one_rank)
    pairs = zip(*ranks, strict=True)
    for arguments, batch in (case(*c) for c in CASES):
        expected = JointOptimizationLoss(**arguments).dense(**batch)
        wanted = gradients(expected, batch)
        assert len(wanted) == len(leaves(batch))
        for first in SPLITS:
            (loss_0, *grads_0), (loss_1, *grads_1) = next(pairs)
            where = f"{arguments}, {first} images"
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


def bad_value_on_rank_1(rank, name, value):
    _, batch = case(*CASES[2])
    batch = shard(batch, rank, 1)
    if rank == 1:
        x: Tensor = batch[name]
        x[1, 0] = value
        if name == "labels":
            batch["matched"][1, 0] = 0
    try:
        JointOptimizationLoss("varifocal", coding="delta", sync_group=dist.group.WORLD).dense(
            **batch
        )
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("labels", 77, "labels: got 77 at image 1, object 0"),
        ("matched", 9, "matched: got 9 at image 1, sample 0"),
    ],
)
def test_a_bad_value_is_raised_by_all_ranks_and_none_hangs(name, value, said):
    messages = in_processes(bad_value_on_rank_1, name, value)
    assert "out of range on another rank" in messages[0]
    assert said in messages[1]


def backward_alone(rank):
    """Whether a rank's backward pass waits for no other."""
    batch = shard(case(*CASES[0])[1], rank, 1)
    criterion = JointOptimizationLoss("focal", coding="delta", sync_group=dist.group.WORLD)
    loss = criterion.dense(**batch)
    if rank == 0:
        gradients(loss, batch)
    return True


def test_the_backward_pass_talks_to_no_other_rank():
    assert in_processes(backward_alone) == [True, True]
