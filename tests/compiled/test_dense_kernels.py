"""The dense entrance on compiled kernels: values and gradients are those of the equations."""

import pytest
import torch
from cases import INTERPRETED
from dense import dense_batch, gradients, laid_out, leaves
from exact import assert_exact_dense
from inputs import FURTHER

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import compiled_kernels, in_all_orders
from jolkernels import JointOptimizationLoss
from jolkernels.dense import make_dense_batch
from jolkernels.kernels import dense_launch, dense_layout
from jolkernels.kernels.arguments import tiles
from jolkernels.kernels.finish import TEAM

pytestmark = pytest.mark.compiled

FOCAL, ENTROPY = ("focal", "last"), ("cross_entropy", "first")
SIZES = (12, 11), (1, 31), (0, 3), (1, 1)
"""Tiles in planes of 32 positions, which 16 bytes at once can be read of or not; none and one."""
EDGES = (4, 8), (3, 11), (1, 31), (8, 5)
"""A whole tile in planes, a position more, one fewer, and two tiles."""
FORMATS = pytest.mark.parametrize("layout", ["nchw", "channels_last"])
IMAGE = {"classification_normalizer": "image", "regression_normalizer": "image"}


def loss_of(head=FOCAL, **choices) -> JointOptimizationLoss:
    return JointOptimizationLoss(
        **{"classification": head[0], "background": head[1], "coding": "delta"} | choices
    )


def batch_of(head=FOCAL, **given) -> dict:
    """Labels of objects, and 20 columns: blocks of 8, the last not whole."""
    made = {"sizes": SIZES, "classes": 20, "dtype": torch.float32, "matched": "objects"}
    return dense_batch(head, **made | given)


def slowly(cases: list, quick: int) -> list:
    """All of them, those after the first few slow."""
    return [*cases[:quick], *(pytest.param(*c, marks=pytest.mark.slow) for c in cases[quick:])]


@FORMATS
@pytest.mark.parametrize(("images", "anchors"), [(1, 3), (2, 2), (3, (9, 1, 2, 1))])
@pytest.mark.parametrize("programs", [4096, 6])
def test_sizes_of_images_and_levels(layout, images, anchors, programs, monkeypatch) -> None:
    """A tile a program, and several."""
    monkeypatch.setattr(dense_launch, "PROGRAMS", programs)
    batch = batch_of(images=images, anchors=anchors, layouts=layout) | IMAGE
    assert_exact_dense(loss_of(), batch)


TILES = [  # dtype, classes; kind, rows and positions read at once
    (torch.float32, 16, "planes", 32, 4),
    (torch.bfloat16, 20, "long planes", 32, 8),
    (torch.float32, 59, "long planes", 32, 4),
    (torch.float64, 41, "long planes", 16, 1),
    (torch.float64, 9, "planes", 16, 1),
    (torch.bfloat16, 48, "long planes", 32, 8),
    (torch.float32, 170, "long planes", 32, 4),
]


@pytest.mark.parametrize(("dtype", "classes", "kind", "rows", "vector"), slowly(TILES, 3))
def test_edges_of_tiles(dtype, classes, kind, rows, vector, monkeypatch) -> None:
    """With a few tiles a program."""
    monkeypatch.setattr(dense_launch, "PROGRAMS", 6)
    batch = batch_of(images=2, sizes=EDGES, dtype=dtype, classes=classes) | IMAGE
    given, _ = make_dense_batch(loss_of().settings, **batch)
    tiles_of = dense_layout.layout_of(given, softmax=False).tiles
    assert [tiles_of[x] for x in ("KIND", "ROWS", "VECTOR")] == [kind, rows, vector]
    assert_exact_dense(loss_of(), batch)


POSITIVES = {"none": [], "ends": [0, 131], "edges": [31, 64], "last": [130], "each": range(132)}


@FORMATS
@pytest.mark.parametrize("where", POSITIVES)
def test_positives_in_some_tiles(layout, where) -> None:
    """Of one anchor of the first level; the other anchor has none."""
    batch = batch_of(images=1, layouts=layout) | IMAGE
    batch["box_preds"] = [x.detach().nan_to_num(0.1).requires_grad_() for x in batch["box_preds"]]
    batch["matched"][:] = -1
    for p in POSITIVES[where]:
        batch["matched"][0, 2 * p + 1] = p % 4
    assert loss_of().dense(**batch).num_positives == len(POSITIVES[where])
    assert_exact_dense(loss_of(), batch)


MIXED = "nchw", "channels_last", "channels", "channels of channels_last"
HALF = torch.bfloat16
CHOICES = [  # head, layouts, matched, normalizers, dtype, classes
    (ENTROPY, "channels", None, ("samples", "samples"), torch.float64, 20),
    (("quality_focal", "last"), MIXED[::-1], "samples", ("positives", "image"), torch.float32, 8),
    (FOCAL, "channels_last", "objects", ("positives", "sum"), torch.float32, 300),
    (ENTROPY, "channels_last", "samples", ("image", "samples"), torch.float32, 300),
    (ENTROPY, "nchw", "objects", ("image", 3.5), HALF, 80),
    (("cross_entropy", "last"), "channels_last", "samples", ("positives", "sum"), HALF, 8),
    (FOCAL, "nchw", "objects", ("image", "image"), torch.float32, 300),
    (FOCAL, "nchw", None, ("samples", "positives"), HALF, 80),
    (FOCAL, "channels_last", "samples", (2.5, "image"), HALF, 8),
    (("quality_focal", "last"), "nchw", "objects", ("image", "image"), torch.float64, 40),
    (("varifocal", "last"), "channels of channels_last", "objects", ("sum", "samples"), HALF, 80),
    (("cross_entropy", "last"), "channels", "samples", ("image", "samples"), torch.float32, 300),
    (("bce", "last"), MIXED, "objects", ("positives", "image"), torch.float32, 9),
    (("bce", "last"), "channels of channels_last", "samples", ("image", "positives"),
     torch.float64, 9),
    (FOCAL, "BCP", "objects", ("image", "image"), torch.float32, 80),
    (ENTROPY, "BPC", "samples", ("samples", "samples"), torch.float32, 8),
    (("mal", "last"), "positions", "samples", ("positives", "positives"), torch.float16, 1),
    (FOCAL, "every second of channels_last", "objects", ("image", "samples"), torch.float32, 1),
    (FOCAL, "channels of channels_last", "objects", ("samples", "samples"), torch.float32, 300),
    (ENTROPY, "channels of channels_last", "samples", ("image", "samples"), torch.float32, 301),
]  # fmt: skip


def chosen(head, layouts, matched, normalizers, dtype, classes, more=False) -> dict:
    """The batch of one of CHOICES, with all further inputs or without weights."""
    softmax = head[0] == "cross_entropy"
    batch = batch_of(
        head, layouts=layouts, matched=matched, dtype=dtype, classes=classes - softmax, images=3,
        inputs=(FURTHER[1:3] if softmax else FURTHER[:3]) if more else (),
    )  # fmt: skip
    for part, normalizer in zip(("classification", "regression"), normalizers, strict=True):
        batch[f"{part}_normalizer"] = normalizer
        if not more:
            del batch[f"{part}_weights"]
    return batch


WITH_ALL = [(CHOICES[0], True), (CHOICES[1], True), (CHOICES[2], False)]
OTHERS = [(c, more) for more in (False, True) for c in CHOICES if (c, more) not in WITH_ALL]


@pytest.mark.parametrize(("choice", "more"), slowly([*WITH_ALL, *OTHERS], 2))
def test_choices(choice, more) -> None:
    """What no loss may read is NaN."""
    assert_exact_dense(loss_of(choice[0], regression="5*l1+2*giou"), chosen(*choice, more))


@pytest.mark.parametrize("value", [-1, 7, 2**40, -(2**40)])
def test_a_positive_without_an_object_makes_everything_nan(value, monkeypatch) -> None:
    monkeypatch.setattr("jolkernels.ops.math.isnan", lambda x: False)
    batch = chosen(*CHOICES[1], more=True)
    labels = batch["labels"]
    i, j = ((labels >= 0) & (labels < 8)).nonzero()[-1]
    batch["matched"][i, j] = value
    loss = loss_of(CHOICES[1][0], regression="5*l1+2*giou").dense(**batch)
    assert loss.classification.isnan() and loss.regression.isnan()
    assert all(g.isnan().all() for g in gradients(loss, batch))


INTEGERS = [("objects", torch.int8), ("samples", torch.int32), ("objects", torch.int32)]


@pytest.mark.parametrize(("matched", "dtype"), slowly(INTEGERS, 1))
def test_integers(matched, dtype) -> None:
    batch = batch_of(images=3, matched=matched) | IMAGE
    labels = batch["labels"]
    batch["matched"] = batch["matched"].to(dtype)
    batch["labels"] = labels.to(dtype) if matched == "samples" else [x.to(dtype) for x in labels]
    assert_exact_dense(loss_of(), batch)


@FORMATS
@pytest.mark.parametrize(
    ("what", "value"),
    [(what, x) for what in ("label", "matched") for x in (21, -3, 2**31, 2**40, -(2**40))],
)
def test_what_is_out_of_range_makes_everything_nan(layout, what, value, monkeypatch) -> None:
    """And reads nothing by it; on the CPU, where looking costs nothing, it would be an error."""
    monkeypatch.setattr("jolkernels.ops.math.isnan", lambda x: False)
    batch = batch_of(images=3, layouts=layout) | IMAGE
    if what == "label":
        used = batch["matched"][2].max()
        batch["labels"][2][used] = value
    else:
        batch["matched"][2, 7] = value
    loss = loss_of().dense(**batch)
    assert loss.classification.isnan() and loss.regression.isnan()
    assert all(g.isnan().all() for g in gradients(loss, batch))


@pytest.mark.parametrize("layout", ["nchw", pytest.param("channels_last", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["box_preds", pytest.param("logits", marks=pytest.mark.slow)])
def test_gradients_of_one_kind_alone(layout, name) -> None:
    batch = batch_of(images=3, layouts=layout) | IMAGE
    loss, count = loss_of().dense(**batch), len(SIZES)
    wanted = gradients(loss, batch)[count:] if name == "box_preds" else gradients(loss, batch)
    other = "logits" if name == "box_preds" else "box_preds"
    alone = batch | {other: [x.detach() for x in batch[other]]}
    loss = loss_of().dense(**alone)
    found = torch.autograd.grad(1.3 * loss[0] + 0.7 * loss[1], alone[name])
    for x, y in zip(found, wanted, strict=False):  # other kernels, whose sums round otherwise
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_planes_that_begin_anywhere() -> None:
    """Of each column, or of each image; the levels themselves begin at multiples of 16 bytes."""
    batch = batch_of(images=3, sizes=((12, 11), (10, 12), (0, 3), (1, 1))) | IMAGE
    columns, images, *others = (x.detach().flatten(2) for x in batch["logits"])
    columns = torch.nn.functional.pad(columns, (0, 1), value=torch.nan)[:, :, :-1]
    images = torch.nn.functional.pad(images.flatten(1), (0, 1), value=torch.nan)
    images = images[:, :-1].unflatten(1, (-1, 120))
    batch["logits"] = [x.requires_grad_() for x in (columns, images, *others)]
    batch["box_preds"] = [x.detach().flatten(2).requires_grad_() for x in batch["box_preds"]]
    assert_exact_dense(loss_of(), batch)


@pytest.mark.parametrize("layout", ["nchw", pytest.param("channels_last", marks=pytest.mark.slow)])
def test_inputs_with_gaps(layout) -> None:
    """Those of samples, and boxes that must be copied to be read."""
    batch = batch_of(images=3, layouts=layout) | IMAGE
    for name in ("matched", "priors", "classification_weights"):
        batch[name] = torch.stack((batch[name], -batch[name]), -1)[..., 0]
    boxes = [laid_out(x.detach(), "every second") for x in batch["box_preds"]]
    batch["box_preds"] = [x.requires_grad_() for x in boxes]
    assert_exact_dense(loss_of(), batch)


@FORMATS
def test_priors_of_each_image_and_objects_to_ignore(layout) -> None:
    batch = batch_of(images=3, layouts=layout) | IMAGE
    batch["priors"] = [batch["priors"] + i for i in range(3)]
    batch["labels"][2][batch["matched"][2].max()] = -100
    assert_exact_dense(loss_of(), batch)


@FORMATS
def test_ignored_logits_are_not_read(layout) -> None:
    """Nor ignored boxes, which are NaN in all batches."""
    batch = batch_of(images=3, layouts=layout) | IMAGE
    batch["logits"] = [
        torch.full_like(x, bad, requires_grad=True)
        for x, bad in zip(batch["logits"], [torch.nan, torch.inf, 0.0, -torch.inf], strict=True)
    ]
    batch["matched"][:] = -2
    loss = loss_of().dense(**batch)
    assert loss.total == 0 and loss.num_positives == 0 and loss.negative_weight == 1
    assert all((g == 0).all() for g in gradients(loss, batch))


def test_an_image_has_full_teams_of_programs() -> None:
    """Or fewer than one, and all images together no more than PROGRAMS."""
    for images in range(1, 200):
        count = dense_launch.programs_of_image(10**6, images)
        assert count <= TEAM.value or count % TEAM.value == 0
        assert count * images <= dense_launch.PROGRAMS
    assert dense_launch.programs_of_image(3, 2) == 3


ONE_BY_ONE = {"order": "reverse", "parts": 400}
ORDERS = {"order": "forward", "parts": 1}, {"order": 1, "parts": 7}, ONE_BY_ONE


@pytest.mark.parametrize(
    ("layout", "normalizer", "images", "rows"),
    slowly(
        [
            ("nchw", "image", 2, 66),  # tiles of an image in planes: two teams, one of them small
            ("channels_last", "image", 2, 150),  # two teams of as many programs, one tile or two
            ("nchw", "samples", 3, 66),  # teams of more than one image
            ("channels_last", "image", 70, 2),
            ("nchw", "image", 1, 150),
        ],
        1,
    ),
)
def test_no_order_of_the_programs_changes_a_bit(
    layout, normalizer, images, rows, monkeypatch
) -> None:
    """With teams of programs; counters are zeros again each time."""
    monkeypatch.setattr(dense_launch, "PROGRAMS", 2 * images * 2 * TEAM.value)
    planes = dense_layout.tiles_in_planes(20, 4, 4)
    tile = (planes if layout == "nchw" else tiles(20, softmax=False))["ROWS"]
    sizes = (rows - 2, tile), (1, tile - 1), (0, 3), (1, 1)
    batch = batch_of(sizes=sizes, anchors=1, layouts=layout, images=images) | IMAGE
    batch |= dict.fromkeys(IMAGE, normalizer)
    per_image = min(rows, 2 * TEAM.value)

    def compute(**options):
        with compiled_kernels(**options) as ran:
            loss = loss_of().dense(**batch)
            found = *(x.detach() for x in loss), *torch.autograd.grad(loss.total, leaves(batch))
        assert ran[0].programs == images * per_image
        return found, None

    in_all_orders(compute, ORDERS)
    assert_exact_dense(loss_of(), batch)
