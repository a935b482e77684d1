"""Assigners against hand-computed values, torchvision's Matcher and plain loops."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detectors.assigners import (
    ASSIGNERS,
    BACKGROUND,
    IGNORED,
    Level,
    atss,
    make_assigner,
    ranking,
    threshold,
)
from detectors.assigners.similarities import (
    dotd_similarity,
    nwd_similarity,
    rfla_similarity,
    simd_similarity,
)
from jolkernels.integrations import matching

# Centre (20, 10), 8 x 4; centre (26, 18), 12 x 6: dx 6, dy 8, sums 20 and 10, differences 4 and 2.
OBJECT = torch.tensor([[16.0, 8, 24, 12]])
PRIOR = torch.tensor([[20.0, 15, 32, 21]])


def grid(seed: int, objects: int, largest: float = 60) -> tuple[Tensor, Tensor, list[Level]]:
    """Objects, and two anchors a location on levels of strides 8 and 16 over 96 x 96 pixels."""
    random = torch.Generator().manual_seed(seed)
    priors, levels = [], []
    for stride, field in ((8, 45.0), (16, 91.0)):
        at = torch.arange(0, 96, stride).float()
        y, x = torch.meshgrid(at, at, indexing="ij")
        sides = torch.tensor([[2.0 * stride, 1.5 * stride], [1.5 * stride, 2.0 * stride]])
        base = torch.cat([-sides, sides], dim=1) / 2
        level = (torch.stack([x, y, x, y], dim=-1)[:, :, None] + base).reshape(-1, 4)
        priors.append(level)
        levels.append(Level(len(level), 2, field))
    centre = torch.rand(objects, 2, generator=random) * 96
    side = 4 + torch.rand(objects, 2, generator=random) * (largest - 4)
    return torch.cat([centre - side / 2, centre + side / 2], dim=1), torch.cat(priors), levels


def spread(seed: int, objects: int) -> tuple[Tensor, Tensor, list[Level]]:
    """Like grid, with one prior a location and off the grid, so that there are no ties."""
    boxes, priors, levels = grid(seed, objects)
    random = torch.Generator().manual_seed(seed + 99)
    priors = priors[::2] + torch.rand(len(priors) // 2, 1, generator=random)
    return boxes, priors, [Level(level.priors // 2, 1, level.receptive_field) for level in levels]


def test_similarities_by_hand():
    # NWD: 6² + 8² + (4² + 2²) / 4 = 105
    nwd = nwd_similarity(OBJECT, PRIOR, constant=12.7).item()
    assert nwd == pytest.approx(math.exp(-math.sqrt(105) / 12.7))
    # DotD: sqrt(6² + 8²) = 10
    assert dotd_similarity(OBJECT, PRIOR, size=12.5).item() == pytest.approx(math.exp(-0.8))
    # SimD, m 1, n .5: location sqrt((6 / 20)² + (.5 · 8 / 10)²) = .5;
    # shape sqrt((4 / 20)² + (.5 · 2 / 10)²) = sqrt(.05)
    simd = simd_similarity(OBJECT, PRIOR, m=1, n=0.5).item()
    assert simd == pytest.approx(math.exp(-0.5 - math.sqrt(0.05)))
    far = simd_similarity(OBJECT, PRIOR + 1000, m=6.13, n=4.59).item()
    assert far == pytest.approx(1e-6)
    # KL: ½ [(12/8)² + (6/4)² + 4 · 36 / 64 + 4 · 64 / 16 + 2 ln(8/12) + 2 ln(4/6) − 2]
    #   = ½ [2.25 + 2.25 + 2.25 + 16 − 2] + 2 ln(2/3) = 10.375 − .81093 = 9.56407
    assert rfla_similarity(OBJECT, PRIOR).item() == pytest.approx(1 / 10.56407, rel=1e-5)


def test_a_box_is_most_like_itself():
    for similarity, settings in (
        (simd_similarity, {"m": 6.13, "n": 4.59}),
        (nwd_similarity, {"constant": 12.7}),
        (dotd_similarity, {"size": 12.7}),
        (rfla_similarity, {}),
    ):
        assert similarity(OBJECT, OBJECT, **settings).item() == pytest.approx(1)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("high, low", [(0.7, 0.3), (0.5, 0.4)])
def test_iou_is_torchvisions_matcher(high, low, low_quality, monkeypatch):
    reference = Matcher(high, low, allow_low_quality_matches=low_quality)
    setting = 0.0 if low_quality else None
    for seed in range(20):
        boxes, priors, levels = grid(seed, 1 + 3 * seed)
        # the same object twice, an object that is an anchor, one on a corner shared by anchors
        corner = torch.tensor([[16.0, 16, 24, 24]])
        boxes = torch.cat([boxes, boxes[:1], priors[7:8], corner])
        monkeypatch.setattr(matching, "PAIRS", (1 + seed % 4) * len(priors))
        got = threshold.iou(boxes, priors, levels, high=high, low=low, min_low_quality=setting)
        assert torch.equal(got, reference(box_iou(boxes, priors)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("high, low", [(0.7, 0.3), (0.5, 0.4), (0.5, 0.5)])
def test_chunked_is_torchvisions_matcher_bit_for_bit(high, low, low_quality, dtype, monkeypatch):
    """Ties of objects and of priors, near ties, and objects that overlap no prior included."""
    matcher = Matcher(high, low, allow_low_quality_matches=low_quality)
    found = set()
    for seed in range(20):
        boxes, priors, levels = grid(seed, 1 + 3 * seed)
        corner = torch.tensor([[16.0, 16, 24, 24]])  # shared by anchors
        near = boxes[:1] + torch.tensor([0, 0, 0, 1e-6])
        far = torch.tensor([[5000.0, 5000, 5010, 5010]])
        some = [boxes, boxes[:1], near, priors[7:8], corner, *([far] if seed % 2 else [])]
        boxes, priors = torch.cat(some).to(dtype), priors.to(dtype)
        if seed % 3 == 0:  # many ties
            boxes, priors = boxes.round(), priors.round()
        wanted = matcher(box_iou(boxes, priors))
        for pairs in (1, (1 + seed % 4) * len(priors), 1 << 22):
            monkeypatch.setattr(matching, "PAIRS", pairs)
            got = threshold.chunked(matcher)(boxes, priors, levels)
            assert got.dtype == torch.int64 and torch.equal(got, wanted)
        found |= set(wanted.tolist())
    assert found >= {0, BACKGROUND, 20} and (IGNORED in found) == (high > low)
    none = threshold.chunked(matcher)(boxes[:0], priors, levels)
    assert none.tolist() == [BACKGROUND] * len(priors)


@pytest.mark.parametrize("name", ["iou", "nwd", "dotd", "simd"])
def test_an_object_like_no_prior_has_no_best_ones(name):
    """torchvision's Matcher would make all priors tied at 0 positives of their own objects."""
    _, priors, levels = grid(0, 1)
    far = torch.tensor([[5000.0, 5000, 5010, 5010]])
    assign = make_assigner(name, high=0.5, low=0.4, min_low_quality=0.0)
    assert (assign(far, priors, levels) == BACKGROUND).all()
    large = torch.tensor([[0.0, 0, 700, 700]])  # with IoU the largest anchors tie
    assert (assign(large, priors, levels) >= 0).sum() < len(priors) / 4


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nwd-rka", {"k": 1.5}, "setting of assigner nwd-rka: "),
        ("iou", {"high": 0.2}, "setting of assigner iou: low: got 0.3, wanted at most high, 0.2"),
        ("simd", {"m": float("nan")}, "got m=nan, wanted a number > 0"),
        ("nwd", {"constant": 0}, "got constant=0, wanted a number > 0"),
        ("dotd", {"low": float("inf")}, "got low=inf, wanted a number from 0 to 1"),
        ("iou", {"high": 7}, "got high=7, wanted a number from 0 to 1"),
        ("iou", {"high": "a"}, "got high=a, wanted a number from 0 to 1"),
        ("atss", {"k": 0}, "got k=0, wanted a whole number of 1 or more"),
        ("atss", {"k": 9.5}, "got k=9.5, wanted a whole number of 1 or more"),
        ("rfla", {"first": 3.5}, "got first=3.5, wanted a whole number of 1 or more"),
        ("iou", {"high": None}, "got high=None, wanted a number from 0 to 1"),
    ],
)
def test_unusable_settings_are_named_when_the_assigner_is_made(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_assigner(name, **settings)


def test_low_quality_bar():
    boxes, priors, levels = grid(3, 30, largest=12)
    best = box_iou(boxes, priors).amax(dim=1)
    assert ((best > 0.05) & (best < 0.3)).any() and (best >= 0.3).any()
    strict = threshold.iou(boxes, priors, levels, min_low_quality=None)
    barred = threshold.iou(boxes, priors, levels)
    everything = threshold.iou(boxes, priors, levels, min_low_quality=0.0)
    counts = [int((matches >= 0).sum()) for matches in (strict, barred, everything)]
    assert counts[0] < counts[1] < counts[2]
    tied = (box_iou(boxes, priors) == best[:, None]) & (best >= 0.3)[:, None]
    assert torch.equal(barred >= 0, (strict >= 0) | tied.any(dim=0))


@pytest.mark.parametrize(
    "name, similarity",
    [
        ("simd", lambda boxes, priors: simd_similarity(boxes, priors, m=6.13, n=4.59)),
        ("nwd", lambda boxes, priors: nwd_similarity(boxes, priors, constant=12.7)),
        ("dotd", lambda boxes, priors: dotd_similarity(boxes, priors, size=12.7)),
    ],
)
def test_other_similarities_go_through_the_same_matcher(name, similarity):
    boxes, priors, levels = grid(5, 12, largest=30)
    scores = similarity(boxes, priors)
    reference = Matcher(0.7, 0.3, allow_low_quality_matches=True)(scores)
    got = make_assigner(name, min_low_quality=0.0)(boxes, priors, levels)
    assert torch.equal(got, reference)
    strict = make_assigner(name, min_low_quality=None, high=0.5, low=0.2)(boxes, priors, levels)
    assert torch.equal(strict, Matcher(0.5, 0.2)(scores))
    assert len(set(got.tolist()) & {-1, -2}) == 2 and (got >= 0).any()


def ranked_by_loops(
    boxes: Tensor, priors: Tensor, similarity: list[list[float]], k: int
) -> list[int]:
    matches = [-1] * len(priors)
    for g in range(len(boxes)):
        order = sorted(range(len(priors)), key=lambda a: -similarity[g][a])
        for a in order[:k]:
            matches[a] = g
    return matches


@pytest.mark.parametrize("k", [1, 2, 3])
def test_nwd_rka_by_loops(k, monkeypatch):
    boxes, priors, levels = spread(1, 25)
    scores = nwd_similarity(boxes, priors, constant=9.0).tolist()
    wanted = ranked_by_loops(boxes, priors, scores, k)
    for a in range(len(priors)):
        if wanted[a] == -1 and max(scores[g][a] for g in range(len(boxes))) >= 0.3:
            wanted[a] = -2
    monkeypatch.setattr(matching, "PAIRS", 4 * len(priors))
    got = ranking.nwd_rka(boxes, priors, levels, k=k, constant=9.0)
    assert got.tolist() == wanted and {-1, -2} < set(wanted)
    # some objects chose the same prior, otherwise the order of objects would not be tested
    assert sum(match >= 0 for match in wanted) < k * len(boxes)


def test_rfla_by_loops(monkeypatch):
    boxes, priors, levels = spread(2, 25)
    fields = [level.receptive_field / 2 for level in levels for _ in range(level.priors)]

    def score(box: list[float], prior: list[float], side: float) -> float:
        w, h = box[2] - box[0], box[3] - box[1]
        dx = (box[0] + box[2] - prior[0] - prior[2]) / 2
        dy = (box[1] + box[3] - prior[1] - prior[3]) / 2
        kl = side**2 / w**2 + side**2 / h**2 + 4 * dx**2 / w**2 + 4 * dy**2 / h**2
        return 1 / (1 + (kl + math.log(w**2 / side**2) + math.log(h**2 / side**2) - 2) / 2)

    def scores(shrink: float) -> list[list[float]]:
        pairs = [
            (prior, shrink * side) for prior, side in zip(priors.tolist(), fields, strict=True)
        ]
        return [[score(box, *pair) for pair in pairs] for box in boxes.tolist()]

    first = ranked_by_loops(boxes, priors, scores(1.0), 3)
    second = ranked_by_loops(boxes, priors, scores(0.9), 1)
    wanted = [b if a == -1 else a for a, b in zip(first, second, strict=True)]
    assert wanted != first
    best = [max(column) for column in zip(*scores(1.0), strict=True)]
    wanted = [-2 if a == -1 and s >= 0.8 else a for a, s in zip(wanted, best, strict=True)]
    monkeypatch.setattr(matching, "PAIRS", 4 * len(priors))
    assert ranking.rfla(boxes, priors, levels).tolist() == wanted
    lower = [-2 if a == -1 and s >= 0.3 else a for a, s in zip(wanted, best, strict=True)]
    assert lower != wanted and ranking.rfla(boxes, priors, levels, low=0.3).tolist() == lower


@pytest.mark.parametrize("make", [spread, grid])
def test_atss_by_its_definition(make, monkeypatch):
    """One prior a location, and two: then both at a location are candidates, or neither."""
    boxes, priors, levels = make(4, 25)
    boxes = torch.cat([boxes, boxes[:1]])  # an object twice: the first keeps its priors
    overlap = box_iou(boxes, priors)
    wanted, value = [-1] * len(priors), [0.0] * len(priors)
    for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        candidates, begin = [], 0
        for level in levels:
            distances = [
                (math.dist(((x1 + x2) / 2, (y1 + y2) / 2), ((a + c) / 2, (b + d) / 2)), begin + i)
                for i, (a, b, c, d) in enumerate(priors[begin : begin + level.priors].tolist())
            ]
            nearest = sorted(distances)[: 5 * level.per_location]
            candidates += [index for _, index in nearest]
            begin += level.priors
        values = [overlap[g, a].item() for a in candidates]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        for a, v in zip(candidates, values, strict=True):
            x, y = (
                (priors[a, 0] + priors[a, 2]).item() / 2,
                (priors[a, 1] + priors[a, 3]).item() / 2,
            )
            inside = x1 < x < x2 and y1 < y < y2
            if inside and v >= mean + math.sqrt(variance) and v > value[a]:
                wanted[a], value[a] = g, v
    monkeypatch.setattr(matching, "PAIRS", 4 * len(priors))
    assert atss.atss(boxes, priors, levels, k=5).tolist() == wanted
    assert len(set(wanted)) > 15 and len(boxes) - 1 not in wanted


@pytest.mark.parametrize("name", ASSIGNERS)
def test_few_objects(name):
    boxes, priors, levels = grid(0, 1)
    assign = make_assigner(name)
    none = assign(boxes[:0], priors, levels)
    assert none.dtype == torch.int64 and none.tolist() == [-1] * len(priors)
    one = assign(priors[100:101].clone(), priors, levels)
    assert one.dtype == torch.int64 and one.shape == (len(priors),)
    assert set(one.tolist()) <= {-2, -1, 0} and (one == 0).any()
    assert one[0] == -1  # far away
    assert assign(boxes, priors[:0], []).shape == (0,)


@pytest.mark.parametrize("name", ASSIGNERS)
def test_chunks_do_not_change_the_result(name, monkeypatch):
    boxes, priors, levels = grid(6, 1500, largest=20)
    whole = make_assigner(name)(boxes, priors, levels)
    largest = 0
    original = matching.chunks

    def watched(boxes, priors):
        nonlocal largest
        for start, chunk in original(boxes, priors):
            largest = max(largest, len(chunk) * priors)
            yield start, chunk

    for module in (atss, ranking, matching):
        monkeypatch.setattr(module, "chunks", watched)
    monkeypatch.setattr(matching, "PAIRS", 37 * len(priors))
    assert torch.equal(make_assigner(name)(boxes, priors, levels), whole)
    assert largest == 37 * len(priors)
    monkeypatch.setattr(matching, "PAIRS", 1)  # one object at a time, however many priors
    assert torch.equal(make_assigner(name)(boxes, priors, levels), whole)


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match="assigner: got 'giou', wanted one of iou, simd, nwd"):
        make_assigner("giou")
    with pytest.raises(ValueError, match="nwd-rka: got 'high', wanted one of k, constant, low"):
        make_assigner("nwd-rka", high=0.5)
    with pytest.raises(ValueError, match="'levels'"):
        make_assigner("iou", levels=0)


def test_bad_values():
    boxes, priors, levels = grid(0, 3)
    with pytest.raises(ValueError, match=r"low: got 0\.8, wanted at most high, 0\.7"):
        make_assigner("iou", low=0.8)(boxes, priors, levels)
    with pytest.raises(ValueError, match="got k=0, wanted a whole number of 1 or more"):
        make_assigner("nwd-rka", k=0)
    whole = make_assigner("nwd-rka", k=3.0)(boxes, priors, levels)
    assert torch.equal(whole, make_assigner("nwd-rka", k=3)(boxes, priors, levels))
    with pytest.raises(ValueError, match="receptive field"):
        make_assigner("rfla")(boxes, priors, [Level(len(priors))])
    for name in ("rfla", "atss"):
        with pytest.raises(ValueError, match=f"levels: got 5 priors, wanted {len(priors)}"):
            make_assigner(name)(boxes, priors, [Level(5, 1, 45.0)])
