"""The dense entrance in C against the flat entrance in C, whose batch is made by flattening."""

import re

import pytest
import torch
from cases import CODINGS, HEADS, ON_KERNELS, REGRESSIONS, SCORES
from levels_in_c import (
    ALL,
    IMAGE,
    LAYOUTS,
    SIZES,
    Made,
    dense_case,
    make,
    passes,
    upstream,
)

from jolkernels import JointOptimizationLoss, spec
from jolkernels.cpu import dense_call, dense_rows, native
from jolkernels.flattened import flatten, in_levels

pytestmark = pytest.mark.skipif(
    ON_KERNELS or native.library() is None, reason="not built, or turned off"
)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def check(batch, call):
    """Values and gradients are those of the flat entrance, gradients in their levels' layouts."""
    result, (logits, boxes, extra) = passes(batch, call)
    flat, flat_call = flatten(batch, call)
    assert native.available(flat, call.settings)
    wanted = native.forward(flat, flat_call)
    needs = True, True, extra is not None
    rows = native.backward(flat, flat_call, wanted.rows, wanted.scalars, *upstream(batch), needs)
    tolerance = TOLERANCE[batch.logits[0].dtype]
    for a, b in zip(result[:5], wanted[:5], strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert result.num_positives or not batch.samples
    levels = (logits, rows[0], batch.logits), (boxes, rows[1], batch.box_preds)
    for found, of_rows, like in levels:
        largest = of_rows.abs().max() if of_rows.numel() else 1
        for a, b, x in zip(found, in_levels(of_rows, like), like, strict=True):
            assert a.stride() == torch.empty_like(x).stride()
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(largest))
    if extra is not None:
        torch.testing.assert_close(extra.view(-1), rows[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, head, dtype):
    sizes = SIZES[:2] if layout == "turned" else SIZES
    given = dense_case(head, layout=layout, dtype=dtype, inputs=ALL, sizes=sizes)
    check(*make(given, head, normalizers=IMAGE, regression="smooth_l1"))


@pytest.mark.parametrize("boxes_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["planes", "rows", "part of a map"])
def test_logits_and_boxes_in_layouts_of_their_own(layout, boxes_layout):
    if LAYOUTS[boxes_layout](torch.zeros(1, 4, 2, 2)).ndim == 3:
        pytest.skip("another shape")
    check(*make(dense_case(layout=layout, boxes_layout=boxes_layout)))


@pytest.mark.parametrize("columns", [1, 8, 80, 81, 1300, 2500])
@pytest.mark.parametrize("anchors", [1, 9])
@pytest.mark.parametrize("layout", ["planes", "rows", "some channels of rows"])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_columns_and_anchors(name, layout, anchors, columns):
    """1300 columns are more than half a tile, 2500 more than one."""
    if (name, columns) == ("cross_entropy", 1):
        pytest.skip("cross entropy has two columns at least")
    head, sizes = (name, "last"), SIZES if columns < 100 else SIZES[0::2]
    for dtype in TOLERANCE:
        given = dense_case(
            head, layout=layout, anchors=anchors, columns=columns, images=3, sizes=sizes,
            dtype=dtype, inputs=("class_weights",),
        )  # fmt: skip
        check(*make(given, head))


@pytest.mark.parametrize("labels_dtype", dense_call.INTEGERS, ids=str)
@pytest.mark.parametrize("matched", [None, "objects", "samples"])
@pytest.mark.parametrize("normalizer", ["samples", "image"])
def test_integers_as_they_are(labels_dtype, matched, normalizer):
    given = dense_case(labels_dtype=labels_dtype, matched=matched)
    given["labels"] = given["labels"].repeat_interleave(2, 1)[:, ::2]
    if matched:
        for dtype in set(dense_call.INTEGERS) - {torch.uint8}:
            of_dtype = given["matched"].to(dtype).t().contiguous().t()
            batch, call = make(
                given | {"matched": of_dtype}, normalizers=dict.fromkeys(IMAGE, normalizer)
            )
            assert batch.labels.dtype is labels_dtype and batch.matched.dtype is dtype
            check(batch, call)
    else:
        check(*make(given, normalizers=dict.fromkeys(IMAGE, normalizer)))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("regression", REGRESSIONS)
def test_box_losses_and_codings(regression, coding):
    chosen = spec.CXCYWH(scale=(32, 32)) if coding == "cxcywh" else coding
    for i, score in enumerate((*SCORES, None)):
        head, layout = HEADS[i % len(HEADS)], ("planes", "rows")[i % 2]
        given = dense_case(head, coding, layout=layout, matched=("objects", None)[i % 2])
        check(*make(given, head, chosen, regression=regression, location_score=score))


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize(
    "settings",
    [{"detach_weights": True}, {"weighting": "none"}, {"class_score": None}, {"lam": 3.0}],
    ids=str,
)
def test_settings(head, settings):
    targets = () if head[0] == "cross_entropy" else ("class_targets",)
    for inputs in ((), (*ALL, *targets)):
        check(*make(dense_case(head, inputs=inputs), head, **settings))


NORMALIZERS = "image", "samples", "positives", "sum", 7.5, torch.tensor(7.5)


@pytest.mark.parametrize("classification", NORMALIZERS, ids=str)
@pytest.mark.parametrize("regression", NORMALIZERS, ids=str)
def test_normalizers(classification, regression):
    """With an image that has no positive."""
    given = dense_case(images=3, inputs=("extra_regression",))
    given["labels"][1, given["labels"][1] != -100] = 8
    given |= {
        "classification_normalizer": classification,
        "regression_normalizer": regression,
    }
    batch, call = make(given)
    shape = (3, 5) if "image" in (classification, regression) else (5,)
    assert dense_rows.forward(batch, call).scalars.shape == shape
    check(batch, call)


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_priors_of_images(layout):
    given = dense_case(layout=layout)
    given["priors"] = torch.stack((given["priors"], given["priors"] + 1.5))
    check(*make(given, regression="giou"))


@pytest.mark.parametrize("sizes", [((0, 3), (4, 0)), ((0, 0),)], ids=str)
@pytest.mark.parametrize("matched", [None, "objects", "samples"])
@pytest.mark.parametrize("normalizers", [{}, IMAGE], ids=str)
def test_no_sample_at_all(sizes, matched, normalizers):
    for images in (0, 2):
        check(
            *make(dense_case(sizes=sizes, images=images, matched=matched), normalizers=normalizers)
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_image(layout):
    batch, call = make(dense_case(images=0, layout=layout, sizes=SIZES[:2]), normalizers=IMAGE)
    result, (logits, _, _) = passes(batch, call)
    assert result.classification == 0 and logits[1].shape == batch.logits[1].shape


@pytest.mark.parametrize("normalizers", [{}, IMAGE], ids=str)
def test_no_object(normalizers):
    given = dense_case(matched="objects")
    given |= {
        "matched": given["matched"].clamp(max=-1),
        "labels": given["labels"][:, :0],
        "target_boxes": given["target_boxes"][:, :0],
    }
    result, _ = passes(*make(given, normalizers=normalizers))
    assert result.num_positives == 0 and result.classification > 0


@pytest.mark.parametrize("head", [("focal", "last"), ("cross_entropy", "first")], ids=str)
@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("columns", [8, 80, 2500])
def test_threads_change_no_bit(columns, layout, head):
    """Chunks, which are of one image and level, are added in their order."""
    sizes = ((70, 50), (9, 5)) if columns < 100 else ((4, 5), (3, 3))
    given = dense_case(head, layout=layout, columns=columns, sizes=sizes, dtype=torch.float32)
    batch, call = make(given, head, normalizers=IMAGE)
    before, bits = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        result, (logits, boxes, _) = passes(batch, call)
        bits.append([x.nan_to_num(7.0) for x in (*result, *logits, *boxes)])
    torch.set_num_threads(before)
    for others in bits[1:]:
        assert all(map(torch.equal, bits[0], others))


BAD = [
    ("labels", None, 9), ("labels", None, -1), ("labels", "samples", 9), ("labels", "objects", 9),
    ("matched", "samples", 5), ("matched", "samples", -1), ("matched", "samples", 2**40),
    ("matched", "objects", 5), ("matched", "objects", -3), ("matched", "objects", 2**40),
]  # fmt: skip


@pytest.mark.parametrize(("name", "matched", "value"), BAD)
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_out_of_range(layout, name, matched, value, monkeypatch):
    """Results and the sample's gradients are NaN, the other samples' are as they were.

    Also if the label is in order again when Python looks.
    """
    monkeypatch.setattr(dense_rows, "check_dense_labels", lambda *_: None)
    given = dense_case(
        layout=layout, matched=matched, sizes=((5, 7),), inputs=("extra_regression",)
    )
    batch, call = make(given)
    before = dense_rows.forward(batch, call)
    first, gradients = 0, passes(batch, call)[1]
    if matched:
        first = int((given["matched"][0] >= 0).nonzero()[0])
    hit = torch.zeros(2, 70, dtype=torch.bool)
    if name == "labels" and matched == "objects":
        at = int(given["matched"][0, first])
        given["labels"][0, at] = value
        hit[0] = given["matched"][0] == at
    else:
        given[name][0, first] = value
        hit[0, first] = True
    result = dense_rows.forward(batch, call)
    assert result.classification.isnan() and result.regression.isnan()
    assert result.scalars[4].isnan() and not before.scalars[4].isnan()
    found = dense_rows.backward(
        batch, call, before.rows, before.scalars, *upstream(batch), (True, True, True)
    )
    for a, b, columns in ((found[0], gradients[0], 8), (found[1], gradients[1], 4)):
        rows, wanted = (x[0].unflatten(1, (2, columns)).permute(0, 3, 4, 1, 2) for x in (a, b))
        rows, wanted = (x.flatten(1, 3) for x in (rows, wanted))
        assert rows[hit].isnan().all() and torch.equal(rows[~hit], wanted[~hit])
    assert found[2][hit].isnan().all() and torch.equal(found[2][~hit], gradients[2][~hit])


WENT_BAD = [
    ("labels", None, 9, "labels: got 9 at image 1, sample 4, wanted 0 to 8"),
    ("labels", "objects", -1, "labels: got -1 at image 1, object 4, wanted 0 to 8"),
    ("matched", "objects", 5, "matched: got 5 at image 1, sample 4, wanted 0 to 4, -1 for"),
    ("matched", "samples", -3, "matched: got -3 at image 1, sample 4, wanted 0 to 4, a label of"),
]


@pytest.mark.parametrize(("name", "matched", "value", "message"), WENT_BAD)
@pytest.mark.parametrize("flattening", [False, True])
def test_labels_that_go_bad_between_the_passes(
    flattening, name, matched, value, message, monkeypatch
):
    """In C, and where the batch is flattened, the error names them as they were given."""
    if flattening:
        monkeypatch.setattr(dense_rows, "available", lambda *_: False)
    given = dense_case(matched=matched)
    if matched is not None:
        given["matched"][1, 4] = 4
    if matched != "objects":
        given["labels"][1, 4] = 0
    given["logits"] = [x.requires_grad_() for x in given["logits"]]
    loss = JointOptimizationLoss("focal", coding="delta").dense(**given)
    given[name].numpy()[1, 4] = value  # unseen by autograd
    with pytest.raises(ValueError, match=re.escape(message)):
        loss.total.backward()


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_needs(layout):
    batch, call = make(dense_case(layout=layout, inputs=("extra_regression",)))
    _, wanted = passes(batch, call)
    for i in range(3):
        _, found = passes(batch, call, tuple(j == i for j in range(3)))
        for j in range(3):
            if i == j:
                torch.testing.assert_close(found[j], wanted[j], rtol=0, atol=0)
            else:
                assert found[j] is None or set(found[j]) == {None}


def test_an_upstream_gradient_of_none_is_0():
    batch, call = make(dense_case(), normalizers=IMAGE)
    result, zero = dense_rows.forward(batch, call), torch.zeros((), dtype=torch.float64)
    for given in ((None, zero + 1), (zero + 1, None)):
        filled = [zero if g is None else g for g in given]
        saved, needs = (result.rows, result.scalars), (True, True, False)
        found = dense_rows.backward(batch, call, *saved, *given, needs)
        wanted = dense_rows.backward(batch, call, *saved, *filled, needs)
        for a, b in zip(found[:2], wanted[:2], strict=True):
            assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("matched", [None, "objects", "samples"])
@pytest.mark.parametrize("layout", ["planes", "rows", "some channels", "some rows of a map"])
def test_nothing_is_copied(layout, matched):
    """The passes ask for the gradients and one number of a sample, and for nothing of that size."""
    given = dense_case(
        layout=layout, matched=matched, labels_dtype=torch.int8, inputs=ALL, sizes=((40, 30),)
    )
    batch, call = make(given, normalizers=IMAGE)
    with Made() as made:
        _, (logits, boxes, extra) = passes(batch, call)
    large = {x.data_ptr(): x.shape for x in made.tensors if x.numel() >= batch.samples}
    wanted = [(1, 2 * batch.samples), logits[0].shape, boxes[0].shape, extra.shape]
    assert sorted(large.values()) == sorted(map(torch.Size, wanted))


def test_a_part_of_a_map_alone_is_copied():
    given = dense_case(sizes=((40, 30), (20, 15)))
    given["logits"][1] = LAYOUTS["part of a map"](given["logits"][1])
    batch, call = make(given)
    with Made() as made:
        dense_rows.forward(batch, call)
    shapes = [x.shape for x in made.tensors if x.numel() >= batch.samples]
    assert batch.logits[1].shape in shapes and batch.logits[0].shape not in shapes


def test_boxes_need_no_layout_but_one_stride():
    given = dense_case(sizes=((40, 30),), boxes_layout="every second channel")
    with Made() as made:
        dense_rows.forward(*make(given))
    assert given["box_preds"][0].shape not in [x.shape for x in made.tensors]


READ = "logits", "box_preds", "labels", "matched", "target_boxes", "priors", *ALL


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize("name", READ)
def test_freed_memory_is_not_read(name, size):
    batch, call = make(dense_case(matched="objects", inputs=ALL))
    result, tensor = dense_rows.forward(batch, call), getattr(batch, name)
    if isinstance(tensor, tuple):
        tensor = tensor[1]
    tensor.untyped_storage().resize_(size)
    wanted = f"{name}: got a storage of {size} bytes, wanted"
    with pytest.raises(ValueError, match=wanted):
        dense_rows.forward(batch, call)
    with pytest.raises(ValueError, match=wanted):
        dense_rows.backward(
            batch, call, result.rows, result.scalars, *upstream(batch), (True, True, True)
        )


@pytest.mark.parametrize("name", READ)
def test_a_tensor_of_another_shape_by_now_is_not_read(name):
    batch, call = make(dense_case(matched="objects", inputs=ALL))
    result, tensor = dense_rows.forward(batch, call), getattr(batch, name)
    if isinstance(tensor, tuple):
        tensor = tensor[1]
    tensor.data = tensor.data[..., :1].clone()
    with pytest.raises(ValueError, match=r"got shape \[.*\], wanted \["):
        dense_rows.backward(
            batch, call, result.rows, result.scalars, *upstream(batch), (True, True, True)
        )


def test_chunks_of_planes_are_whole_runs():
    """Python knows as well as C how long a run is."""
    source = (native.FOLDER / "samples.h").read_text()
    assert f"enum {{ RUN = {dense_call.RUN} }};" in source


def test_what_is_not_in_c():
    """Other dtypes, of one tensor or all."""
    batch, call = make(dense_case(inputs=ALL))
    for name in ("target_boxes", "priors", *ALL):
        for dtype in (torch.float32, torch.bfloat16):
            other = getattr(batch, name).to(dtype)
            assert not dense_rows.available(batch._replace(**{name: other}), call.settings)
    boxes = (*batch.box_preds[:-1], batch.box_preds[-1].float())
    assert not dense_rows.available(batch._replace(box_preds=boxes), call.settings)
