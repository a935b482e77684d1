"""Which priors lie in a region to ignore."""

import pytest
import torch

from detectors.assigners import BACKGROUND, IGNORED
from detectors.assigners.regions import ignore_boxes, ignore_points
from jolkernels.integrations import matching

REGIONS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 14, 10], [50, 50, 60, 60]])


@pytest.mark.parametrize("pairs", [1, 1 << 22])
def test_boxes_of_which_one_region_covers_more_than_half(pairs, monkeypatch):
    monkeypatch.setattr(matching, "PAIRS", pairs)
    for box, match, wanted in (
        ([2, 2, 8, 8], BACKGROUND, IGNORED),
        ([2, 2, 8, 8], 3, 3),  # matches an object
        ([2, 2, 8, 8], IGNORED, IGNORED),
        ([5, 0, 15, 10], BACKGROUND, BACKGROUND),  # one covers 50 %, another 40 %
        ([4.9, 0, 14.9, 10], BACKGROUND, IGNORED),
        ([0, -10, 10, 10.1], BACKGROUND, BACKGROUND),
        ([40, 40, 70, 70], BACKGROUND, BACKGROUND),  # holds a region that is a ninth of it
        ([5, 5, 5, 5], BACKGROUND, BACKGROUND),  # of no area
        ([20, 20, 30, 30], BACKGROUND, BACKGROUND),
    ):
        boxes = torch.tensor([box, [-9.0, -9, -1, -1]]).float()
        matches = torch.tensor([match, BACKGROUND])
        assert ignore_boxes(matches, boxes, REGIONS).tolist() == [wanted, BACKGROUND], box


@pytest.mark.parametrize("pairs", [1, 1 << 22])
def test_points_inside(pairs, monkeypatch):
    monkeypatch.setattr(matching, "PAIRS", pairs)
    points = torch.tensor([[5.0, 5], [5, 5], [0, 5], [10, 5], [12, 5], [55, 59.9], [30, 5]])
    matches = torch.tensor([BACKGROUND, 0, *[BACKGROUND] * 5])
    wanted = [IGNORED, 0, BACKGROUND, BACKGROUND, IGNORED, IGNORED, BACKGROUND]
    assert ignore_points(matches, points, REGIONS).tolist() == wanted
    assert ignore_points(matches, points.double(), REGIONS).tolist() == wanted


@pytest.mark.parametrize("rule", [ignore_boxes, ignore_points])
def test_without_regions_nothing_changes(rule):
    matches = torch.tensor([BACKGROUND, 0, IGNORED])
    given = torch.rand(3, 4 if rule is ignore_boxes else 2)
    assert torch.equal(rule(matches, given, None), matches)
    assert torch.equal(rule(matches, given, REGIONS[:0]), matches)
    assert rule(matches[:0], given[:0], REGIONS).tolist() == []
