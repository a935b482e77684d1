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


def test_tensors_in_tuples_are_handed_over_as_addresses_too():
    kernel, plan = Kernel(), direct.Plan(Kernel(), dict(CONSTANTS))
    plan.kernel = kernel
    for shift in (0, 1):
        a, b, c = (torch.zeros(4)[shift:] for _ in range(3))
        sizes = ((1, 2), (3, shift))
        plan.launch(1, ((a, None, (b, 5)), sizes, c), 0)
    assert len(kernel.jit) == 1
    given = (a.data_ptr(), None, (b.data_ptr(), 5)), sizes, c.data_ptr(), 16, True
    assert [ran[9:] for ran in kernel.ran] == [given]


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


def test_a_first_launch_that_is_watched_is_not_kept(monkeypatch):
    """What the JIT compiled for instrumentation or debugging must not run without them."""
    kernel = Kernel()
    plan, arguments = direct.Plan(kernel, dict(CONSTANTS)), (torch.zeros(4), 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "debug", True)
        plan.launch(1, arguments, 0)
    plan.launch(1, arguments, 0)
    assert len(kernel.jit) == 2 and not kernel.ran


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
    return make_batch(settings, **batch, classification_normalizer=norm)


KINDS = ["dtype", "alignment", "strides", "columns", "slots", "an input", "a number",
         "a number's dtype", "a name", "settings"]  # fmt: skip


def test_whatever_makes_another_kernel_makes_another_plan():
    keys = [launch.kind_of(*changed(name))[1] for name in (None, *KINDS)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == launch.kind_of(*changed(None))[1]


def test_a_backward_has_a_plan_for_what_it_needs_and_is_given(monkeypatch):
    batch, call = changed(None)
    keys = []
    monkeypatch.setattr(launch, "kept", lambda key, *_: keys.append(key) or STOP)
    saved = torch.zeros(2, 24), torch.zeros(5, dtype=torch.float64)
    one, half = torch.ones(()), torch.ones((), dtype=torch.float16)
    for g_cls, g_loc, needs in (
        (one, one, (True, True, False)),
        (one, one, (True, False, False)),
        (one, one, (False, True, False)),
        (one, half, (True, True, False)),
        (half, one, (True, True, False)),
        (one, None, (True, True, False)),
        (None, one, (True, True, False)),
    ):
        with pytest.raises(AttributeError):
            launch.plan_backward(batch, call, *saved, g_cls, g_loc, needs)
    assert len(set(keys)) == len(keys) == 7


STOP = object()
"""No plan: who asks it for anything fails."""


def test_whatever_makes_no_other_kernel_makes_no_other_plan():
    batch, call = changed(None)
    key = launch.kind_of(batch, call)[1]
    more = batch._replace(**{n: torch.cat([t, t]) for n, t in batch._asdict().items()
                             if isinstance(t, torch.Tensor) and t.ndim})  # fmt: skip
    assert launch.kind_of(more, call)[1] == key  # as many rows as you like
    moved = torch.zeros(25, dtype=torch.int64)[1:]
    assert launch.kind_of(batch._replace(labels=moved), call)[1] == key  # read one by one
    groups = torch.zeros(24, dtype=torch.int64)
    keys = [launch.kind_of(batch._replace(groups=groups), call._replace(num_groups=g))[1]
            for g in (1, 2, launch.GROUPS_IN_ONE, launch.GROUPS_IN_ONE + 1)]  # fmt: skip
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_strides_beyond_32_bits_make_another_plan():
    batch, call = changed("strides")
    memory = torch.empty(1, device="meta").expand(2**34)
    far = batch._replace(target_boxes=memory.as_strided((24, 4), (2**31, 1)))
    near = batch._replace(target_boxes=memory.as_strided((24, 4), (2**31 - 1, 1)))
    assert launch.kind_of(far, call)[1] != launch.kind_of(near, call)[1]


def test_devices_have_plans_of_their_own(monkeypatch):
    batch, call = changed(None)
    keys = set()
    for device in (0, 1):
        monkeypatch.setattr(torch.Tensor, "get_device", lambda self, d=device: d)
        keys.add(launch.kind_of(batch, call)[1])
    assert len(keys) == 2


def test_a_group_of_ranks_is_asked_its_size_at_each_call(monkeypatch):
    """Names of groups come again, after destroy_process_group, for groups of another size."""
    batch, call = changed(None)
    found = []
    for size in (1, 4):
        monkeypatch.setattr(launch.process_groups, "size", lambda group, n=size: n)
        (rows, *_), _ = launch.plan_forward(batch, call)[1:]
        names = [p.name for p in rows.plan.kernel.params if not p.is_constexpr]
        found.append(dict(zip(names, rows.arguments, strict=True))["ranks"])
    assert found == [1, 4]


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(launch, "PLANS", {})
    for i in range(3 * launch.MOST_PLANS):
        launch.kept((i,), lambda: "plan")
        assert len(launch.PLANS) <= launch.MOST_PLANS
