"""The benchmark itself: providers agree, a wrong one gets no speed-up, results survive a file."""

import argparse
import contextlib
import dataclasses
import math
import os
import subprocess
import sys
from functools import partial
from unittest import mock

import pytest
import torch

from bench.__main__ import main
from bench.loss import measure, plots, report, run
from bench.loss.cases import CASES, SWEEP, Name
from bench.loss.inputs import Coder, make_criterion, make_inputs
from bench.loss.options import empty_caches
from bench.loss.providers import PROVIDERS, Provider, fused, iou, masked, released, stated
from detectors.cli import main as jol
from jolkernels import JointOptimizationLoss

OURS, PLANTED = Name.OURS, Name.RELEASED
ABOUT = report.machine(torch.device("cpu"))
KINDS = ("rcnn-9", "retinanet-8", "fcos-8", "vocabulary-13205")
QUICK = ("--parts", "loss", "--seconds", "0.01")


@pytest.fixture(autouse=True)
def copies_of_a_megabyte_and_no_pictures(monkeypatch):
    """Which take longer than what is measured here."""
    monkeypatch.setattr(measure, "copy_bandwidth", partial(measure.copy_bandwidth, megabytes=1))
    monkeypatch.setattr(plots, "save_all", lambda folder, rows: [])


def small(name, rows=150):
    columns = min(CASES[name].columns, 40)
    return dataclasses.replace(CASES[name], rows=rows, columns=columns)


def almost(case, **choices):
    """Our loss, told something else than its head says."""
    criterion = make_criterion(case.head, "joint")
    given = {k: getattr(criterion.settings, k) for k in ("classification", "regression", "coding",
             "background")}  # fmt: skip
    criterion = JointOptimizationLoss(**given, **choices)
    norm = case.head.normalizer

    def loss(x):
        rows = (x.logits, x.boxes, x.labels, x.targets, x.priors)
        return criterion(*rows, None, None, norm, norm).total

    return loss


def shifted(amount, case):
    """Our loss, off by a share of `amount`."""
    right = fused("joint", case)
    return lambda x: (1 + amount) * right(x)


def raising(_case):
    def loss(_x):
        raise RuntimeError("no such luck\nand more")

    return loss


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", KINDS)
def test_providers_agree_with_the_equations(name, dtype):
    case = small(name)
    x = make_inputs(case, getattr(torch, dtype), "cpu")
    made = {p.name: (p.make, p.oracle) for p in PROVIDERS.values() if "compile" not in p.name}
    made |= {"masked": (masked, partial(stated, "joint"))}  # what is compiled
    checked = set()
    for provider, (make, oracle) in made.items():
        loss = make(case) if provider != "liger-classification" else None  # needs a GPU
        if loss is not None:
            wrong = measure.error(measure.step(loss, x), measure.step(oracle(case), x.double()))
            assert wrong <= measure.TOLERANCES[x.logits.dtype], provider
            checked.add(provider)
    torchvision_has_it = name != "vocabulary-13205"
    assert len(checked) == 6 + torchvision_has_it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["rcnn-9", "retinanet-8"])
def test_a_slightly_wrong_loss_does_not_pass_for_ours(name, dtype):
    case = CASES[name] if name == "rcnn-9" else dataclasses.replace(CASES[name], rows=20_000)
    x = make_inputs(case, getattr(torch, dtype), "cpu")
    wanted = measure.step(stated("joint", case), x.double())
    tolerance = measure.TOLERANCES[x.logits.dtype]
    assert measure.error(measure.step(almost(case), x), wanted) <= tolerance
    for wrong in ({"detach_weights": True}, {"lam": 2.01}, {"weighting": "none"}):
        assert measure.error(measure.step(almost(case, **wrong), x), wanted) > tolerance, wrong


def test_the_released_weights_by_hand():
    """Row by row, from the table of differences in docs/paper.md."""
    for name in KINDS:
        case = small(name, rows=12)
        x = make_inputs(case, torch.float64, "cpu")
        head, background = case.head, case.head.background_label(case.columns)
        softmax = head.classification == "cross_entropy"
        w_pos, l_cls, l_loc, negative = [], [], [], []
        base = make_criterion(head, "none")
        for i, y in enumerate(x.labels.tolist()):
            one = [t[i : i + 1] for t in (x.logits, x.boxes, x.labels, x.targets, x.priors)]
            losses = base(*one, classification_normalizer="sum", regression_normalizer="sum")
            if y == background:
                negative.append(float(losses.classification))
                continue
            z, slot = x.logits[i], 1 if head.class_specific else 0
            nll = -z.log_softmax(0) if softmax else -z.sigmoid().log()
            s_cls = float(1 - nll[y] / nll.sum())
            a = Coder(head).decode(x.boxes[i : i + 1, 4 * slot : 4 * slot + 4], one[-1])[0].tolist()
            b = x.targets[i].tolist()
            overlap = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
            areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            w_pos.append((1 if softmax else 2) - overlap / (areas - overlap) * s_cls)
            l_cls.append(float(losses.classification))
            l_loc.append(float(losses.regression))
        w_neg = sum(w_pos) / len(w_pos) if softmax else 1.0
        total = sum(w * (c + r) for w, c, r in zip(w_pos, l_cls, l_loc, strict=True))
        total = (total + w_neg * sum(negative)) / (
            12 if head.normalizer == "samples" else len(w_pos)
        )
        assert released(case)(x).item() == pytest.approx(total, rel=1e-9)


def test_inputs_are_a_detectors():
    for name in KINDS:
        case = CASES[name]
        x = make_inputs(dataclasses.replace(case, rows=20_000, columns=min(case.columns, 40)),
                        torch.float32, "cpu")  # fmt: skip
        positive = x.labels != case.head.background_label(x.logits.shape[1])
        assert positive.double().mean() == pytest.approx(case.head.positives, rel=0.3)
        sides = x.targets[:, 2:] - x.targets[:, :2]
        assert sides.min() > 7.9 and sides.max() < 32.1 and x.targets.max() <= 800
        assert all(leaf.requires_grad and leaf.is_leaf for leaf in x.leaves)


@pytest.mark.slow
def test_the_compiled_statement_agrees():
    case = small("rcnn-9")
    x = make_inputs(case, torch.float32, "cpu")
    provider = PROVIDERS["compile"]
    torch._dynamo.reset()
    _, got = measure.first_call(provider.make(case), x)
    wrong = measure.error(got, measure.step(provider.oracle(case), x.double()))
    assert wrong < 5e-4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(shifted, 0.01), "WRONG, off by 0.01"),
        (raising, "FAILED, RuntimeError: no such luck"),
        (partial(shifted, math.nan), "WRONG, off by inf"),
    ],
)
def test_a_wrong_provider_is_refused_a_speed_up(make, said, monkeypatch, tmp_path, capsys):
    planted = Provider(PLANTED, make, partial(stated, "joint"))
    monkeypatch.setitem(PROVIDERS, PLANTED, planted)
    given = ("--cases", "rcnn-9", "--providers", OURS, "eager", PLANTED)
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert f"rcnn-9 float32 {PLANTED}: {said}" in printed.err and "and more" not in printed.err
    rows = report.read_csv(tmp_path / "results.csv")
    timed = {r.provider for r in rows if r.unit in (report.TIME, report.RATIO)}
    assert timed == {OURS, "eager"}
    (line,) = [
        x for x in printed.out.split("## both, clock")[1].splitlines() if x.startswith("| rcnn-9")
    ][:1]
    assert line.split("|")[-2].strip() == "wrong"
    assert all(
        r.provider != PLANTED or r.measure in ("agrees", "error", "first call") for r in rows
    )


def wrong_later(case):
    """Right when it is checked, wrong when it is timed."""
    right, calls = fused("joint", case), []

    def loss(x):
        calls.append(0)
        return right(x) * (1 if len(calls) == 1 else 1.1)

    return loss


def failing_later(case):
    right, calls = fused("joint", case), []

    def loss(x):
        calls.append(0)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("too much")
        return right(x)

    return loss


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (wrong_later, "WRONG, off by 0.1 after it was timed"),
        (failing_later, "FAILED, OutOfMemoryError: too much"),
    ],
)
def test_what_goes_wrong_later_is_seen_and_ends_nothing(make, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PROVIDERS, PLANTED, Provider(PLANTED, make, partial(stated, "joint")))
    given = ("--cases", "rcnn-9", "rcnn-11", "--providers", OURS, PLANTED)
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 1
    assert f"rcnn-9 float32 {PLANTED}: {said}" in capsys.readouterr().err
    rows = report.read_csv(tmp_path / "results.csv")
    timed = {(r.case, r.provider) for r in rows if r.unit == report.TIME}
    assert timed == {("rcnn-9", OURS), ("rcnn-11", OURS)}


def test_an_interrupted_run_reports_what_it_has(monkeypatch, tmp_path, capsys):
    def interrupted(case):
        if case.name == "rcnn-11":
            raise KeyboardInterrupt
        return fused("joint", case)

    planted = Provider(PLANTED, interrupted, partial(stated, "joint"))
    monkeypatch.setitem(PROVIDERS, PLANTED, planted)
    given = ("--cases", "rcnn-9", "rcnn-11", "--providers", OURS, PLANTED)
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "interrupted" in printed.err and "| rcnn-9 | 1,024 |" in printed.out
    assert (tmp_path / "results.md").exists()


def test_cases_without_time_are_named(tmp_path, capsys):
    given = ("--cases", "rcnn-9", "rcnn-11", "--providers", OURS, "--limit", "1e-9")
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 0
    assert "Not measured, out of time: rcnn-9 float32, rcnn-11 float32" in capsys.readouterr().out
    given = ("--cases", SWEEP[0], "--dtypes", "bfloat16", "--out", str(tmp_path))
    assert main([*given, *QUICK]) == 1
    assert "nothing was measured" in capsys.readouterr().err


@pytest.mark.slow
def test_training_steps_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "STEP", {"size": 96, "images": 1})
    monkeypatch.setattr("bench.__main__.DETECTORS", ("fcos",))
    assert main(["--parts", "steps", "--out", str(tmp_path)]) == 0
    rows = report.read_csv(tmp_path / "results.csv")
    found = {(r.provider, r.unit): r for r in rows if r.measure == "step"}
    base, joint, ratio = (found[k] for k in (("base", "s"), ("jol", "s"), ("jol", report.RATIO)))
    assert base.median > 0 and joint.median > 0 and base.count == ratio.count == 5
    assert (base.rows, base.columns, base.case) == (1, 96, "step-fcos")
    assert f"| fcos | {report.number(base.median)}" in capsys.readouterr().out  # or "(noise)"


def test_without_a_compiler_the_rest_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.delattr("bench.compiled.report", raising=False)  # as where Triton is not installed
    monkeypatch.setitem(sys.modules, "bench.compiled.report", None)
    given = ("--parts", "loss", "compile", "--seconds", "0.01", "--cases", "rcnn-9")
    assert main([*given, "--providers", OURS, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "compiling the kernels ahead of time: FAILED" in printed.err
    assert "| rcnn-9 | 1,024 |" in printed.out and (tmp_path / "results.md").exists()


def test_without_our_own_there_are_no_ratios(monkeypatch, tmp_path, capsys):
    planted = Provider(OURS, partial(shifted, 0.5), partial(stated, "joint"))
    monkeypatch.setitem(PROVIDERS, OURS, planted)
    given = ("--cases", "rcnn-9", "--providers", OURS, "eager")
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 1
    table = capsys.readouterr().out.split("## both, clock")[1].splitlines()
    (line,) = [x for x in table if x.startswith("| rcnn-9")][:1]
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["wrong", ""]


def test_a_run_writes_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # with copies of the usual size and pictures
    given = ["bench", "--cases", "rcnn-9", SWEEP[0], "--providers", OURS, "eager", "base-torch"]
    assert jol([*given, *QUICK, "--out", str(tmp_path / "a" / "b")]) == 0
    out = tmp_path / "a" / "b"
    assert {p.name for p in out.iterdir()} == {
        "results.csv", "results.md", "time.png", "roofline.png", "launches.png"
    }  # fmt: skip
    rows = report.read_csv(out / "results.csv")
    for provider in (OURS, "eager", "base-torch"):
        mine = {
            r.measure: r
            for r in rows
            if (r.provider, r.case) == (provider, "rcnn-9") and r.unit != report.RATIO
        }
        assert {"forward, clock", "backward, clock", "both, clock", "operators", "peak"} <= set(
            mine
        )
        both = mine["both, clock"]
        assert 0 < both.low <= both.median <= both.high and both.count >= measure.FEWEST
    text = (out / "results.md").read_text()
    assert text in capsys.readouterr().out.lstrip("\n")
    for word in (ABOUT["machine"], ABOUT["torch"], "Copy bandwidth", "| rcnn-9 | 1,024 | 9 |"):
        assert word in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_no_edge_of_a_box_lies_on_its_targets(name, dtype):
    """Or rounding would decide on the gradient of the IoU, in one of thousands of rows."""
    case = dataclasses.replace(CASES[name], rows=15_000, columns=9)
    x = make_inputs(case, getattr(torch, dtype), "cpu")
    slots = x.boxes.shape[1] // 4
    wide = [t.double().repeat_interleave(slots, 0) for t in (x.targets, x.priors)]
    decoded = Coder(case.head).decode(x.boxes.detach().double().reshape(-1, 4), wide[1])
    assert (decoded - wide[0]).abs().min() >= 1e-3
    assert 0.3 < iou(decoded, wide[0]).mean() < 0.95


def test_spans_are_of_the_same_steps():
    x = make_inputs(CASES["rcnn-9"], torch.float32, "cpu")
    losses = {name: PROVIDERS[name].make(CASES["rcnn-9"]) for name in (OURS, "eager")}
    found = measure.times(losses, x, 0.05)
    assert list(found) == [OURS, "eager"]
    lengths = {len(values) for spans in found.values() for values in spans.values()}
    assert len(lengths) == 1 and lengths.pop() >= measure.FEWEST
    for spans in found.values():
        for forward, backward, both in zip(*(spans[d] for d in measure.DIRECTIONS), strict=True):
            assert forward > 0 and backward > 0 and both == pytest.approx(forward + backward)


def test_memory_and_operators_are_counted():
    x = make_inputs(CASES["rcnn-9"], torch.float32, "cpu")
    ours = measure.counts(fused("joint", CASES["rcnn-9"]), x)
    eager = measure.counts(PROVIDERS["eager"].make(CASES["rcnn-9"]), x)
    gradients = 4 * (x.logits.numel() + x.boxes.numel())
    assert (
        gradients <= ours.peak < gradients + 100 * len(x.labels) < eager.peak + 100 * len(x.labels)
    )
    assert ours.saved <= 16 * len(x.labels) < eager.saved
    assert 0 < ours.launches < eager.launches and ours.waits is None

    def doubled(x):
        return (2 * x.logits).square().sum()  # keeps one product, as large as the logits

    assert measure.counts(doubled, x).saved == 4 * x.logits.numel()


def accumulators(x):
    """The nodes that autograd ends at; each lives as long as a graph with its leaf does."""
    return [leaf.view_as(leaf).grad_fn.next_functions[0][0] for leaf in x.leaves]


@pytest.mark.parametrize("name", ["eager", "base-torch"])
def test_what_is_counted_does_not_outlive_the_count(name):
    """A graph left over pins its memory, and its stream to the leaves: no capture works then."""
    x = make_inputs(CASES["rcnn-9"], torch.float32, "cpu")
    right = PROVIDERS[name].make(CASES["rcnn-9"])

    def loss(x):
        total = right(x)
        for node in accumulators(x):
            node.metadata["seen"] = True
        return total

    total = loss(x)
    assert all("seen" in node.metadata for node in accumulators(x))
    del total
    measure.counts(loss, x)
    assert not any("seen" in node.metadata for node in accumulators(x))


class FakeGPU:
    """Streams that are numbers, 0 the default one, and graphs that run what they capture."""

    def __init__(self, monkeypatch):
        self.stream, self.made, self.capturing = 0, 0, False
        fakes = {
            "Stream": self.new, "stream": self.on, "current_stream": lambda: mock.Mock(),
            "CUDAGraph": mock.Mock, "graph": self.graph,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def new(self):
        self.made += 1
        return mock.Mock(number=self.made)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream.number
        yield
        self.stream = before

    @contextlib.contextmanager
    def graph(self, _graph, _pool=None, stream=None):
        self.capturing = True
        with self.on(stream):
            yield
        self.capturing = False


def test_leaves_belong_to_the_stream_that_captures(monkeypatch):
    """Or the backward pass would wait for another stream, and the capture fail."""
    gpu, x = FakeGPU(monkeypatch), make_inputs(CASES["rcnn-9"], torch.float32, "cpu")
    right, seen = fused("joint", CASES["rcnn-9"]), []

    def loss(x):
        total = right(x)
        for node in accumulators(x):
            made_on = node.metadata.setdefault("stream", gpu.stream)
            seen.append((gpu.stream, made_on, gpu.capturing))
        return total

    alive = loss(x)  # as a provider would that keeps its graph
    wanted = measure.step(right, x)
    for number in (1, 2):
        seen.clear()
        graphs = measure.capture(loss, x)
        assert {(stream, made_on) for stream, made_on, _ in seen} == {(number, number)}
        assert sum(capturing for _, _, capturing in seen) == 2 * 2  # forward and both
        assert list(graphs.graphs) == list(measure.DIRECTIONS)
        for gave in graphs.gave:
            assert not any(t.requires_grad for t in gave)  # or the autograd graph would stay
            assert all(torch.equal(a, b) for a, b in zip(gave, wanted, strict=True))
    assert alive.requires_grad


def broken(_x):
    """As PyTorch raises where a capture is invalid: its end, over what made it so."""
    try:
        raise RuntimeError("the legacy stream")
    finally:
        raise RuntimeError("a previous error during capture")


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"capture": broken}, "FAILED, RuntimeError: the legacy stream"),
        ({"off": 0.1}, "WRONG, off by 0.1"),
    ],
)
def test_a_failed_capture_costs_its_graph_times_alone(planted, said, monkeypatch, tmp_path, capsys):
    """On a fake GPU: only rows of times by graphs are missing, and those of one provider alone."""
    counts, times, made = measure.counts, measure.times, PROVIDERS["eager"].make(CASES["rcnn-9"])
    monkeypatch.setitem(
        PROVIDERS, "eager", dataclasses.replace(PROVIDERS["eager"], make=lambda _: made)
    )

    def capture(loss, x):
        off = 1.0
        if loss is made:
            planted.get("capture", lambda _: None)(x)
            off += planted.get("off", 0)
        right = measure.step(loss, x)
        return measure.Graphs({}, (right, tuple(off * t for t in right)))

    def graph_times(captured, device, seconds, *, cold):
        assert device.type == "cuda"
        return {name: {d: [1.0, 1.0] for d in measure.DIRECTIONS} for name in captured}

    monkeypatch.setattr(run, "counts", lambda *a: dataclasses.replace(counts(*a), waits=0))
    monkeypatch.setattr(run, "make_inputs", lambda case, dtype, _: make_inputs(case, dtype, "cpu"))
    monkeypatch.setattr(measure, "times", lambda losses, x, seconds, cold: times(losses, x, 0.01))
    monkeypatch.setattr(measure, "capture", capture)
    monkeypatch.setattr(measure, "graph_times", graph_times)
    options = argparse.Namespace(
        device="cpu", providers=[OURS, "eager", "base-torch"], seconds=0.01, out=tmp_path, limit=60
    )
    measured = run.Run(options)
    measured.device = torch.device("cuda")
    measured.part("rcnn-9 float32", partial(measured.case, CASES["rcnn-9"], "float32"))
    assert measured.failures == 1  # so the exit status is 1
    assert capsys.readouterr().err == f"rcnn-9 float32 eager, graphs: {said}\n"
    rows = report.read_csv(tmp_path / "results.csv")
    assert not any(map(report.failed, rows))
    has = {p: {(r.measure, r.unit) for r in rows if r.provider == p} for p in options.providers}
    missing = {
        (f"{direction}, graph, {word}", unit)
        for direction in measure.DIRECTIONS
        for word in ("cold", "warm")
        for unit in (report.TIME, report.RATIO)
    }
    assert has["base-torch"] - has["eager"] == missing and has["eager"] < has["base-torch"]
    assert {m for m, u in missing if u == report.TIME} <= {m for m, _ in has[OURS]}
    table = measured.report().split("## both, graph, cold")[1].splitlines()
    (line,) = [x for x in table if x.startswith("| rcnn-9")][:1]
    assert line.split("|")[6].strip() == "" and line.split("|")[7].strip() != ""


def test_the_commit_is_of_the_tree_the_package_is_in(tmp_path, monkeypatch):
    for command in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit",
                    "-q", "--allow-empty", "-m", "other"]):  # fmt: skip
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    (tmp_path / "results.py").touch()
    monkeypatch.setattr(report, "__file__", str(tmp_path / "results.py"))
    assert report.machine(torch.device("cpu"))["commit"] == ""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--cases", "rcnn-7"], "--cases: got 'rcnn-7', wanted one of rcnn-9"),
        (["--providers", "magic"], "--providers: got 'magic', wanted one of jolkernels"),
        (["--compare", "nowhere.csv"], "--compare: nowhere.csv: no such file"),
        (["--seconds", "-1"], "--seconds: got '-1', wanted a positive number"),
        (["--threads", "0"], "--threads: got '0', wanted a whole number of 1 or more"),
    ],
)
def test_unusable_arguments(given, wanted, capsys, tmp_path):
    assert main([*given, "--out", str(tmp_path / "new")]) == 2
    printed = capsys.readouterr()
    assert wanted in printed.err and printed.out == "" and not (tmp_path / "new").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_everything_is_measured(tmp_path):
    given = ("--cases", "rcnn-9", "--providers", OURS, "eager", "base-torch", "--dtypes", "float32")
    assert main([*given, *QUICK, "--out", str(tmp_path)]) == 0
    found = {(r.provider, r.measure): r.median for r in report.read_csv(tmp_path / "results.csv")}
    for method in ("events, cold", "events, warm", "graph, cold", "graph, warm"):
        for direction in measure.DIRECTIONS:
            assert found[OURS, f"{direction}, {method}"] > 0
    assert found[OURS, "waits"] == 0 < found["eager", "waits"]
    assert found[OURS, "launches"] < found["eager", "launches"]
    assert ("eager", "both, graph, cold") not in found  # it waits for the indices


def test_compilers_have_their_caches_again_afterwards(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "kept")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with empty_caches():
        assert os.environ["TRITON_CACHE_DIR"] == os.environ["TORCHINDUCTOR_CACHE_DIR"] != "kept"
    assert os.environ["TRITON_CACHE_DIR"] == "kept"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
