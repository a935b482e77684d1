"""`python -m bench compile`: from a kernel to its counts, and from these to tables and rows."""

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from sass_text import PROGRAM, counts

from bench.__main__ import main
from bench.compiled import cases, costs, executed, path, report, time_model
from bench.compiled.costs import Cost, Executed
from bench.compiled.variants import DTYPES
from bench.ptx import Line, PtxError
from bench.ptx.program import parse
from bench.ptx.runs import named_arguments

KEYS = {"case", "rows", "columns", "dtype", "target", "direction"}


def cost(name="retinanet-8", dtype="fp32", target="sm_90", direction="forward", **given):
    """Of the kernel in sass_text, 1,000 times as many warps of it as ran."""
    done = Executed(
        path.find(PROGRAM, 8, counts()), scale=1000, warps=4, requests=64e3, sectors=200e3,
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


def test_loads_of_what_was_just_written_come_from_the_cache():
    first = cost()
    later = cost(executed=replace(first.executed, load_bytes=None))
    assert first.bounds["latency"] > 1.5 * later.bounds["latency"]


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
    assert f"| {report.number(total)} | {report.number(floor)} | {total / floor:.1f} |" in row
    assert "80/8/128" in text
    assert "forward.py:14" in text and "Not all accesses" not in text


def test_a_path_that_leaves_accesses_out_is_named():
    off = counts() | {key: [] for key in counts()}
    off["load", ("forward.py", 12)] = counts(trips=30)["load", ("forward.py", 12)]
    off["shuffle", ("forward.py", 14)] = counts()["shuffle", ("forward.py", 14)]
    wrong = cost(executed=replace(cost().executed, path=path.find(PROGRAM, 8, off)))
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


def test_the_sass_of_a_kernel_has_the_accesses_that_its_ptx_executed():
    case = replace(cases.CASES["retinanet-8"], rows=192)
    call = cases.launches(case, cases.sample(case, "fp32"))[0]
    done = costs.run(call, "sm_90")
    found = costs.of_execution(done, call, 1.0)
    assert found.path.missed == {}
    recognised = {path.anchor(each) for each in found.path.program.instructions} - {None}
    assert recognised == set(executed.counted(done.counts))
    assert {kind for kind, _ in recognised} >= {"load", "store", "shuffle", "barrier"}
    loads = {
        "SASS": sum(n for i, n in zip(found.path.program.instructions, found.path.counts,
                                      strict=True) if i.kind == "load"),
        "PTX": sum(x.warps for x in done.counts if executed.kind(x.instruction) == "load"),
    }  # fmt: skip
    assert loads["SASS"] == pytest.approx(loads["PTX"]) and loads["PTX"] > 0
    widest = {name: executed.widest_load(done, call, name) for name in ("logits", "labels")}
    assert widest == {"logits": 4, "labels": 8} and found.load_bytes == 4
    assert executed.widest_load(done, call, "alphas") is None
    assert executed.widest_load(done, call, "row_terms") is None, "is only written"
    logits = 192 * 8 * 4
    assert found.distinct * 32 > logits and found.sectors >= found.distinct > 0


def test_samples_are_compiled_as_the_case_would_be():
    for case in cases.CASES.values():
        small = len(cases.sample(case, "fp32").labels)
        assert small <= case.rows and (small - case.rows) % 16 == 0
    assert cases.CASES["large-80"].head.classification == "cross_entropy"
    assert set(cases.CASES) == {
        "retinanet-80", "retinanet-8", "large-80", "vocabulary", "rcnn-9", "rcnn-81", "fcos-8",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "sampled"), [("retinanet-8", True), ("rcnn-9", False)])
def test_a_sample_stands_for_the_rows_and_a_finish_for_itself(monkeypatch, name, sampled):
    ran = []

    def run(call, target):
        ran.append(call)
        return SimpleNamespace(compiled=SimpleNamespace(kernel=None))

    monkeypatch.setattr(costs, "run", run)
    monkeypatch.setattr(costs, "of_execution", lambda done, call, scale: scale)
    monkeypatch.setattr(costs, "resources", lambda kernel: (32, 0, 0))
    case = cases.CASES[name]
    found = costs.measure(case, "fp32", "sm_90")
    assert [(c.kernel, c.direction) for c in found] == [
        ("rows_kernel", "forward"), ("finish_kernel", "forward"), ("gradients_kernel", "backward"),
    ]  # fmt: skip
    given = [dict(named_arguments(call)) for call in ran]
    rows = [len(arguments["labels"]) for arguments in given if "labels" in arguments]
    assert len(rows) == 2 and (rows[0] < case.rows) == sampled
    assert [c.executed for c in found] == [case.rows / rows[0], 1, case.rows / rows[1]]
    background = case.head.background_label(case.columns)
    assert all((x["labels"] != background).any() for x in given if "labels" in x)
    programs = [arguments["programs"] for arguments in given if "programs" in arguments]
    assert max(programs) == found[0].programs and len(programs) == 1 + sampled


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
    assert "predicted" in (tmp_path / "compile.md").read_text()
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
    assert [c.direction for c in found] == ["forward", "forward", "backward"]
    case, size = cases.CASES[name], DTYPES[dtype].itemsize
    for each in (found[0], found[2]):
        passes = 1 if each is found[0] else 2
        assert 32 * each.executed.distinct > 0.98 * passes * case.rows * case.columns * size
