"""A forward and a backward pass of the dense entrance as kernel launches."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jolkernels import process_groups
from jolkernels.batch import Forward, accumulator, number_of_sums
from jolkernels.dense import (
    DenseBatch,
    Levels,
    anchors,
    divide_by_positives,
    images_of_a_rank,
    is_by_image,
    scalars_shape,
)
from jolkernels.kernels import arguments as flat
from jolkernels.kernels.arguments import choices, normalizer_kind
from jolkernels.kernels.dense import dense_gradients_kernel, dense_rows_kernel
from jolkernels.kernels.dense_layout import (
    Layout,
    as_read,
    empty_gradients,
    in_formats,
    layout_of,
)
from jolkernels.kernels.direct import Plan
from jolkernels.kernels.finish import TEAM, finish_kernel
from jolkernels.kernels.launch import (
    PROGRAMS,
    BackwardPlan,
    ForwardPlan,
    Launch,
    gpu,
    kept,
    on_device,
    workspace_for,
)
from jolkernels.kernels.levels import MOST_ANCHORS
from jolkernels.settings import Call, Settings


def available(batch: DenseBatch, settings: Settings) -> bool:
    """Whether there are device functions for all choices, and 32 bits count an image's numbers."""
    sizes = (anchors(x) < MOST_ANCHORS for x in batch.box_preds)
    numbers = batch.samples * max(batch.columns, 4)
    return flat.available(settings) and numbers < 2**31 and all(sizes)


def kind_of(
    batch: DenseBatch, read: tuple[Levels, Levels], layout: Layout, call: Call, *others: Any
) -> tuple[Any, ...]:
    """All that a kernel is specialised for."""
    key: list[Any] = [call.settings, call.classification_normalizer, call.regression_normalizer]
    key += [*others, layout.kind, layout.dense, *layout.tiles.values()]
    key += [batch.columns, batch.labels_of_objects]
    for t in batch[2:]:
        key.append(t.dtype if isinstance(t, Tensor) else type(t))
    read_wide = *read[0], *read[1], batch.target_boxes, batch.priors
    key += [t is None or t.data_ptr() % 16 == 0 for t in read_wide]
    z, b = batch.logits[0], batch.box_preds[0]
    return (*key, len(batch.logits), z.dtype, b.dtype, z.get_device(), "dense")


def constants(batch: DenseBatch, layout: Layout, call: Call) -> dict[str, Any]:
    """The constexpr arguments and options that both kernels take."""
    settings, columns = call.settings, batch.columns
    return {
        **choices(settings),
        "VECTOR": None,
        **layout.tiles,
        "COLUMNS": columns,
        "BACKGROUND": settings.background_label(columns),
        "LAST": settings.last_label(columns),
        "OF_OBJECTS": batch.labels_of_objects,
        "SOFT": settings.classification.soft and batch.class_targets is None,
        "DENSE": layout.dense,
        "ACC": tl.float64 if accumulator(batch) == torch.float64 else tl.float32,
        "enable_fp_fusion": True,
    }


def inputs(batch: DenseBatch, read: tuple[Levels, Levels], layout: Layout) -> tuple[Any, ...]:
    """What both kernels take first."""
    priors = batch.priors
    of_images = priors is not None and priors.ndim == 3
    return (
        *read, layout.levels, batch.labels, batch.matched,
        batch.target_boxes, priors, 4 * batch.samples if of_images else 0,
        batch.classification_weights, batch.regression_weights, batch.class_targets,
        batch.extra_regression, batch.class_weights,
    )  # fmt: skip


def sizes(batch: DenseBatch, call: Call) -> tuple[int, ...]:
    """What both kernels take last."""
    objects = batch.target_boxes.shape[1]
    return max(1, batch.images), batch.samples, objects, call.settings.ignore_index


def contiguous(batch: DenseBatch) -> DenseBatch:
    """The batch with all but its levels contiguous."""
    others = (x.contiguous() if isinstance(x, Tensor) else x for x in batch[2:])
    return DenseBatch(*batch[:2], *others)  # type: ignore[arg-type]


def programs_of_image(tiles_of_image: int, images: int) -> int:
    """How many programs an image has, by shape alone; full teams where they are more than one."""
    most = PROGRAMS if tiles_of_image * images >= 3 * PROGRAMS else PROGRAMS // 2
    share = max(1, most // images)
    if share > TEAM.value:
        share -= share % TEAM.value
    return max(1, min(tiles_of_image, share))


def make_forward_plan(batch: DenseBatch, layout: Layout, call: Call) -> ForwardPlan:
    """The kernels of a forward pass and their constants."""
    settings, shared = call.settings, constants(batch, layout, call)
    sums = number_of_sums(batch, settings)
    z_cls = normalizer_kind(call.classification_normalizer, batch.classification_normalizer)
    z_loc = normalizer_kind(call.regression_normalizer, batch.regression_normalizer)
    finishing = {"JOINT": settings.weighted, "SUMS": sums, "KINDS": triton.next_power_of_2(sums)}
    rows = Plan(
        dense_rows_kernel,
        shared | finishing | {"Z_CLS": z_cls, "Z_LOC": z_loc, "FINISH": not settings.sync_group},
    )
    last = None
    if settings.sync_group is not None:
        kinds = {
            name: "tensor" if z == "image" else z
            for name, z in (("Z_CLS", z_cls), ("Z_LOC", z_loc))
        }
        last = Plan(finish_kernel, kinds | finishing | {"num_warps": 1, "enable_fp_fusion": True})
    return ForwardPlan(rows, last, shared["ROWS"], finishing["KINDS"], accumulator(batch))


class Ranks(NamedTuple):
    """What the finish of a forward pass with a sync_group reads: the kernel's is by program."""

    sums: Tensor
    """[programs, sums], of the rows' kernel."""
    table: Tensor
    """float64 [images, sums]."""
    totals: Tensor
    """float64 [1, sums], of all ranks."""
    images: Tensor
    """float64, the mean over the ranks."""
    scalars: Tensor
    """float64 [5], of the batch."""


def plan_forward(
    batch: DenseBatch, call: Call, alone: bool = False
) -> tuple[Forward, list[Launch], Ranks | None]:
    """The results, allocated; the launches that fill them; what to sync between the launches."""
    batch = contiguous(batch)
    settings = call.settings
    layout = layout_of(batch, settings.classification.softmax)
    read = as_read(layout, batch)
    key = kind_of(batch, read, layout, call)
    plan: ForwardPlan = kept(key, make_forward_plan, batch, layout, call)
    images, by_image = max(1, batch.images), is_by_image(call)
    programs = images * programs_of_image(layout.tiles_of_image, images)
    logits = batch.logits[0]
    result = logits.new_empty((), dtype=plan.dtype)
    scalars = result.new_empty(scalars_shape(batch, call), dtype=torch.float64)
    made = Forward(
        result,
        torch.empty_like(result),
        torch.empty_like(result),
        logits.new_empty((), dtype=torch.int64),
        torch.empty_like(result),
        result.new_empty((settings.kept, batch.images * batch.samples)),
        scalars,
    )
    counters, partial_sums, team_sums, image_sums = workspace_for(logits.device, alone, images)
    sums, ranks = partial_sums[plan.dtype], None
    if settings.sync_group is not None:
        sums = result.new_empty((programs, plan.sums))
        ranks = Ranks(
            sums,
            scalars.new_empty((images, plan.sums)),
            scalars.new_empty((1, plan.sums)),
            scalars.new_empty(()),
            scalars.new_empty(5) if by_image else scalars,
        )
    zs = batch.classification_normalizer, batch.regression_normalizer
    numbers = [z if isinstance(z, float) else float(images) for z in zs]
    tensors = [z if isinstance(z, Tensor) else None for z in zs]
    arguments = (
        *inputs(batch, read, layout), made.rows, sums, team_sums, image_sums, counters, *made[:5],
        scalars, *tensors, *numbers, process_groups.size(settings.sync_group), *sizes(batch, call),
    )  # fmt: skip
    launches = [Launch(plan.rows, programs, arguments, gpu(logits.device))]
    if plan.finish is not None and ranks is not None:
        kinds = call.classification_normalizer, call.regression_normalizer
        z_cls, z_loc = (
            ranks.images if kind == "image" else z for kind, z in zip(kinds, tensors, strict=True)
        )
        arguments = (
            ranks.table, images, ranks.totals, *made[:5], ranks.scalars, z_cls, 0, z_loc, 0,
            *numbers, process_groups.size(settings.sync_group),
        )  # fmt: skip
        launches.append(Launch(plan.finish, 1, arguments, gpu(logits.device)))
    return made, launches, ranks


def sum_of_ranks(batch: DenseBatch, ranks: Ranks, call: Call) -> Tensor:
    """Fill in what the finish reads; returns divide_by_positives' factors."""
    group = call.settings.sync_group
    assert group is not None
    table = ranks.table
    torch.sum(ranks.sums.view(len(table), -1, table.shape[1]), 1, dtype=torch.float64, out=table)
    if is_by_image(call):
        ranks.images.copy_(images_of_a_rank(batch, call))
    factors = divide_by_positives(table, call)
    torch.sum(table, 0, keepdim=True, out=ranks.totals)
    process_groups.all_reduce(ranks.totals, group)
    return factors


def plan_backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[tuple[Any, Any, Tensor | None], list[Launch], Layout]:
    """The gradients, allocated; the launch that fills them; how they lie."""
    batch = contiguous(batch)
    layout = layout_of(batch, call.settings.classification.softmax)
    read = as_read(layout, batch)
    upstream = grad_classification, grad_regression
    dtypes = [None if g is None else g.dtype for g in upstream]
    key = kind_of(batch, read, layout, call, needs, scalars.ndim, *dtypes)
    plan: BackwardPlan = kept(key, make_backward_plan, batch, layout, call, scalars.ndim == 2)
    n = len(batch.logits)
    of_logits, of_boxes = layout.gradients[:n], layout.gradients[n:]
    grad_logits = empty_gradients(of_logits, batch.logits[0]) if needs[0] else None
    grad_boxes = empty_gradients(of_boxes, batch.box_preds[0]) if needs[1] else None
    extra = batch.extra_regression
    grad_extra = torch.empty_like(extra) if needs[2] and extra is not None else None
    arguments = (
        *inputs(batch, read, layout), rows, scalars, *upstream, grad_logits, grad_boxes, grad_extra,
        *sizes(batch, call),
    )  # fmt: skip
    images = max(1, batch.images)
    programs = images * max(1, min(layout.tiles_of_image, PROGRAMS // images))
    launches = [Launch(plan.gradients, programs, arguments, gpu(batch.logits[0].device))]
    return (grad_logits, grad_boxes, grad_extra), launches, layout


def make_backward_plan(
    batch: DenseBatch, layout: Layout, call: Call, by_image: bool
) -> BackwardPlan:
    """The kernel of a backward pass and its constants."""
    shared = constants(batch, layout, call) | {"BY_IMAGE": by_image}
    shared["CONSTANT"] = not call.settings.weights_have_gradient
    return BackwardPlan(Plan(dense_gradients_kernel, shared), shared["ROWS"])


def forward(batch: DenseBatch, call: Call, alone: bool = False) -> Forward:
    """As jolkernels.kernels.forward; the rows' terms are [kept, images * samples]."""
    with on_device(batch.logits[0].device):
        result, (rows, *finishing), ranks = plan_forward(batch, call, alone)
        rows()
        if ranks is not None:
            factors = sum_of_ranks(batch, ranks, call)
            for launch in finishing:
                launch()
            if is_by_image(call):
                torch.mul(ranks.scalars, factors, out=result.scalars)
    return result


def backward(
    batch: DenseBatch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor | None,
    grad_regression: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Any, Any, Tensor | None]:
    """Gradients for the levels, and for extra_regression; None where `needs` is False."""
    with on_device(batch.logits[0].device):
        (logits, boxes, extra), launches, layout = plan_backward(
            batch, call, rows, scalars, grad_classification, grad_regression, needs
        )
        for launch in launches:
            launch()
    n = len(batch.logits)
    return (
        (None,) * n if logits is None else in_formats(logits, layout.gradients[:n]),
        (None,) * n if boxes is None else in_formats(boxes, layout.gradients[n:]),
        extra,
    )
