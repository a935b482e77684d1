"""How often the kernels of the dense entrance are compiled: not for other sizes."""

import pytest
import torch
from cases import INTERPRETED
from dense import dense_batch, leaves

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.fake_gpu import fake_gpu
from jolkernels import JointOptimizationLoss

KERNELS = "dense_rows_kernel", "dense_gradients_kernel"
CRITERION = JointOptimizationLoss("focal", "giou", "delta")
SHAPES = [  # images, sizes of levels, most a multiple of 16 bytes, anchors
    (1, ((1, 1), (8, 8), (1, 5)), 1),
    (2, ((4, 4), (2, 8), (1, 1)), 16),
    (16, ((3, 5), (4, 8), (2, 1)), 2),
    (3, ((0, 4), (16, 16), (1, 1)), (1, 3, 16)),
    (1, ((40, 40), (0, 0), (3, 4)), 9),
]


def batches(layout: str, dtype: torch.dtype = torch.float32, shapes=SHAPES, **given):
    for images, sizes, anchors in shapes:
        batch = dense_batch(
            images=images, sizes=sizes, anchors=anchors, layouts=layout, dtype=dtype,
            **{"matched": "objects"} | given,
        )  # fmt: skip
        yield batch | {"classification_normalizer": "image", "regression_normalizer": "image"}


def compiled(batches) -> tuple[int, ...]:
    """How often each kernel is for these batches, in turn."""
    with fake_gpu() as seen:
        for batch in batches:
            loss = CRITERION.dense(**batch)
            torch.autograd.grad(loss.total, leaves(batch))
    return tuple(seen.compiled[name] for name in KERNELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("matched", [None, "samples", "objects"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes_change_without_recompiling(layout, matched, dtype) -> None:
    """Images, positions, anchors and objects, also of 0, 1 and multiples of 16."""
    shapes = SHAPES if layout == "nchw" else SHAPES[1:]  # levels of one position are in planes
    assert compiled(batches(layout, dtype, shapes, matched=matched)) == (1, 1)


def aligned(batch: dict) -> bool:
    return all(x.data_ptr() % 16 == 0 for x in leaves(batch))


@pytest.mark.parametrize("layout", ["images", "images of channels_last", "every second"])
def test_strides_change_without_recompiling(layout) -> None:
    """Of levels with gaps that begin at a multiple of 16 bytes, or all do not."""
    shapes = [(images + 1, ((4, 4), *sizes[1:]), a) for images, sizes, a in SHAPES]
    made = list(batches(layout, shapes=shapes))
    assert compiled(made) <= (4, 4)
    assert compiled(batch for batch in made if aligned(batch)) <= (1, 1)


def test_what_makes_another_kernel() -> None:
    """As docs/kernels.md has it: format, gaps, alignment, dtype, what is read at once."""
    (one,) = batches("nchw", shapes=SHAPES[1:2])
    levels = one["logits"]

    def other(levels) -> dict:
        return one | {"logits": [x.detach().requires_grad_() for x in levels]}

    off = [torch.zeros(x.numel() + 1)[1:].view(x.shape) for x in levels]
    last = torch.channels_last
    rows = {
        k: [x.detach().contiguous(memory_format=last).requires_grad_() for x in one[k]]
        for k in ("logits", "box_preds")
    }
    (odd,) = batches("nchw", shapes=[(2, ((4, 5), (2, 9), (1, 2)), 16)])
    (half,) = batches("nchw", torch.bfloat16, shapes=SHAPES[1:2])
    changed = {
        "format": one | rows, "alignment": other(off), "read at once": odd, "dtype": half,
        "integers": one | {"matched": one["matched"].int()},
    }  # fmt: skip
    found = {name: compiled([one, batch]) for name, batch in changed.items()}
    assert found == dict.fromkeys(changed, (2, 2))
    assert compiled([one, other(levels)]) == (1, 1)
