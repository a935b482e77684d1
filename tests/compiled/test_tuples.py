"""Tuples as a kernel's arguments: what Triton makes of them, and the machine that runs it."""

from unittest import mock

import pytest
import torch
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton
from small_kernels import doubled, launch, vector

from bench.ahead_of_time import source_of
from bench.compiled.executed import widest
from bench.fake_gpu import FakeDriver, FakeKernel, Seen, check_types
from bench.ptx import PtxError, compiled, run
from bench.ptx.runs import named_arguments

pytestmark = pytest.mark.compiled
COLUMNS = 24


def levels(dtype=torch.float32):
    """Two, of which one is part of a wider tensor, and memory for results like them."""
    xs = vector(5 * COLUMNS).view(5, COLUMNS), vector(3 * 32, 1).view(3, 32)[:, :COLUMNS]
    xs = tuple(x.to(dtype) for x in xs)
    return xs, tuple(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in xs)


def call(left_out=-1, dtype=torch.float32, columns=COLUMNS):
    xs, outs = levels(dtype)
    sizes = tuple((len(x), x.stride(0)) for x in xs)
    return launch(doubled, 5, xs, outs, sizes, columns, BLOCK=32, LEFT_OUT=left_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.uint8, torch.int16])
def test_each_level_is_read_and_written(dtype):
    made = call(dtype=dtype)
    xs, outs = made.arguments[:2]
    run(made, ["outs"])
    for x, out in zip(xs, outs, strict=True):
        assert torch.equal(out, 2 * x) and x.any()


def test_arguments_have_names():
    made = call()
    (a, b), (c, d) = made.arguments[:2]
    names, values = zip(*named_arguments(made), strict=True)
    assert names == ("xs[0]", "xs[1]", "outs[0]", "outs[1]", "sizes[0][0]", "sizes[0][1]",
                     "sizes[1][0]", "sizes[1][1]", "n")  # fmt: skip
    assert values[:4] == (a, b, c, d) and values[4:] == (5, COLUMNS, 3, 32, COLUMNS)


@pytest.mark.parametrize(("left_out", "rows"), [(0, 5), (1, 3)])
def test_a_row_that_is_not_written_is_found(left_out, rows):
    with pytest.raises(PtxError, match=rf"outs\[{left_out}\]"):
        run(call(left_out), ["outs"])
    run(call(left_out), [f"outs[{1 - left_out}]"], workspace=["outs"])


def test_what_is_no_output_is_not_written():
    with pytest.raises(PtxError, match=r"outs\[1\]"):
        run(call(), ["outs[0]"])
    with pytest.raises(PtxError, match="grads: no tensor argument of doubled"):
        run(call(), ["outs", "grads"])


def test_bounds_are_those_of_each_level():
    with pytest.raises(PtxError, match=r"outside xs\[0\]|between the elements of xs\[1\]"):
        run(call(columns=COLUMNS + 1), ["outs"])


def test_the_widest_access_is_of_any_level():
    made = call()
    kernel = compiled(made)
    widths = [widest(kernel, made, name, access)
              for name, access in (("xs", "load"), ("xs", "store"), ("outs", "store"),
                                   ("sizes", "load"))]  # fmt: skip
    assert widths[1] is None and widths[3] is None
    assert widths[0] == widths[2] == 4


def other_calls():
    xs, outs = levels()
    shifted = torch.zeros(121)[1:].view(5, COLUMNS)
    yield (shifted, xs[1]), outs, ((5, COLUMNS), (3, 32)), COLUMNS
    yield xs, outs, ((1, 16), (2**31, 1)), 1
    yield (xs[0], None), outs, ((5, 16), (3, 1)), 2**31
    yield xs, None, (), 16
    yield xs, (), (((1, 3), xs[0]), 16), 16


@pytest.mark.parametrize("arguments", list(other_calls()))
def test_a_launch_is_specialised_as_the_jit_does(arguments):
    kernel = triton.JITFunction(
        doubled.fn, do_not_specialize=["sizes"], do_not_specialize_on_alignment=["xs"]
    )
    seen = []

    def compile_nothing(src, **_):
        seen.append(src)
        return FakeKernel(src, Seen())

    with (
        mock.patch.object(triton.runtime.driver, "_active", FakeDriver()),
        mock.patch.object(triton.compiler, "compile", compile_nothing),
    ):
        kernel[(1,)](*arguments, BLOCK=32, LEFT_OUT=-1)
    (jit,) = seen
    ours, _ = source_of(launch(kernel, 1, *arguments, BLOCK=32, LEFT_OUT=-1))
    assert ours.signature == jit.signature
    assert list(ours.constants) == list(jit.constants)
    assert all(ours.constants[path] is jit.constants[path] for path in jit.constants)
    kept = {k: v for k, v in jit.attrs.items() if v and k not in jit.constants}
    assert ours.attrs == kept


@pytest.mark.parametrize(
    "wrong", [((1, 2), (3, 4.0)), ((1, 2), 3), ((1, 2), (3, 4, 5)), ((1, torch.ones(1)), (3, 4))]
)
def test_the_fake_gpu_looks_into_tuples(wrong):
    kinds = [("*fp32", "constexpr"), (("i32", "i32"), ("i32", "i64"))]
    check_types("a", kinds, [(torch.ones(1), None), ((1, 2), (3, 4))])
    with pytest.raises((TypeError, ValueError)):
        check_types("a", kinds, [(torch.ones(1), None), wrong])
