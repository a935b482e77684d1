"""Reading PTX."""

import re

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import PtxError
from bench.ptx.decode import Code
from bench.ptx.flow import ranks
from bench.ptx.program import Address, Group, Immediate, Place, Register, Symbol, parse

pytestmark = pytest.mark.compiled
TEXT = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry f(
    .param .u64 .ptr .global .align 1 f_param_0,
    .param .u32 f_param_1
)
.reqntid 64
{
    .reg .pred %p<3>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    .loc 1 10 0
    ld.param.b64 %rd1, [f_param_0]; // a comment; with more
    .loc 2 5 7, function_name $info, inlined_at 1 11 3
    .loc 3 8 1, function_name $info, inlined_at 2 5 7
    mov.u32 %r1, %tid.x; mov.b32 %r2, 0x10;
$loop:
    setp.eq.s32 %p1, %r1, -5;
    @!%p1 bra $loop;
    .loc 1 12 0
    { .reg .b32 tmp; mov.b64 {tmp, %r3}, %rd1; }
    st.global.v2.b32 [%rd1 + -8], {%r1, %r2};
    ret;
}
.file 1 "/a/kernel.py"
.file 2 "/a/part.py"
.file 3 "/a/deep.py"
"""


def test_what_is_read():
    program = parse(TEXT)
    assert (program.name, program.target, program.threads) == ("f", "sm_90a", 64)
    assert [(p.name, p.size) for p in program.parameters] == [("f_param_0", 8), ("f_param_1", 4)]
    assert program.registers == [1] * 3 + [32] * 4 + [64] * 3 + [32]
    assert program.labels == {"$loop": 3}
    code = program.instructions
    assert [i.opcode for i in code] == [
        "ld.param.b64", "mov.u32", "mov.b32", "setp.eq.s32", "bra", "mov.b64",
        "st.global.v2.b32", "ret",
    ]  # fmt: skip
    assert code[2].operands == (Register(5, 32), Immediate(16, None))
    assert code[4].negated and code[4].guard == Register(1, 1)
    assert code[4].operands == (Symbol("$loop"),)
    assert code[5].operands[0] == Group((Register(10, 32), Register(6, 32)))
    assert code[6].operands[0] == Address(Register(8, 64), -8)
    assert code[7].text == "ret" and code[7].line == 26


def test_where_an_instruction_comes_from():
    code = parse(TEXT).instructions
    assert code[0].source == (Place("kernel.py", 10),)
    assert code[1].source == (Place("deep.py", 8), Place("part.py", 5), Place("kernel.py", 11))
    assert code[6].source == (Place("kernel.py", 12),)
    assert str(code[7]) == "kernel.py:12, PTX line 26: ret"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (".visible .entry", ".entry", "the PTX has 0 kernels, wanted 1"),
        (".reqntid 64", "", "a kernel without a name or .reqntid"),
        (".reqntid 64", ".reqntid 40", "40 threads a program, wanted whole warps"),
        ("ret;", "ret", "PTX line 26: no end of 'ret'"),
        ("    ret;\n}", "    ret;", "no end"),
        ("%r1, -5", "%r9, -5", "PTX line 21: unknown operand '%r9'"),
        ("%r1, -5", "%r1, 0z5", "PTX line 21: unknown operand '0z5'"),
        ("[f_param_0]", "[f_param_9]", "unknown parameter"),
        ("bra $loop", "bra $else", "no label $else"),
        ("    ret;", "    @%p1 ret;", "the code goes on beyond its end"),
        ("@!%p1", "@!%r1", "the guard is no predicate"),
        ("[%rd1 + -8]", "[%rd1 * 8]", "unknown operand '[%rd1 * 8]'"),
        (", {%r1, %r2}", ", {%r1}", "unknown operands of st.global.v2.b32"),
        ("mov.b32 %r2, 0x10", "MOV %r2, 0x10", "cannot read 'MOV %r2, 0x10'"),
        ("mov.b32 %r2, 0x10", "mov.b32 5, 0x10", "is no register"),
        ("mov.b32 %r2, 0x10", "mov.b32 %r2, 0d0000000000000000", "a constant of 64 bits as .b32"),
    ],
)
def test_what_cannot_be_read(before, after, message):
    assert before in TEXT
    with pytest.raises(PtxError, match=f"^[^\n]*{re.escape(message)}[^\n]*$"):
        Code(parse(TEXT.replace(before, after)))


def flow(*lines):
    """The ranks of the labels a, b, … of some lines of code."""
    text = TEXT[: TEXT.index("    .loc")] + "\n".join(lines) + "\n}\n"
    program = parse(text)
    ranked = ranks(program)
    return {name: ranked[at] for name, at in program.labels.items()}


def test_lanes_meet_after_both_branches():
    at = flow("@%p1 bra b;", "a: bra c;", "b: bra c;", "c: ret;")
    assert max(at["a"], at["b"]) < at["c"]


def test_what_comes_after_a_branch_may_stand_before_it():
    at = flow("bra b;", "a: ret;", "b: @%p1 bra a;", "c: bra a;")
    assert at["b"] < at["c"] < at["a"]


def test_a_loop_comes_before_what_leaves_it():
    """Wherever the exit stands, and with the loop's head in the middle of the text."""
    at = flow("bra c;", "a: @%p1 bra d;", "b: ret;", "c: @%p1 bra b;", "bra a;", "d: bra c;")
    assert at["c"] < at["a"] < at["d"]
    assert at["d"] < at["b"]


def test_loops_in_loops():
    at = flow(
        "a: @%p1 bra e;", "b: @%p1 bra d;", "c: bra b;", "d: bra a;", "e: ret;",
    )  # fmt: skip
    assert at["a"] < at["b"] < at["c"] < at["d"] < at["e"]
