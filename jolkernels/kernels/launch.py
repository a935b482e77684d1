"""A forward and a backward pass as kernel launches: memory, numbers of programs, plans.

Whatever the launches depend on is kept in a plan (jolkernels.kernels.direct), one for each kind of
batch.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Batch, Forward, accumulator, empty_gradients, number_of_sums
from jolkernels.kernels import finish
from jolkernels.kernels.arguments import by_group, constants, inputs, normalizer_kind
from jolkernels.kernels.backward import gradients_kernel
from jolkernels.kernels.direct import Plan
from jolkernels.kernels.finish import finish_kernel
from jolkernels.kernels.forward import rows_kernel
from jolkernels.settings import Call

PROGRAMS = 4096
"""At most, of a launch: a fixed number, so that the bits do not depend on the device."""
GROUPS_IN_ONE = 64
"""More groups than these are added up by a launch of their own."""
MOST_SUMS = 2**21
"""Programs times groups, at most."""
MOST_PLANS = 256
MOST_IMAGES = 1024
"""Of a dense batch; for more a call has memory of its own."""


class Launch(NamedTuple):
    """A kernel with all its arguments; bench.compiled compiles it without calling it."""

    plan: Plan
    programs: int
    arguments: tuple[Any, ...]
    device: int | None
    """The GPU; None: there is none, and kernels are interpreted."""

    def __call__(self) -> None:
        """Launch the kernel on the current device."""
        self.plan.launch(self.programs, self.arguments, self.device)


class Workspace(NamedTuple):
    """What the programs of a forward pass share; of no use after it, but for the zeros."""

    counters: Tensor
    """int32 zeros, and zeros again after each launch."""
    partial_sums: dict[torch.dtype, Tensor]
    """[programs, sums], by their dtype."""
    team_sums: Tensor
    image_sums: Tensor
    """float64 [images, sums]."""


class ForwardPlan(NamedTuple):
    """Of a kind of batch."""

    rows: Plan
    finish: Plan | None
    """None: the last program of the former does its work."""
    rows_a_tile: int
    sums: int
    """How many a program leaves, rounded up to a power of two."""
    dtype: torch.dtype
    """Of the arithmetic."""


class BackwardPlan(NamedTuple):
    """Of a kind of batch."""

    gradients: Plan
    rows_a_tile: int


PLANS: dict[tuple[Any, ...], Any] = {}


def kept(key: tuple[Any, ...], make: Any, *arguments: Any) -> Any:
    """The plan of a kind of batch, made if need be."""
    plan = PLANS.get(key)
    if plan is None:
        if len(PLANS) >= MOST_PLANS:
            PLANS.clear()
        plan = PLANS[key] = make(*arguments)
    return plan


def kind_of(batch: Batch, call: Call, *others: Any) -> tuple[bool, tuple[Any, ...]]:
    """Whether all tensors are contiguous, and that with all that a kernel is specialised for."""
    settings, z_cls, z_loc, groups = call
    key: list[Any] = [settings, z_cls, z_loc, (groups or 0) > GROUPS_IN_ONE, *others]
    dense = True
    for t in batch:
        if t is None or isinstance(t, float):
            key.append(type(t))
        else:
            dense = dense and t.is_contiguous()
            key.append(t.dtype)
    read_wide = batch.logits, batch.box_preds, batch.target_boxes, batch.priors
    key += [t is None or t.data_ptr() % 16 == 0 for t in read_wide]
    if not dense:  # strides beyond 32 bits are other arguments
        tensors = [t for t in batch if isinstance(t, Tensor)]
        key += [stride >= 2**31 for t in tensors for stride in t.stride()]
    logits, boxes = batch[:2]
    key += dense, logits.get_device(), logits.shape[1], boxes.shape[1]
    return dense, tuple(key)


def make_forward_plan(batch: Batch, call: Call, dense: bool) -> ForwardPlan:
    """The kernels of a forward pass and their constants."""
    settings, shared = call.settings, constants(batch, call, dense)
    sums = number_of_sums(batch, settings)
    in_one = settings.sync_group is None and (call.num_groups or 1) <= GROUPS_IN_ONE
    finishing = {
        "Z_CLS": normalizer_kind(call.classification_normalizer, batch.classification_normalizer),
        "Z_LOC": normalizer_kind(call.regression_normalizer, batch.regression_normalizer),
        "JOINT": settings.weighted,
        "SUMS": sums,
        "KINDS": triton.next_power_of_2(sums),
    }
    options = {"num_warps": 1, "enable_fp_fusion": True}
    return ForwardPlan(
        Plan(rows_kernel, shared | finishing | {"FINISH": in_one}),
        None if in_one else Plan(finish_kernel, finishing | options),
        shared["ROWS"],
        finishing["KINDS"],
        accumulator(batch),
    )


def make_backward_plan(batch: Batch, call: Call, dense: bool) -> BackwardPlan:
    """The kernel of a backward pass and its constants."""
    shared = constants(batch, call, dense)
    shared["CONSTANT"] = not call.settings.weights_have_gradient
    return BackwardPlan(Plan(gradients_kernel, shared), shared["ROWS"])


def number_of_programs(rows: int, rows_a_tile: int, groups: int) -> int:
    """Of the forward kernel, by shape alone: half as many where each would have but few tiles.

    To leave its sums takes a program as long as a tile.
    """
    tiles = -(-rows // rows_a_tile)
    most = PROGRAMS if tiles >= 3 * PROGRAMS else PROGRAMS // 2
    return max(1, min(tiles, most, MOST_SUMS // groups))


def workspace(device: torch.device, images: int = MOST_IMAGES) -> Workspace:
    """What the forward passes on a stream write to, one after the other."""
    teams, most = max(-(-PROGRAMS // finish.TEAM.value), images), finish.MOST_KINDS

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return Workspace(
        torch.zeros(1 + images + teams, dtype=torch.int32, device=device),
        {t: empty(max(PROGRAMS, images), most, dtype=t) for t in (torch.float32, torch.float64)},
        empty(teams, most),
        empty(images, most),
    )


@lru_cache(maxsize=64)
def workspace_of_stream(device: torch.device, stream: int) -> Workspace:
    """That of a stream of a device."""
    return workspace(device)


def workspace_for(device: torch.device, alone: bool, images: int = 1) -> Workspace:
    """That of the current stream; `alone`, and while the stream is captured, one for this call.

    Also of more images than MOST_IMAGES.
    """
    if images > MOST_IMAGES:
        return workspace(device, images)
    if device.type != "cuda" or alone or torch.cuda.is_current_stream_capturing():
        return workspace(device, images)
    return workspace_of_stream(device, torch._C._cuda_getCurrentRawStream(device.index))


def gpu(device: torch.device) -> int | None:
    """The index of a GPU; None: not one, and kernels are interpreted."""
    return device.index if device.type == "cuda" else None


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device; make that `device`."""
    if device.type != "cuda" or torch._C._cuda_getDevice() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def plan_forward(
    batch: Batch, call: Call, alone: bool = False
) -> tuple[Forward, list[Launch], tuple[Tensor, Tensor | None]]:
    """The results, allocated; the launches that fill them; and what to sync between the launches.

    The last item is the programs' sums [groups, programs, sums], 1 group without any, and, with a
    sync_group, a buffer for those of all programs and ranks, float64 [groups, sums].
    """
    dense, key = kind_of(batch, call)
    plan: ForwardPlan = kept(key, make_forward_plan, batch, call, dense)
    settings, device, n = call.settings, batch.logits.device, batch.labels.shape[0]
    groups = call.num_groups or 1
    programs = number_of_programs(n, plan.rows_a_tile, groups)
    result = batch.logits.new_empty(call.shape, dtype=plan.dtype)
    scalars = result.new_empty((*call.shape, 5), dtype=torch.float64)
    made = Forward(
        result,
        torch.empty_like(result),
        torch.empty_like(result),
        batch.labels.new_empty(call.shape),
        torch.empty_like(result),
        result.new_empty((settings.kept, n)),
        scalars,
    )
    counters, partial_sums, of_teams, _ = workspace_for(device, alone)
    sums, totals = partial_sums[plan.dtype], None
    team_sums: Tensor | None = of_teams
    if groups > 1 or settings.sync_group is not None:
        sums = result.new_empty((groups, programs, plan.sums))
        teams = -(-programs // finish.TEAM.value)
        team_sums = None if plan.finish else scalars.new_empty((groups, teams, plan.sums))
        totals = None if settings.sync_group is None else scalars.new_empty((groups, plan.sums))
    z_cls, z_loc = batch[7:9]
    finishing = (
        *made[:5], made.scalars, *by_group(z_cls), *by_group(z_loc),
        z_cls if isinstance(z_cls, float) else 1.0, z_loc if isinstance(z_loc, float) else 1.0,
        process_groups.size(settings.sync_group),
    )  # fmt: skip
    arguments = (
        *inputs(batch, settings, dense), made.rows, sums, team_sums, counters, *finishing,
        n, settings.ignore_index, groups,
    )  # fmt: skip
    launches = [Launch(plan.rows, programs, arguments, gpu(device))]
    if plan.finish is not None:
        arguments = sums, programs, totals, *finishing
        launches.append(Launch(plan.finish, groups, arguments, gpu(device)))
    return made, launches, (sums, totals)


def plan_backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], list[Launch]]:
    """The gradients, allocated, and the launch that fills them."""
    upstream = grad_classification, grad_regression
    dense, key = kind_of(batch, call, needs, *[None if g is None else g.dtype for g in upstream])
    plan: BackwardPlan = kept(key, make_backward_plan, batch, call, dense)
    gradients = empty_gradients(batch, needs)
    n, device = batch.labels.shape[0], batch.logits.device
    arguments = (
        *inputs(batch, call.settings, dense), rows, scalars,
        *by_group(grad_classification), *by_group(grad_regression), *gradients,
        n, call.settings.ignore_index, call.num_groups or 1,
    )  # fmt: skip
    programs = max(1, min(-(-n // plan.rows_a_tile), PROGRAMS))
    launches = [Launch(plan.gradients, programs, arguments, gpu(device))]
    return gradients, launches


def forward(batch: Batch, call: Call, alone: bool = False) -> Forward:
    """Both losses, and for `backward` the rows' terms [kept, N] and five scalars.

    alone: keep no memory beyond this call, as compiled graphs want, which have a pool of their own.
    """
    with on_device(batch.logits.device):
        result, (rows, *finishing), (sums, totals) = plan_forward(batch, call, alone)
        rows()
        if totals is not None and call.settings.sync_group is not None:
            torch.sum(sums, 1, dtype=torch.float64, out=totals)
            process_groups.all_reduce(totals, call.settings.sync_group)
        for launch in finishing:
            launch()
    return result


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As jolkernels.cpu.backward."""
    with on_device(batch.logits.device):
        gradients, launches = plan_backward(
            batch, call, rows, scalars, grad_classification, grad_regression, needs
        )
        for launch in launches:
            launch()
    return gradients
