"""Random choices, dtypes, layouts and edges, against the plain statement in helpers/plain_loss.py.

Case i of seed s is always the same. A failing case names both: `check(s, i)` repeats it.
"""

import random
import re
import secrets

import pytest
import torch
from cases import DEVICE, ON_KERNELS, in_dtype
from plain_loss import plain_loss

from jolkernels import JointOptimizationLoss, spec

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OF_ROWS = ("classification_weights", "regression_weights", "class_targets", "extra_regression")
FLOATS = ("logits", "box_preds", "target_boxes", "priors", *OF_ROWS)
DIFFERENTIABLE = ("logits", "box_preds", "extra_regression")


def box_loss(r: random.Random, usual: bool):
    """A box loss; the usual ones have passes in C."""
    mode, scale = r.choice(["linear", "log", "square"]), r.choice([0.0, 0.7, 2.0])
    simple = [spec.L1(), spec.SmoothL1(r.choice([0.0, 1 / 9, 2.0])), spec.IoU(mode), spec.GIoU(),
              spec.CIoU(), spec.DIoU(), spec.EIoU(), spec.L2(), spec.SIoU(), spec.ShapeIoU(scale),
              spec.WIoU(), spec.NWD(r.choice([12.7, 3.0]), r.choice([1.0, 1.0, 0.4]))]  # fmt: skip
    if usual:
        return r.choice(simple[:5])
    wrapped = r.choice([spec.IoU(), *simple[3:7], *simple[8:10]])
    low = r.choice([0.0, 0.3])
    around = [spec.Inner(wrapped, r.choice([0.7, 1.3])), spec.Focaler(wrapped, low, 0.9)]
    pair = [(r.random() * 5, r.choice([*simple, *around])) for _ in range(2)]
    return r.choice([*simple, *around, spec.Sum(*pair), spec.Sum(pair[0], None)])


def coding(r: random.Random, in_pixels: bool):
    delta = spec.Delta(
        r.choice([(1, 1, 1, 1), (10, 10, 5, 5), (1, 2, 3, 4)]),
        r.choice([0.3, 4.1]),
        r.choice([None, -0.2, -4.1]),
    )
    cxcywh = spec.CXCYWH((64, 48) if in_pixels else r.choice([None, (64, 48)]))
    return r.choice([spec.XYXY(), delta, spec.LTRB(), cxcywh])


def choices(r: random.Random, usual: bool) -> dict:
    """Arguments of JointOptimizationLoss; the usual ones have passes in C."""

    def draw(*options, common: int):
        return r.choice(options[:common] if usual else options)

    exponent = r.choice([0.0, 1.0, 1.5, 2.0, 2.0, 3.3])
    switches = r.random() < 0.5, r.choice(["target", "label"])
    classification = draw(
        spec.CrossEntropy(), spec.Focal(r.random(), exponent), spec.BCE(), spec.CrossEntropy(),
        spec.QualityFocal(r.choice([1.0, 1.5, 2.0, 2.6])), spec.MAL(exponent, switches[0]),
        spec.Varifocal(r.random(), exponent, *switches), common=3,
    )  # fmt: skip
    regression = box_loss(r, usual)
    score = draw(
        spec.IoU(), spec.IoU(), None, spec.GIoU(), spec.NWD(r.choice([12.7, 3.0])),
        spec.SimD(r.choice([6.13, 1.5])), spec.DotD(r.choice([12.7, 5.0])), common=3,
    )  # fmt: skip
    in_pixels = "NWD" in f"{regression} {score}" or isinstance(score, spec.DotD)
    return {
        "classification": classification,
        "regression": regression,
        "coding": coding(r, in_pixels),
        "location_score": score,
        "class_score": r.choice(["probability", "probability", None]),
        "lam": r.choice([1.0, 1.5, 2.0, 2.0, 3.7]),
        "weighting": r.choice(["joint", "joint", "joint", "none"]),
        "detach_weights": r.random() < 0.2,
        "background": r.choice(["last", "first"]) if classification.softmax else "last",
        "ignore_index": r.choice([-100, -100, 255, -1, 1]),
    }


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


def centered(corners: torch.Tensor, choice: spec.CXCYWH) -> torch.Tensor:
    low, high = corners[..., :2], corners[..., 2:]
    codes = torch.cat(((low + high) / 2, high - low), -1)
    return codes / torch.tensor(choice.scale or (64, 64), dtype=codes.dtype).repeat(2)


def add_groups(r: random.Random, made: dict, unread: torch.Tensor, ignored: torch.Tensor) -> None:
    """Groups of which some may have no rows, and normalisers for each."""
    count = r.choice([1, 2, 3])
    groups = torch.tensor([r.randrange(r.randint(1, count)) for _ in unread], dtype=torch.int64)
    groups[ignored] = r.choice([0, -1, count, 10**12])
    made |= {"groups": laid_out(r, groups.to(DEVICE)), "num_groups": count}
    for name in ("classification_normalizer", "regression_normalizer"):
        if r.random() < 0.4:
            each = torch.tensor([0.5 + g for g in range(count)], dtype=r.choice(DTYPES))
            made[name] = each.to(DEVICE)


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
        spec.CXCYWH: lambda: centered(boxes(g, n, slots), given["coding"]),
    }[type(given["coding"])]()
    targets = boxes(g, n)
    if isinstance(given["coding"], spec.CXCYWH):
        targets = centered(targets, given["coding"])
    weights = torch.rand(4, n, generator=g, dtype=torch.float64) * 2
    weights[2] = (1.4 * weights[2] / 2 - 0.2).clamp(0, 1)  # some of them 0 or 1
    values = (logits(r, g, n, columns), codes.flatten(1), targets, boxes(g, n), *weights)
    made = dict(zip(FLOATS, values, strict=True))
    ignored = y == given["ignore_index"]
    unread = (y == background) | ignored
    for name in ("box_preds", "target_boxes", "priors", "class_targets", "extra_regression"):
        made[name][unread] = torch.nan
    one = r.choice(DTYPES[:2] if usual else DTYPES)
    for name, t in made.items():
        dtype = r.choice(DTYPES) if r.random() < 0.25 and not usual else one
        made[name] = laid_out(r, t.to(DEVICE, dtype))
        expanded = n > 1 and made[name].stride(0) == 0
        if expanded and made[name].isnan().any():  # else positives would get row 0's NaN
            made[name] = made[name].nan_to_num(0.5 if name == "class_targets" else 3.0)
    for name in OF_ROWS:
        if r.random() < 0.5:
            made[name] = None
    if not getattr(given["classification"], "takes_targets", given["classification"].soft):
        made["class_targets"] = None
    if r.random() < 0.3:
        weights = (torch.rand(columns, generator=g, dtype=torch.float64) * 1.4 - 0.2).clamp(min=0)
        made["class_weights"] = laid_out(r, weights.to(DEVICE, r.choice(DTYPES)))
    if not given["coding"].uses_priors and r.random() < 0.5:
        made["priors"] = None
    for name in ("classification_normalizer", "regression_normalizer"):
        tensor = torch.tensor(2.5, device=DEVICE, dtype=r.choice(DTYPES))
        made[name] = r.choice(["samples", "positives", "sum", 3, 0.25, tensor])
    if r.random() < 0.25:
        add_groups(r, made, unread, ignored)
    for name in DIFFERENTIABLE:
        if made[name] is not None:
            made[name] = made[name].detach().requires_grad_()
    return made | {"labels": laid_out(r, y.to(DEVICE))}


def grads(parts, batch, up):
    """Gradients by name; a group's losses count g + 1 times."""
    times = torch.arange(1, parts[0].numel() + 1, device=DEVICE).view(parts[0].shape)
    total = (up[0] * times * parts[0] + up[1] * times * parts[1]).sum()
    inputs = {name: batch[name] for name in DIFFERENTIABLE if batch[name] is not None}
    found = torch.autograd.grad(
        total, list(inputs.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, found, strict=True))


def check(seed: int, i: int) -> None:
    """One case: losses and gradients of this path are those of the plain statement."""
    r = random.Random(f"{seed} {i}")
    usual = r.random() < 0.4
    given = choices(r, usual)
    batch, up = batch_for(r, given, usual), r.choice([(1, 1), (1.3, -0.7), (1, 0), (0, 1), (0, 0)])
    exact = in_dtype(batch, torch.float64)
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

    for k in (0, 1, 2, 4):
        assert got[k].dtype == dtype and got[k].shape == wanted[k].shape, where
        close(got[k], wanted[k].to(dtype), near, near / 100)
    assert torch.equal(got.num_positives.cpu(), torch.as_tensor(wanted[3])), where

    uncounted = batch["labels"] == given["ignore_index"]
    found, expected = grads(got, batch, up), grads(wanted, exact, up)
    for name, a in found.items():
        assert a.dtype == batch[name].dtype and a.shape == batch[name].shape, where
        a, b = (g if g.ndim == 2 else g[:, None] for g in (a, expected[name]))
        limits = torch.finfo(a.dtype)
        # Rows that do not count: exactly 0. Where Focaler or Inner is constant, two terms cancel.
        none = uncounted if re.search("Focaler|Inner", f"{given}") else (b == 0).all(1)
        assert (a[none] == 0).all(), where
        # Within a row by its largest number; what cancels, p - 1 for one, by that of all rows or 1.
        size = b.abs().amax(1, keepdim=True)
        largest = size.max() if len(b) else 0
        allowed = max(near, 2 * limits.eps) * size + near / 50 * largest
        fits = b.abs() < 0.9 * limits.max
        off = (a.double() - b).abs() - allowed - max(limits.smallest_normal, near / 200)
        assert (off[fits] <= 0).all(), f"{where}\n{name}:\n{a}\nwanted\n{b}"


def test_a_sample_of_everything():
    for i in range(8 if ON_KERNELS else 50):
        check(0, i)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, "fresh"])
def test_everything(seed, capsys):
    if seed == "fresh":
        seed = secrets.randbits(32)
        with capsys.disabled():
            print(f"\ntests/loss/test_fuzz.py: fresh seed {seed}")
    for i in range(120 if ON_KERNELS else 1000):
        check(seed, i)
