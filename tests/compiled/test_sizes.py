"""Numbers of rows and columns, dtypes and layouts, on kernels compiled for sm_90."""

import pytest
import torch
from cases import INTERPRETED, gradients, random_batch
from exact import assert_exact

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import small_kernels as kernels
from small_kernels import far_apart, launch

from bench.ptx import run
from bench.ptx.runs import named_arguments
from jolkernels import JointOptimizationLoss, spec
from jolkernels.batch import make_batch
from jolkernels.kernels.launch import plan_backward

pytestmark = pytest.mark.compiled

HALVES = [torch.float16, torch.bfloat16]
RCNN = ("cross_entropy", "first"), "smooth_l1", spec.Delta(weights=(10.0, 10.0, 5.0, 5.0))
FOCAL = ("focal", "last"), "giou", "delta"
FCOS = ("focal", "last"), "iou:mode=log", "ltrb"
SOFT = ("varifocal", "last"), "ciou", "xyxy"
HEADS = {"rcnn": RCNN, "focal": FOCAL, "fcos": FCOS, "soft": SOFT}


def head(name: str, **given) -> tuple[JointOptimizationLoss, dict]:
    """The loss, and a batch in float32 unless `given` says otherwise."""
    (classification, background), regression, coding = HEADS[name]
    criterion = JointOptimizationLoss(classification, regression, coding, background=background)
    kind = coding if isinstance(coding, str) else "delta"
    made = {"dtype": torch.float32, "class_specific": name == "rcnn"} | given
    return criterion, random_batch((classification, background), kind, **made)


@pytest.mark.parametrize("n", [0, 1, 32, 33, 2**31 - 1, 2**31, 2**32 + 5])
def test_tiles_of_any_number_of_rows(n: int) -> None:
    out = torch.empty(1, dtype=torch.int32)
    run(launch(kernels.count_tiles, 1, out, n, warps=1, ROWS=32), ["out"])
    assert int(out) == -(-n // 32)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_rows(name: str, n: int) -> None:
    criterion, batch = head(name, n=n, classes=8)
    assert_exact(criterion, batch)


@pytest.mark.parametrize("columns", [1, 2, 8, 9, 80, 81, 91, 511, 1204])
@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_columns(name: str, columns: int) -> None:
    softmax = name == "rcnn"
    if softmax and columns == 1:
        columns = 3
    wide = columns > 100
    criterion, batch = head(
        name, n=5 if wide else 40, classes=columns - softmax, class_specific=softmax and not wide
    )
    assert_exact(criterion, batch)


def slowly(cases: list, quick: int) -> list:
    """All of them, those after the first few slow."""
    return [*cases[:quick], *(pytest.param(*c, marks=pytest.mark.slow) for c in cases[quick:])]


WIDTHS = [("focal", 80), ("rcnn", 8), ("soft", 9), ("fcos", 8), ("rcnn", 80), ("focal", 8)]
OTHERS = [torch.bfloat16, torch.float64, torch.float16]


@pytest.mark.parametrize(("name", "classes"), slowly(WIDTHS, 2))
@pytest.mark.parametrize("dtype", OTHERS)
def test_dtypes(name: str, classes: int, dtype: torch.dtype) -> None:
    criterion, batch = head(name, n=70, classes=classes, dtype=dtype)
    assert_exact(criterion, batch)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_logits_beside_float32_boxes(dtype: torch.dtype) -> None:
    """As under autocast."""
    criterion, batch = head("focal", n=70, classes=20)
    batch["logits"] = batch["logits"].detach().to(dtype).requires_grad_()
    assert_exact(criterion, batch)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps of NaN, or of labels out of range, between the rows' ends."""
    other = torch.full_like(t, torch.nan) if t.is_floating_point() else torch.full_like(t, 2**40)
    if t.ndim == 1:
        return torch.stack((t.detach(), other), -1).flatten()[::2]
    return torch.cat((t.detach(), other), 1)[:, : t.shape[1]]


def transposed(t: torch.Tensor) -> torch.Tensor:
    return t.detach().t().contiguous().t() if t.ndim == 2 else t.detach()


def shifted(t: torch.Tensor) -> torch.Tensor:
    """At an address four bytes after one that is aligned (eight, for labels)."""
    room = t.new_empty(t.numel() + 16)
    start = 1 if t.itemsize >= 4 else 4 // t.itemsize
    made = room[start : start + t.numel()].view(t.shape)
    assert room.data_ptr() % 16 == 0
    return made.copy_(t.detach())


@pytest.mark.parametrize("layout", [strided, transposed, shifted])
@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_layouts(name: str, layout) -> None:
    """Numbers are those of tensors that lie as usual; nothing between the elements is touched."""
    criterion, batch = head(name, n=70, classes=16)
    other = {k: layout(t).requires_grad_(t.requires_grad) for k, t in batch.items()}
    a, b = criterion(**batch), criterion(**other)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=0)
    for x, y in zip(gradients(a, batch), gradients(b, other), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-7)
    assert_exact(criterion, other)


def test_expanded_inputs() -> None:
    """All rows are one in memory."""
    criterion, batch = head("focal", n=1, seed=1)
    batch["labels"][:] = 2
    batch["target_boxes"] = batch["priors"] = torch.tensor([[1.0, 2, 9, 12]])
    wide = {
        k: v.detach().expand(70, *v.shape[1:]).requires_grad_(v.requires_grad)
        for k, v in batch.items()
    }
    assert_exact(criterion, wide)


@pytest.mark.parametrize("step", [2**26, 2**30])
@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_offsets_beyond_32_bits(name: str, step: int) -> None:
    """In bytes and in elements: rows of logits and labels, columns of boxes, so far apart."""
    criterion, batch = head(name, n=64, classes=8, class_specific=False)
    batch["logits"] = far_apart(batch["logits"].detach(), step).requires_grad_()
    batch["box_preds"] = far_apart(batch["box_preds"].detach().t(), step).t().requires_grad_()
    batch["labels"] = far_apart(batch["labels"][:, None], step // 2)[:, 0]
    assert_exact(criterion, batch)


@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_columns_of_logits_beyond_32_bits(name: str) -> None:
    criterion, batch = head(name, n=64, classes=8, class_specific=False)
    batch["logits"] = far_apart(batch["logits"].detach().t(), 2**29).t().requires_grad_()
    assert_exact(criterion, batch)


@pytest.mark.parametrize("name", ["rcnn", "focal"])
def test_gradients_of_more_than_32_bits(name: str) -> None:
    """Over 2^31 numbers: rows alike have gradients alike, the first and the last, which are run."""
    n, columns = 2**21 + 64, 1024
    criterion, batch = head(name, n=1, classes=columns - (name == "rcnn"), class_specific=True)
    batch["labels"][:] = columns - 1 - (name == "focal")
    batch["target_boxes"] = batch["priors"] = torch.tensor([[1.0, 2, 9, 12]])
    batch["box_preds"] = torch.full_like(batch["box_preds"], 0.1)
    wide = {k: t.detach().to("meta").expand(n, *t.shape[1:]) for k, t in batch.items()}
    given, call = make_batch(criterion.settings, **wide)
    kept, up = torch.ones(criterion.settings.kept * n), torch.tensor(1.0)
    scalars = torch.tensor([0.5, 0.25, 1.0, 1.0, 0.0], dtype=torch.float64)
    _, (launch,) = plan_backward(given, call, kept, scalars, up, up, (True, True, False))
    launch = launch._replace(programs=n)
    batch |= {"boxes": batch["box_preds"], "targets": batch["target_boxes"]}
    batch |= {"alphas": batch["classification_weights"], "betas": batch["regression_weights"]}
    ends = {
        key: far_apart(torch.zeros(2, t.shape[1]), (n - 1) * t.shape[1])
        for key, t in named_arguments(launch)
        if key in ("grad_logits", "grad_boxes")
    }
    arguments = [
        ends.get(key, batch.get(key, value)) if isinstance(value, torch.Tensor) else value
        for key, value in named_arguments(launch)
    ]
    run(launch._replace(arguments=tuple(arguments)), list(ends), order=[0, n - 1])
    for first, last in ends.values():
        assert torch.equal(first, last) and first.any()
