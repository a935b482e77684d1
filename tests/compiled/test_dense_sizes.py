"""Levels, and gradients of levels, of more numbers than 32 bits count."""

import pytest
import torch
from cases import INTERPRETED
from dense import dense_batch
from exact import assert_exact_dense
from torch import Tensor

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from small_kernels import far_apart

from bench.ptx import run
from bench.ptx.runs import argument, named_arguments
from jolkernels import JointOptimizationLoss
from jolkernels.dense import make_dense_batch
from jolkernels.kernels.dense_launch import available, plan_backward, plan_forward

pytestmark = pytest.mark.compiled

CRITERION = JointOptimizationLoss("focal", "giou", "delta")
KINDS = pytest.mark.parametrize("kind", ["planes", "rows"])
SIZES = (1, 70), (1, 3)


def apart(x: Tensor, dim: int, step: int) -> Tensor:
    """A level [B, K, 1, P] whose images, columns or positions are `step` numbers apart."""
    rows = x.detach().movedim(dim, 0)
    found = far_apart(rows.flatten(1), step).view(rows.shape)
    return found.movedim(0, dim).requires_grad_()


def rows_apart(x: Tensor, dim: int, step: int) -> Tensor:
    """The same, with the columns of a position together."""
    return apart(x.movedim(1, 3), dim, step).detach().movedim(3, 1).requires_grad_()


BOTH = "logits", "box_preds"
APART = [
    (BOTH, apart, 0, 2**30), (BOTH, apart, 1, 2**29), (BOTH, apart, 3, 2**29),
    (BOTH[1:], apart, 3, 2**29), (BOTH, rows_apart, 0, 2**30),
]  # fmt: skip


@pytest.mark.parametrize(("names", "put", "dim", "step"), APART)
def test_levels_with_offsets_beyond_32_bits(names, put, dim: int, step: int) -> None:
    """In numbers, of images, columns and positions; boxes in rows beside logits in planes, too."""
    batch = dense_batch(images=3, sizes=SIZES, dtype=torch.float32, matched="objects")
    for name in names:
        batch[name] = [put(x, dim, step) for x in batch[name]]
    assert_exact_dense(CRITERION, batch)


@pytest.mark.parametrize(("columns", "most"), [(1, 2**29 - 1), (80, 2**31 // 80)])
def test_images_of_more_numbers_are_not_for_kernels(columns: int, most: int) -> None:
    """Priors and the gradients' columns are counted in 32 bits: there the batch is flattened."""
    given, _ = make_dense_batch(CRITERION.settings, **dense_batch(sizes=SIZES))
    for samples in (most, most + 1):
        levels = (torch.empty(1, width, samples, device="meta") for width in (columns, 4))
        logits, boxes = ((x,) for x in levels)
        huge = given._replace(logits=logits, box_preds=boxes)
        assert available(huge, CRITERION.settings) is (samples == most)


IMAGES = 2**21 + 64
"""Of 128 positions and 8 columns: more than 2^31 numbers."""
OF_IMAGES = ("logits", "boxes", "labels", "matched", "targets", "priors", "alphas", "betas",
             "row_terms", "partial_sums", "grad_logits", "grad_boxes", "extras",
             "grad_extras")  # fmt: skip


def batch_like(kind: str, images: int, device: str) -> dict:
    """Of images that are alike; on the meta device memory for as many as one likes."""
    layout = "nchw" if kind == "planes" else "channels_last"
    batch = dense_batch(
        images=1, sizes=((8, 16),), anchors=1, classes=8, layouts=layout, dtype=torch.float32,
        matched="samples", inputs=("extra_regression",),
    )  # fmt: skip
    batch["target_boxes"] = torch.stack(batch["target_boxes"])
    batch["priors"] = batch["priors"][None]

    def many(x: Tensor) -> Tensor:
        if device == "cpu":
            return torch.cat([x.detach()] * images).requires_grad_(x.requires_grad)
        last = x.ndim == 4 and not x.is_contiguous()
        kept = torch.channels_last if last else torch.contiguous_format
        return torch.empty((images, *x.shape[1:]), dtype=x.dtype, device=device, memory_format=kept)

    return {k: [many(x) for x in v] if isinstance(v, list) else many(v) for k, v in batch.items()}


def launch_of(batch: dict, direction: str):
    """The launch of a pass, a program an image."""
    given, call = make_dense_batch(CRITERION.settings, **batch)
    if direction == "forward":
        (rows,) = plan_forward(given, call)[1]
    else:
        like = given.logits[0]
        kept = torch.ones(CRITERION.settings.kept, given.images * given.samples, device=like.device)
        up = torch.tensor(1.0)
        scalars = torch.tensor([0.5, 0.25, 1.0, 1.0, 0.0], dtype=torch.float64)
        (rows,) = plan_backward(given, call, kept, scalars, up, up, (True, True, True))[1]
    return rows._replace(programs=given.images)


def rebuilt(arguments, values: dict, name: str = ""):
    """The arguments with other tensors, by the names of named_arguments."""
    if isinstance(arguments, tuple):
        return tuple(rebuilt(x, values, f"{name}[{i}]") for i, x in enumerate(arguments))
    return values.get(name, arguments)


@KINDS
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_more_than_32_bits_of_numbers(kind: str, direction: str) -> None:
    """Images alike have gradients and terms alike: the first and the last are run."""
    few = launch_of(batch_like(kind, 2, "cpu"), direction)
    many = launch_of(batch_like(kind, IMAGES, "meta"), direction)
    ends = {}
    for name, x in named_arguments(few):
        if argument(name) in OF_IMAGES and isinstance(x, Tensor):
            # As they lie in memory: [2, numbers of an image].
            step = dict(named_arguments(many))[name].numel() // IMAGES
            in_memory = x.detach().as_strided((2, step), (step, 1))
            ends[name] = far_apart(in_memory, (IMAGES - 1) * step)
    known = {n: x for n, x in named_arguments(few) if isinstance(x, Tensor)} | ends
    if direction == "forward":
        known["counters"] = torch.zeros(1 + 2 * IMAGES, dtype=torch.int32)
    names = [p.name for p in many.plan.kernel.params if not p.is_constexpr]
    arguments = tuple(
        rebuilt(x, known, name) for name, x in zip(names, many.arguments, strict=True)
    )
    outputs = ["row_terms"] if direction == "forward" else ["grad_logits", "grad_boxes",
                                                           "grad_extras"]  # fmt: skip
    workspace = [n for n in ("partial_sums", "team_sums", "image_sums") if n in known]
    run(
        many._replace(arguments=arguments), outputs, workspace=workspace,
        scratch=["counters"] if direction == "forward" else [], order=[0, IMAGES - 1],
    )  # fmt: skip
    for name in ends:
        if argument(name) in (*outputs, "partial_sums"):
            first, last = ends[name]
            assert torch.equal(first, last) and first.any(), name
