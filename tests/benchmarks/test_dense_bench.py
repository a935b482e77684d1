"""The dense benchmark: its inputs are a head's, a wrong provider is found, bytes are counted."""

import dataclasses

import pytest
import torch
from cases import INTERPRETED
from torchvision.models.detection.fcos import FCOSHead

from bench.__main__ import main
from bench.dense import command, providers
from bench.dense.cases import CASES, FORMATS, Name
from bench.dense.inputs import make_inputs
from bench.dense.providers import PROVIDERS
from bench.dense.traffic import CountBytes, bytes_moved
from bench.loss import measure, report

if INTERPRETED:
    pytest.skip("interpreted kernels take too long", allow_module_level=True)

SIZES = (12, 9), (6, 5), (1, 1)


def small(name, memory_format="contiguous"):
    case = dataclasses.replace(CASES[name], sizes=SIZES, columns=min(CASES[name].columns, 16))
    head = dataclasses.replace(case.head, positives=0.1)
    return dataclasses.replace(case, head=head).laid_out(memory_format)


def test_sizes_are_those_of_the_detectors():
    assert {name: (c.images, c.samples) for name, c in CASES.items()} == {
        "retinanet-8": (2, 120_087), "retinanet-80": (2, 120_087), "fcos-8": (2, 13_343),
        "large-80": (16, 201_600),
    }  # fmt: skip


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["retinanet-8", "fcos-8"])
def test_outputs_are_a_heads(name, memory_format):
    case = small(name, memory_format)
    x = make_inputs(case, torch.bfloat16, "cpu")
    kind = getattr(torch, FORMATS[memory_format])
    for levels, columns in ((x.logits, case.columns), (x.boxes, 4)):
        assert [tuple(level.shape) for level in levels] == [
            (2, case.anchors * columns, *size) for size in SIZES
        ]
        for level in levels:
            assert level.is_contiguous(memory_format=kind) and level.is_leaf
            assert level.requires_grad and level.dtype == torch.bfloat16
    counts = (x.matched >= 0).sum(1)
    assert counts[0] == len(x.labels[0]) > counts[1] > 0, "images' normalisers differ"
    assert ((x.matched == -2).any() == (case.ignored > 0)) and (x.matched == -1).any()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["retinanet-80", "fcos-8"])
def test_providers_agree_with_the_flat_entrance(name, memory_format, dtype):
    case = small(name, memory_format)
    x = make_inputs(case, getattr(torch, dtype), "cpu")
    for provider in PROVIDERS.values():
        if "compile" not in provider.name:
            wanted = measure.step(provider.oracle(case), x.double())
            off = measure.error(measure.step(provider.make(case), x), wanted)
            assert off <= measure.TOLERANCES[x.leaves[0].dtype], provider.name
            assert len(wanted) == 1 + 2 * len(SIZES)


def test_torchvisions_fcos_is_its_heads_without_the_centreness():
    case = small("fcos-8")
    x = make_inputs(case, torch.float32, "cpu")
    outputs = {
        "cls_logits": providers.permuted(x.logits, case.columns),
        "bbox_regression": providers.permuted(x.boxes, 4),
        "bbox_ctrness": torch.zeros(2, case.samples, 1),
    }
    head = FCOSHead(32, 1, case.columns, num_convs=1)
    found = head.compute_loss(providers.objects(x), outputs, [x.priors] * 2, list(x.matched))
    wanted = found["classification"] + found["bbox_regression"]
    torch.testing.assert_close(providers.torchvision(case)(x), wanted)


def test_bytes_are_those_of_reads_and_writes():
    x, at = torch.zeros(100, 4), torch.zeros(3, dtype=torch.int64)
    with CountBytes() as seen:
        x.t().contiguous()
        assert seen.bytes == 2 * 1600
        x.add_(1)
        assert seen.bytes == 4 * 1600, "in place: read and written"
        x.zero_(), torch.zeros_like(x), torch.empty_like(x), x.view(-1)
        assert seen.bytes == 6 * 1600
        x[at]
        assert seen.bytes == 6 * 1600 + 2 * 48 + 24
        x.expand(5, 100, 4).sum()
        assert seen.bytes == 7 * 1600 + 2 * 48 + 24 + 4


def test_flattening_costs_copies_by_the_model():
    case = dataclasses.replace(small("retinanet-80"), columns=80)
    x = make_inputs(case, torch.float32, "cpu")
    moved = {name: bytes_moved(name, case, p.make(case), x)
             for name, p in PROVIDERS.items() if name != Name.DENSE}  # fmt: skip
    assert moved[Name.COMPILE_FLAT] is None and moved[Name.COMPILE_TORCHVISION] is None
    logits = 4 * case.rows * case.columns
    assert 7 * logits < moved[Name.FLAT] < 14 * logits
    assert 2 * moved[Name.FLAT] < moved[Name.TORCHVISION]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(
        command, "CASES", {"fcos-8": dataclasses.replace(small("fcos-8"), name="fcos-8")}
    )
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 10.0)

    def run(*given):
        given = ("--cases", "fcos-8", "--seconds", "0.01", *given, "--out", str(tmp_path))
        return main(["dense", *given])

    return run


def test_a_run_writes_what_it_found(quick, tmp_path, capsys):
    chosen = (Name.DENSE, Name.FLAT, Name.TORCHVISION)
    assert quick("--providers", *chosen) == 0
    rows = report.read_csv(tmp_path / "results.csv")
    assert {p.name for p in tmp_path.iterdir()} == {"results.csv", "results.md"}
    for provider in chosen:
        found = {(r.case.split()[-1], r.dtype) for r in rows if r.provider == provider}
        assert found == {(f, d) for f in FORMATS for d in ("float32", "bfloat16")}
        measures = {r.measure for r in rows if r.provider == provider}
        assert {"both, clock", "peak", "bytes", "error", "operators"} <= measures
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out and "`python -m bench dense`" in text


def test_a_wrong_provider_gets_no_times(quick, monkeypatch, tmp_path, capsys):
    right = PROVIDERS[Name.DENSE]

    def off(case):
        loss = right.make(case)
        return lambda x: 1.01 * loss(x)

    monkeypatch.setitem(PROVIDERS, Name.DENSE, dataclasses.replace(right, make=off))
    given = ("--formats", "contiguous", "--dtypes", "float32", "--providers", Name.DENSE, Name.FLAT)
    assert quick(*given) == 1
    assert "jolkernels: WRONG, off by" in capsys.readouterr().err
    timed = {r.provider for r in report.read_csv(tmp_path / "results.csv") if "clock" in r.measure}
    assert timed == {Name.FLAT}


def test_a_case_that_does_not_fit_is_left_out(quick, monkeypatch, capsys):
    rows = small("fcos-8").rows
    monkeypatch.setattr(command, "free", lambda device: command.HELD[True] * 8 * rows)
    given = ("--formats", "contiguous", "--dtypes", "float32")
    assert quick(*given) == 0
    assert "fcos-8 contiguous float32: left out, it may take" in capsys.readouterr().err
    assert quick(*given, "--providers", Name.FLAT) == 0
    assert capsys.readouterr().err == ""


def test_there_is_memory():
    assert 2**20 < command.free(torch.device("cpu")) < 2**50


def test_unusable_arguments(capsys, tmp_path):
    for given in (["--formats", "nchw"], ["--cases", "rcnn-9"], ["--providers", "eager"]):
        assert main(["dense", *given, "--out", str(tmp_path / "new")]) == 2
        assert f"{given[0]}: got {given[1]!r}, wanted one of" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
