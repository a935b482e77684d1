"""Small Triton kernels, right and wrong, for the tests of the machine that runs compiled PTX."""

import mmap
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.ptx import Compiled, compiled
from bench.ptx.decode import Code
from bench.ptx.program import parse
from jolkernels.kernels.direct import Plan
from jolkernels.kernels.launch import Launch
from jolkernels.kernels.tiles import number_of_tiles


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit(do_not_specialize=["n"])
def count_tiles(out, n: tl.int64, ROWS: tl.constexpr):
    tl.store(out, number_of_tiles(n, ROWS))


@triton.jit
def difference(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + i, mask=i < n)
    tl.store(out + i, z - z, mask=i < n)


@triton.jit
def copy_without_mask(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i), mask=i < n)


@triton.jit
def copy_all_but_the_last(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n - 1)


@triton.jit
def copy_what_is_not_loaded(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n - 1), mask=i < n)


@triton.jit
def add_to_itself(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + i, mask=i < n) + tl.load(out + i, mask=i < n)
    tl.store(out + i, z, mask=i < n)


@triton.jit
def shift_in_place(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + i + 1, mask=i + 1 < n, other=0.0)
    tl.debug_barrier()
    tl.store(x + i, z, mask=i < n)
    tl.store(out + i, z, mask=i < n)


@triton.jit
def row_sums(x, out, n, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    z = tl.load(x + row.to(tl.int64) * stride + j, mask=j < columns, other=0.0)
    tl.store(out + row, tl.sum(z))


@triton.jit
def row_sums_32_bits(x, out, n, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * stride + j, mask=j < columns, other=0.0)))


@triton.jit(do_not_specialize=["sizes"], do_not_specialize_on_alignment=["xs"])
def doubled(xs, outs, sizes, n, BLOCK: tl.constexpr, LEFT_OUT: tl.constexpr):
    """Twice each of xs, whose rows and distance of rows `sizes` has; all but one last row."""
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    for k in tl.static_range(len(xs)):
        if row < sizes[k][0] - (k == LEFT_OUT):
            at = row * sizes[k][1] + j
            tl.store(outs[k] + at, 2 * tl.load(xs[k] + at, mask=j < n), mask=j < n)


@triton.jit
def transposed(x, out, n, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tl.store(out + i * BLOCK + j, tl.trans(tl.load(x + i * BLOCK + j)))


@triton.jit
def sum_of_floats(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + i, mask=i < n, other=0.0)))


@triton.jit
def last_one_wins(x, out, n, BLOCK: tl.constexpr):
    tl.atomic_xchg(out, tl.program_id(0))


@triton.jit
def neighbours(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, 2 * BLOCK)
    tl.store(out + i, 0.0, mask=i < n)


@triton.jit
def uneven_loops(x, out, n, BLOCK: tl.constexpr):
    """sum of k for k <= i, by loops of different lengths with a barrier in each round."""
    i = tl.program_id(0)
    total = 0.0
    for k in range(i + 1):
        total += tl.sum(tl.load(x + k * BLOCK + tl.arange(0, BLOCK)))
    tl.store(out + i, total)


@triton.jit
def wait_forever(x, out, n, BLOCK: tl.constexpr):
    while tl.atomic_add(out, 0) == 0:
        pass


@triton.jit
def finish(
    x, partial, counter, out, n, BLOCK: tl.constexpr, SEM: tl.constexpr, BARRIER: tl.constexpr,
    RESET: tl.constexpr,
):  # fmt: skip
    """The last program to arrive adds the sums of all."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + i, mask=i < n, other=0.0)
    k = tl.arange(0, 128)
    tl.store(partial + tl.program_id(0) * 128 + k, tl.sum(tl.reshape(z, [128, BLOCK // 128]), 1))
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem=SEM) == tl.num_programs(0) - 1:
        total = tl.zeros([128], tl.float32)
        for p in range(tl.num_programs(0)):
            total += tl.load(partial + p * 128 + k, cache_modifier=".cg")
        tl.store(out, tl.sum(total))
        if RESET:
            tl.store(counter, 0)


def launch(kernel, programs: int, *arguments, warps: int = 4, **constants) -> Launch:
    """A launch of one of these kernels."""
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return Launch(Plan(kernel, constants | options), programs, arguments, None)


def vector(n: int, seed: int = 0) -> Tensor:
    """Random numbers at a multiple of 64 bytes."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def far_apart(rows: Tensor, step: int) -> Tensor:
    """The rows [N, C], `step` elements from one to the next in memory that is hardly there."""
    n, columns = rows.shape
    size = rows.itemsize * ((n - 1) * step + columns)
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=anonymous), dtype=rows.dtype)
    return memory.as_strided((n, columns), (step, 1)).copy_(rows)


def edited(call: Launch, edit: Callable[[str], str]) -> Compiled:
    """A launch's kernel with its PTX changed."""
    made = compiled(call)
    text = made.kernel.asm["ptx"]
    changed = edit(text)
    assert changed != text
    return Compiled(made.kernel, Code(parse(changed)), made.shared)
