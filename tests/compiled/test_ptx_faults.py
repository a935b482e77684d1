"""Faults planted into compiled kernels: the machine finds each, and names it in one line."""

import re

import pytest
import torch
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import small_kernels as kernels
from small_kernels import edited, launch, vector

from bench.ptx import PtxError, compiled, execute, in_all_orders, machine, run

pytestmark = pytest.mark.compiled
N, BLOCK = 1000, 256
PROGRAMS = 4


def fault(*parts):
    """An expected PtxError: one line that contains all of these."""
    text = ".*".join(map(re.escape, parts))
    return pytest.raises(PtxError, match=f"^[^\n]*{text}[^\n]*$")


def elementwise(kernel, x=None, out=None, n=N, warps=4):
    x, out = vector(N) if x is None else x, torch.empty(N) if out is None else out
    return launch(kernel, PROGRAMS, x, out, n, BLOCK=BLOCK, warps=warps)


def sums(kernel=kernels.row_sums, rows=3, columns=500):
    x = vector(rows * columns).view(rows, columns)
    out = torch.empty(rows)
    return launch(kernel, rows, x, out, rows, columns, columns, BLOCK=512)


# Bounds.


def test_what_is_right_passes():
    call = elementwise(kernels.copy)
    run(call, ["out"])
    assert torch.equal(call.arguments[1], call.arguments[0])
    call = sums()
    run(call, ["out"])
    torch.testing.assert_close(call.arguments[1], call.arguments[0].sum(1))


def test_a_mask_that_was_left_out():
    with fault(
        "copy_without_mask: small_kernels.py:", "program 3, thread", "lie outside x of 4000"
    ):
        run(elementwise(kernels.copy_without_mask), ["out"])


def test_the_gaps_of_a_view_are_not_of_the_tensor():
    wide = vector(3 * 512).view(3, 512)
    x, out = wide[:, :500], torch.empty(3)
    right = launch(kernels.row_sums, 3, x, out, 3, 500, 512, BLOCK=512)
    run(right, ["out"])
    torch.testing.assert_close(out, x.sum(1))
    wrong = launch(kernels.row_sums, 3, x, out, 3, 501, 512, BLOCK=512)
    with fault("program 2, thread 125", "4 bytes at offset 6096 lie outside x of 6096 bytes"):
        run(wrong, ["out"])
    with fault("program 0, thread 125", "4 bytes at offset 2000 are between the elements of x"):
        run(wrong, ["out"], parts=3)


def test_an_offset_of_32_bits():
    rows, columns, stride = 5, 100, 2**29 + 64
    x = kernels.far_apart(vector(rows * columns).view(rows, columns), stride)
    out = torch.empty(rows)
    run(launch(kernels.row_sums, rows, x, out, rows, columns, stride, BLOCK=128), ["out"])
    torch.testing.assert_close(out, x.sum(1))
    wrong = launch(kernels.row_sums_32_bits, rows, x, out, rows, columns, stride, BLOCK=128)
    with fault("row_sums_32_bits", "ld.global", "program 4, thread 0", "8589933568 bytes before x"):
        run(wrong, ["out"])


def test_a_pointer_that_is_not_aligned_as_the_code_assumes():
    aligned = elementwise(kernels.copy, n=992)
    assert (
        ".v4" in compiled(aligned).kernel.asm["ptx"] or ".v2" in compiled(aligned).kernel.asm["ptx"]
    )
    shifted = elementwise(kernels.copy, x=vector(N + 1)[1:], n=992)
    with fault("program 0, thread 0", "of x are not aligned"):
        execute(compiled(aligned), shifted, [], scratch=["out"])
    run(shifted, [], scratch=["out"])  # compiled anew for such a pointer
    assert torch.equal(shifted.arguments[1][:992], shifted.arguments[0][:992])


# Outputs.


def test_an_element_that_nobody_writes():
    with fault("nothing has written element [999] of out and 0 more"):
        run(elementwise(kernels.copy_all_but_the_last), ["out"])


def test_an_output_that_is_read_first():
    with fault("add_to_itself", "nothing has written element [0] of out"):
        run(elementwise(kernels.add_to_itself), ["out"])


def test_a_store_into_an_input():
    with fault("copy", "st.global", "stores to element [0] of out, no output"):
        run(elementwise(kernels.copy), [])


@pytest.mark.parametrize("shift", [0, 1, -200])
def test_an_output_that_overlaps_another_tensor(shift):
    storage = vector(3 * N)
    x, out = storage[N : 2 * N], storage[N + shift : 2 * N + shift]
    with fault("output out overlaps x"):
        run(elementwise(kernels.copy, x, out), ["out"])


def test_outputs_may_lie_between_the_elements_of_another():
    both = vector(2 * N).view(N, 2)
    x, out = both[:, 0], both[:, 1]
    call = launch(kernels.row_sums, N, x, torch.empty(N), N, 1, 2, BLOCK=2)
    run(call, ["out"])
    call = launch(kernels.row_sums, 1, x, out[:1], N, 1, 2, BLOCK=2)
    run(call, ["out"])
    assert out[0] == x[0]


def test_an_output_whose_elements_overlap():
    with fault("output out overlaps itself"):
        run(elementwise(kernels.copy, out=torch.empty(1).expand(N)), ["out"])


def test_inputs_may_overlap():
    x = vector(1).expand(N)
    out = torch.empty(N)
    run(launch(kernels.row_sums, N, x, out, N, 1, 0, BLOCK=2), ["out"])
    assert torch.equal(out, x)


def test_a_number_that_was_never_loaded():
    """Triton puts 0 where a mask is false and there is no `other`; without that, nothing is."""
    x = vector(N)
    run(elementwise(kernels.copy_what_is_not_loaded, x), ["out"])

    def compute(**options):
        call = elementwise(kernels.copy_what_is_not_loaded, x)
        made = edited(call, lambda text: re.sub(r"mov\.u32 %r\d+, 0x0;", "", text))
        return call.arguments[1:2], execute(made, call, ["out"], **options)

    with fault("result 0 differs with", "poison"):
        in_all_orders(compute)


# Shared memory and barriers.


def without(text, which):
    """PTX without some of its barriers, by their place."""
    parts = re.split(r"\tbar\.sync \t0;\n", text)
    assert len(parts) > 1
    made = parts[0]
    for i, part in enumerate(parts[1:]):
        made += ("" if i in which else "\tbar.sync \t0;\n") + part
    return made


@pytest.mark.parametrize("kernel", [kernels.row_sums, kernels.uneven_loops, kernels.transposed])
def test_a_removed_barrier(kernel):
    """Triton has a barrier before each reading and each second writing: it needs every one."""
    if kernel is kernels.row_sums:
        call = sums()
    elif kernel is kernels.transposed:
        call = launch(kernel, 1, vector(4096), torch.empty(4096), 64, BLOCK=64)
    else:
        call = launch(kernel, 5, vector(5 * BLOCK), torch.empty(5), 5, BLOCK=BLOCK)
    run(call, ["out"])
    count = compiled(call).kernel.asm["ptx"].count("bar.sync")
    assert count
    for i in range(count):
        made = edited(call, lambda text, i=i: without(text, [i]))
        with fault("of shared memory"):
            execute(made, call, ["out"])


def test_removed_barriers_are_races():
    call = sums()
    with fault("ld.shared", "a race: read here and written by", "of program 0"):
        execute(edited(call, lambda text: without(text, [0])), call, ["out"])


def test_shared_memory_that_nobody_has_written():
    call = sums()

    def edit(text):
        return re.sub(r"@%p\d+ st\.shared\S* .*?;|st\.shared\S* .*?;", "", text, count=1)

    with fault("ld.shared", "nothing has written byte 0 of shared memory"):
        execute(edited(call, edit), call, ["out"])


def test_shared_memory_has_an_end():
    call = sums()
    made = compiled(call)
    made = type(made)(made.kernel, made.code, made.shared - 4)
    with fault("st.shared", "of shared memory"):
        execute(made, call, ["out"])


def leaving(last):
    """Threads beyond this one end before the first barrier."""
    lines = ".reg .pred %late;\n.reg .b32 %who;\nmov.u32 %who, %tid.x;\n" + (
        f"setp.gt.u32 %late, %who, {last};\n@%late ret;\n"
    )
    return lambda text: text.replace("\tbar.sync", lines + "\tbar.sync", 1)


def test_a_warp_that_never_reaches_the_barrier():
    call = sums()
    with fault("bar.sync", "program 0 waits forever: warp 2, 3 never reaches the barrier"):
        execute(edited(call, leaving(63)), call, ["out"])


def test_lanes_that_never_reach_the_barrier():
    call = sums()
    with fault("program 0: only some lanes of a warp arrive at the barrier"):
        execute(edited(call, leaving(69)), call, ["out"])


def test_a_shuffle_without_some_lanes():
    call = sums()

    def edit(text):
        return leaving(69)(text.replace("\tshfl", "\tbar.sync \t0;\n\tshfl", 1)).replace(
            "\tbar.sync \t0;\n\tshfl", "\tshfl", 1
        )

    with fault("shfl.sync", "program 0, thread 64", "member mask"):
        execute(edited(call, edit), call, ["out"])


def test_a_loop_that_waits_for_another_program(monkeypatch):
    monkeypatch.setattr(machine, "MOST_STEPS", 10_000)
    out = torch.zeros(1, dtype=torch.int32)
    call = launch(kernels.wait_forever, 2, vector(1), out, 1, BLOCK=1, warps=1)
    with fault("wait_forever", "no end after 10,000 instructions"):
        run(call, [], scratch=["out"])


# Races between programs.


def test_programs_that_write_the_same_element():
    with fault("neighbours", "a race: written here and written by", "of out"):
        run(elementwise(kernels.neighbours), ["out"])


def test_programs_that_write_what_others_read():
    call = elementwise(kernels.shift_in_place)
    with fault("shift_in_place", "a race", "of x"):
        run(call, ["out"], scratch=["x"])
    run(launch(kernels.shift_in_place, 1, vector(100), torch.empty(100), 100, BLOCK=32, warps=1),
        [], scratch=["x", "out"])  # fmt: skip


def finishing(sem="acq_rel", barrier=True, reset=False, warps=4, programs=7):
    n = programs * BLOCK - 5
    x, partial, out = vector(n), torch.empty(programs, 128), torch.empty(1)
    counter = torch.zeros(1, dtype=torch.int32)
    constants = {"BLOCK": BLOCK, "SEM": sem, "BARRIER": barrier, "RESET": reset}
    arguments = x, partial, counter, out, n
    return launch(kernels.finish, programs, *arguments, warps=warps, **constants)


@pytest.mark.parametrize("warps", [1, 4])
def test_a_chain_of_releases_and_acquires_orders_programs(warps):
    def compute(**options):
        call = finishing(warps=warps, reset=True)
        execution = run(call, ["partial", "out"], scratch=["counter"], **options)
        torch.testing.assert_close(call.arguments[3][0], call.arguments[0].sum())
        assert call.arguments[2] == 0
        return (call.arguments[3],), execution

    in_all_orders(compute)


@pytest.mark.parametrize("sem", ["relaxed", "release", "acquire"])
def test_half_a_chain_does_not(sem):
    with fault("ld.global", "a race: read here and written by", "element", "of partial"):
        run(finishing(sem), ["partial", "out"], scratch=["counter"])


def test_fences_around_a_relaxed_update_are_a_chain():
    call = finishing("relaxed")

    def fenced(text):
        return re.sub(r"(@%p\d+ atom\.\S+ .*?;)", r"fence.acq_rel.gpu;\n\1\nfence.acq_rel.gpu;",
                      text)  # fmt: skip

    execute(edited(call, fenced), call, ["partial", "out"], scratch=["counter"])
    torch.testing.assert_close(call.arguments[3][0], call.arguments[0].sum())
    for kept in (r"fence.acq_rel.gpu;\n\1", r"\1\nfence.acq_rel.gpu;", r"membar.cta;\n\1"):
        half = edited(call, lambda text, kept=kept: re.sub(r"(@%p\d+ atom\.\S+ .*?;)", kept, text))
        call.arguments[2].zero_()
        with fault("a race", "of partial"):
            execute(half, call, ["partial", "out"], scratch=["counter"])


def test_a_release_without_a_barrier_is_of_one_thread():
    """The other threads' stores are not ordered before the counter of thread 0."""
    call = finishing(barrier=False)
    made = edited(call, lambda text: re.sub(r"\tbar\.sync \t0;\n(?=(?:(?!bar\.sync).)*?atom\.)", "",
                                            text, flags=re.DOTALL))  # fmt: skip
    with fault("a race", "of partial"):
        execute(made, call, ["partial", "out"], scratch=["counter"])


def test_a_sum_of_floats_that_depends_on_the_order():
    call = launch(kernels.sum_of_floats, PROGRAMS, vector(N), torch.zeros(1), N, BLOCK=BLOCK)
    with fault("sum_of_floats", ".f32", "depends on the order of the programs"):
        run(call, [], scratch=["out"])
    run(call, [], scratch=["out"], float_atomics=True)
    torch.testing.assert_close(call.arguments[1][0], call.arguments[0].sum())


def test_a_result_that_depends_on_the_order():
    def compute(**options):
        out = torch.zeros(1, dtype=torch.int32)
        call = launch(kernels.last_one_wins, PROGRAMS, vector(1), out, 1, BLOCK=1)
        return (out,), run(call, [], scratch=["out"], **options)

    with fault("result 0 differs with {'order': 'reverse'"):
        in_all_orders(compute)


# What the machine does not know.


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("add.f32", "add.rz.f32", "unknown opcode add.rz.f32"),
        ("add.f32", "wgmma.f32", "unknown opcode wgmma.f32"),
        ("add.f32", "add.f33", "unknown opcode add.f33"),
        ("ld.shared", "ld.local", "unknown opcode ld.local"),
        ("shfl.sync.bfly.b32", "shfl.sync.twist.b32", "unknown opcode shfl.sync.twist.b32"),
        ("shfl.sync.bfly.b32", "shfl.sync.bfly.b64", "unknown opcode shfl.sync.bfly.b64"),
        ("%tid.x", "%warpid", "unknown special register %warpid"),
        ("global_smem;", "other_smem;", "unknown operand"),
        ("add.f32", "add.f64", "a register of 32 bits as .f64"),
        ("add.s64", "add.s32", "a register of 64 bits as .s32"),
        ("bar.sync \t0", "bar.sync \t0, 64", "unknown operands of bar.sync"),
        ("st.global.b32", "st.global.release.b32", "unknown opcode st.global.release.b32"),
    ],
)
def test_an_opcode_or_operand_that_is_not_known(before, after, named):
    """Found when the code is read, though nothing reaches it."""
    with fault(named):
        edited(sums(), lambda text: text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda call: call._replace(arguments=(call.arguments[0].to("meta"), *call.arguments[1:])),
         "x: got a tensor on meta, wanted the CPU"),
        (lambda call: call._replace(arguments=(*call.arguments[:2], 1.5)),
         "n: got 1.5, wanted a tensor, an integer or a float64"),
    ],
)  # fmt: skip
def test_arguments_that_are_none(change, named):
    call = elementwise(kernels.copy)
    with fault(named):
        execute(compiled(call), change(call), ["out"])


def test_names_and_orders_that_are_none():
    call = elementwise(kernels.copy)
    with fault("y: no tensor argument of copy"):
        run(call, ["y"])
    with fault("order: got 'sideways', wanted forward, reverse or a seed"):
        run(call, ["out"], order="sideways")
