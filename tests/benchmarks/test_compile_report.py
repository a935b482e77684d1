"""`python -m bench compile`: from a kernel to its counts, and from these to tables and rows."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from sass_text import PROGRAM, counts

from bench.__main__ import main
from bench.compiled import cases, costs, dense_cases, executed, path, report, time_model
from bench.compiled.costs import Cost, Executed
from bench.compiled.variants import DTYPES
from bench.ptx import Line, PtxError, compiled
from bench.ptx.loss import execute_launch
from bench.ptx.program import parse
from jolkernels.kernels.finish import TEAM

KEYS = {"case", "rows", "columns", "dtype", "target", "direction"}


def thousand(found):
    """A path that a thousand times as many warps take."""
    return path.weighted([(1000, found)])


def cost(name="retinanet-8", dtype="fp32", target="sm_90", direction="forward", **given):
    """Of the kernel in sass_text, 1,000 times as many warps of it as ran."""
    done = Executed(
        thousand(path.find(PROGRAM, 8, counts())), warps=4, requests=64e3, sectors=200e3,
        distinct=100e3, load_bytes=16,
    )  # fmt: skip
    usual = dict(
        case=cases.CASES[name], dtype=dtype, target=target, direction=direction,
        kernel="some_kernel", programs=2000, registers=64, spills=0, shared=128, executed=done,
    )  # fmt: skip
    return Cost(**(usual | given))


def made(targets=("sm_90", "gfx942")):
    """The costs of two directions on some targets."""
    return {
        ("retinanet-8", "fp32", target): [
            cost(target=target, executed=cost().executed if target != "gfx942" else None),
            cost(target=target, direction="backward", registers=80, spills=8,
                 executed=cost().executed if target != "gfx942" else None),
        ]
        for target in targets
    }  # fmt: skip


def test_counts_of_a_sample_are_those_of_the_case():
    one = cost()
    issued = 8 * (4 + 1 + 3 * 5 + 1 + 1 + 1 + 3)
    assert one.slots == pytest.approx(32 * 1000 * issued / (240_174 * 8))
    assert one.instructions["load"] == pytest.approx(24e3)
    assert one.widths("load") == pytest.approx({16: 24e3})
    assert one.widths("store") == pytest.approx({8: 8e3, 2: 8e3})
    lines = dict(one.lines())
    assert sum(lines.values()) == pytest.approx(one.slots)
    assert lines["forward.py:14"] == pytest.approx(32 * 1000 * 8 * 6 / (240_174 * 8))
    assert one.predicted == pytest.approx(2 + max(one.bounds.values()))


def test_rows_for_programs_have_their_keys():
    rows = list(report.json_rows(made()))
    json.dumps(rows)
    sm_90 = {row["direction"]: row for row in rows if row["target"] == "sm_90"}
    assert set(sm_90) == {"forward", "backward", "both"}
    each = KEYS | {"slots_per_element", "registers", "spills", "load_bytes", "predicted_us"}
    assert set(sm_90["forward"]) == set(sm_90["backward"]) == each
    assert sm_90["forward"]["load_bytes"] == 16 and sm_90["backward"]["spills"] == 8
    assert sm_90["forward"]["rows"] == 240_174 and sm_90["forward"]["dtype"] == "fp32"
    both = sm_90["both"]
    assert set(both) == KEYS | {"predicted_us", "floor_us", "ratio", "launches"}
    parts = [sm_90[direction]["predicted_us"] for direction in ("forward", "backward")]
    assert both["predicted_us"] == pytest.approx(sum(parts)) and both["launches"] == 2
    assert both["ratio"] == pytest.approx(both["predicted_us"] / both["floor_us"])
    other = [row for row in rows if row["target"] == "gfx942"]
    assert [row["slots_per_element"] for row in other] == [None, None]
    assert [row["registers"] for row in other] == [64, 80]


def test_tables_say_what_is_predicted_and_from_what():
    text = report.report(made(), lines=2)
    assert time_model.ASSUMPTIONS[1:] in text
    lines = text.splitlines()
    heads = [line for line, rule in pairwise(lines) if rule.startswith("|---")]
    times = [cell.strip() for head in heads for cell in head.split("|") if " us" in cell]
    assert {cell for cell in times if "predicted" not in cell} == {"copy floor, us"}
    assert len(times) == 5
    total, floor = report.total_and_floor(made()["retinanet-8", "fp32", "sm_90"])
    (row,) = [line for line in text.splitlines() if "240,174 x 8" in line]
    assert f"| {report.number(total)} | {report.number(floor)} | {total / floor:.2f} |" in row
    assert "80/8/128" in text
    assert "forward.py:14" in text and "Not all accesses" not in text


def test_a_path_that_leaves_accesses_out_is_named():
    off = counts() | {key: [] for key in counts()}
    off["load", ("forward.py", 12)] = counts(trips=30)["load", ("forward.py", 12)]
    off["shuffle", ("forward.py", 14)] = counts()["shuffle", ("forward.py", 14)]
    wrong = cost(executed=replace(cost().executed, path=thousand(path.find(PROGRAM, 8, off))))
    assert costs.unexplained([wrong]) == ["retinanet-8 fp32 sm_90 some_kernel"]
    assert "Not all accesses" in report.report({("retinanet-8", "fp32", "sm_90"): [wrong]})


def test_trips_are_counted_by_lanes():
    program = parse("""
.target sm_90a
.visible .entry kernel(
	.param .u32 kernel_param_0
)
.reqntid 32
{
	.reg .pred %p<2>;
	.reg .b32 %r<3>;
	mov.b32 %r1, 0;
$L_loop:
	add.s32 %r1, %r1, 1;
	setp.lt.s32 %p1, %r1, 3;
	@%p1 bra $L_loop;
	ret;
}
""")
    lanes = (32, 96, 96, 64, 32)
    each = zip(program.instructions, lanes, strict=True)
    lines = [Line(instruction, 1, n, 0, 0, 0) for instruction, n in each]
    assert executed.trips_around(program, lines) == [1, 3, 3, 3, 1]


def test_trips_of_a_loop_that_is_left_by_a_branch():
    program = parse(
        """
.target sm_90a
.visible .entry kernel(
	.param .u32 kernel_param_0
)
.reqntid 32
{
	.reg .pred %p<2>;
	.reg .b32 %r<3>;
	mov.b32 %r1, 0;
	bra.uni $L_loop;
$L_next:
	add.s32 %r1, %r1, 1;
$L_loop:
	setp.ge.s32 %p1, %r1, 3;
	@%p1 bra $L_end;
	bra.uni $L_next;
$L_end:
	ret;
}
""".replace("bra.uni", "bra")
    )
    lanes = (32, 32, 96, 128, 32, 96, 32)
    each = zip(program.instructions, lanes, strict=True)
    lines = [Line(instruction, 4, n, 0, 0, 0) for instruction, n in each]
    assert executed.trips_around(program, lines) == [1, 1, 4, 4, 4, 4, 1]


def test_trips_of_a_loop_that_begins_with_a_guarded_instruction():
    program = parse(
        """
.target sm_90a
.visible .entry kernel(
	.param .u32 kernel_param_0
)
.reqntid 32
{
	.reg .pred %p<3>;
	.reg .b32 %r<3>;
	mov.b32 %r1, 0;
	setp.lt.s32 %p2, %r1, 3;
$L_loop:
	@%p2 add.s32 %r2, %r1, 1;
	add.s32 %r1, %r1, 1;
	setp.lt.s32 %p1, %r1, 3;
	@%p1 bra $L_loop;
	ret;
}
"""
    )
    lanes = (32, 32, 5, 96, 96, 64, 32)
    each = zip(program.instructions, lanes, strict=True)
    lines = [Line(instruction, 1, n, 0, 0, 0) for instruction, n in each]
    assert executed.trips_around(program, lines) == [1, 1, 3, 3, 3, 3, 1]


def small_case(rows):
    """A head with positives in every tile."""
    case = cases.CASES["retinanet-8"]
    return replace(case, rows=rows, head=replace(case.head, positives=0.5))


def test_the_sass_of_a_kernel_has_the_accesses_that_its_ptx_executed():
    case = small_case(192)
    call, _ = cases.sample(case, "fp32", 192, cases.launches(case, cases.unfilled(case, "fp32")))
    done = execute_launch(call)
    found = costs.of_execution(done, call)
    assert found.path.missed == {}
    recognised = {path.anchor(each) for each in found.path.program.instructions} - {None}
    counted = set(executed.counted(done.counts))
    assert counted <= recognised
    added = {("shuffle", place) for kind, place in counted if kind == "atomic"}
    assert recognised - counted == added, "which ptxas adds lanes up by"
    assert {kind for kind, _ in recognised} >= {"load", "store", "shuffle", "barrier", "atomic"}
    loads = {
        "SASS": sum(n for i, n in zip(found.path.program.instructions, found.path.counts,
                                      strict=True) if i.kind == "load"),
        "PTX": sum(x.warps for x in done.counts if executed.kind(x.instruction) == "load"),
    }  # fmt: skip
    assert loads["PTX"] / 2 < loads["SASS"] <= loads["PTX"], "ptxas loads some only once"
    widths = [("logits", "load", 16), ("labels", "load", 8), ("alphas", "load", None),
              ("row_terms", "load", None), ("row_terms", "store", 4)]  # fmt: skip
    for name, access, width in widths:
        assert executed.widest(done.compiled, call, name, access) == width
    logits = 192 * 8 * 4
    assert found.load_bytes == 16
    assert found.distinct * 32 > logits and found.sectors >= found.distinct > 0


@pytest.mark.parametrize("name", cases.CASES)
def test_samples_are_parts_of_the_case(name):
    case = cases.CASES[name]
    whole = cases.launches(case, cases.unfilled(case, "fp32"))
    *few, many = cases.sizes(case, whole[0].programs)
    if not few:
        assert many == case.rows
        return
    assert few[0] < many < case.rows and many * case.columns >= cases.SAMPLE
    parts = cases.sample(case, "fp32", few[0], whole)
    for full, part in zip(whole, parts, strict=True):
        assert compiled(part) is compiled(full)
        assert part.programs / full.programs == pytest.approx(few[0] / case.rows, rel=0.02)
    assert parts[0].programs == TEAM.value


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", dense_cases.CASES)
def test_samples_of_a_dense_case_are_parts_of_it(name, dtype):
    case = dense_cases.CASES[name]
    whole = dense_cases.launches(case, dense_cases.unfilled(case, dtype))
    sizes = dense_cases.sizes(case, whole[0].programs)
    parts = [dense_cases.smaller(case, more) for more in (0, dense_cases.STEP)]
    assert sizes == [part.rows for part in parts] and sizes[0] < sizes[1] < case.rows
    few, many, tiles = (dense_cases.tiles(x, dtype) for x in (*parts, case))
    # What more rows there are is whole tiles.
    share = (case.rows - sizes[0]) / (sizes[1] - sizes[0])
    assert tiles - few == pytest.approx(share * (many - few))
    for rows, count in zip(sizes, (few, many), strict=True):
        for full, one in zip(whole, dense_cases.sample(case, dtype, rows, whole), strict=True):
            assert compiled(one) is compiled(full)
            assert one.programs / full.programs == pytest.approx(count / tiles, rel=0.02)


def test_the_samples_of_a_dense_case_tell_what_all_of_it_costs(monkeypatch):
    """With positives in every tile."""
    case = dense_cases.CASES["retinanet-8-contiguous"]
    head = replace(case.head, positives=0.5)
    case = replace(case, head=head, anchors=2, sizes=((45, 40), (3, 3)))
    found = costs.measure(case, "fp32", "sm_90")
    monkeypatch.setattr(dense_cases, "sizes", lambda case, programs: [case.rows])
    whole = costs.measure(case, "fp32", "sm_90")
    for a, b in zip(found, whole, strict=True):
        assert a.slots == pytest.approx(b.slots, rel=0.05)
        assert a.executed.distinct == pytest.approx(b.executed.distinct, rel=0.02)
    assert [c.direction for c in found] == ["forward", "backward"]
    assert not costs.unexplained(found)


def test_what_is_done_once_is_not_scaled(monkeypatch):
    """Two small samples tell what all rows cost."""
    case = small_case(12_800)
    whole = costs.measure(case, "fp32", "sm_90")
    monkeypatch.setattr(cases, "SAMPLE", 2**16)
    asked = []
    sampled = costs.sampled
    monkeypatch.setattr(costs, "sampled", lambda *a: asked.append(a[3]) or sampled(*a))
    found = costs.measure(case, "fp32", "sm_90")
    assert len(asked) == 2 and max(asked) < case.rows
    for a, b in zip(found, whole, strict=True):
        assert a.slots == pytest.approx(b.slots, rel=1e-3)
        assert a.executed.distinct == pytest.approx(b.executed.distinct, rel=1e-2)
        for name, time in b.bounds.items():
            assert a.bounds[name] == pytest.approx(time, rel=1e-2, abs=1e-3)
        assert a.predicted == pytest.approx(b.predicted, rel=1e-2)


def test_the_last_program_adds_to_the_time():
    case = small_case(12_800)
    rows, gradients = (cost.modelled() for cost in costs.measure(case, "fp32", "sm_90"))
    assert 0.5 < time_model.finish(rows) < 5
    assert time_model.finish(gradients) == pytest.approx(0, abs=0.05)


def test_the_command_prints_and_writes(monkeypatch, tmp_path, capsys):
    asked = []

    def measure(case, dtype, target):
        asked.append((case.rows, dtype, target))
        return made((target,))["retinanet-8", "fp32", target]

    monkeypatch.setattr(costs, "measure", measure)
    rows, text = tmp_path / "rows.json", tmp_path / "tables.md"
    given = ["--cases", "retinanet-8", "--dtypes", "fp32", "bf16", "--targets", "sm_90"]
    assert main(["compile", *given, "--json", str(rows), "--out", str(text)]) == 0
    assert asked == [(240_174, "fp32", "sm_90"), (240_174, "bf16", "sm_90")]
    assert text.read_text() in capsys.readouterr().out
    assert {row["dtype"] for row in json.loads(rows.read_text())} == {"fp32", "bf16"}
    assert main(["compile", "--cases", "retinanet-9"]) == 2
    assert "retinanet-9" in capsys.readouterr().err


def test_what_cannot_be_done_is_refused_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(costs, "measure", lambda *asked: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for option in ("--json", "--out"):
        assert main(["compile", option, str(tmp_path / "file" / "rows")]) == 2
        assert "file: is a file, wanted a folder" in capsys.readouterr().err
    monkeypatch.setattr(report.triton.knobs.runtime, "interpret", True)
    assert main(["compile"]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


def test_the_benchmark_has_the_report_as_a_part(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(costs, "measure", lambda case, dtype, target: made((target,)).popitem()[1])
    assert main(["--parts", "compile", "--out", str(tmp_path)]) == 1  # no loss was measured
    assert "predicted" in (tmp_path / "compiled.md").read_text()
    rows = json.loads((tmp_path / "compile.json").read_text())
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "sm_100", "gfx942"}


def test_a_kernel_that_cannot_be_executed_is_named(monkeypatch, capsys):
    def measure(case, dtype, target):
        raise PtxError("rows_kernel: forward.py:1, PTX line 2: unknown opcode magic.b32")

    monkeypatch.setattr(costs, "measure", measure)
    assert main(["compile", "--cases", "rcnn-9", "--targets", "sm_90"]) == 1
    assert "bench compile: rows_kernel: forward.py:1, PTX line 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_is_explained(name, dtype):
    found = costs.measure(cases.CASES[name], dtype, "sm_90")
    assert costs.unexplained(found) == []
    assert [c.direction for c in found] == ["forward", "backward"]
    case, size = cases.CASES[name], DTYPES[dtype].itemsize
    for passes, each in enumerate(found, 1):
        assert 32 * each.executed.distinct > 0.98 * passes * case.rows * case.columns * size
