"""Launches without Triton's launcher: the same arguments, never a stale kernel, never unasked."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from cases import random_batch

triton = pytest.importorskip("triton")

from jolkernels import JointOptimizationLoss  # noqa: E402
from jolkernels.batch import make_batch  # noqa: E402
from jolkernels.kernels import direct, launch  # noqa: E402

CONSTANTS = {"WIDE": True, "ROWS": 16, "num_warps": 1}


class Compiled:
    """What Triton makes of a kernel: `run` notes what it is given."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, ran):
        self.run = lambda *given: ran.append(given)


class Kernel:
    """A JIT function of arguments a, n, x and constants ROWS, WIDE."""

    params = [  # noqa: RUF012
        SimpleNamespace(name=name, is_constexpr=name.isupper())
        for name in ("a", "n", "x", "ROWS", "WIDE")
    ]

    def __init__(self, compiled=Compiled):
        self.pre_run_hooks, self.jit, self.ran, self.compiled = [], [], [], compiled

    def __getitem__(self, grid):
        def run(*arguments, **constants):
            self.jit.append((grid, arguments, constants))
            return self.compiled(self.ran)

        return run


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    found = SimpleNamespace(get_current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(triton.runtime.driver, "_active", found)


def launched(kernel, times=2, device=0):
    plan, tensor = direct.Plan(kernel, dict(CONSTANTS)), torch.zeros(4)
    for n in range(times):
        plan.launch(7 + n, (tensor, n, None), device)
    return tensor


def test_the_first_launch_is_the_jits_and_the_others_hand_over_the_same():
    kernel = Kernel()
    tensor = launched(kernel, 3)
    ((grid, arguments, constants),) = kernel.jit
    assert grid == (7,) and arguments[0] is tensor and arguments[1:] == (0, None)
    assert constants == CONSTANTS
    rest = "stream of 0", "function", "metadata", None, None, None, tensor.data_ptr()
    assert kernel.ran == [(7 + n, 1, 1, *rest, n, None, 16, True) for n in (1, 2)]


def test_without_a_gpu_every_launch_is_the_jits():
    kernel = Kernel()
    launched(kernel, 3, device=None)
    assert len(kernel.jit) == 3 and not kernel.ran


def hook(*_):
    pass


@pytest.mark.parametrize("watching", ["enter", "exit", "debug", "stages", "pre-run", "sanitizer"])
def test_who_watches_sees_every_launch(watching, monkeypatch):
    kernel, knobs = Kernel(), triton.knobs
    plan, tensor = direct.Plan(kernel, dict(CONSTANTS)), torch.zeros(4)
    plan.launch(1, (tensor, 1, None), 0)
    with monkeypatch.context() as patch:
        if watching in ("enter", "exit"):
            patch.setattr(getattr(knobs.runtime, f"launch_{watching}_hook"), "calls", [hook])
        elif watching == "pre-run":
            kernel.pre_run_hooks.append(hook)
        elif watching == "debug":
            patch.setattr(knobs.runtime, "debug", True)
        elif watching == "stages":
            patch.setattr(knobs.runtime, "add_stages_inspection_hook", hook)
        else:
            patch.setattr(knobs.compilation, "instrumentation_mode", "iisan")
        plan.launch(1, (tensor, 1, None), 0)
        plan.launch(1, (tensor, 1, None), 0)
        assert len(kernel.jit) == 3 and not kernel.ran
        kernel.pre_run_hooks.clear()
    plan.launch(1, (tensor, 1, None), 0)
    assert len(kernel.jit) == 3 and len(kernel.ran) == 1


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0"])
def test_a_triton_that_nobody_has_looked_at_launches_by_itself(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    kernel = Kernel()
    launched(kernel, 3)
    assert len(kernel.jit) == 3 and not kernel.ran


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0+git0"])
def test_those_that_were_looked_at_do_not(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    kernel = Kernel()
    launched(kernel, 3)
    assert len(kernel.jit) == 1 and len(kernel.ran) == 2


@pytest.mark.parametrize("missing", ["run", "function", "packed_metadata", "hooks", "knobs"])
def test_a_triton_whose_internals_moved_launches_by_itself(missing, monkeypatch):
    def compiled(ran):
        if missing in ("hooks", "knobs"):
            return Compiled(ran)
        names = {"run", "function", "packed_metadata"} - {missing}
        return SimpleNamespace(**{name: getattr(Compiled(ran), name) for name in names})

    if missing == "hooks":
        monkeypatch.setattr(direct.knobs.runtime, "launch_enter_hook", None)
    elif missing == "knobs":
        monkeypatch.setattr(direct, "knobs", SimpleNamespace())
    kernel = Kernel(compiled)
    launched(kernel, 3)
    assert len(kernel.jit) == 3 and not kernel.ran


def test_threads_share_a_plan():
    kernel = Kernel()
    plan, tensors = direct.Plan(kernel, dict(CONSTANTS)), [torch.zeros(4) for _ in range(8)]

    def run(i):
        for _ in range(200):
            plan.launch(1, (tensors[i], i, None), i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert len(kernel.jit) + len(kernel.ran) == 1600
    for *_, stream, _f, _m, _0, _1, _2, address, i, _none, rows, wide in kernel.ran:
        assert (stream, rows, wide) == (f"stream of {i}", 16, True)
        assert address == tensors[i].data_ptr()


def changed(name):
    """A batch and a call that differ from `random_batch`'s in what `name` says."""
    settings = JointOptimizationLoss("cross_entropy", coding="delta").settings
    batch = random_batch(("cross_entropy", "last"), "delta", n=24, dtype=torch.float32)
    norm, columns = "samples", batch["logits"].shape[1]
    if name == "dtype":
        batch["logits"] = batch["logits"].detach().half()
    elif name == "alignment":
        moved = torch.zeros(24 * columns + 1)[1:].view(24, columns)
        batch["logits"] = moved
    elif name == "strides":
        batch["target_boxes"] = batch["target_boxes"].t().contiguous().t()
    elif name == "columns":
        batch["logits"] = torch.zeros(24, columns + 1)
    elif name == "slots":
        batch["box_preds"] = torch.zeros(24, 4 * columns)
    elif name == "an input":
        batch["class_weights"] = torch.ones(columns)
    elif name == "a number":
        norm = torch.tensor(3.0)
    elif name == "a number's dtype":
        norm = torch.tensor(3.0, dtype=torch.float64)
    elif name == "a name":
        norm = "positives"
    elif name == "settings":
        settings = JointOptimizationLoss("cross_entropy", coding="delta", lam=3).settings
    elif name == "integers":
        batch["labels"] = batch["labels"].to("meta")[:1].expand(2**31)
        fields, call = make_batch(settings, **changed_rows(2**31, columns))
        return fields, call
    return make_batch(settings, **batch, classification_normalizer=norm)


def changed_rows(n, columns):
    """Tensors without memory for as many rows as need 64 bits."""
    meta = {"device": "meta"}
    boxes = torch.empty(n, 4, **meta)
    return {
        "logits": torch.empty(n, columns, **meta),
        "box_preds": boxes,
        "labels": torch.empty(n, dtype=torch.int64, **meta),
        "target_boxes": boxes,
        "priors": boxes,
    }


KINDS = ["dtype", "alignment", "strides", "columns", "slots", "an input", "a number",
         "a number's dtype", "a name", "settings", "integers"]  # fmt: skip


def test_whatever_makes_another_kernel_makes_another_plan():
    keys = [launch.kind_of(*changed(name))[1] for name in (None, *KINDS)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == launch.kind_of(*changed(None))[1]
    batch, call = changed(None)
    more = batch._replace(**{n: torch.cat([t, t]) for n, t in batch._asdict().items()
                             if isinstance(t, torch.Tensor) and t.ndim})  # fmt: skip
    assert launch.kind_of(more, call)[1] == keys[0]  # as many rows as you like


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(launch, "PLANS", {})
    for i in range(3 * launch.MOST_PLANS):
        launch.kept((i,), lambda: "plan")
        assert len(launch.PLANS) <= launch.MOST_PLANS
