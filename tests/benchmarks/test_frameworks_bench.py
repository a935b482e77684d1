"""The benchmark of frameworks: what is counted is exact, and a loss that is another is found."""

import dataclasses
import importlib

import pytest
import torch
from cases import INTERPRETED

from bench.__main__ import main
from bench.frameworks import command
from bench.frameworks.calls import calls_of
from bench.frameworks.cases import CASES, FRAMEWORKS, Case, Name, Outputs, arguments_of
from bench.loss import report
from jolkernels import JointOptimizationLoss

if INTERPRETED:
    pytest.skip("interpreted kernels take too long", allow_module_level=True)

ALONE = "torchvision/ssdlite"
QUICK = ALONE, "torchvision/faster_rcnn"


def test_calls_are_counted_by_name_but_views_and_allocations():
    x = Outputs([torch.ones(4, 3), {"no tensor": 1}, torch.arange(3)])

    def loss(x):
        doubled = 2 * x.tree[0]
        return doubled.view(-1)[:6].reshape(2, 3).sum() + torch.empty_like(doubled).zero_().sum()

    found = calls_of(loss, x)
    forward = {"mul": 1, "sum": 2, "zero_": 1, "add": 1}
    backward = {"ones_like": 1, "slice_backward": 1, "mul": 1}
    assert found.loss.calls == {**forward, **backward, "mul": 2}
    assert not found.loss.waits and not found.assigner.calls


def test_waits_are_what_a_gpu_would_be_waited_for():
    x = Outputs([torch.linspace(0, 1, 9)])

    def loss(x):
        (values,) = x.tree
        mask = values.detach() > 0.5
        torch.repeat_interleave(mask.int())
        torch.repeat_interleave(mask.int(), output_size=int(mask.sum()))  # the int waits, not this
        values.detach().clone()[mask] = 0.0  # a masked_fill
        total = values[mask].sum() + values.masked_select(mask).sum() + values[[0, 1]].sum()
        mask.nonzero(), mask.cpu(), mask.tolist(), values.sum().item()
        return total

    waits = {"repeat_interleave": 1, "_local_scalar_dense": 2, "masked_select": 1, "nonzero": 1}
    waits |= {"index by a mask": 1, "cpu": 1, "tolist": 1, "index_put by a mask": 1}
    assert calls_of(loss, x).loss.waits == waits


def test_ours_is_a_call_each_way_and_the_assigners_are_apart():
    class Assigner:
        def assign(self, boxes):
            return boxes.sum(1).nonzero()[:, 0].sum()

    criterion, assigner = JointOptimizationLoss("focal", "l1", "xyxy"), Assigner()
    x = Outputs([torch.rand(6, 5), torch.rand(6, 4)])

    def loss(x):
        labels = torch.full((6,), 5) - assigner.assign(torch.ones(0, 4))
        return criterion(*x.tree, labels, torch.rand(6, 4), None).total

    found = calls_of(loss, x, [(Assigner, "assign")])
    assert found.loss.calls == {
        "full": 1, "sub": 1, "rand": 1, "add": 1, "ones": 1,
        "ours_forward": 1, "ours_backward": 1, "ones_like": 1,
    }  # fmt: skip
    assert found.assigner.calls == {"sum": 2, "nonzero": 1}
    assert not found.loss.waits and found.assigner.waits == {"nonzero": 1}
    assert Assigner.assign.__qualname__.endswith("Assigner.assign"), "it is as it was"


def test_outputs_are_leaves_of_their_own():
    given = torch.rand(2, 3)
    x = Outputs({"a": [given, 2 * given], "b": (3, None, torch.arange(2))})
    assert [leaf.is_leaf and leaf.requires_grad for leaf in x.leaves] == [True, True]
    assert x.tree["a"][0] is x.leaves[0] and torch.equal(x.leaves[0], given)
    assert x.leaves[0].data_ptr() != given.data_ptr() and x.tree["b"][:2] == (3, None)


def test_arguments_are_those_of_the_last_call():
    class Head:
        def loss(self, *args, **kwargs):
            return len(args)

    head = Head()
    found = arguments_of(head, "loss", lambda: (head.loss(1), head.loss(2, 3, a=4)))
    assert found == ([2, 3], {"a": 4}) and "loss" not in vars(head)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES],
)
def test_each_model_has_a_case(name):
    framework, model = CASES[name]
    pytest.importorskip(framework)
    case = importlib.import_module(f"bench.frameworks.{framework}").make(model)
    assert set(case.losses) == set(Name)
    base, ours, none = (command.step(case.losses[n], case.outputs) for n in Name)
    torch.testing.assert_close(none[0], base[0], rtol=1e-5, atol=0)
    assert ours[0] > 1.05 * base[0], "weighted"
    theirs, mine = (
        calls_of(case.losses[n], case.outputs, case.assigner) for n in (Name.BASE, Name.OURS)
    )
    assert mine.loss.calls.total() <= theirs.loss.calls.total() / 2
    assert bool(theirs.assigner.calls) == bool(mine.assigner.calls) == bool(case.assigner)


@pytest.fixture
def quick(tmp_path):
    def run(*cases):
        given = ("--cases", *cases, "--seconds", "0.01", "--out", str(tmp_path))
        status = main(["frameworks", *given])
        return status, report.read_csv(tmp_path / "results.csv")

    return run


def test_a_run_writes_what_it_found(quick, tmp_path, capsys):
    status, rows = quick(ALONE)
    assert status == 0 and {r.case for r in rows} == {ALONE}
    assert {p.name for p in tmp_path.iterdir()} == {"results.csv", "results.md"}
    found = {(r.provider, r.measure, r.unit): r.median for r in rows}
    for loss in (Name.BASE, Name.OURS):
        assert found[loss, "both, clock", "ms"] > 0
        for what in ("calls", "waits"):
            names = [n for p, m, _ in found if p == loss and m.startswith(f"{what}: ") for n in [m]]
            assert sum(found[loss, n, ""] for n in names) == found[loss, what, ""]
    assert found[Name.OURS, "calls: ours_forward", ""] == 1 and found[Name.OURS, "waits", ""] == 0
    assert found[Name.BASE, "waits: nonzero", ""] == 2
    assert found[Name.NONE, "agrees", ""] == 1
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out and "`python -m bench frameworks`" in text
    assert f"- {ALONE}, base: nonzero 2, index by a mask 2, index_put by a mask 2\n" in text


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_another_loss_is_found_and_gets_no_times(quick, monkeypatch, tmp_path, capsys, what):
    module = importlib.import_module("bench.frameworks.torchvision")
    right = module.make

    def wrong(model):
        case = right(model)
        loss = case.losses[Name.NONE]

        def of(x):
            if what == "loss":
                return 1.00002 * loss(x)
            off = x.leaves[0].square().sum() * 1e-6
            return loss(x) + off - off.detach()

        return dataclasses.replace(case, losses=case.losses | {Name.NONE: of})

    monkeypatch.setattr(module, "make", wrong)
    status, rows = quick(ALONE)
    assert status == 1
    assert f"{ALONE}: WRONG without weighting, {what} off by" in capsys.readouterr().err
    assert not [r for r in rows if "clock" in r.measure]
    assert "| wrong |" in (tmp_path / "results.md").read_text()


def test_the_assigner_is_timed_within_the_models_loss():
    class Assigner:
        @staticmethod
        def assign():
            torch.rand(300, 300) @ torch.rand(300, 300)

    def loss(x):
        Assigner.assign(), Assigner.assign()
        return x.leaves[0].sum()

    case = Case(Outputs([torch.ones(2)]), {Name.BASE: loss}, 2, 1, ((Assigner, "assign"),))
    spent = command.assigner_times(case, 0.01)
    assert len(spent) >= 5 and all(milliseconds > 0 for milliseconds in spent)


def test_a_framework_that_is_not_installed_is_left_out(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(FRAMEWORKS, "nowhere", ("x",))
    monkeypatch.setitem(CASES, "nowhere/x", ("nowhere", "x"))
    status, rows = quick("nowhere")
    assert not rows and "nowhere: left out, not installed" in capsys.readouterr().err
    assert status == 1, "nothing was measured"
    assert "Not installed: nowhere.\n" in (tmp_path / "results.md").read_text()


def test_unusable_arguments(capsys, tmp_path):
    for given in (["--cases", "retinanet-80"], ["--threads", "0"], ["--seconds", "-1"]):
        assert main(["frameworks", *given, "--out", str(tmp_path / "new")]) == 2
        assert f"{given[0]}: got {given[1]!r}, wanted" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
