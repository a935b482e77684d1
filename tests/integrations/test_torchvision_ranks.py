"""In place in torchvision's detectors, in two processes under DistributedDataParallel.

As in torchvision each rank divides by its own numbers; only w- is that of all ranks.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import RANKS, in_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from zoo import batch, joint_part, make

from jolkernels import JointOptimizationLoss
from jolkernels.integrations.torchvision import JointRoIHeads, use_joint_loss

KINDS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos", "ssd")
OBJECTS = [5, 1, 2]
IMAGES = (2, 1)
"""The first two are rank 0's: ranks differ in their images and in their positives."""
BOXES = {"loss_classifier", "loss_box_reg", "classification", "bbox_regression"}


def gradients(model: nn.Module, kind: str, images: slice, names: set[str] | None = None) -> Any:
    """Of all losses, or of those of these names, by parameter."""
    pictures, targets = batch(kind, OBJECTS)
    torch.manual_seed(3)
    losses = model(pictures[images], targets[images])
    torch.stack([v for k, v in losses.items() if names is None or k in names]).sum().backward()
    found = {k.removeprefix("module."): p.grad for k, p in model.named_parameters()}
    return {k: g for k, g in found.items() if g is not None and g.any()}


def stock(kind: str) -> nn.Module:
    """torchvision's, whose second stage takes all proposals: their numbers differ."""
    model = make(kind)
    if hasattr(model, "roi_heads"):
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 1000
        model.roi_heads.fg_bg_sampler.positive_fraction = 0.5
    return model


def of_a_rank(rank: int) -> dict[str, Any]:
    """The gradients of torchvision's model, of ours without weights and with them, and w-."""
    found: dict[str, Any] = {}
    images = slice(0, IMAGES[0]) if rank == 0 else slice(IMAGES[0], None)
    group = dist.group.WORLD
    for kind in KINDS:
        plain = DistributedDataParallel(stock(kind))
        base = use_joint_loss(stock(kind), weighting="none", sync_group=group)
        joint = use_joint_loss(stock(kind), sync_group=group)
        found[kind] = (
            gradients(plain, kind, images),
            gradients(DistributedDataParallel(base), kind, images),
            gradients(
                DistributedDataParallel(joint, find_unused_parameters=True), kind, images, BOXES
            ),
            joint_part(joint).negative_weight,
        )
    return found


@pytest.fixture(scope="module")
def ranks() -> Iterator[list[dict[str, Any]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield in_processes(of_a_rank)
    torch.set_num_threads(threads)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys() and len(want) >= 10
    for key, value in want.items():
        limit = 1e-9 * value.abs().max().item()
        torch.testing.assert_close(got[key], value, rtol=0, atol=limit, msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_unweighted_ranks_are_torchvisions(kind: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        plain, base, *_ = rank[kind]
        assert_same(base, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_negatives_is_that_of_all_ranks(
    kind: str, ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, through w- too, are those of one process that divides as the ranks do."""
    inner = JointOptimizationLoss.dense

    def dense(self, *given, **named):
        if self.settings.weighted:  # not FCOS's centreness
            positives = (torch.stack(list(named["matched"])) >= 0).sum(1)
            by_image = positives.clamp(min=1) if kind == "retinanet" else None
            named |= divided(positives, named["matched"][0].shape, by_image)
        return inner(self, *given, **named)

    def joint_loss(self, logits, deltas, proposals, labels, boxes):
        rows = torch.tensor([len(y) for y in labels])
        weights = divided(rows, (1,))["classification_weights"][:, 0].repeat_interleave(rows)
        loss = self.criterion(
            logits, deltas, *map(torch.cat, (labels, boxes, proposals)), **normalised(weights)
        )
        self.negative_weight = loss.negative_weight
        return loss

    monkeypatch.setattr(JointOptimizationLoss, "dense", dense)
    monkeypatch.setattr(JointRoIHeads, "joint_loss", joint_loss)
    model = use_joint_loss(stock(kind))
    want = gradients(model, kind, slice(None), BOXES)
    for rank in ranks:
        *_, got, w_neg = rank[kind]
        torch.testing.assert_close(w_neg, joint_part(model).negative_weight)
        assert_same(got, want)


def divided(counts: Tensor, shape: Any, by_image: Tensor | None = None) -> dict[str, Any]:
    """Weights [B, *shape] of samples: over the ranks, and what a rank divides its images' by."""
    first = counts[: IMAGES[0]].sum(), counts[IMAGES[0] :].sum()
    assert first[0] != first[1]
    each = torch.stack([first[0]] * IMAGES[0] + [first[1]] * IMAGES[1])
    if by_image is not None:
        each = by_image * torch.tensor([IMAGES[0]] * IMAGES[0] + [IMAGES[1]] * IMAGES[1])
    return normalised((1 / (RANKS * each.double()))[:, None].expand(-1, *shape))


def normalised(weights: Tensor) -> dict[str, Any]:
    return {
        "classification_weights": weights,
        "regression_weights": weights,
        "classification_normalizer": 1.0,
        "regression_normalizer": 1.0,
    }
