"""What a training step holds does not grow with objects times priors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scenes import scene, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import FCOS
from torchvision.models.detection.roi_heads import RoIHeads

from detectors.assigners import ASSIGNERS, Level, make_assigner
from detectors.models import DETECTORS, ONE_STAGE, PRESETS
from detectors.models.fcos import sampled_centres
from jolkernels.integrations import matching
from jolkernels.integrations.torchvision import JointRoIHeads, roi_criterion

PAIRS = 1 << 14
OBJECTS = 1500


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator made; views do not count."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        there = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in there:
                self.elements = max(self.elements, tensor.numel())
        return made


def largest(model: torch.nn.Module, objects: int) -> int:
    images, targets = scene([objects], (64, 64))
    targets[0]["ignored"] = targets[0]["boxes"].flip(0)
    with Largest() as seen, torch.no_grad():
        losses = model(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    return seen.elements


def check(model: torch.nn.Module) -> None:
    """The same with many objects as with one, but for a chunk of pairs with four numbers each."""
    few = largest(model.train(), 1)
    many = largest(model, OBJECTS)
    anchors: Any = getattr(model, "anchor_generator", None) or model.rpn.anchor_generator
    count = sum(level.priors for level in anchors.levels)
    assert many <= max(few, 4 * max(PAIRS, count)) < OBJECTS * count


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "PAIRS", PAIRS)


slow = pytest.mark.slow
QUICK = {("cascade_rcnn", "slim"), *((d, p) for d in ("faster_rcnn", *ONE_STAGE) for p in PRESETS)}
EVERY = [
    pytest.param(name, preset, marks=[] if (name, preset) in QUICK else [slow])
    for name in DETECTORS
    for preset in PRESETS
]


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_no_matrix_of_objects_and_priors(name: str, preset: str) -> None:
    check(tiny(name, preset))


@pytest.mark.parametrize("name", ASSIGNERS)
def test_no_matrix_in_an_assigner(name: str) -> None:
    _, (target,) = scene([OBJECTS])
    at = torch.rand(1200, 2) * torch.tensor([128.0, 96])
    anchors = torch.cat([at - 8, at + 8], 1)
    assign = make_assigner(name)
    with Largest() as seen:
        matches = assign(target["boxes"], anchors, [Level(len(anchors), 1, 45.0)])
    assert len(matches) == len(anchors) and (matches >= 0).any()
    assert PAIRS / 2 < seen.elements <= 4 * PAIRS < OBJECTS * len(anchors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fcos_matches_as_torchvision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in chunks of every size; ties are of equal areas and of areas that round so."""
    counts, strides = [24 * 24, 12 * 12, 6 * 6], (4, 8, 16)
    levels = []
    for stride in strides:
        at = (torch.arange(96 // stride) + 0.5) * stride
        y, x = torch.meshgrid(at, at, indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 2)
        levels.append(torch.cat([centre - stride / 2, centre + stride / 2], 1))
    squares = torch.cat(levels).to(dtype)
    for seed in range(8):
        torch.manual_seed(seed)
        at, side = torch.rand(60, 2) * 96, 4 + torch.rand(60, 2) * 60
        boxes = torch.cat([at - side / 2, at + side / 2], 1).to(dtype)
        boxes = torch.cat([boxes, boxes[:5], boxes[:9] + 0.01, boxes[9:15].round()])
        captured: list[Tensor] = []
        head = SimpleNamespace(compute_loss=lambda *given, h=captured: h.extend(given[-1]))
        stand_in: Any = SimpleNamespace(center_sampling_radius=1.5, head=head)
        FCOS.compute_loss(stand_in, [{"boxes": boxes}], {}, [squares], counts)
        for pairs in (1, (2 + seed) * len(squares), 1 << 22):
            monkeypatch.setattr(matching, "PAIRS", pairs)
            assert torch.equal(sampled_centres(boxes, squares, counts, 1.5), captured[0])
        assert (captured[0] >= 0).any() and (captured[0] < 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_heads_of_a_users_own_model_match_as_torchvision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples, labels and objects of torchvision's RoIHeads, bit for bit; ties included."""
    parts: Any = (None, None, None)
    settings = (0.6, 0.4, 64, 0.25, None, 0.05, 0.5, 100)
    plain = RoIHeads(*parts, *settings)
    ours = JointRoIHeads(*parts, *settings, criterion=roi_criterion())
    found = set()
    for seed in range(12):
        _, targets = scene([0 if seed == 3 else 30, 5])
        proposals = []
        for target in targets:
            target["labels"] += 1  # 0 is the background
            target["boxes"][1::5] = target["boxes"][::5]  # the first of two alike is matched
            near = target["boxes"].repeat(8, 1) + torch.rand(8 * len(target["boxes"]), 4) * 4 - 2
            at = torch.rand(100, 2) * 90
            boxes = torch.cat([near, at.repeat(1, 2) + torch.tensor([0, 0, 12, 12])]).to(dtype)
            proposals.append(boxes.round() if seed % 2 else boxes)
        for pairs in (1, 1 << 10, 1 << 22):
            monkeypatch.setattr(matching, "PAIRS", pairs)
            drawn = []
            for heads in (plain, ours):
                torch.manual_seed(seed)
                drawn.append(list(heads.select_training_samples(list(proposals), targets)))
            objects = [boxes.to(dtype) for boxes in drawn[1][3]]  # ours are not coded
            drawn[1][3] = plain.box_coder.encode(objects, drawn[1][0])
            for wanted, got in zip(*drawn, strict=True):
                assert all(a.dtype == b.dtype for a, b in zip(wanted, got, strict=True))
                assert all(map(torch.equal, wanted, got))
            boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
            every = ours.assign_targets_to_proposals(proposals, boxes, labels)[1]
            found |= set(torch.cat(every).tolist())
    assert found >= {-1, 0, 1, 2}


def test_no_matrix_in_the_heads_of_a_users_own_model() -> None:
    heads = JointRoIHeads(
        *(None, None, None, 0.5, 0.5, 64, 0.25, None, 0.05, 0.5, 100), criterion=roi_criterion()
    )
    _, targets = scene([OBJECTS])
    proposals = targets[0]["boxes"].flip(0) + 1
    with Largest() as seen:
        heads.select_training_samples([proposals], targets)
    assert seen.elements <= 4 * PAIRS < OBJECTS * 2 * OBJECTS
