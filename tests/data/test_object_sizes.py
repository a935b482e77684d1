"""Sizes of objects: square roots of areas, and the ranges that they fall into."""

import pytest
import torch

from detectors.data import object_sizes
from detectors.evaluation import PROTOCOLS


def test_a_size_is_the_root_of_the_area_and_its_range_has_the_lower_limit() -> None:
    corners = torch.tensor([5.0, 7.0])
    sides = torch.tensor([[2.0, 8.0], [4.0, 16.0], [16.0, 16.0], [64.0, 16.0], [0.5, 18.0]])
    boxes = torch.cat([corners.expand(5, 2), corners + sides], dim=1)
    assert object_sizes.box_sizes(boxes).tolist() == [4.0, 8.0, 16.0, 32.0, 3.0]
    assert object_sizes.box_sizes(boxes, 2.0).tolist() == [4.0, 8.0, 16.0, 32.0, 6.0]
    found = object_sizes.size_range(object_sizes.box_sizes(boxes))
    assert found.tolist() == [0, 1, 2, 3, 0]
    halves = object_sizes.size_range(torch.tensor([8.0, 7.9]), (0, 8, float("inf")))
    assert halves.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("limits", "name"), [((0, 8), "<8 px"), ((8, 16), "8-16 px"), ((96, float("inf")), ">=96 px")]
)
def test_names(limits: tuple[float, float], name: str) -> None:
    assert object_sizes.size_name(*limits) == name


def test_aitod_s_areas_are_the_squares() -> None:
    """As cocoapi-aitod has them: 8, 16 and 32 pixels."""
    wanted = {"vt": (0, 64), "t": (64, 256), "s": (256, 1024), "m": (1024, 1e10)}
    assert PROTOCOLS["aitod"].areas == wanted
