"""What the kernels cost: a change that makes one dearer by more than SLACK fails.

By `python -m bench compile` for sm_90, of Triton 3.9. Who makes a kernel cheaper writes the new
figures here: `pytest -s tests/compiled/test_budgets.py -k cost` prints the table.
"""

from importlib.metadata import version

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.compiled import costs, report, variants
from bench.compiled.cases import CASES

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not version("triton").startswith("3.9."), reason="figures of Triton 3.9"),
]
SLACK = 0.05

# Issue slots an element, forward and backward; microseconds predicted; these over the copy floor.
BUDGETS = {
    ("retinanet-80", "fp32"): (25.6, 30.2, 85.2, 1.11),
    ("retinanet-80", "bf16"): (25.2, 30.3, 51.6, 1.34),
    ("retinanet-8", "fp32"): (50.5, 45.0, 16.4, 2.13),
    ("retinanet-8", "bf16"): (42.8, 43.0, 12.6, 3.28),
    ("large-80", "fp32"): (8.85, 16.1, 358, 1.07),
    ("large-80", "bf16"): (8.71, 16.9, 188, 1.12),
    ("vocabulary", "fp32"): (9.54, 14.3, 222, 1.03),
    ("vocabulary", "bf16"): (8.59, 14.3, 114, 1.05),
    ("rcnn-9", "fp32"): (152, 108, 11.4, 310),
    ("rcnn-81", "fp32"): (45.4, 44.4, 11.3, 34.2),
    ("fcos-8", "fp32"): (67.6, 60.2, 8.7, 10.2),
}
LOADS = {8: 16, 9: 4, 80: 16, 81: 4, 1204: 16, 13205: 16}
"""Bytes of a thread's load of logits in float32, by columns."""


def dtypes(case: tuple[str, str]):
    """Half precision slowly."""
    marks = [pytest.mark.slow] if case[1] != "fp32" else []
    return pytest.param(*case, id="-".join(case), marks=marks)


@pytest.mark.parametrize(("name", "dtype"), [dtypes(case) for case in BUDGETS])
def test_cost(name: str, dtype: str) -> None:
    group = costs.measure(CASES[name], dtype, "sm_90")
    assert not costs.unexplained(group)
    total, floor = report.total_and_floor(group)
    found = (*(cost.slots for cost in group), total, total / floor)
    line = f'("{name}", "{dtype}"): ({", ".join(f"{x:.3g}" for x in found)}),'
    print(f"    {line}")
    for figure, budget in zip(found, BUDGETS[name, dtype], strict=True):
        assert figure <= (1 + SLACK) * budget, line


def heads():
    """Every head for every GPU, those but the first of a detector slowly on all but sm_90."""
    seen = set()
    for head in variants.heads():
        for target in variants.TARGETS:
            marks = [pytest.mark.slow] if head.name in seen and target != "sm_90" else []
            yield pytest.param(head, target, id=f"{target}-{head.name}-{head.columns}", marks=marks)
        seen.add(head.name)


@pytest.mark.parametrize(("head", "target"), list(heads()))
def test_resources(head: variants.Variant, target: str) -> None:
    found = variants.report(head, target)
    assert [r.kernel for r in found] == ["rows_kernel", "gradients_kernel"]
    for r in found:
        assert r.spill_bytes == 0, r
        assert 0 < r.registers <= 255, r
        if target == "sm_90":
            assert r.load_bytes == LOADS[head.columns], r
    if target == "sm_90":
        assert found[1].store_bytes == LOADS[head.columns], found[1]


def test_a_dearer_kernel_fails(monkeypatch) -> None:
    name, dtype = "rcnn-9", "fp32"
    slots, *rest = BUDGETS[name, dtype]
    monkeypatch.setitem(BUDGETS, (name, dtype), (slots / 1.2, *rest))
    with pytest.raises(AssertionError, match=rf'\("{name}", "{dtype}"\): \('):
        test_cost(name, dtype)
