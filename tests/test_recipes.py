"""docs/recipes.md: a loop of one's own. The frameworks' recipes are in tests/integrations."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from documents import DOCS, code
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder

import jolkernels

BLOCKS = code("recipes.md", "python", "## A loop of your own")
CORNER = 60 * torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(0))
TARGETS = torch.cat((CORNER, CORNER + 12), 2)
LABELS = torch.arange(60).view(2, 30) % 5  # 4 is the background
Loss = Callable[..., Tensor]


def losses(monkeypatch: pytest.MonkeyPatch, weighting: str) -> list[Loss]:
    """loss_of of each block in turn, with a weighting."""
    made = partial(jolkernels.JointOptimizationLoss, weighting=weighting)
    monkeypatch.setattr(jolkernels, "JointOptimizationLoss", made, raising=False)
    found = []
    for count in range(len(BLOCKS)):
        names: dict[str, Loss] = {}
        exec("\n".join(BLOCKS[: count + 1]), names)
        found.append(names["loss_of"])
    return found


def with_gradients(loss: Loss, logits: Tensor, boxes: Tensor, *rest: Tensor) -> list[Tensor]:
    leaves = [logits.clone().requires_grad_(), boxes.clone().requires_grad_()]
    total = loss(*leaves, *rest)
    return [total, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("weighting", ["none", "joint"])
def test_anchors_of_images(weighting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss by masks, and twice as much of it with weights near 2."""
    own, joint, *_ = losses(monkeypatch, weighting)
    logits, boxes = torch.randn(2, 30, 4) - 3, TARGETS + torch.randn(2, 30, 4)
    got, wanted = (with_gradients(f, logits, boxes, LABELS, TARGETS) for f in (joint, own))
    if weighting == "none":
        assert_close(got, wanted)
    else:
        assert 1.5 < got[0] / wanted[0] < 2


def test_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, own, joint = losses(monkeypatch, "none")
    logits, deltas, labels, boxes = (
        torch.randn(60, 5),
        torch.randn(60, 4),
        flat(LABELS),
        flat(TARGETS),
    )
    proposals = boxes + torch.tensor([-1.0, 2, 3, 1])
    encoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, proposals)
    got = with_gradients(joint, logits, deltas, labels, boxes, proposals)
    assert_close(got, with_gradients(own, logits, deltas, labels, encoded))


def test_the_table_of_layouts() -> None:
    """Each line gives the rows that the first recipe has, or their labels and targets."""
    text = (DOCS / "recipes.md").read_text()
    logits = torch.randn(2, 30, 4)
    soft = torch.rand(60)[:, None] * torch.nn.functional.one_hot(flat(LABELS), 5)[:, :4]
    names = {"torch": torch, "K": 4, "labels": LABELS, "mask": LABELS < 2, "t": soft}

    def line(start: str, **more: object) -> list[object]:
        found = re.search(rf"^\| {re.escape(start)}.* \| (.*) \|$", text, re.M)
        assert found, start
        cells = re.findall("`([^`]*)`", found[1])
        return [eval(cell.split(" = ")[-1], {**names, **more}) for cell in cells if "(" in cell]

    assert_close(line("logits [B, K, A]", logits=logits.mT)[0], flat(logits))
    levels = [logits[:, :20], logits[:, 20:]]
    assert_close(line("a list of levels [B, A, K]", levels=levels)[0], flat(logits))
    labels, targets = line("soft targets [N, K]")
    assert_close(labels, flat(LABELS))
    assert_close(targets, soft.sum(1))
    assert (line("a mask")[0] == -100).sum() == (LABELS >= 2).sum()


def flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)
