"""Random choices, dtypes, layouts and edges, against the plain statement in helpers/plain_loss.py.

Case i of seed s is always the same. A failing case names both: `check(s, i)` repeats it.
"""

import random
import secrets

import pytest
import torch
from cases import DEVICE, INTERPRETED
from plain_loss import plain_loss

from jolkernels import JointOptimizationLoss, spec

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FLOATS = ("logits", "box_preds", "target_boxes", "priors", "classification_weights",
          "regression_weights")  # fmt: skip


def choices(r: random.Random, usual: bool) -> dict:
    """Arguments of JointOptimizationLoss; the usual ones have passes in C."""

    def draw(*options, common: int):
        return r.choice(options[:common] if usual else options)

    exponent = r.choice([0.0, 1.0, 1.5, 2.0, 2.0, 3.3])
    classification = draw(
        spec.CrossEntropy(), spec.Focal(r.random(), exponent), spec.CrossEntropy(), spec.BCE(),
        spec.QualityFocal(r.choice([1.0, 1.5, 2.0, 2.6])), spec.Varifocal(r.random(), exponent),
        common=3,
    )  # fmt: skip
    delta = spec.Delta(r.choice([(1, 1, 1, 1), (10, 10, 5, 5), (1, 2, 3, 4)]), r.choice([0.3, 4.1]))
    return {
        "classification": classification,
        "regression": draw(
            spec.L1(), spec.SmoothL1(r.choice([0.0, 1 / 9, 2.0])), spec.IoU(), spec.GIoU(),
            spec.L2(), spec.DIoU(), spec.CIoU(), spec.EIoU(), common=4,
        ),
        "coding": r.choice([spec.XYXY(), delta, spec.LTRB()]),
        "location_score": draw(
            spec.IoU(), spec.IoU(), None, spec.GIoU(), spec.NWD(r.choice([12.7, 3.0])),
            spec.SimD(r.choice([6.13, 1.5])), spec.DotD(r.choice([12.7, 5.0])), common=3,
        ),
        "class_score": r.choice(["probability", "probability", None]),
        "lam": r.choice([1.0, 1.5, 2.0, 2.0, 3.7]),
        "weighting": r.choice(["joint", "joint", "joint", "none"]),
        "detach_weights": r.random() < 0.2,
        "background": r.choice(["last", "first"]) if classification.softmax else "last",
        "ignore_index": r.choice([-100, -100, 255, -1, 1]),
    }  # fmt: skip


def labels(r: random.Random, n: int, classes: int, background: int, ignore: int) -> torch.Tensor:
    """Of positives, negatives and ignored rows, in shares that include none and all."""
    first = 1 if background == 0 else 0
    kind = r.choice(["mixed", "mixed", "mixed", "negative", "positive", "ignored"])
    drawn = {
        "mixed": lambda: r.choice([background, ignore, r.randrange(classes) + first] * 2),
        "negative": lambda: r.choice([background, background, ignore]),
        "positive": lambda: r.randrange(classes) + first,
        "ignored": lambda: ignore,
    }[kind]
    return torch.tensor([drawn() for _ in range(n)], dtype=torch.int64)


def boxes(g: torch.Generator, *shape: int) -> torch.Tensor:
    """Of 1 to 17 pixels within 40, some of them without extent or with a negative one."""
    low = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 24
    size = 1 + torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 16
    draw = torch.rand(*shape, 2, generator=g, dtype=torch.float64)
    size = torch.where(draw < 0.04, 0, torch.where(draw > 0.96, -size, size))
    return torch.cat((low, low + size), -1)


def logits(r: random.Random, g: torch.Generator, n: int, columns: int) -> torch.Tensor:
    """Of ordinary size, or some of them as large as float16 takes."""
    z = 2 * torch.randn(n, columns, generator=g, dtype=torch.float64)
    scale = r.choice([1, 1, 1, 0.0, 40, 5000])
    return torch.where(torch.rand(n, 1, generator=g) < 0.5, z * scale, z)


def laid_out(r: random.Random, t: torch.Tensor) -> torch.Tensor:
    """The same numbers in another layout, or one row for all."""
    n = len(t)
    match r.choice(["contiguous", "contiguous", "transposed", "sliced", "offset", "expanded"]):
        case "transposed" if t.ndim == 2:
            return t.t().contiguous().t()
        case "sliced":
            wide = t.new_full((2 * n, *(2 * w for w in t.shape[1:])), 7)
            view = wide[::2, : t.shape[1]] if t.ndim == 2 else wide[::2]
            return view.copy_(t)
        case "offset":
            flat = t.new_full((t.numel() + 3,), 7)
            return flat[3:].view(t.shape).copy_(t)
        case "expanded" if n and t.is_floating_point():
            return t[:1].clone().expand(t.shape)
    return t


def batch_for(r: random.Random, given: dict, usual: bool) -> dict:
    """Arguments of a call; rows that no loss may read hold NaN in their own layout's way."""
    g = torch.Generator().manual_seed(r.getrandbits(40))
    softmax = given["classification"].softmax
    classes = r.choice([1, 2, 3, 5, 5, 9, 40])
    n = r.choice([0, 1, 2, 5, 7, 9])
    if r.random() < 0.01:  # more than a tile, a program or a chunk takes at a time
        n, classes = r.choice([(70, 5), (60, 40), (4100, 1), (1, 2100)])
    columns = classes + 1 if softmax else classes
    background = 0 if given["background"] == "first" else classes
    slots = r.choice([1, 1, columns] + ([classes] if softmax and background else []))
    y = labels(r, n, classes, background, given["ignore_index"])
    noise = torch.randn(n, slots, 4, generator=g, dtype=torch.float64)
    codes = {
        spec.XYXY: lambda: boxes(g, n, slots),
        spec.Delta: lambda: 0.4 * noise * torch.tensor(given["coding"].weights),
        spec.LTRB: lambda: 0.1 + 0.5 * noise.abs() - (noise[..., :1] > 1.6) * 2.0,
    }[type(given["coding"])]()
    weights = torch.rand(2, n, generator=g, dtype=torch.float64) * 2
    values = (logits(r, g, n, columns), codes.flatten(1), boxes(g, n), boxes(g, n), *weights)
    made = dict(zip(FLOATS, values, strict=True))
    unread = (y == background) | (y == given["ignore_index"])
    for name in ("box_preds", "target_boxes", "priors"):
        made[name][unread] = torch.nan
    one = r.choice(DTYPES[:2] if usual else DTYPES)
    for name, t in made.items():
        dtype = r.choice(DTYPES) if r.random() < 0.25 and not usual else one
        made[name] = laid_out(r, t.to(DEVICE, dtype))
        expanded = n > 1 and made[name].stride(0) == 0
        if expanded and made[name].isnan().any():  # else positives would get row 0's NaN
            made[name] = made[name].nan_to_num(3.0)
    for name in ("classification_weights", "regression_weights"):
        if r.random() < 0.4:
            made[name] = None
    if not given["coding"].uses_priors and r.random() < 0.5:
        made["priors"] = None
    for name in ("classification_normalizer", "regression_normalizer"):
        tensor = torch.tensor(2.5, device=DEVICE, dtype=r.choice(DTYPES))
        made[name] = r.choice(["samples", "positives", "sum", 3, 0.25, tensor])
    for name in ("logits", "box_preds"):
        made[name] = made[name].detach().requires_grad_()
    return made | {"labels": laid_out(r, y.to(DEVICE))}


def grads(parts, batch, up):
    total = up[0] * parts[0] + up[1] * parts[1]
    inputs = batch["logits"], batch["box_preds"]
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def check(seed: int, i: int) -> None:
    """One case: losses and gradients of this path are those of the plain statement."""
    r = random.Random(f"{seed} {i}")
    usual = r.random() < 0.4
    given = choices(r, usual)
    batch, up = batch_for(r, given, usual), r.choice([(1, 1), (1.3, -0.7), (1, 0), (0, 1), (0, 0)])
    exact = {
        k: v.detach().double().requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor) and v.is_floating_point()
        else v
        for k, v in batch.items()
    }
    described = {k: (v.dtype, v.stride()) if isinstance(v, torch.Tensor) else v
                 for k, v in batch.items()}  # fmt: skip
    where = f"check({seed}, {i}): {given} {described} {batch['labels'].tolist()} {up}"

    criterion = JointOptimizationLoss(**given)
    got, wanted = criterion(**batch), plain_loss(criterion.settings, exact)
    double = torch.float64 in (batch["logits"].dtype, batch["box_preds"].dtype)
    dtype, near = (torch.float64, 1e-9) if double else (torch.float32, 2e-4)

    def close(a, b, rtol, atol):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=rtol, atol=atol, msg=lambda m: f"{where}\n{m}"
        )

    for a, b in zip(got[:3], wanted[:3], strict=True):
        assert a.dtype == dtype, where
        close(a, b.to(dtype), near, near / 100)
    assert got.num_positives == wanted[3], where

    pairs = zip(grads(got, batch, up), grads(wanted, exact, up), strict=True)
    for name, (a, b) in zip(("logits", "box_preds"), pairs, strict=True):
        assert a.dtype == batch[name].dtype and a.shape == batch[name].shape, where
        limits = torch.finfo(a.dtype)
        assert (a[(b == 0).all(1)] == 0).all(), where  # rows that do not count: exactly 0
        # Within a row by its largest number; what cancels, p - 1 for one, by that of all rows or 1.
        size = b.abs().amax(1, keepdim=True)
        largest = size.max() if len(b) else 0
        allowed = max(near, 2 * limits.eps) * size + near / 50 * largest
        fits = b.abs() < 0.9 * limits.max
        off = (a.double() - b).abs() - allowed - max(limits.smallest_normal, near / 200)
        assert (off[fits] <= 0).all(), f"{where}\n{name}:\n{a}\nwanted\n{b}"


def test_a_sample_of_everything():
    for i in range(8 if INTERPRETED else 50):
        check(0, i)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, "fresh"])
def test_everything(seed, capsys):
    if seed == "fresh":
        seed = secrets.randbits(32)
        with capsys.disabled():
            print(f"\ntests/loss/test_fuzz.py: fresh seed {seed}")
    for i in range(120 if INTERPRETED else 1000):
        check(seed, i)
