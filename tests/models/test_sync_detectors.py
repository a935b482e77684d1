"""Two processes that share a batch train a detector as one process with all of it does."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import RANKS, in_processes
from scenes import K, scene
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from detectors.models import build_detector, joint_head
from detectors.models.samplers import seed_images

MAIN = 20
FEW = 3  # in which each rank sees all images


@dataclass(frozen=True)
class Case:
    """What is trained, for how many steps.

    local: losses that without a group are right as well: the ranks have as many images or samples
        as each other. first: images of rank 0, of four. greedy: the samplers take all negatives,
        which are not as many on both ranks; by default they all fill their batch. moving: the
        images go around, so that each rank sees all of them; otherwise each keeps its own. sums:
        all-reduces a step besides those of the gradients.
    """

    detector: str
    loss: str
    steps: int = FEW
    choices: dict[str, Any] = field(default_factory=lambda: {"preset": "slim"})
    local: tuple[str, ...] = ()
    normalizer: str | None = None
    objects: tuple[int, ...] = (5, 3, 4, 2)
    first: int = 2
    greedy: bool = False
    moving: bool = True
    sums: int = 2


SLIM = {"preset": "slim", "strides": (8, 16, 32, 64, 128)}
WEIGHED = SLIM | {"centreness_weights": True}
PAPER = {"preset": "paper", "backbone": "resnet18", "image_size": 64}
SIMD = {"preset": "slim", "assigner": "simd"}
EMPTY: dict[str, Any] = {"objects": (5, 3, 0, 0), "moving": False}
BOX = ("bbox_regression",)
RPN = ("loss_objectness", "loss_rpn_box_reg")
SAMPLED = (*RPN, "loss_box_reg")
CASES = {
    "retinanet-unequal": Case("retinanet", "base", FEW, SLIM, first=1),
    "fcos-empty": Case("fcos", "jol", FEW, WEIGHED, **EMPTY),
    "fcos-paper": Case("fcos", "jol", 2, PAPER),  # frozen batch norm, frozen layers
    "faster_rcnn": Case("faster_rcnn", "jol", local=SAMPLED),
    "faster_rcnn-greedy": Case("faster_rcnn", "base", greedy=True),
}
SLOW = {
    "retinanet-empty": Case("retinanet", "jol", FEW, SLIM, BOX, **EMPTY),
    "retinanet-batch": Case("retinanet", "base", FEW, SLIM, normalizer="batch", sums=1),
    "fcos": Case("fcos", "jol", FEW, SLIM, sums=1),
    "fcos-weighed": Case("fcos", "base", FEW, WEIGHED, first=3),
    "faster_rcnn-empty": Case("faster_rcnn", "jol", greedy=True, **EMPTY),
    "fcos-long": Case("fcos", "jol", MAIN, SLIM, sums=1),
    "faster_rcnn-long": Case("faster_rcnn", "jol", MAIN, local=SAMPLED),
    "faster_rcnn-simd": Case("faster_rcnn", "jol", FEW, SIMD, greedy=True),
    "retinanet": Case("retinanet", "jol", MAIN, SLIM, BOX),
    "cascade_rcnn": Case("cascade_rcnn", "jol", 2, local=SAMPLED, sums=4),
    "detectors": Case("detectors", "jol", 2, local=SAMPLED, sums=4),
    "retinanet-paper": Case("retinanet", "jol", MAIN, PAPER, sums=1),
    "fcos-paper": Case("fcos", "jol", MAIN, PAPER),
    "faster_rcnn-paper": Case("faster_rcnn", "jol", MAIN, PAPER, local=RPN),
}


def build(case: Case, group: dist.ProcessGroup | None, weights: str) -> nn.Module:
    torch.manual_seed(0)
    choices = case.choices | ({"backbone_weights": weights} if case.choices is PAPER else {})
    model = build_detector(case.detector, K, case.loss, sync_group=group, **choices)
    if case.normalizer is not None:
        joint_head(model).normalizer = case.normalizer
    for key, parameter in model.named_parameters():  # S_cls is far from 0 and varies
        if "cls_" in key:
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if case.greedy and hasattr(module, "fg_bg_sampler"):
            module.fg_bg_sampler.batch_size_per_image = 5000
            module.fg_bg_sampler.positive_fraction = 3 / 5000
    return model.double().train()


def train(case: Case, model: nn.Module, rows: slice) -> dict[str, Any]:
    """Losses, w_neg and gradients' norms of each step on the images `rows`; weights at the end."""
    images, targets = scene(list(case.objects), (32, 32), torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.005, momentum=0.9)
    detector = getattr(model, "module", model)
    found = []
    for step in range(case.steps):
        order = [(i + step * case.moving) % 4 for i in range(4)][rows]
        seed_images(model, [4 * step + i for i in order])
        losses = model([images[i] for i in order], [targets[i] for i in order])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        values = {k: v.item() for k, v in losses.items()}
        common = {"grad_norm": norm.item(), "w_neg": joint_head(detector).negative_weight.item()}
        found.append((values, common))
    weights = torch.cat([p.detach().flatten()[::97] for p in parameters])
    return {"steps": found, "weights": weights}


def one_rank(rank: int, cases: dict[str, Case], weights: str) -> dict[str, Any]:
    """Each case, and the losses of its first step without the group."""
    results = {}
    inner, sums = dist.all_reduce, []
    dist.all_reduce = lambda *given, **named: sums.append(given) or inner(*given, **named)
    for name, case in cases.items():
        rows = slice(0, case.first) if rank == 0 else slice(case.first, None)
        results[name] = train(
            case, DistributedDataParallel(build(case, dist.group.WORLD, weights)), rows
        )
        results[name]["sums"] = len(sums)
        sums.clear()
        toy = Case(**{**vars(case), "steps": 1})
        results[name]["toy"] = train(toy, build(case, None, weights), rows)["steps"][0][0]
    return results


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have, between which the cores are divided."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone's weights: only with weights does preset paper freeze batch norm."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def ranks(weights: str) -> list[dict[str, Any]]:
    return in_processes(one_rank, CASES, weights)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(name: str, ranks: list[dict[str, Any]], weights: str) -> None:
    compare(CASES[name], [rank[name] for rank in ranks], weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_follow_one_slowly(name: str, weights: str) -> None:
    ranks = in_processes(one_rank, {name: SLOW[name]}, weights)
    compare(SLOW[name], [rank[name] for rank in ranks], weights)


def compare(case: Case, ranks: list[dict[str, Any]], weights: str) -> None:
    one = train(case, build(case, None, weights), slice(None))
    assert len(one["steps"]) == case.steps
    assert [rank["sums"] for rank in ranks] == [case.steps * case.sums] * RANKS
    for step, (values, common) in enumerate(one["steps"]):
        each = [rank["steps"][step] for rank in ranks]
        for key, value in values.items():
            assert value > 0, f"{key} tests nothing"
            mean = sum(losses[key] for losses, _ in each) / RANKS
            assert mean == pytest.approx(value, rel=1e-8, abs=1e-8), (step, key)
        for _, rest in each:  # what the ranks share after the step's reductions
            assert rest == pytest.approx(common, rel=1e-8), step
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], one["weights"], rtol=1e-8, atol=1e-8)

    # Where each rank divides by its own numbers the first step shows it, far beyond 1e-8.
    for key, value in one["steps"][0][0].items():
        apart = abs(sum(rank["toy"][key] for rank in ranks) / RANKS - value) / value
        assert (apart < 1e-12) if key in case.local else (apart > 1e-6), (key, apart)
