"""What is said of wrong arguments of the dense entrance, and which of them values decide."""

import pytest
import torch
from cases import DEVICE, sampled
from dense import dense_batch, leaves

from jolkernels import JointOptimizationLoss, dense_ops
from jolkernels.dense import make_dense_batch

pytestmark = pytest.mark.kernels
M, C = 18, 5  # of dense_batch: 2 images, levels of 2 x 3, 2 x 1 and 1 x 1, 2 anchors
META = {"device": "meta"}
ones, zeros = torch.ones, torch.zeros


def focal(**choices) -> JointOptimizationLoss:
    return JointOptimizationLoss("focal", coding="delta", **choices)


def level(channels, *shape, **kind):
    return zeros(2, channels, *(shape or (2, 3)), **({"dtype": torch.float64} | kind))


def first(name, x):
    """The levels with another first one."""
    return lambda batch: {name: [x, *batch[name][1:]]}


def second(name, x):
    return lambda batch: {name: [batch[name][0], x, batch[name][2]]}


LEVELS = [
    ("logits", lambda b: {"logits": b["logits"][0]}, TypeError, "got Tensor, wanted a list of l"),
    ("logits", lambda b: {"logits": None}, TypeError, "got NoneType, wanted a list of levels"),
    ("logits", lambda b: {"logits": "abc"}, TypeError, "got str, wanted a list of levels"),
    ("logits", lambda b: {"logits": []}, ValueError, "got an empty list, wanted a tensor for"),
    ("box_preds", lambda b: {"box_preds": []}, ValueError, "got an empty list, wanted a tensor"),
    ("logits[1]", second("logits", 3.0), TypeError, r"got float, wanted .* \[B, A \* C, H, W\]"),
    ("logits[1]", second("logits", level(10, 2)[0]), ValueError, r"got shape \[10, 2\], wanted a"),
    ("box_preds[1]", second("box_preds", level(8, 1, 2, 1)), ValueError,
     r"got shape \[2, 8, 1, 2, 1\], wanted a tensor of shape \[B, A \* 4, H, W\] or \[B, A \* 4, "),
    ("box_preds", lambda b: {"box_preds": b["box_preds"][:2]}, ValueError,
     "got 2 levels, wanted 3, as logits have"),
    ("logits[0]", first("logits", level(10).long()), TypeError, "got torch.int64, wanted torch."),
    ("logits[1]", second("logits", level(10, 2, 1).half()), TypeError,
     r"got torch.float16, wanted logits\[0\]'s torch.float64"),
    ("box_preds[1]", second("box_preds", level(8, 2, 1).float()), TypeError,
     r"got torch.float32, wanted box_preds\[0\]'s torch.float64"),
    ("logits[1]", second("logits", level(10, 2, 1, **META)), ValueError,
     r"got device meta, wanted logits\[0\]'s"),
    ("box_preds[0]", lambda b: {"box_preds": [x.to("meta") for x in b["box_preds"]]}, ValueError,
     "got device meta, wanted logits'"),
    ("logits[1]", second("logits", zeros(3, 10, 2, 1).double()), ValueError,
     r"got shape \[3, 10, 2, 1\], wanted 2 images, as logits\[0\] has"),
    ("box_preds[1]", second("box_preds", zeros(3, 8, 2, 1).double()), ValueError,
     r"got shape \[3, 8, 2, 1\], wanted \[2, A \* 4, 2, 1\], as logits\[1\] is \[2, 10, 2, 1\]"),
    ("box_preds[0]", first("box_preds", level(8, 3, 2)), ValueError,
     r"got shape \[2, 8, 3, 2\], wanted \[2, A \* 4, 2, 3\], as logits\[0\] is \[2, 10, 2, 3\]"),
    ("box_preds[0]", first("box_preds", level(8, 6)), ValueError,
     r"got shape \[2, 8, 6\], wanted \[2, A \* 4, 2, 3\]"),
    ("box_preds[0]", first("box_preds", level(6)), ValueError, r"got .* wanted \[2, A \* 4, 2, 3"),
    ("box_preds[0]", first("box_preds", level(0)), ValueError, r"got .* wanted \[2, A \* 4, 2, 3"),
    ("logits[0]", first("logits", level(9)), ValueError,
     r"got shape \[2, 9, 2, 3\], wanted A \* C channels with C >= 1, as box_preds\[0\] has A = 2"),
    ("logits[0]", first("logits", level(0)), ValueError, r"wanted A \* C channels with C >= 1"),
    ("logits[1]", second("logits", level(8, 2, 1)), ValueError,
     r"got shape \[2, 8, 2, 1\], wanted A \* C channels with logits\[0\]'s C = 5, as box_pr"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "message"), LEVELS)
def test_levels_that_do_not_fit_are_named(name, change, error, message):
    batch = dense_batch()
    with pytest.raises(error, match=f"^{name}: ".replace("[", r"\[").replace("]", r"\]")) as found:
        focal().dense(**batch | change(batch))
    assert found.match(message)


def test_cross_entropy_has_at_least_two_columns():
    batch = dense_batch()
    batch["logits"] = [x[:, :2] for x in batch["logits"]]
    assert focal().dense(**batch | {"labels": zeros(2, M).long().to(DEVICE)}).num_positives == 2 * M
    with pytest.raises(
        ValueError, match=r"logits\[0\]: .* channels with C >= 2, as box_preds\[0\]"
    ):
        JointOptimizationLoss(coding="delta").dense(**batch)


WHY = "as the levels have 18 samples an image"
INPUTS = [
    ("labels", zeros(2, M - 1).long(), ValueError,
     rf"got shape \[2, 17\], wanted a tensor of shape \[2, 18\], {WHY}"),
    ("labels", zeros(2 * M).long(), ValueError, rf"got shape \[36\], wanted .* \[2, 18\], {WHY}"),
    ("labels", zeros(2, M), TypeError, "got torch.float32, wanted torch.int8 or torch.uint8 or"),
    ("labels", zeros(2, M).bool(), TypeError, "got torch.bool, wanted torch.int8 or"),
    ("labels", zeros(2, M, **META).long(), ValueError, "got device meta, wanted logits'"),
    ("labels", [zeros(M).long()] * 2, TypeError, "got a list without matched, wanted a tensor"),
    ("labels", None, TypeError, r"got NoneType, wanted a tensor of shape \[2, 18\]"),
    ("target_boxes", ones(2, M), ValueError, r"got shape \[2, 18\], wanted .* \[2, 18, 4\], as t"),
    ("target_boxes", ones(2, M, 4).long(), TypeError, "got torch.int64, wanted torch.float64 or"),
    ("target_boxes", [ones(M, 4)] * 2, TypeError, "got a list without matched, wanted a tensor"),
    ("priors", ones(M - 1, 4), ValueError,
     rf"got shape \[17, 4\], wanted a tensor of shape \[18, 4\] or \[2, 18, 4\], {WHY}"),
    ("priors", ones(1, M, 4), ValueError, r"got shape \[1, 18, 4\], wanted .* or \[2, 18, 4\]"),
    ("priors", ones(M, 4).long(), TypeError, "got torch.int64, wanted torch.float64"),
    ("priors", ones(M, 4, **META), ValueError, "got device meta, wanted logits'"),
    ("priors", None, ValueError, r"got None, wanted a \[18, 4\] tensor for Delta\("),
    ("priors", [ones(M, 4)], ValueError, "got a list of 1, wanted 2, one an image"),
    ("priors", [], ValueError, "got a list of 0, wanted 2, one an image"),
    ("priors", [ones(M, 4), ones(M - 1, 4)], ValueError,
     rf"priors\[1\]: got shape \[17, 4\], wanted a tensor of shape \[18, 4\], {WHY}"),
    ("priors", [ones(M, 4), ones(M, 4).double()], TypeError,
     r"priors\[1\]: got torch.float64, wanted priors\[0\]'s torch.float32"),
    ("matched", zeros(2, M - 1).long(), ValueError,
     rf"got shape \[2, 17\], wanted a tensor of shape \[2, 18\], {WHY}"),
    ("matched", zeros(2, M), TypeError, "got torch.float32, wanted torch.int8 or"),
    ("matched", [zeros(M).long()] * 3, ValueError, "got a list of 3, wanted 2, one an image"),
    ("matched", [zeros(M).long(), zeros(3).long()], ValueError,
     rf"matched\[1\]: got shape \[3\], wanted a tensor of shape \[18\], {WHY}"),
    ("matched", 3, TypeError, "got int, wanted a tensor"),
    ("classification_weights", ones(2, M, 1), ValueError, rf"got .*, wanted .* \[2, 18\], {WHY}"),
    ("regression_weights", ones(M), ValueError, rf"got shape \[18\], wanted .* \[2, 18\], {WHY}"),
    ("class_targets", ones(2, M).long(), TypeError, "got torch.int64, wanted torch.float64 or"),
    ("extra_regression", ones(2, M, **META), ValueError, "got device meta, wanted logits'"),
    ("class_weights", ones(C + 1), ValueError, r"got shape \[6\], wanted a tensor of shape \[5\]$"),
    ("classification_normalizer", "mean", ValueError,
     "got 'mean', wanted one of samples, positives, sum, image"),
    ("regression_normalizer", ones(2), ValueError, r"got shape \[2\], wanted .* shape \[\]"),
    ("regression_normalizer", True, TypeError, "got True, wanted a number, .* sum, image"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "message"), INPUTS)
def test_wrong_inputs_are_named(name, value, error, message):
    with pytest.raises(error, match=rf"^{name}[:\[]") as found:
        focal().dense(**dense_batch() | {name: value})
    assert found.match(message)


OBJECTS = [
    ("labels", [zeros(3).long()], ValueError, "got a list of 1, wanted 2, one an image"),
    ("labels", [zeros(4).long(), zeros(1).long()], ValueError,
     r"labels\[1\]: got shape \[1\], wanted \[0\], as target_boxes\[1\] says"),
    ("labels", [zeros(4).long(), zeros(0).int()], TypeError,
     r"labels\[1\]: got torch.int32, wanted labels\[0\]'s torch.int64"),
    ("labels", [zeros(4), zeros(0)], TypeError, "labels: got torch.float32, wanted torch.int8 or"),
    ("labels", zeros(2, 3).long(), ValueError,
     rf"got shape \[2, 3\], wanted a tensor of shape \[2, 18\] or \[2, 4\], {WHY}, or of the obj"),
    ("target_boxes", ones(2, 4, 4), TypeError, "labels: got a list, wanted a tensor, as target_b"),
    ("target_boxes", [ones(4, 4), ones(0, 5)], ValueError,
     r"target_boxes\[1\]: got shape \[0, 5\], wanted a tensor of shape \[G_i, 4\]"),
    ("target_boxes", [ones(4, 4), ones(0, 4, **META)], ValueError,
     r"target_boxes\[1\]: got device meta, wanted logits'"),
    ("target_boxes", [ones(4, 4).long(), ones(0, 4).long()], TypeError,
     r"target_boxes\[0\]: got torch.int64, wanted torch.float64 or"),
    ("target_boxes", [ones(4, 4), 3], TypeError, r"target_boxes\[1\]: got int, wanted a tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "message"), OBJECTS)
def test_wrong_objects_are_named(name, value, error, message):
    with pytest.raises(error, match=message):
        focal().dense(**dense_batch(matched="objects") | {name: value})


def test_objects_in_one_tensor_with_as_many_labels_as_boxes():
    batch = dense_batch(matched="objects")
    batch |= {"labels": zeros(2, 4).long().to(DEVICE), "target_boxes": ones(2, 3, 4).to(DEVICE)}
    with pytest.raises(ValueError, match=r"labels: got shape \[2, 4\], wanted .* or \[2, 3\], as"):
        focal().dense(**batch)


def test_lists_without_images():
    batch = dense_batch(images=0) | {"matched": zeros(0, M).long().to(DEVICE)}
    with pytest.raises(ValueError, match="target_boxes: got a list of 0, wanted a tensor, as ther"):
        focal().dense(**batch | {"target_boxes": []})


def test_class_targets_are_refused_where_targets_are_labels():
    batch = dense_batch(("cross_entropy", "last"))
    with pytest.raises(ValueError, match=r"class_targets: .* wanted None for CrossEntropy\(\)"):
        JointOptimizationLoss(coding="delta").dense(**batch, class_targets=ones(2, M))


def test_a_misspelt_argument_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'prior'"):
        focal().dense(**dense_batch(), prior=None)


def test_priors_that_no_coding_reads_are_checked_and_dropped():
    criterion = JointOptimizationLoss("focal")
    batch = dense_batch(coding="xyxy")
    fields, _ = make_dense_batch(criterion.settings, **batch)
    assert fields.priors is None
    with pytest.raises(ValueError, match=r"priors: got shape \[17, 4\]"):
        criterion.dense(**batch | {"priors": ones(M - 1, 4)})


def test_the_image_normalizer_is_the_dense_entrances_alone():
    with pytest.raises(ValueError, match="classification_normalizer: got 'image', wanted one of"):
        JointOptimizationLoss()(zeros(1, 2), zeros(1, 4), zeros(1).long(), zeros(1, 4),
                                classification_normalizer="image")  # fmt: skip


# Values: on the CPU an error, else NaN.


def bad_labels(matched):
    """A batch, a change of it that makes a value bad, and what is said of it."""
    batch = dense_batch(matched=matched, images=3, sizes=((2, 2), (1, 1)))
    if matched != "objects":
        at = (batch["labels"] == 5).nonzero()[-1].tolist()
        yield (
            batch,
            "labels",
            at,
            6,
            f"labels: got 6 at image {at[0]}, sample {at[1]}, wanted 0 to 5",
        )
        yield batch, "labels", at, -1, "labels: got -1 at image .* or ignore_index -100"
    if matched == "samples":
        at = (batch["labels"][2] < 5) & (batch["labels"][2] >= 0)
        at = [2, int(at.nonzero()[0])]
        where = f"image 2, sample {at[1]}"
        yield batch, "matched", at, 7, f"matched: got 7 at {where}, wanted 0 to 6, a label of the b"
        yield batch, "matched", at, -1, f"matched: got -1 at {where}, wanted 0 to 6"
        yield batch, "matched", at, 2**40, f"matched: got {2**40} at {where}, wanted 0 to 6"
    if matched == "objects":
        at = [2, int((batch["matched"][2] >= 0).nonzero()[0])]
        where = f"image 2, sample {at[1]}"
        for value in (7, -3, -(2**40)):
            said = rf"matched: got {value} at {where}, wanted 0 to 6, -1 for the background or -2"
            yield batch, "matched", at, value, said
        used = int(batch["matched"][0].max())
        for value in (6, -7):
            said = f"labels: got {value} at image 0, object {used}, wanted 0 to 5 for logits with 5"
            yield batch, "labels", [0, used], value, said


BAD = [(m, i) for m, n in ((None, 2), ("samples", 5), ("objects", 5)) for i in range(n)]


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is not waited for")
@pytest.mark.parametrize(("matched", "i"), sampled(BAD, every=1))
def test_a_value_out_of_range_is_named_on_the_cpu_and_makes_everything_nan(matched, i):
    batch, name, (image, at), value, message = list(bad_labels(matched))[i]
    batch[name][image][at] = value
    with pytest.raises(ValueError, match=message):
        focal().dense(**batch)
    fields, call = make_dense_batch(focal().settings, **batch)
    chosen = dense_ops.implementation(fields, call)
    found = chosen.forward(fields, call)  # as on a GPU
    assert found.classification.isnan() and found.regression.isnan()
    one = ones((), dtype=torch.float64)
    if chosen.__name__.startswith("jolkernels.kernels"):  # in C the backward pass raises
        logits, boxes, _ = chosen.backward(
            fields, call, found.rows, found.scalars, one, one, (True, True, False)
        )
        assert all(g.isnan().all() for g in (*logits, *boxes))


def test_an_index_of_padding_is_out_of_range():
    """Of an image with fewer objects than another."""
    batch = dense_batch(matched="objects", images=3)
    batch["matched"][0, 3] = 5
    with pytest.raises(ValueError, match="labels: got -1 at image 0, object 5, wanted 0 to 5"):
        focal().dense(**batch)
    with pytest.raises(ValueError, match="labels: got -2 at image 0, object 5, wanted 0 to 5"):
        focal(ignore_index=-1).dense(**batch | {"labels": [y.short() for y in batch["labels"]]})
    batch["labels"] = [y.to(torch.uint8) for y in batch["labels"]]
    with pytest.raises(ValueError, match="labels: got -1 at image 0, object 5, wanted 0 to 5"):
        focal().dense(**batch)


def test_a_label_that_no_sample_has_may_be_anything():
    batch = dense_batch(matched="objects")
    batch["matched"][batch["matched"] == 2] = 1
    wanted = focal().dense(**batch).total
    batch["labels"][0][2] = 77
    batch["target_boxes"][0][2] = torch.nan
    assert torch.equal(focal().dense(**batch).total, wanted)


def test_any_ignore_index():
    batch = dense_batch()
    wanted = focal().dense(**batch)
    batch["labels"][batch["labels"] == -100] = 3_000
    got = focal(ignore_index=3_000).dense(**batch)
    assert torch.equal(got.total, wanted.total)


def test_values_are_looked_at_where_that_is_asked_for(monkeypatch):
    """What jolkernels.ops.check_values finds, of samples in order of image and sample."""
    batch = dense_batch(matched="objects", coding="ltrb", inputs=("class_targets",))
    image, at = (batch["matched"] >= 0).nonzero()[0].tolist()
    batch["class_targets"][image, at] = 1.5
    criterion = JointOptimizationLoss("focal", "giou", "ltrb")
    criterion.dense(**batch)
    monkeypatch.setenv("JOLKERNELS_VALIDATE", "1")
    with pytest.raises(ValueError, match=rf"class_targets: got 1.5 at index {image * M + at}, wan"):
        criterion.dense(**batch)
    batch["class_targets"][image, at] = 0.5
    criterion.dense(**batch)
    for x in leaves(batch):
        x.data.fill_(-3.0)
    with pytest.raises(ValueError, match=r"box_preds: got .* wanted no negative size"):
        criterion.dense(**batch)
