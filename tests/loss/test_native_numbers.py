"""The numbers of the C passes, against the tensor operations and autograd of the reference."""

import pytest
import torch
from cases import ON_KERNELS, gradients, random_batch

from jolkernels import JointOptimizationLoss, reference, spec
from jolkernels.batch import make_batch
from jolkernels.cpu import native, tensors

needs_passes = pytest.mark.skipif(
    ON_KERNELS or native.library() is None, reason="not built, or turned off"
)
CLASSIFICATIONS = [
    "cross_entropy", "bce", "focal", "focal:gamma=1.5", "focal:gamma=0.7", "focal:gamma=0",
    "quality_focal", "quality_focal:beta=1", "varifocal", "varifocal:detach=True,gamma=1.5",
    "varifocal:detach=True,positives=label", "mal", "mal:gamma=2", "mal:gamma=1",
    "mal:gamma=2,detach=False", "mal:gamma=1,detach=False",
]  # fmt: skip
REGRESSIONS = [
    "l1", "smooth_l1", "smooth_l1:beta=0", "l2", "iou", "iou:mode=log", "iou:mode=square", "giou",
    "diou", "ciou", "eiou", "siou", "shape_iou", "shape_iou:scale=0.7", "wiou", "nwd",
    "nwd:mix=0.6", "inner", "inner:loss=ciou,ratio=1.3", "focaler:low=0.2,high=0.61",
    "inner:loss=(focaler:loss=siou,low=0.3)", "5*l1+2*giou", "0.5*(inner:loss=ciou)+3*l2",
]  # fmt: skip
CODINGS = ["xyxy", "delta", "delta:weights=(10, 10, 5, 5),clip=0.1,low_clip=-0.1", "ltrb",
           "cxcywh", "cxcywh:scale=(32, 30)"]  # fmt: skip
SCORES = ["iou", "giou", "nwd", "simd", "dotd", None]
CHOICES = [
    *((loss, "l1", "xyxy", "iou") for loss in CLASSIFICATIONS),
    *((loss, "giou", "delta", None) for loss in CLASSIFICATIONS),
    *(("cross_entropy", loss, "ltrb", "iou") for loss in REGRESSIONS),
    *(("quality_focal", "5*l1+2*diou", coding, "giou") for coding in CODINGS),
    *(("bce", "l2", "delta", score) for score in SCORES),
    *(("bce", "iou", "cxcywh:scale=(32, 30)", score) for score in SCORES),
]


def more_inputs(criterion, batch, groups=3):
    """The batch with all further inputs; rows that no loss may read hold NaN, or group -7."""
    g = torch.Generator().manual_seed(1)
    (n, columns), dtype = batch["logits"].shape, batch["logits"].dtype
    counted = batch["labels"] != -100
    read = counted & (batch["labels"] != criterion.settings.background_label(columns))
    targets, extra = torch.rand(2, n, generator=g, dtype=torch.float64)
    targets[::5], targets[1::5] = 0, 1
    added = {
        "extra_regression": extra.masked_fill(~read, torch.nan).to(dtype).requires_grad_(),
        "class_weights": 2 * torch.rand(columns, generator=g, dtype=torch.float64).to(dtype),
        "groups": torch.randint(0, groups, (n,), generator=g).masked_fill(~counted, -7),
    }
    if criterion.settings.takes_targets:
        added["class_targets"] = targets.masked_fill(~read, torch.nan).to(dtype)
    return batch | added | {"num_groups": groups + 1}  # the last one is empty


def made(choices, *, more=False, dtype=torch.float64, background="last", weighting="joint", **size):
    """A loss of some CHOICES and a batch for it."""
    criterion = JointOptimizationLoss(
        *choices[:3], location_score=choices[3], background=background, weighting=weighting
    )
    names = (choices[0].partition(":")[0], background), choices[2].partition(":")[0]
    batch = random_batch(*names, dtype=dtype, **size)
    return criterion, more_inputs(criterion, batch) if more else batch


def detached(criterion, batch):
    """As the operators are given it: a Batch and a Call."""
    return make_batch(
        criterion.settings,
        **{k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()},
    )


def results(implementation, criterion, batch):
    """Forward and backward of one implementation."""
    fields, call = detached(criterion, batch)
    result = implementation.forward(fields, call)
    up = torch.linspace(0.7, 1.9, 2 * (call.num_groups or 1), dtype=result.rows.dtype)
    ups = up.view(2, *call.shape).unbind()
    needs = True, True, fields.extra_regression is not None
    saved = result.rows, result.scalars, *ups, needs
    return *result[:5], *implementation.backward(fields, call, *saved)


def by_autograd(criterion, batch):
    """What `results` returns, of the reference."""
    fields, call = make_batch(criterion.settings, **batch)
    result = reference.joint_optimization_loss(fields, call)
    up = torch.linspace(0.7, 1.9, 2 * (call.num_groups or 1), dtype=result[0].dtype)
    total = (torch.stack(result[:2]) * up.view(2, *call.shape)).sum()
    leaves = [
        t for t in (fields.logits, fields.box_preds, fields.extra_regression) if t is not None
    ]
    return [t.detach() for t in (*result, *torch.autograd.grad(total, leaves))]


def assert_equal(got, wanted, tolerance):
    """Up to a share of the largest number."""
    assert len([t for t in got if t is not None]) == len(wanted)
    for g, w in zip(got, wanted, strict=False):
        assert g.dtype == w.dtype
        scale = w.abs().max().item() if w.numel() else 0
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance * scale)


@needs_passes
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(map(str, c)))
def test_equals_the_tensor_operations_and_the_reference(choices, more):
    class_specific = choices[2] == "delta"
    for dtype in (torch.float32, torch.float64):
        criterion, batch = made(
            choices, more=more, dtype=dtype, n=150, class_specific=class_specific
        )
        assert native.available(detached(criterion, batch)[0], criterion.settings)
        got, wanted = results(native, criterion, batch), results(tensors, criterion, batch)
        wanted = [w for w in wanted if w is not None]
        assert_equal(got, wanted, 2e-5 if dtype == torch.float32 else 1e-10)
    assert_equal(got, by_autograd(criterion, batch), 1e-10)


@needs_passes
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("weighting", ["joint", "none"])
@pytest.mark.parametrize("head", [("cross_entropy", "first"), ("cross_entropy", "last"),
                                  ("focal", "last"), ("mal", "last")])  # fmt: skip
def test_several_chunks_and_tiles(head, weighting, more):
    """More rows than a thread takes at a time, and rows longer than a tile."""
    choices, options = (head[0], "smooth_l1", "delta", "iou"), {"background": head[1]}
    for size in ({"n": 5000, "classes": 33, "class_specific": True}, {"n": 3, "classes": 2500}):
        criterion, batch = made(choices, more=more, weighting=weighting, **options, **size)
        got, wanted = results(native, criterion, batch), results(tensors, criterion, batch)
        assert_equal(got, [w for w in wanted if w is not None], 1e-10)


@needs_passes
@pytest.mark.parametrize("choices", [("bce", "ciou", "xyxy", "iou"),
                                     ("cross_entropy", "l1", "delta", "nwd")])  # fmt: skip
def test_inputs_that_are_not_contiguous(choices):
    criterion, batch = made(choices, more=True, n=60)
    wanted = results(native, criterion, batch)
    for name, t in batch.items():
        if not isinstance(t, torch.Tensor):
            continue
        wide = t.new_full((2 * len(t), *(t.shape[1:])), 7)
        wide[::2] = t.detach()
        strided = {name: wide[::2]}
        if t.ndim == 2 and name != "logits":  # of which other layouts are not for C
            strided = {name: t.detach().t().contiguous().t()}
        assert native.available(detached(criterion, batch | strided)[0], criterion.settings)
        for g, w in zip(results(native, criterion, batch | strided), wanted, strict=True):
            assert torch.equal(g, w), name
    one = batch["class_weights"][:1].expand(batch["class_weights"].shape)
    got, same = (
        results(native, criterion, batch | {"class_weights": w}) for w in (one, one.clone())
    )
    assert all(map(torch.equal, got, same))


@needs_passes
@pytest.mark.parametrize("rows", ["none", "negatives", "ignored"])
@pytest.mark.parametrize("loss", ["cross_entropy", "quality_focal"])
def test_batches_without_positives(loss, rows):
    criterion, batch = made((loss, "giou", "xyxy", "iou"), more=True)
    background = criterion.settings.background_label(batch["logits"].shape[1])
    if rows == "none":
        batch = {k: v[:0] if k not in ("class_weights", "num_groups") else v
                 for k, v in batch.items()}  # fmt: skip
    for name in ("box_preds", "target_boxes", "extra_regression", "class_targets"):
        if name in batch:
            batch[name] = torch.full_like(batch[name], torch.nan).requires_grad_()
    batch["labels"] = torch.full_like(batch["labels"], -100 if rows == "ignored" else background)
    batch["groups"] = batch["groups"].clamp(min=0)
    got = results(native, criterion, batch)
    assert_equal(got, by_autograd(criterion, batch), 1e-12)
    assert (got[1] == 0).all() and (got[2] == 1).all() and (got[3] == 0).all()
    assert not got[6].any() and not got[7].any()
    if rows == "ignored":
        assert not got[0].any() and not got[5].any()


@needs_passes
@pytest.mark.parametrize("group", [-1, 4, 2**40])
def test_a_group_out_of_range_raises(group):
    criterion, batch = made(("focal", "l1", "delta", "iou"), more=True)
    at = int((batch["labels"] != -100).nonzero()[-1])
    batch["groups"][at] = group
    with pytest.raises(ValueError, match=rf"groups: got {group} at index {at}, wanted 0 to 3"):
        criterion(**batch)
    fields, call = detached(criterion, batch)
    result = native.forward(fields, call)  # bad in every group
    assert result.classification.isnan().all() and result.scalars[:, 4].isnan().all()


@pytest.mark.skipif(ON_KERNELS, reason="the kernels run")
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("in_c", [True, False])
def test_the_number_of_threads_does_not_change_the_bits(in_c, more, monkeypatch):
    """With the softmax loss; docs/using.md says what it changes with sigmoid losses."""
    if not in_c:
        monkeypatch.setattr(native, "library", lambda: None)
    choices = "cross_entropy", "l1", "delta", "iou"
    criterion, batch = made(choices, more=more, n=40_000, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = criterion(**batch)
            found.append((*loss, *gradients([part.sum() for part in loss[:2]], batch)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(ON_KERNELS, reason="the kernels run")
def test_a_last_chunk_of_one_row():
    """Of the tensor operations, and of C."""
    batch = random_batch(n=4097, classes=39)
    batch["labels"][-1], whole = 3, JointOptimizationLoss(weighting="none")
    batch["target_boxes"][-1] = batch["box_preds"].data[-1] = torch.tensor([0.0, 0, 4, 4])
    del batch["classification_weights"], batch["regression_weights"]
    expected = torch.nn.functional.cross_entropy(batch["logits"], batch["labels"])
    for implementation in (tensors, native) if native.library() else (tensors,):
        found = results(implementation, whole, batch)
        torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [2.0, 1.5, 0.0, 3.0])
@pytest.mark.parametrize("columns", [1, 8, 80, 2047, 2500])
def test_focal_loss_of_rows_of_any_length_and_height(columns, gamma, dtype):
    """Against float64 tensor operations; logits from the far tails to 0, row by row."""
    g = torch.Generator().manual_seed(0)
    heights = torch.tensor([0.0, 1e-3, 1, 10, 60, 87.5, 200, 1e4], dtype=torch.float64)
    n = 4 * len(heights)
    logits = torch.randn(n, columns, generator=g, dtype=torch.float64) * heights.repeat(4)[:, None]
    logits = logits.to(dtype)
    labels = torch.randint(0, columns + 1, (n,), generator=g)
    boxes = torch.tensor([[0.0, 0, 9, 9]], dtype=dtype).expand(n, 4)
    criterion = JointOptimizationLoss(spec.Focal(gamma=gamma), "l1", weighting="none")

    given = logits.clone().requires_grad_()
    loss = criterion(given, boxes, labels, boxes + 1, classification_normalizer="sum")
    loss.classification.backward()

    wide = logits.double().requires_grad_()
    one_hot = torch.nn.functional.one_hot(labels, columns + 1)[:, :-1].double()
    toward = torch.where(one_hot == 1, -wide, wide)
    alpha = 0.75 - 0.5 * one_hot
    softplus = -torch.nn.functional.logsigmoid(-toward)
    expected = (alpha * toward.sigmoid() ** gamma * softplus).sum()
    expected.backward()
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(loss.classification.double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(
        given.grad.double(),
        wide.grad,
        rtol=4 * tolerance,
        atol=1e-37 if dtype == torch.float32 else 1e-290,
    )


EXTREMES = [torch.inf, -torch.inf, 1e4, -1e4, 104.0, -104.0, 0.0, torch.nan]
SMALL_EXPONENTS = ["focal:gamma=0.5", "quality_focal:beta=0", "varifocal:gamma=0", "mal:gamma=0"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("choice", [*CLASSIFICATIONS, *SMALL_EXPONENTS])
def test_extreme_logits_are_what_the_reference_says(choice, dtype):
    """Losses and gradients, NaN too, of rows with two logits; each row is a group of its own."""
    criterion = JointOptimizationLoss(choice, "l1", weighting="none")
    settings = criterion.settings
    pairs = [(a, b) for a in EXTREMES for b in (0.3, *EXTREMES)]
    n, box = 2 * len(pairs), torch.tensor([0.0, 0, 9, 9], dtype=torch.float64)
    batch = {
        "logits": torch.tensor(2 * pairs, dtype=torch.float64, requires_grad=True),
        "box_preds": (box * 0.7).repeat(n, 1),
        "labels": torch.tensor([0, settings.background_label(2)]).repeat_interleave(n // 2),
        "target_boxes": box.repeat(n, 1),
    }
    for target in (None, 0.0, 0.4, 1.0) if settings.takes_targets else (None,):
        if target is not None:
            batch["class_targets"] = torch.full((n,), target, dtype=torch.float64)
        losses = reference.rows(make_batch(settings, **batch)[0], settings).l_cls
        ups = torch.linspace(0.7, 1.9, 2 * n, dtype=torch.float64)[:n]  # of `results`
        (gradient,) = torch.autograd.grad((losses * ups).sum(), batch["logits"])
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        given |= {"groups": torch.arange(n), "num_groups": n}
        for implementation in (tensors, native) if native.library() else (tensors,):
            got = results(implementation, criterion, given)
            for a, b in ((got[0], losses.detach()), (got[5], gradient)):
                tolerance = {"rtol": 1e-12} if dtype == torch.float64 else {"rtol": 5e-6}
                torch.testing.assert_close(a, b.to(dtype), **tolerance, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4097, 40_001])
def test_sums_of_tensor_operations(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(0))
    assert tensors.total(values) == pytest.approx(values.double().sum().item(), rel=1e-6)
