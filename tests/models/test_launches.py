"""What a one-stage head's loss launches, counted by name without a GPU, next to torchvision's."""

import pytest
import torch
from launches import launches
from scenes import K, scene
from stock import KINDS, joined, stock
from torch import Tensor

COLUMNS = {"cls_logits": K, "bbox_regression": 4, "bbox_ctrness": 1}


def flattened(levels: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """As torchvision's heads do: a copy of each level, and one that joins them."""
    found = {}
    for name, maps in levels.items():
        parts = [x.unflatten(1, (-1, COLUMNS[name])).permute(0, 3, 4, 1, 2) for x in maps]
        found[name] = torch.cat([x.flatten(1, 3) for x in parts], 1)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_of_torchvisions_launches(kind):
    """From the levels of two images and the matcher's results to the levels' gradients."""
    model = stock(kind)
    given = []
    model.head.compute_loss = lambda *arguments: given.extend(arguments) or {}
    model(*scene([5, 3], (64, 96), torch.float64))
    del model.head.compute_loss
    ours = joined(model, kind, {}).head
    targets, _, anchors, matched = given
    maps = list(model.backbone(torch.rand(2, 3, 64, 96).double()).values())
    made = ours(maps)
    assert len(made["cls_logits"]) == 5
    found = []
    for head in (ours, model.head):
        levels = {k: [x.detach().requires_grad_() for x in v] for k, v in made.items()}

        def run(head=head, levels=levels):
            outputs = levels if head is ours else flattened(levels)
            return sum(head.compute_loss(targets, outputs, anchors, matched).values())

        found.append(launches(run))
        assert all(x.grad is not None for maps in levels.values() for x in maps)
    mine, theirs = found
    assert mine["ours_forward"] == mine["ours_backward"] == 1 + (kind == "fcos")
    assert theirs.total() > 200 and mine.total() <= theirs.total() / 10, mine
