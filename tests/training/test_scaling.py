"""docs/scaling.md: what processes tell each other in a training step, beside the gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import in_processes

from detectors.data import Batch
from detectors.models import build_detector
from detectors.models.presets import DETECTORS
from detectors.training.settings import resolve
from detectors.training.step import Stepper
from detectors.utils.distributed import World

CLASSES = 8
SMALL = {"backbone": "resnet18", "backbone_weights": "none", "image_size": 64}
SMALL_DETECTORS = {**SMALL, "backbone": "resnet14"}


def document() -> dict[str, list[str]]:
    """Detector → the cells of its row of the first table."""
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if row[0] in DETECTORS}


def reductions(rank: int, names: list[str]) -> dict[str, Any]:
    """Detector → [numbers, bytes] of each tensor that a step all-reduces, gradients left out."""
    plain, seen = dist.all_reduce, []

    def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append([tensor.numel(), tensor.nbytes])
        return plain(tensor, *args, **kwargs)

    dist.all_reduce = noting
    world = World(rank, 2, dist.group.WORLD)
    boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1]), "image_id": 1}
    batch: Batch = ([torch.rand(3, 64, 64)] * 2, [target] * 2)  # batch norm wants more than one
    found: dict[str, Any] = {}
    for name in names:
        small = SMALL_DETECTORS if name == "detectors" else SMALL
        given = {"detector": name, "loss": "jol", "preset": "paper", "batch_size": 4, **small}
        settings = resolve({**given, "max_steps": 9}, 1, None, {})
        arguments = settings.model_arguments()
        model = build_detector(name, CLASSES, "jol", **arguments, sync_group=world.group)
        stepper = Stepper(model, settings, world)
        seen.clear()
        assert not stepper(batch, 1, 1e-5).problem
        found[name] = list(seen)
    return found


CASES = [
    pytest.param(["fcos", "faster_rcnn"], id="quick"),
    pytest.param(["retinanet", "cascade_rcnn"], id="usual", marks=pytest.mark.slow),
    pytest.param(["detectors"], id="detectors", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("names", CASES)
def test_what_a_step_reduces_beside_the_gradients(names: list[str]) -> None:
    first, second = in_processes(reductions, names)
    assert first == second and list(first) == names
    for name, told in first.items():
        wanted = [int(cell) for cell in document()[name][:2]]
        assert [len(told), sum(size for _, size in told)] == wanted, (name, told)


@pytest.mark.parametrize("names", CASES)
def test_bytes_of_gradients(names: list[str]) -> None:
    """The paper's detectors, with what is frozen beside ImageNet's weights left out."""
    for name in names:
        model = build_detector(
            name, CLASSES, "jol", preset="paper", backbone_weights="imagenet", load_weights=False
        )
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert [f"{trained / 1e6:.1f}", f"{4 * trained / 1e6:.0f}"] == document()[name][2:], name
