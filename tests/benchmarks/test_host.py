"""What a call costs the host: the counters count, nothing stays replaced."""

import json
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import INTERPRETED, random_batch

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not launched", allow_module_level=True)

import triton

from bench import host
from bench.__main__ import main
from bench.dense import cases
from bench.dense.cases import Name
from bench.dense.inputs import make_inputs
from bench.dense.providers import PROVIDERS
from bench.fake_gpu import KERNELS, fake_gpu
from bench.loss import measure
from jolkernels import JointOptimizationLoss, loss, ops
from jolkernels.kernels import dense_launch, launch

DENSE = {"dense_rows_kernel", "dense_gradients_kernel"}
OURS = {"rows_kernel", "gradients_kernel"}


@pytest.mark.parametrize("normalizer", [None, 512.0])
def test_a_step_launches_each_kernel_once_and_nothing_else(normalizer):
    """But what autograd must: the add of JointLoss.total, and the ones of backward()."""
    autograds = {"aten::add": 1, "aten::ones_like": 1}
    assert host.launches(normalizer=normalizer) == dict.fromkeys(OURS, 1) | autograds


def test_all_but_the_first_launches_are_direct():
    with fake_gpu() as seen:
        step = host.Step(host.TIMED, 64)
        for _ in range(3):
            step.both()
    assert seen.launched == dict.fromkeys(OURS, 3) and seen.by_jit == dict.fromkeys(OURS, 1)


def test_batches_with_gaps_are_launched_directly_too():
    with fake_gpu() as seen:
        step = host.Step(host.TIMED, 64)
        labels = step.arguments["labels"]
        step.arguments["labels"] = labels.repeat_interleave(2)[::2]
        for _ in range(3):
            step.both()
    assert seen.launched == dict.fromkeys(OURS, 3) and seen.by_jit == dict.fromkeys(OURS, 1)


def test_a_finish_of_many_groups_is_launched_directly_too():
    with fake_gpu() as seen:
        step = host.Step(host.TIMED, 64)
        step.arguments |= {"groups": torch.zeros(64, dtype=torch.int64), "num_groups": 65}
        for _ in range(3):
            step.forward()
    names = {"rows_kernel", "finish_kernel"}
    assert seen.launched == dict.fromkeys(names, 3) and seen.by_jit == dict.fromkeys(names, 1)


def test_arguments_that_a_launcher_would_not_take_are_seen(monkeypatch):
    plan = launch.plan_backward

    def wrong(*given):
        gradients, (call,) = plan(*given)
        return gradients, [call._replace(arguments=(*call.arguments[:-1], 0.5))]

    with fake_gpu():
        step = host.Step(host.TIMED, 64)
        step.both()
        monkeypatch.setattr(launch, "plan_backward", wrong)
        with pytest.raises(TypeError, match=r"gradients_kernel: got 0\.5 for i32"):
            step.both()


@pytest.mark.parametrize("name", host.DENSE_CASES)
def test_a_dense_step_launches_a_tenth_of_torchvisions(name):
    ours = host.dense_launches(name, Name.DENSE)
    assert {k: n for k, n in ours.items() if "::" not in k} == dict.fromkeys(DENSE, 1)
    assert ours["aten::add"] == ours["aten::ones_like"] == 1
    assert ours.total() <= host.dense_launches(name, Name.TORCHVISION).total() / 10


def test_all_but_the_first_dense_launches_are_direct():
    case = replace(cases.CASES["retinanet-8"], sizes=host.SMALL)
    x = make_inputs(case, torch.float32, "cpu")
    with fake_gpu() as seen:
        for _ in range(3):
            measure.step(PROVIDERS[Name.DENSE].make(case), x)
    assert seen.launched == dict.fromkeys(DENSE, 3) and seen.by_jit == dict.fromkeys(DENSE, 1)


def test_planted_launches_are_seen_and_views_and_allocations_are_not(monkeypatch):
    plan = launch.plan_backward

    def wasteful(batch, *rest):
        torch.empty(5).fill_(1.0)
        batch.logits.detach().t()[:1].reshape(-1).view(-1)
        torch.empty_like(batch.logits)
        torch.ops.aten._unsafe_view(batch.logits.detach(), (-1,))
        batch.box_preds.detach().clone()
        return plan(batch, *rest)

    before = host.launches()
    monkeypatch.setattr(launch, "plan_backward", wasteful)
    assert host.launches() - before == {"aten::fill_": 1, "aten::clone": 1}


def test_compiled_variants_are_counted_once(monkeypatch):
    assert host.variants((2_000, 2_000)) == dict.fromkeys(OURS, 1)
    kind, shared, count = launch.kind_of, launch.constants, iter(range(99))
    monkeypatch.setattr(launch, "kind_of", lambda *args: (kind(*args)[0], (next(count),)))
    assert host.variants((2_000, 2_000)) == dict.fromkeys(OURS, 1), "other plans, the same kernels"
    warps = iter((4, 4, 8, 8))
    monkeypatch.setattr(
        launch, "constants", lambda *args: shared(*args) | {"num_warps": next(warps)}
    )
    assert host.variants((2_000, 2_000)) == dict.fromkeys(OURS, 2)


def state():
    return (
        triton.runtime.driver._active,
        triton.compiler.compile,
        [dict(vars(kernel)) for kernel in KERNELS],
        [id(kernel.device_caches) for kernel in KERNELS],
        dict(vars(ops)),
        dict(vars(launch)),
        dict(vars(dense_launch)),
        dict(vars(loss)),
    )


def test_nothing_stays_replaced():
    batch = random_batch()
    criterion = JointOptimizationLoss()
    before, wanted = state(), criterion(**batch).total
    host.launches()
    host.variants((64,))
    host.times(count=2)
    with pytest.raises(ZeroDivisionError), fake_gpu():
        host.Step(host.TIMED, 64).both()
        raise ZeroDivisionError
    assert state() == before
    assert torch.equal(criterion(**batch).total, wanted)


def test_time_is_charged_to_its_piece(monkeypatch):
    def slow(owner, name, seconds):
        function = getattr(owner, name)

        def called(*args, **kwargs):
            time.sleep(seconds)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    slow(loss, "make_batch", 0.005)
    slow(launch, "plan_backward", 0.02)
    found = host.times(count=9)
    pieces = found.pieces_us
    assert pieces["checks"] > 5_000 and pieces["plan of the backward"] > 20_000
    assert found.forward_us > 5_000 and found.both_us > max(25_000, found.forward_us)
    launched = [f"launch of {name}" for name in OURS]
    assert all(0 < pieces[name] < 5_000 for name in (*launched, "plan of the forward"))
    assert found.both_us - found.library_us == pytest.approx(pieces["autograd's own"])


def test_the_command_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(host, "times", partial(host.times, 20))
    file = tmp_path / "host.json"
    assert main(["host", "--json", str(file)]) == 0
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert {"forward_us", "both_us", "library_us", "launches", "variants"} <= set(found)
    assert set(found["variants"]) == OURS and found["launches"]["rows_kernel"] == 1
    for key in ("forward_us", "both_us", "library_us"):
        assert f"{found[key]:.1f}" in printed


def test_wrong_arguments_are_named(tmp_path, capsys):
    assert main(["host", "--jsn", "x"]) == 2
    assert "unknown option --jsn" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["host", "--json", str(tmp_path / "file" / "host.json")]) == 2
    said = capsys.readouterr()
    assert "file: is a file, wanted a folder" in said.err and not said.out


def test_n_changes_without_recompiling():
    assert host.variants() == dict.fromkeys(OURS, 1)


def test_memory_that_is_not_aligned_is_one_variant_more():
    assert host.variants(host.ROWS, (0, host.SHIFT)) == dict.fromkeys(OURS, 2)
