"""The same bits whoever comes first, and however many programs run at a time."""

import pytest
import torch
from cases import INTERPRETED
from inputs import case, results

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import compiled_kernels, in_all_orders
from jolkernels.kernels import launch
from jolkernels.kernels.finish import TEAM

pytestmark = pytest.mark.compiled

PROGRAMS = TEAM.value + 6
"""Two teams of programs, of which one is last."""
ONE_BY_ONE = [{"order": order, "parts": PROGRAMS} for order in ("reverse", 1)]
TOGETHER = [{"order": order, "parts": parts} for order, parts in (("forward", 1), (2, 1), (3, 7))]


ALL = *TOGETHER, *ONE_BY_ONE


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        pytest.param("row weights", ALL, id="row weights"),
        pytest.param("groups", (TOGETHER[0], ONE_BY_ONE[0]), id="groups-two"),
        pytest.param("groups", ALL, id="groups", marks=pytest.mark.slow),
        pytest.param("yolo", ALL, id="yolo", marks=pytest.mark.slow),
    ],
)
def test_no_order_of_the_programs_changes_a_bit(name, orders, monkeypatch) -> None:
    """Each of which has three tiles or more; counters are zeros again each time."""
    monkeypatch.setattr(launch, "PROGRAMS", PROGRAMS)
    criterion, batch = case(name, n=7_000, dtype=torch.float32)

    def compute(**options):
        with compiled_kernels(**options) as ran:
            found = results(criterion(**batch), batch)
        assert [execution.programs for execution in ran] == [PROGRAMS] * 2
        return found, None

    in_all_orders(compute, orders)
