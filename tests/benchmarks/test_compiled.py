"""SASS as text: instructions and blocks, the executed path, latencies, the time model."""

from collections import Counter

import pytest

pytest.importorskip("triton")

from sass_text import FILE, PROGRAM, SASS, counts

from bench.compiled import latency, path, sass, time_model
from bench.compiled.control_flow import loops
from bench.compiled.path import Count


def visits(found):
    return {block.first: found.counts[block.first] for block in PROGRAM.blocks}


def test_instructions_are_read_with_class_width_and_line():
    by_address = {each.address: each for each in PROGRAM.instructions}
    assert len(by_address) == 22
    load = by_address[0x50]
    assert (load.guard, load.opcode, load.kind, load.width) == ("@P1", "LDG.E.128", "load", 16)
    assert load.source == (FILE, 12)
    assert by_address[0x20].source == (FILE, 11)  # the innermost of inlined functions
    assert by_address[0x10].source == (FILE, 10)
    widths = {hex(a): by_address[a].width for a in (0xE0, 0xF0)}
    assert widths == {"0xe0": 8, "0xf0": 2}
    kinds = Counter(each.kind for each in PROGRAM.instructions)
    assert kinds["FP64"] == 1 and kinds["FP32"] == 2 and kinds["MUFU"] == 1


def test_an_unknown_opcode_and_a_branch_to_nowhere_are_named():
    with pytest.raises(ValueError, match=r"0x60.*TENSOR\.MAGIC"):
        sass.parse(SASS.replace("MUFU.EX2", "TENSOR.MAGIC"))
    with pytest.raises(ValueError, match="to where"):
        sass.parse(SASS.replace("`(.L_x_3)", "`(.L_x_9)"))
    with pytest.raises(ValueError, match="computed branch"):
        sass.parse(SASS.replace("BRA `(.L_x_0)", "BRX R4 -0x10"))


def test_blocks_end_at_branches_and_begin_at_labels():
    starts = [PROGRAM.instructions[b.first].address for b in PROGRAM.blocks]
    assert starts == [0, 0x40, 0x50, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0, 0x120, 0x140, 0x150]
    following = [b.successors for b in PROGRAM.blocks]
    assert following[:8] == [(3, 1), (2,), (2, 3), (5, 4), (5,), (7, 6), (7,), ()]
    assert PROGRAM.blocks[4].calls == 8 and PROGRAM.blocks[8].leaves


def test_loops_are_found_with_their_entries():
    # 0 → 1 ⇄ 2 → 3, with a loop of block 2 within
    outer, inner = loops([(1,), (2,), (2, 1, 3), ()])
    assert (outer.header, outer.body, outer.entries) == (1, {1, 2}, ((0, 1),))
    assert (inner.header, inner.body, inner.backs) == (2, {2}, ((2, 2),))


def test_the_path_follows_what_the_ptx_did():
    found = path.find(PROGRAM, 8, counts())
    assert found.missed == {}
    at = visits(found)
    loop, before = PROGRAM.blocks[2].first, PROGRAM.blocks[1].first
    assert (at[0], at[before], at[loop]) == pytest.approx((8, 8, 24))
    call, store = PROGRAM.blocks[4].first, PROGRAM.blocks[6].first
    assert at[call] == at[PROGRAM.blocks[8].first] == 0, "a rare path"
    assert at[store] == pytest.approx(8)
    issued = 8 * (4 + 1 + 3 * 5 + 1 + 1 + 1 + 3)
    assert found.issued == pytest.approx(issued)


def test_a_loop_that_no_warp_enters_is_not_paid_for():
    found = path.find(PROGRAM, 8, counts(trips=0.0))
    assert found.missed == {} and found.issued == pytest.approx(8 * (4 + 1 + 1 + 1 + 3))


def test_a_branch_around_a_guarded_store_is_issued_by_the_active_warps_alone():
    at = visits(path.find(PROGRAM, 8, counts(stores=2.0)))
    assert at[PROGRAM.blocks[6].first] == pytest.approx(2)
    assert at[PROGRAM.blocks[7].first] == pytest.approx(8)


def test_a_call_that_is_always_made_is_paid_for():
    always = sass.parse(SASS.replace("@P0 BRA P2, `(.L_x_3)", "     NOP"))
    usual, found = path.find(PROGRAM, 8, counts()), path.find(always, 8, counts())
    assert found.issued - usual.issued == pytest.approx(8 * (2 + 2))


def test_a_call_of_what_does_not_return_is_a_branch():
    far = SASS.replace("@!P1 BRA `(.L_x_0)", "@!P1 CALL.REL.NOINC `(.L_x_0)")
    assert sass.parse(far).blocks == PROGRAM.blocks


def test_an_unrolled_loop_is_gone_round_less_often():
    shuffle = next(line for line in SASS.splitlines() if "SHFL" in line)
    load = next(line for line in SASS.splitlines() if "LDG" in line)
    lines = SASS.replace(load, f"{load}\n{load.replace('0050', '0058')}")
    twice = sass.parse(lines.replace(shuffle, f"{shuffle}\n{shuffle.replace('0080', '0088')}"))
    found = path.find(twice, 8, counts(trips=6.0))
    assert found.missed == {}
    at = {b.first: found.counts[b.first] for b in twice.blocks}
    assert at[twice.blocks[2].first] == pytest.approx(24)
    assert at[twice.blocks[1].first] == pytest.approx(8)


def test_several_accesses_that_became_one_are_not_a_shorter_path():
    twice = counts() | {("shuffle", (FILE, 14)): counts()["shuffle", (FILE, 14)] * 2}
    found = path.find(PROGRAM, 8, twice)
    assert found.missed == {}
    assert found.counts == pytest.approx(path.find(PROGRAM, 8, counts()).counts)


def test_a_warp_may_part_at_a_branch():
    """Its threads go both ways, one after the other."""
    program = sass.parse("""
	//## File "forward.py", line 1
        /*0000*/                   S2R R10, SR_TID.X ;
        /*0010*/               @P3 BRA `(.L_x_1) ;
	//## File "forward.py", line 2
        /*0020*/                   STG.E desc[UR4][R2.64], R6 ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_1:
	//## File "forward.py", line 3
        /*0040*/                   STG.E desc[UR4][R2.64], R7 ;
.L_x_2:
        /*0050*/                   EXIT ;
""")

    def issued(first, second):
        counted = {
            ("store", (FILE, 2)): [Count(first, first, False)],
            ("store", (FILE, 3)): [Count(second, second, False)],
        }
        found = path.find(program, 8, counted)
        assert found.missed == {}
        return [found.counts[block.first] for block in program.blocks], found.parted

    assert issued(6, 2) == (pytest.approx([8, 6, 2, 8]), 0)
    assert issued(8, 5) == (pytest.approx([8, 8, 5, 8]), pytest.approx(5))


def test_counts_that_no_path_has_are_reported():
    wrong = counts() | {("shuffle", (FILE, 14)): [Count(99, 99, False, 3)]}
    found = path.find(PROGRAM, 8, wrong)
    assert set(found.missed) <= {("shuffle", (FILE, 14)), ("load", (FILE, 12))}
    assert sum(map(abs, found.missed.values())) == pytest.approx(75)


def test_registers_are_told_apart():
    def of(text):
        program = sass.parse(f"        /*0000*/  {text} ;\n        /*0010*/  EXIT ;\n")
        return latency.registers(program.instructions[0])

    assert of("ISETP.GE.AND P1, PT, R17, 0x1, PT") == (["P1"], ["R17"])
    assert of("LOP3.LUT P0, R0, R10, 0x40, RZ, 0xc0, !PT") == (["P0", "R0"], ["R10"])
    assert of("IADD3 R7, P2, R5, UR8, RZ") == (["R7", "P2"], ["R5", "UR8"])
    written, read = of("@P4 LDG.E.128 R4, desc[UR4][R22.64+0x8]")
    assert written == ["R4", "R5", "R6", "R7"] and read == ["P4", "UR4", "R22", "R23"]
    assert of("STG.E desc[UR6][R18.64], R23") == ([], ["UR6", "R18", "R19", "R23"])
    assert of("ATOMG.E.ADD.STRONG.GPU PT, R4, desc[UR4][R2.64], R6")[0] == ["R4"]
    assert of("SHFL.BFLY PT, R0, R3, 0x10, 0x1f") == (["R0"], ["R3"])
    assert of("DADD R52, R24, R52")[0] == ["R52", "R53"]


def test_latency_counts_what_is_waited_for_and_rounds_of_loops():
    def cycles(trips, read):
        return latency.alone(path.find(PROGRAM, 8, counts(trips)), read)

    # Each round waits for its load, which nothing else hides.
    assert cycles(3, 650) - cycles(3, 280) == pytest.approx(3 * 370)
    one_round = cycles(11, 650) - cycles(10, 650)
    assert 650 < one_round < 650 + 60
    assert cycles(12, 650) - cycles(10, 650) == pytest.approx(2 * one_round)
    assert 0 < cycles(0, 650) < 120


def kernel(times=1.0, **given):
    found = path.weighted([(times, path.find(PROGRAM, 8, counts()))])
    usual = dict(
        path=found, programs=2, warps=4, registers=64, shared=0, moved=0.0
    )  # fmt: skip
    return time_model.Kernel(**(usual | given))


def test_the_time_model_takes_the_largest_bound():
    found = time_model.bounds(kernel(1e6))
    issued = 8e6 * (4 + 1 + 15 + 1 + 2 + 3)
    assert found["issue"] == pytest.approx(issued / 132 / 4 / 1755 / 0.85)
    assert found["MUFU"] == pytest.approx(8e6 * 3 * 8 / 132 / 4 / 1755 / 0.85)
    assert found["FP64"] == pytest.approx(8e6 * 2 / 132 / 4 / 1755 / 0.85)
    assert time_model.bounds(kernel(moved=3e9))["bytes"] == pytest.approx(1000)
    worst = max(time_model.bounds(kernel(1e6)).values())
    assert time_model.predicted([kernel(1e6)] * 3) == pytest.approx(3 * (2 + worst))


def test_latency_is_paid_once_a_wave():
    one = time_model.bounds(kernel())["latency"]
    assert time_model.resident(kernel()) == 8
    assert time_model.resident(kernel(registers=65)) == 7
    assert time_model.resident(kernel(shared=100_000)) == 2
    full = 132 * 8
    assert time_model.bounds(kernel(programs=full))["latency"] == pytest.approx(one)
    assert time_model.bounds(kernel(programs=3 * full))["latency"] == pytest.approx(3 * one)


def test_the_copy_floor_reads_twice_and_writes_once():
    assert time_model.copy_floor(240_174, 80, 4) == pytest.approx(76.9, abs=0.05)
