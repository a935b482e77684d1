"""The cost table of the detectors: what it counts, and that it runs."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from bench import detector_cost as cost_table
from detectors.models import cost
from detectors.paper.published_numbers import COSTS


def test_a_deformable_convolution_counts_as_the_plain_one():
    x, weight = torch.randn(2, 6, 10, 12), torch.randn(8, 6, 3, 3)
    offset = torch.zeros(2, 18, 5, 6)
    known = {torch.ops.torchvision.deform_conv2d: cost.deform_conv2d_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        deform_conv2d(x, offset, weight, stride=2, padding=1)
    with FlopCounterMode(display=False) as plain:
        F.conv2d(x, weight, stride=2, padding=1)
    assert counter.get_total_flops() == plain.get_total_flops() == 2 * 2 * 8 * 6 * 9 * 30


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_parameters_are_the_papers(name):
    model = cost.build(name, "base", 96)
    assert cost.parameters(model) == pytest.approx(COSTS[name].parameters, abs=0.05)


def test_the_table_is_written(tmp_path, monkeypatch):
    out = tmp_path / "cost.md"
    arguments = ["--detectors", "fcos", "--size", "96", "--batch-size", "1", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["bench.detector_cost", *arguments, "--out", str(out)])
    cost_table.main()
    table = out.read_text().removesuffix(cost_table.NOTE)
    row = table.splitlines()[-1].strip("| ").split(" | ")
    assert row[:3] == ["fcos", "32.1", "32.1"]
    assert float(row[3]) > 0.5 and float(row[5]) > 0 and 0.2 < float(row[6]) < 5
