"""The dense entrance is the flat one of flattened levels: values, gradients and the edges."""

import itertools

import pytest
import torch
from cases import CLASSIFICATIONS, CODINGS, DEVICE, HEADS, ON_KERNELS, sampled, slow_on_kernels
from cases import SCORES as LOCATION_SCORES
from dense import (
    LAYOUTS,
    assert_equal_to_flat,
    dense_batch,
    flat,
    gradients,
    laid_out,
    leaves,
)
from inputs import FURTHER

from jolkernels import JointOptimizationLoss, joint_optimization_loss_dense, spec

pytestmark = pytest.mark.kernels
FOCAL, ENTROPY = ("focal", "last"), ("cross_entropy", "first")
MATCHED = [None, "samples", "objects"]
OF_FOUR = [name for name in LAYOUTS if "P" not in name]
SOME_HEADS = pytest.mark.parametrize("head", [FOCAL, ENTROPY])


def every(step: int, names: str, *options):
    """All combinations; on kernels, which take a second or more each here, one in 10 * step."""
    return pytest.mark.parametrize(names, sampled(list(itertools.product(*options)), 5 * step))


def loss_of(head=FOCAL, **choices) -> JointOptimizationLoss:
    return JointOptimizationLoss(
        **{"classification": head[0], "background": head[1], "coding": "delta"} | choices
    )


def further(head) -> tuple[str, ...]:
    """The further inputs that a loss takes."""
    return FURTHER[1:3] if head[0] == "cross_entropy" else FURTHER[:3]


@every(1, ("layout", "head"), LAYOUTS, [FOCAL, ENTROPY])
def test_a_layout_of_all_levels(layout, head):
    assert_equal_to_flat(loss_of(head), dense_batch(head, layouts=layout))


@pytest.mark.parametrize(("start",), sampled([(i,) for i in range(len(OF_FOUR))], every=1))
def test_each_level_in_another_layout(start):
    """Logits and boxes of a level too."""
    layouts = [(OF_FOUR * 2)[start + i] for i in range(6)]
    batch = dense_batch(layouts=tuple(layouts[:3]))
    boxes = zip(dense_batch()["box_preds"], layouts[3:], strict=True)
    batch["box_preds"] = [laid_out(x.detach(), to).requires_grad_() for x, to in boxes]
    assert_equal_to_flat(loss_of(), batch)


def test_maps_and_rows_of_positions_together():
    assert_equal_to_flat(loss_of(), dense_batch(layouts=("BCP", "channels_last", "BPC")))


SHAPES = [  # images, anchors a position and sizes of the levels
    (1, 1, ((1, 1),)),
    (1, 9, ((2, 3), (1, 1))),
    (3, 1, ((3, 5), (3, 4), (2, 2), (1, 1))),
    (2, (1, 3, 2), ((3, 4), (2, 2), (1, 1))),
    (2, (9, 1, 4), ((1, 2), (0, 3), (2, 1))),
    (2, 2, ((0, 4), (2, 2))),
    (2, 2, ((0, 0), (0, 5))),
    (0, 2, ((2, 3), (1, 1))),
    (3, 2, ((1, 1),) * 8),
    (1, 1, ((129, 1), (1, 3))),
    (2, 1, ((1, 17),)),
]


@every(2, ("head", "layout", "shape"), [FOCAL, ENTROPY], ["nchw", "channels_last"], SHAPES)
def test_numbers_of_images_and_anchors_and_sizes_of_levels(shape, layout, head):
    images, anchors, sizes = shape
    batch = dense_batch(head, images=images, anchors=anchors, sizes=sizes, layouts=layout)
    assert_equal_to_flat(loss_of(head), batch)


def test_levels_of_other_sizes_after_these():
    """A launch's plan is for as many positions at once as the levels' sizes allow."""
    for sizes in [((4, 4),), ((3, 2),), ((5, 3),), ((4, 4),)]:
        batch = dense_batch(sizes=sizes, anchors=1, dtype=torch.float32)
        assert_equal_to_flat(loss_of(), batch, 1e-5)


@every(
    2,
    ("head", "layout", "classes"),
    [FOCAL, ENTROPY],
    ["nchw", "channels_last", "BPC"],
    [1, 2, 8, 80, 81],
)
def test_numbers_of_classes(classes, layout, head):
    assert_equal_to_flat(
        loss_of(head), dense_batch(head, classes=classes, layouts=layout, sizes=((2, 2), (1, 1)))
    )


@pytest.mark.parametrize("layout", ["channels_last", "channels of channels_last"])
def test_long_rows_begin_where_16_bytes_do_or_not(layout):
    """Those of the gradients too, which have no gaps."""
    assert_equal_to_flat(
        loss_of(), dense_batch(classes=300, anchors=1, sizes=((1, 3), (1, 1)), layouts=layout)
    )


@every(
    5, ("head", "matched", "normalizer"), HEADS, MATCHED, ["samples", "positives", "sum", "image"]
)
def test_every_classification_loss(head, matched, normalizer):
    batch = dense_batch(head, images=3, matched=matched, layouts=("nchw", "channels_last", "nchw"))
    batch |= {"classification_normalizer": normalizer, "regression_normalizer": normalizer}
    assert_equal_to_flat(loss_of(head, regression="giou"), batch)


@every(4, ("coding", "regression", "matched"), CODINGS, ["smooth_l1", "5*l1+2*giou"], MATCHED)
def test_every_coding(coding, regression, matched):
    batch = dense_batch(coding=coding, matched=matched, layouts="channels_last")
    assert_equal_to_flat(loss_of(coding=coding, regression=regression), batch)


@slow_on_kernels
@pytest.mark.parametrize(
    ("score", "choices"),
    sampled(
        [
            *((score, {}) for score in [*LOCATION_SCORES, None]),
            ("iou", {"class_score": None}),
            ("iou", {"detach_weights": True}),
            ("giou", {"weighting": "none"}),
            ("iou", {"lam": 1.25}),
            ("iou", {"ignore_index": -1}),
        ],
        every=3,
    ),
)
def test_every_score_and_weighting(score, choices):
    batch = dense_batch(coding="ltrb", matched="objects")
    criterion = loss_of(coding="ltrb", regression="ciou", location_score=score, **choices)
    assert_equal_to_flat(criterion, batch | {"regression_normalizer": "image"})


NORMALIZERS = ["samples", "positives", "sum", "image", 7.5, torch.tensor(2.5)]


@every(5, ("of_classes", "of_boxes"), NORMALIZERS, NORMALIZERS)
def test_every_pair_of_normalizers(of_classes, of_boxes):
    batch = dense_batch(images=3, matched="objects", inputs=("extra_regression",))
    batch |= {"classification_normalizer": of_classes, "regression_normalizer": of_boxes}
    batch |= {
        k: v.to(DEVICE) for k, v in batch.items() if k.endswith("izer") and v is NORMALIZERS[5]
    }
    assert_equal_to_flat(loss_of(), batch)


@every(2, ("name", "matched", "normalizer"), CLASSIFICATIONS, MATCHED, ["image", "samples"])
def test_all_optional_inputs_together(name, matched, normalizer):
    head = name, "last"
    batch = dense_batch(head, matched=matched, images=3, inputs=further(head))
    batch |= {"classification_normalizer": normalizer, "regression_normalizer": "image"}
    assert_equal_to_flat(loss_of(head, regression="siou"), batch)


@slow_on_kernels
@SOME_HEADS
@pytest.mark.parametrize("name", ["classification_weights", "regression_weights", *FURTHER[:3]])
def test_each_optional_input_alone(name, head):
    if name == "class_targets" and head == ENTROPY:
        pytest.skip("takes none")
    batch = dense_batch(head, inputs=(name,))
    for other in ("classification_weights", "regression_weights"):
        if other != name:
            del batch[other]
    assert_equal_to_flat(loss_of(head), batch)


@slow_on_kernels
@pytest.mark.parametrize("name", [*FURTHER[:2], "priors", "labels", "target_boxes"])
def test_inputs_of_samples_may_have_any_strides(name):
    batch = dense_batch(inputs=("class_targets", "extra_regression"))
    x = batch[name].detach()
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=DEVICE)
    batch[name] = wide[..., 1::2].copy_(x)
    batch["classification_weights"] = torch.rand(1, 1, device=DEVICE).double().expand(2, 18)
    if name == "extra_regression":
        batch[name].requires_grad_()
    assert_equal_to_flat(loss_of(), batch)


@every(
    2,
    ("what", "normalizer", "head"),
    ["background", "ignored", "background and ignored"],
    ["image", "positives", "samples"],
    [FOCAL, ENTROPY],
)
def test_no_positives(what, normalizer, head):
    batch = dense_batch(head, layouts="channels_last", inputs=("extra_regression",))
    batch["labels"][:] = loss_of(head).settings.background_label(5 + (head == ENTROPY))
    if what != "background":
        batch["labels"][:, :: 1 if what == "ignored" else 2] = -100
    batch |= {"classification_normalizer": normalizer, "regression_normalizer": normalizer}
    loss = loss_of(head).dense(**batch)
    assert loss.num_positives == 0 and loss.negative_weight == 1 and loss.regression == 0
    assert (loss.classification == 0) == (what == "ignored")
    assert all(g.isfinite().all() for g in gradients(loss, batch))
    assert_equal_to_flat(loss_of(head), batch)


def test_objects_of_no_image():
    """[B, 0] and [B, 0, 4]: there is nothing that an index could find."""
    batch = dense_batch(matched="objects")
    batch["matched"] = batch["matched"].clamp(max=-1)
    lists = {k: [x[:0] for x in batch[k]] for k in ("labels", "target_boxes")}
    assert_equal_to_flat(loss_of(), batch | lists)
    assert_equal_to_flat(loss_of(), batch | {k: torch.stack(x) for k, x in lists.items()})


@pytest.mark.parametrize("name", ["image 0", "every image"])
def test_labels_are_of_objects_where_there_are_as_many_as_samples(name):
    """Lists are those of objects, whatever their length."""
    batch = dense_batch(matched="objects", sizes=((2, 2),), anchors=1)
    lengths = (4, 4) if name == "every image" else (4, 1)
    batch["labels"] = [torch.tensor([3, 0, 2, 1])[:n].to(DEVICE) for n in lengths]
    found = dense_batch(matched="objects")["target_boxes"][0]
    batch["target_boxes"] = [found[:n] for n in lengths]
    batch["box_preds"] = [x.detach().nan_to_num(0.5).requires_grad_() for x in batch["box_preds"]]
    batch["matched"] = torch.tensor([[1, 3, -1, 0], [0, -2, 0, -1]], device=DEVICE)
    assert_equal_to_flat(loss_of(), batch)


@slow_on_kernels
@pytest.mark.parametrize("matched", ["samples", "objects"])
def test_objects_as_one_tensor(matched):
    """What an image has less than another is padding, which may be anything."""
    batch = dense_batch(matched=matched, images=3)
    one = dict(batch)
    pad = torch.nn.utils.rnn.pad_sequence
    one["target_boxes"] = pad(batch["target_boxes"], True, torch.nan)
    if matched == "objects":
        one["labels"] = pad(batch["labels"], True, 10**3)
    found, wanted = loss_of().dense(**one), loss_of().dense(**batch)
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=0, atol=0)
    got, exact = gradients(found, one), gradients(wanted, batch)
    torch.testing.assert_close(got, exact, rtol=0, atol=0)


@every(
    3,
    ("dtype", "matched", "which"),
    [torch.int8, torch.uint8, torch.int16, torch.int32],
    MATCHED,
    ["labels", "matched", "both"],
)
def test_dtypes_of_labels_and_indices(dtype, matched, which):
    names = ("labels", "matched") if which == "both" else (which,)
    if matched is None and which != "labels":
        pytest.skip("has no matched")
    batch = dense_batch(matched=matched, images=3)
    if dtype is torch.uint8:  # neither ignored nor background below 0
        if matched == "objects" and which != "labels":
            pytest.skip("has no -1")
        if matched != "objects":
            batch["labels"] = batch["labels"].where(batch["labels"] >= 0, 5)
    narrow = dict(batch)
    for name in names:
        x = batch[name]
        narrow[name] = [y.to(dtype) for y in x] if isinstance(x, list) else x.to(dtype)
    found, wanted = loss_of().dense(**narrow), loss_of().dense(**batch)
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=0, atol=0)
    got, exact = gradients(found, narrow), gradients(wanted, batch)
    torch.testing.assert_close(got, exact, rtol=0, atol=0)


def test_labels_beyond_eight_bits():
    batch = dense_batch(classes=300, sizes=((1, 2),))
    batch["labels"] = batch["labels"].to(torch.int16)
    assert_equal_to_flat(loss_of(), batch)


@slow_on_kernels
@pytest.mark.parametrize("matched", MATCHED)
def test_priors_of_each_image(matched):
    """As a list, as one tensor, and the same for all."""
    criterion, batch = loss_of(), dense_batch(matched=matched)
    first = batch["priors"]
    one_for_all = criterion.dense(**batch)
    for same in ([first, first], [first, first.clone()], first.expand(2, -1, -1)):
        got = criterion.dense(**batch | {"priors": same})
        torch.testing.assert_close(tuple(got), tuple(one_for_all), rtol=0, atol=0)
    other = first + torch.tensor([1.0, -1, 3, 2], device=DEVICE)
    for own in ([other, first], torch.stack((other, first))):
        assert_equal_to_flat(criterion, batch | {"priors": own})
        assert criterion.dense(**batch | {"priors": own}).regression != one_for_all.regression


def test_matched_as_a_list():
    batch = dense_batch(matched="objects")
    wanted = loss_of().dense(**batch)
    got = loss_of().dense(**batch | {"matched": list(batch["matched"])})
    assert torch.equal(got.total, wanted.total)


@every(
    2,
    ("layout", "dtype", "head"),
    ["nchw", "channels_last"],
    [torch.float32, torch.bfloat16, torch.float16],
    [FOCAL, ENTROPY],
)
def test_lower_precision(head, dtype, layout):
    """Losses are in float32; gradients are float64's of the same numbers, rounded."""
    batch = dense_batch(head, layouts=layout, dtype=dtype, matched="samples", images=3)
    exact = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
             for k, v in batch.items()}  # fmt: skip
    exact["target_boxes"] = [x.double() for x in batch["target_boxes"]]
    for name in ("logits", "box_preds"):
        exact[name] = [x.detach().double().requires_grad_() for x in batch[name]]
    loss, wanted = (loss_of(head).dense(**b) for b in (batch, exact))
    assert loss.classification.dtype == torch.float32
    torch.testing.assert_close(
        [x.double() for x in loss[:2]], list(wanted[:2]), rtol=1e-5, atol=1e-6
    )
    epsilon = torch.finfo(dtype).eps
    for got, right in zip(gradients(loss, batch), gradients(wanted, exact), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), right, rtol=max(epsilon, 1e-4), atol=1e-5)


@slow_on_kernels
def test_boxes_of_another_dtype_than_the_logits():
    batch = dense_batch()
    batch["logits"] = [x.detach().to(torch.bfloat16).requires_grad_() for x in batch["logits"]]
    assert_equal_to_flat(loss_of(), batch, 1e-2)
    assert loss_of().dense(**batch).total.dtype == torch.float64


@slow_on_kernels
@every(1, ("matched", "head"), [None, "objects"], [FOCAL, ENTROPY])
def test_gradcheck(head, matched):
    batch = dense_batch(head, images=1, sizes=((1, 2), (1, 1)), anchors=2, classes=2, seed=5,
                        matched=matched, inputs=("extra_regression",))  # fmt: skip
    batch["labels"] = torch.tensor([[0, 1, 2, 1, -100, 2]], device=DEVICE)
    if matched:
        batch["labels"] = [torch.tensor([1, 0 if head == FOCAL else 2], device=DEVICE)]
        batch["target_boxes"] = [batch["target_boxes"][0][:2]]
        batch["matched"] = torch.tensor([[0, 1, -1, 1, -2, -1]], device=DEVICE)
    else:
        batch["target_boxes"] = dense_batch(coding="xyxy", images=1, sizes=((1, 6),), anchors=1)
        batch["target_boxes"] = batch["target_boxes"]["priors"][None]
    batch |= {"classification_normalizer": "image", "regression_normalizer": 3.0}
    inputs = [x.detach().nan_to_num(0.5).requires_grad_() for x in leaves(batch)]

    def losses(*given):
        levels = {"logits": given[:2], "box_preds": given[2:4], "extra_regression": given[4]}
        return loss_of(head, regression="giou").dense(**batch | levels)[:2]

    assert losses(*inputs)[1] > 0
    assert torch.autograd.gradcheck(losses, inputs, atol=1e-6, fast_mode=ON_KERNELS)


def test_expanded_upstream_gradients():
    batch = dense_batch(layouts="channels_last")
    loss = loss_of().dense(**batch)
    got = torch.autograd.grad(torch.stack(loss[:2]).expand(3, 2).sum(), leaves(batch))
    wanted = gradients(loss_of()(**flat(loss_of(), batch)), batch, (3, 3))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@slow_on_kernels
@SOME_HEADS
def test_samples_that_are_not_read_do_not_matter(head):
    """Ignored ones' logits, and all but positives' boxes, weights and further inputs."""
    criterion, batch = loss_of(head), dense_batch(head, inputs=further(head))
    before = criterion.dense(**batch)
    wanted = gradients(before, batch)
    at = [x.detach().clone() for x in batch["logits"]]
    batch["labels"][:, 5] = -100
    moved = criterion.dense(**batch)
    expected = gradients(moved, batch)
    assert moved.classification != before.classification
    for x, _ in zip(batch["logits"], at, strict=True):  # the third position's second anchor
        if x.shape[-1] == 3:
            x.data.unflatten(1, (2, -1))[:, 1, :, 0, 2] = torch.inf
    after = criterion.dense(**batch)
    assert torch.equal(after.total, moved.total)
    assert all(map(torch.equal, gradients(after, batch), expected))
    assert not all(map(torch.equal, wanted, expected))


def test_inputs_are_never_written_and_the_bits_are_the_same():
    batch = dense_batch(matched="objects", layouts="channels of channels_last")
    copies = {k: [x.clone() for x in v] if isinstance(v, list) else v.clone()
              for k, v in batch.items()}  # fmt: skip
    first, second = (loss_of().dense(**batch) for _ in range(2))
    assert torch.equal(first.total, second.total)
    assert all(map(torch.equal, gradients(first, batch), gradients(second, batch)))
    for name, x in copies.items():
        torch.testing.assert_close(batch[name], x, rtol=0, atol=0, equal_nan=True)


def test_the_function_is_the_method():
    batch = dense_batch(matched="objects")
    got = joint_optimization_loss_dense(
        **batch, classification="focal", coding=spec.Delta(), lam=1.5, regression_normalizer="image"
    )
    wanted = loss_of(lam=1.5).dense(**batch, regression_normalizer="image")
    assert torch.equal(got.total, wanted.total)
    positional = [batch[k] for k in ("logits", "box_preds", "labels", "target_boxes")]
    with pytest.raises(TypeError, match="positional"):
        joint_optimization_loss_dense(*positional, batch["priors"])


def test_image_is_torchvisions_retinanet():
    """Its two losses: focal and L1 of coded boxes, an image's over its positives, then the mean."""
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.detection._utils import BoxCoder

    criterion = loss_of(regression="l1", weighting="none")
    batch = dense_batch(images=3, matched="objects", layouts="channels_last")
    for part in ("classification", "regression"):
        del batch[f"{part}_weights"]
        batch[f"{part}_normalizer"] = "image"
    rows = flat(criterion, batch | {f"{part}_normalizer": 1.0 for part in ("regression",)})
    logits, labels = rows["logits"].view(3, -1, 5), rows["labels"].view(3, -1)
    of_classes, of_boxes = [], []
    for z, boxes, y, target, prior in zip(
        logits, rows["box_preds"].view(3, -1, 4), labels, rows["target_boxes"].view(3, -1, 4),
        rows["priors"].view(3, -1, 4), strict=True,
    ):  # fmt: skip
        positive, count = (y >= 0) & (y < 5), max(1, int(((y >= 0) & (y < 5)).sum()))
        one_hot = torch.zeros_like(z)
        one_hot[positive, y[positive]] = 1
        valid = y != -100
        focal = torchvision.ops.sigmoid_focal_loss(z[valid], one_hot[valid], reduction="sum")
        of_classes.append(focal / count)
        codes = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(target[positive], prior[positive])
        of_boxes.append((boxes[positive] - codes).abs().sum() / count)
    loss = criterion.dense(**batch)
    torch.testing.assert_close(loss.classification, sum(of_classes) / 3, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.regression, sum(of_boxes) / 3, rtol=1e-10, atol=1e-10)
