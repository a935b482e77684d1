"""The dense entrance in C on half precision: bfloat16 where it lies, float16 by float32 copies."""

import pytest
import torch
from cases import HEADS, ON_KERNELS
from levels_in_c import ALL, IMAGE, LAYOUTS, SIZES, Made, dense_case, make, passes
from torch import Tensor

from jolkernels.cpu import dense_rows, native

pytestmark = pytest.mark.skipif(
    ON_KERNELS or native.library() is None, reason="not built, or turned off"
)


def bits(x):
    """What tells -0 from 0 and infinity from the largest number, but no NaN from another."""
    if not x.is_floating_point():
        return x
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.masked_fill(x.isnan(), torch.nan).view(integers[x.itemsize])


def in_float32(given, layout, boxes_layout=None):
    """The same numbers, those of bfloat16 in levels that lie alike."""
    wide = {
        n: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
        for n, x in given.items()
    }
    for name, where in (("logits", layout), ("box_preds", boxes_layout or layout)):
        lie = LAYOUTS[where] if given[name][0].dtype is torch.bfloat16 else Tensor.float
        wide[name] = [lie(x.float()) for x in given[name]]
    return wide


def check_rounded(given, layout, boxes_layout=None, *args, **settings):
    """Values are those of the same numbers in float32, and gradients those rounded, to the bit."""
    batch, call = make(given, *args, **settings)
    result, found = passes(batch, call)
    wide, call = make(in_float32(given, layout, boxes_layout), *args, **settings)
    wanted, gradients = passes(wide, call)
    for a, b in zip(result, wanted, strict=True):
        assert a.dtype is b.dtype and torch.equal(bits(a), bits(b))
    for mine, exact, like in zip(found[:2], gradients[:2], batch[:2], strict=True):
        for a, b, x in zip(mine, exact, like, strict=True):
            assert a.dtype is x.dtype and a.stride() == torch.empty_like(x).stride()
            assert torch.equal(bits(a), bits(b.to(x.dtype)))
    if (extra := batch.extra_regression) is not None:
        assert torch.equal(bits(found[2]), bits(gradients[2].to(extra.dtype)))
    return result, gradients


HALVES = torch.float16, torch.bfloat16


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(dtype, layout, head):
    """Of all tensors, or of the levels alone."""
    sizes = SIZES[:2] if layout == "turned" else SIZES
    given = dense_case(head, layout=layout, dtype=dtype, inputs=ALL, sizes=sizes)
    settings = {"normalizers": IMAGE, "regression": "giou"}
    check_rounded(given, layout, None, head, **settings)
    given |= {n: given[n].float() for n in ("target_boxes", "priors", *ALL)}
    result, _ = check_rounded(given, layout, None, head, **settings)
    assert result.classification.isfinite() and result.num_positives


@pytest.mark.parametrize("columns", [1, 80, 1300, 2500])
@pytest.mark.parametrize("anchors", [1, 9])
@pytest.mark.parametrize("layout", ["planes", "rows", "some channels of rows"])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_columns_and_anchors_in_bfloat16(name, layout, anchors, columns):
    if (name, columns) == ("cross_entropy", 1):
        pytest.skip("cross entropy has two columns at least")
    given = dense_case(
        (name, "last"), layout=layout, anchors=anchors, columns=columns, dtype=torch.bfloat16,
        sizes=SIZES if columns < 100 else SIZES[0::2],
    )  # fmt: skip
    check_rounded(given, layout, None, (name, "last"))


@pytest.mark.parametrize("boxes_layout", ["rows", "some channels", "every second channel"])
@pytest.mark.parametrize("layout", ["planes", "rows", "some channels of rows"])
@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in (torch.float32, *HALVES) for b in (torch.float32, *HALVES)], ids=str
)
def test_logits_and_boxes_of_dtypes_of_their_own(dtypes, layout, boxes_layout):
    given = dense_case(layout=layout, boxes_layout=boxes_layout, dtype=torch.float32, inputs=ALL)
    for name, dtype, where in zip(
        ("logits", "box_preds"), dtypes, (layout, boxes_layout), strict=True
    ):
        given[name] = [LAYOUTS[where](x.to(dtype)) for x in given[name]]
    check_rounded(given, layout, boxes_layout)


@pytest.mark.parametrize("layout", ["planes", "rows", "some channels", "some channels of rows"])
@pytest.mark.parametrize("name", ["bce", "focal", "cross_entropy"])
def test_every_bfloat16(name, layout):
    """As a logit, and every second one as a code: NaN, infinities, -0 and subnormal numbers too."""
    given = dense_case((name, "last"), images=1, sizes=((64, 64),), dtype=torch.bfloat16)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    g = torch.Generator().manual_seed(0)
    for name_of_levels in ("logits", "box_preds"):
        level = given[name_of_levels][0]
        some = every[torch.randperm(len(every), generator=g)[: level.numel()]]
        given[name_of_levels] = [LAYOUTS[layout](some.view(level.shape))]
    settings = {"weighting": "none", "regression": "l2"}  # a NaN stays in its row
    _, (logits, boxes, _) = check_rounded(given, layout, None, (name, "last"), **settings)
    for gradient in (logits[0], boxes[0]):
        assert gradient.isnan().any() and gradient.isfinite().sum() > len(every) / 8


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_rounding_to_bfloat16(layout):
    """As PyTorch does: ties to even, the largest numbers to infinity, NaN to NaN.

    A logit of 200 has a derivative of 1, so that the weights are the gradients.
    """
    given = dense_case(
        ("bce", "last"), anchors=1, columns=3, images=1, sizes=((512, 768),), dtype=torch.float32
    )
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    weights = (upper[:, None] * 2**16 + lower).view(torch.float32).reshape(1, -1)
    given |= {
        "logits": [LAYOUTS[layout](torch.full((1, 3, 512, 768), 200.0, dtype=torch.bfloat16))],
        "labels": torch.full_like(given["labels"], 3),
        "classification_weights": weights,
    }
    normalizers = dict.fromkeys(IMAGE, "sum")
    batch, call = make(given, ("bce", "last"), normalizers=normalizers, weighting="none")
    result, one = dense_rows.forward(batch, call), torch.ones(())
    (logits,), _, _ = dense_rows.backward(
        batch, call, result.rows, result.scalars, one, one, (True, False, False)
    )
    wanted = weights.bfloat16().view(1, 1, 512, 768)
    assert (wanted.isinf().view(-1) & weights.isfinite().view(-1)).any()
    assert torch.equal(bits(logits), bits(wanted.expand_as(logits)))


@pytest.mark.parametrize("layout", ["planes", "rows", "some channels", "some rows of a map"])
def test_bfloat16_is_not_copied(layout):
    """Only gradients, and what is kept of each sample, have the size of levels or samples."""
    given = dense_case(layout=layout, dtype=torch.bfloat16, inputs=ALL, sizes=((40, 30),))
    given |= {n: given[n].float() for n in ("target_boxes", "priors", *ALL)}
    batch, call = make(given)
    with Made() as made:
        _, (logits, boxes, extra) = passes(batch, call)
    large = {x.data_ptr(): (x.dtype, x.shape) for x in made.tensors if x.numel() >= batch.samples}
    wanted = [(x.dtype, x.shape) for x in (logits[0], boxes[0], extra)]
    wanted.append((torch.float32, (1, 2 * batch.samples)))
    assert sorted(large.values(), key=str) == sorted(wanted, key=str)


def test_no_memory_for_a_run_of_bfloat16():
    """2^45 columns, all of them one number."""
    given = dense_case(dtype=torch.bfloat16, anchors=1, images=1, sizes=((1, 1),))
    given["logits"] = [torch.zeros((), dtype=torch.bfloat16).expand(1, 2**45, 1, 1)]
    with pytest.raises(MemoryError, match="no memory for a run of levels in bfloat16"):
        dense_rows.forward(*make(given))
