"""What the kernels cost: a change that makes one dearer by more than SLACK fails.

By `python -m bench compile` for sm_90, of Triton 3.9. Who makes a kernel cheaper writes the new
figures here: `pytest -s tests/compiled/test_budgets.py -k cost` prints the table.
"""

import functools
from dataclasses import replace
from importlib.metadata import version

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.compiled import costs, dense_cases, report, variants
from bench.compiled.report import CASES

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not version("triton").startswith("3.9."), reason="figures of Triton 3.9"),
]
SLACK = 0.05

# Issue slots an element, forward and backward; microseconds predicted; these over the copy floor.
BUDGETS = {
    ("retinanet-80", "fp32"): (25.2, 30.3, 85.3, 1.11),
    ("retinanet-80", "bf16"): (24.9, 30.3, 51.4, 1.34),
    ("retinanet-8", "fp32"): (40.9, 45.0, 16.1, 2.10),
    ("retinanet-8", "bf16"): (36.3, 42.9, 12.2, 3.18),
    ("large-80", "fp32"): (8.77, 16.1, 358, 1.07),
    ("large-80", "bf16"): (9.03, 16.9, 188, 1.12),
    ("vocabulary", "fp32"): (9.42, 14.3, 222, 1.03),
    ("vocabulary", "bf16"): (8.48, 14.3, 114, 1.05),
    ("rcnn-9", "fp32"): (149, 108, 11.3, 307),
    ("rcnn-81", "fp32"): (45.0, 44.3, 11.1, 33.5),
    ("fcos-8", "fp32"): (62.4, 60.6, 8.47, 9.91),
    ("retinanet-80-contiguous", "fp32"): (25.8, 38.6, 86.3, 1.12),
    ("retinanet-80-contiguous", "bf16"): (27.2, 39.6, 57.4, 1.49),
    ("retinanet-80-channels_last", "fp32"): (29.6, 35.8, 86.4, 1.12),
    ("retinanet-80-channels_last", "bf16"): (29.1, 34.6, 64.1, 1.67),
}
LIMITS = {"fp32": (32, 40, 1.3), "bf16": (32, 40, 1.7)}
"""Issue slots an element of a dense head with 80 columns; microseconds over the copy floor."""
LOADS = {8: 16, 9: 4, 80: 16, 81: 4, 1204: 16, 13205: 16}
"""Bytes of a thread's load of logits in float32, by columns."""


QUICK = "retinanet-80", "retinanet-8", "vocabulary", "rcnn-9", "fcos-8", "retinanet-80-contiguous"
"""large-80 and rcnn-81 are retinanet-80 and rcnn-9 of other sizes, rows of levels the flat ones."""
measure = functools.cache(costs.measure)


def dtypes(case: tuple[str, str]):
    """Half precision slowly, and what is not among QUICK."""
    quick = case[1] == "fp32" and case[0] in QUICK
    marks = [] if quick else [pytest.mark.slow]
    return pytest.param(*case, id="-".join(case), marks=marks)


@pytest.mark.parametrize(("name", "dtype"), [dtypes(case) for case in BUDGETS])
def test_cost(name: str, dtype: str) -> None:
    group = measure(CASES[name], dtype, "sm_90")
    assert not costs.unexplained(group)
    total, floor = report.total_and_floor(group)
    found = (*(cost.slots for cost in group), total, total / floor)
    line = f'("{name}", "{dtype}"): ({", ".join(f"{x:.3g}" for x in found)}),'
    print(f"    {line}")
    if name in dense_cases.CASES:
        limits = LIMITS[dtype]
        assert found[0] <= limits[0] and found[1] <= limits[1] and found[3] <= limits[2], line
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
    found = variants.report(head.launches(), target)
    assert [r.kernel for r in found] == ["rows_kernel", "gradients_kernel"]
    for r in found:
        assert r.spill_bytes == 0, r
        assert 0 < r.registers <= 255, r
        if target == "sm_90":
            assert r.load_bytes == LOADS[head.columns], r
    if target == "sm_90":
        assert found[1].store_bytes == LOADS[head.columns], found[1]


DENSE_LOADS = {"contiguous": {"fp32": 16, "bf16": 8}, "channels_last": {"fp32": 16, "bf16": 16}}
"""By memory format: most positions of the levels are in half precision no multiple of 16 bytes."""


def dense_heads():
    """Dense heads for every GPU, all but two slowly."""
    for name in dense_cases.CASES:
        for dtype in ("fp32", "bf16"):
            for target in variants.TARGETS:
                quick = name.startswith("retinanet-80") and (dtype, target) == ("fp32", "sm_90")
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(name, dtype, target, marks=marks)


@pytest.mark.parametrize(("name", "dtype", "target"), list(dense_heads()))
def test_resources_of_dense_heads(name: str, dtype: str, target: str) -> None:
    case = dense_cases.CASES[name]
    found = variants.report(dense_cases.launches(case, dense_cases.unfilled(case, dtype)), target)
    assert [r.kernel for r in found] == ["dense_rows_kernel", "dense_gradients_kernel"]
    for r in found:
        assert r.spill_bytes == 0, r
        assert 0 < r.registers <= 255, r
    if target == "sm_90":
        wide = DENSE_LOADS[case.memory_format][dtype]
        assert [r.load_bytes for r in found] == [wide, wide]
        assert found[1].store_bytes == wide


@pytest.mark.slow
@pytest.mark.parametrize("target", variants.TARGETS)
def test_half_precision_reads_16_bytes_of_planes_that_allow_it(target: str) -> None:
    """Of an image padded to a multiple of 256: all levels but the last are whole."""
    sizes = tuple((96 // 2**i, 96 // 2**i) for i in range(5))
    case = replace(dense_cases.CASES["retinanet-80-contiguous"], sizes=sizes)
    launches = dense_cases.launches(case, dense_cases.unfilled(case, "bf16"))
    assert [x.plan.constants["VECTOR"] for x in launches] == [8, 8]
    for r in variants.report(launches, target):
        assert r.spill_bytes == 0, r
        assert target != "sm_90" or r.load_bytes == 16, r


def test_a_dearer_kernel_fails(monkeypatch) -> None:
    name, dtype = "rcnn-9", "fp32"
    slots, *rest = BUDGETS[name, dtype]
    monkeypatch.setitem(BUDGETS, (name, dtype), (slots / 1.2, *rest))
    with pytest.raises(AssertionError, match=rf'\("{name}", "{dtype}"\): \('):
        test_cost(name, dtype)
