"""The kernels compiled ahead of time: what the interpreter cannot show, without a GPU."""

import re
from dataclasses import replace

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ahead_of_time import TARGETS, compile_launch
from bench.compiled import variants

CHOICES = [
    *variants.single_choices(),
    *variants.parameters(),
    *variants.more_inputs(),
]


def sampled(every, at):
    """Every choice; all but some of them slow."""
    return [
        pytest.param(v, id=v.name, marks=[pytest.mark.slow] * (i % every != at))
        for i, v in enumerate(CHOICES)
    ]


@pytest.mark.parametrize("variant", sampled(10, 1))
def test_every_choice_compiles_without_spills(variant):
    # With all inputs at once ptxas may save one register, so that more programs run at a time.
    most = 8 if len(variant.inputs) > 1 else 0
    assert all(r.spill_bytes <= most for r in variants.report(variant.launches(), "sm_90"))


@pytest.mark.parametrize("variant", sampled(16, 2))
def test_float64_is_float64_throughout(variant):
    """A bare constant in tl.where or tl.maximum would be float32 and cost seven digits."""
    for call in replace(variant, dtype="fp64").launches():
        ir = compile_launch(call, TARGETS["sm_90"]).asm["ttir"]
        assert "xf32" not in ir and not re.search(r"\bf32\b", ir)


@pytest.mark.parametrize("variant", CHOICES, ids=lambda v: v.name)
def test_device_functions_are_arguments_of_their_own(variant):
    """In a tuple Triton's disk cache knows one by name alone, and a compilation hook raises."""

    def plain(value):
        if isinstance(value, tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, int | float | str)

    for call in variant.launches():
        assert all(plain(v) for v in call.plan.constants.values() if isinstance(v, tuple))


def test_any_number_of_groups_is_one_variant():
    (variant,) = (v for v in CHOICES if v.name == "focal, groups")
    for call in variant.launches():
        (parameter,) = (p for p in call.plan.kernel.params if p.name == "num_groups")
        assert parameter.do_not_specialize


def test_the_check_finds_spills():
    """The assembler's report is read, not assumed: a tile that is too large spills."""
    variant = variants.Variant("wide", (("coding", "delta"),), 80, 80)
    call = variant.launches()[-1]
    small = variants.resources(compile_launch(call, TARGETS["sm_90"]))
    call.plan.constants["ROWS"] = 128
    large = variants.resources(compile_launch(call, TARGETS["sm_90"]))
    assert small[1] == 0 and large[1] > 0
