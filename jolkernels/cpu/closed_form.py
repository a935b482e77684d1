"""Losses, scores and decoders with their gradients in closed form, in tensor operations.

    box loss or score   (x [P, 4], target [P, 4], spec) -> value [P], Gradient [P, 4]
    decoder             (codes [P, 4], priors [P, 4], spec) -> boxes [P, 4], Pullback
    classification      (logits [N, C], labels [N], goal [N], spec) -> Rowwise

A Gradient computes the gradient for x when it is called, a Pullback that for the codes from that
for the boxes. Rowwise is a pair of functions: one gives the losses, [N, C] by column or [N], the
other their gradient [N, C]; the backward pass has the losses already and calls the second only.
`goal` is the target of a positive's true class, a constant.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jolkernels import spec
from jolkernels.formulas.boxes import EPS, aspect_angle, center_and_size, off_zero
from jolkernels.formulas.classification import binary_cross_entropy, softplus
from jolkernels.formulas.coding import decode_ltrb as decode_ltrb_boxes
from jolkernels.formulas.regression import LEAST_IOU
from jolkernels.registry import CLOSED_FORM

Gradient = Callable[[], Tensor]
Rowwise = tuple[Callable[[], Tensor], Gradient]
Pullback = Callable[[Tensor], Tensor]


def l1(x: Tensor, target: Tensor, _: spec.L1) -> tuple[Tensor, Gradient]:
    d = x - target
    return d.abs().sum(1), d.sign


def smooth_l1(x: Tensor, target: Tensor, spec: spec.SmoothL1) -> tuple[Tensor, Gradient]:
    loss = F.smooth_l1_loss(x, target, beta=spec.beta, reduction="none").sum(1)
    if spec.beta == 0:
        return loss, (x - target).sign
    return loss, lambda: ((x - target) / spec.beta).clamp(-1, 1)


def l2(x: Tensor, target: Tensor, _: spec.L2) -> tuple[Tensor, Gradient]:
    d = x - target
    return d.square().sum(1), lambda: 2 * d


class Overlap:
    """Intersection, union and hull of boxes x and targets t, [P], and their gradients, [P, 4]."""

    def __init__(self, x: Tensor, t: Tensor) -> None:
        self.x, self.t = x, t
        sides = torch.min(x[:, 2:], t[:, 2:]) - torch.max(x[:, :2], t[:, :2])
        self.sides = torch.where((sides > 0).all(1, keepdim=True), sides, 0)
        self.intersection = self.sides.prod(1)
        self.size = x[:, 2:] - x[:, :2]
        self.union = self.size.prod(1) + (t[:, 2:] - t[:, :2]).prod(1) - self.intersection

    def hull_sides(self) -> Tensor:
        x, t = self.x, self.t
        return torch.max(x[:, 2:], t[:, 2:]) - torch.min(x[:, :2], t[:, :2])

    def inner(self) -> Tensor:
        """1 for each side of x that bounds the intersection, 1/2 at a tie; the hull 1 minus it."""
        d = self.x - self.t
        return torch.cat((d[:, :2], -d[:, 2:]), 1).sign_().add_(1).mul_(0.5)

    def intersection_and_union_grad(self) -> tuple[Tensor, Tensor]:
        inner = self.inner()
        d_intersection = product_grad(self.sides) * inner
        return d_intersection, product_grad(self.size) - d_intersection


def product_grad(sides: Tensor) -> Tensor:
    """Gradient of w * h with respect to x1 y1 x2 y2, for w = x2 - x1 and h = y2 - y1."""
    w, h = sides[:, :1], sides[:, 1:]
    return torch.cat((-h, -w, h, w), 1)


def iou(x: Tensor, target: Tensor) -> tuple[Tensor, Gradient]:
    o = Overlap(x, target)
    empty = o.union <= 0
    union = torch.where(empty, 1, o.union)
    value = torch.where(empty, 0, o.intersection / union)

    def gradient() -> Tensor:
        d_intersection, d_union = o.intersection_and_union_grad()
        g = (d_intersection - value[:, None] * d_union) / union[:, None]
        return torch.where(empty[:, None], 0, g)

    return value, gradient


def iou_score(x: Tensor, target: Tensor, _: spec.IoU) -> tuple[Tensor, Gradient]:
    return iou(x, target)


def iou_loss(x: Tensor, target: Tensor, spec: spec.IoU) -> tuple[Tensor, Gradient]:
    value, gradient = iou(x, target)
    if spec.mode == "linear":
        return 1 - value, lambda: gradient().neg_()
    if spec.mode == "square":
        return 1 - value**2, lambda: gradient() * (-2 * value)[:, None]
    slope = torch.where(value < LEAST_IOU, 0, -1 / value)
    return -value.clamp(min=LEAST_IOU).log(), lambda: gradient() * slope[:, None]


def giou_loss(x: Tensor, target: Tensor, _: spec.GIoU) -> tuple[Tensor, Gradient]:
    o = Overlap(x, target)
    union, hull_sides = o.union + EPS, o.hull_sides()
    hull = hull_sides.prod(1)
    iou, gap = o.intersection / union, (hull - o.union) / (hull + EPS)

    def gradient() -> Tensor:
        d_intersection, d_union = o.intersection_and_union_grad()
        d_hull = product_grad(hull_sides) * (1 - o.inner())
        d_iou = (d_intersection - iou[:, None] * d_union) / union[:, None]
        d_gap = (d_hull - d_union - gap[:, None] * d_hull) / (hull + EPS)[:, None]
        return d_gap - d_iou

    return 1 - iou + gap, gradient


def giou_score(x: Tensor, target: Tensor, spec: spec.GIoU) -> tuple[Tensor, Gradient]:
    loss, gradient = giou_loss(x, target, spec)
    return 1 - loss / 2, lambda: gradient() / -2


class Offsets:
    """Centre offsets d and size differences e of boxes x and targets t, [P, 2]."""

    def __init__(self, x: Tensor, t: Tensor) -> None:
        difference = x - t
        self.d = 0.5 * (difference[:, :2] + difference[:, 2:])
        self.e = difference[:, 2:] - difference[:, :2]
        self.size, self.target_size = x[:, 2:] - x[:, :2], t[:, 2:] - t[:, :2]


def to_corners(by_center: Tensor, by_size: Tensor) -> Tensor:
    """From derivatives for centre and size, [P, 2], to those for x1 y1 x2 y2, [P, 4]."""
    return torch.cat((0.5 * by_center - by_size, 0.5 * by_center + by_size), 1)


def diou_loss(x: Tensor, target: Tensor, _: spec.DIoU) -> tuple[Tensor, Gradient]:
    o, d = Overlap(x, target), Offsets(x, target).d
    union, hull_sides = o.union + EPS, o.hull_sides()
    iou, diagonal = o.intersection / union, hull_sides.square().sum(1) + EPS
    distance = d.square().sum(1) / diagonal

    def gradient() -> Tensor:
        d_intersection, d_union = o.intersection_and_union_grad()
        d_iou = (d_intersection - iou[:, None] * d_union) / union[:, None]
        d_diagonal = 2 * torch.cat((-hull_sides, hull_sides), 1) * (1 - o.inner())
        d_distance = to_corners(2 * d, torch.zeros_like(d)) - distance[:, None] * d_diagonal
        return d_distance / diagonal[:, None] - d_iou

    return 1 - iou + distance, gradient


def ciou_loss(x: Tensor, target: Tensor, _: spec.CIoU) -> tuple[Tensor, Gradient]:
    """The trade-off factor is a constant for the gradient."""
    diou, diou_gradient = diou_loss(x, target, spec.DIoU())
    o = Overlap(x, target)
    angle = aspect_angle(target) - aspect_angle(x)
    aspect = 4 / math.pi**2 * angle**2
    factor = aspect / (1 - o.intersection / (o.union + EPS) + aspect + EPS)

    def gradient() -> Tensor:
        size = off_zero(o.size)
        slope = 8 / math.pi**2 * factor * angle / size.square().sum(1)
        by_size = slope[:, None] * size.flip(1) * size.new_tensor([-1, 1])
        by_size = torch.where(o.size == size, by_size, 0)
        return diou_gradient() + to_corners(torch.zeros_like(by_size), by_size)

    return diou + factor * aspect, gradient


def eiou_loss(x: Tensor, target: Tensor, _: spec.EIoU) -> tuple[Tensor, Gradient]:
    diou, diou_gradient = diou_loss(x, target, spec.DIoU())
    o, e = Overlap(x, target), Offsets(x, target).e
    hull_sides = o.hull_sides()
    squares = hull_sides.square() + EPS
    sides = e.square() / squares

    def gradient() -> Tensor:
        by_hull = torch.cat((-sides * hull_sides, sides * hull_sides), 1) * (1 - o.inner())
        by_size = torch.cat((-e, e), 1)
        return diou_gradient() + 2 * (by_size - by_hull) / squares.repeat(1, 2)

    return diou + sides.sum(1), gradient


def distance_score(squares: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """exp(-sqrt(squares) / scale), [P], and its derivative for half the squares, [P, 1]."""
    distance = squares.sqrt()
    score = torch.exp(-distance / scale)
    return score, torch.where(squares > 0, -score / (scale * distance), 0)[:, None]


def nwd_score(x: Tensor, target: Tensor, spec: spec.NWD) -> tuple[Tensor, Gradient]:
    o = Offsets(x, target)
    squares = o.d.square().sum(1) + o.e.square().sum(1) / 4
    score, slope = distance_score(squares, spec.constant)
    return score, lambda: to_corners(slope * o.d, slope * o.e / 4)


def dotd_score(x: Tensor, target: Tensor, spec: spec.DotD) -> tuple[Tensor, Gradient]:
    o = Offsets(x, target)
    score, slope = distance_score(o.d.square().sum(1), spec.size)
    return score, lambda: to_corners(slope * o.d, torch.zeros_like(o.d))


def simd_score(x: Tensor, target: Tensor, spec: spec.SimD) -> tuple[Tensor, Gradient]:
    o = Offsets(x, target)
    scale = x.new_tensor([spec.m, spec.n])
    per = 1 / (o.size + o.target_size)
    a, c = scale * o.d * per, scale * o.e * per
    location, shape = a.square().sum(1, keepdim=True), c.square().sum(1, keepdim=True)
    unclamped = torch.exp(-(location.sqrt() + shape.sqrt()))

    def gradient() -> Tensor:
        by_a = torch.where(location > 0, a / location.sqrt(), 0) * per
        by_c = torch.where(shape > 0, c / shape.sqrt(), 0) * per
        g = torch.where(unclamped >= 1e-6, -unclamped, 0)
        return g * to_corners(scale * by_a, by_c * (scale - c) - by_a * a)

    return unclamped.clamp(min=1e-6)[:, 0], gradient


def decode_xyxy(codes: Tensor, _: Tensor, __: spec.XYXY) -> tuple[Tensor, Pullback]:
    return codes, lambda g: g


def decode_delta(codes: Tensor, priors: Tensor, spec: spec.Delta) -> tuple[Tensor, Pullback]:
    center, size = center_and_size(priors)
    coder_weights = codes.new_tensor(spec.weights)
    codes = codes / coder_weights
    center = center + codes[:, :2] * size
    clip, low = (None if c is None else codes.new_tensor(c) for c in (spec.clip, spec.low_clip))
    log_size = codes[:, 2:].clamp(low, clip)
    new_size = size * torch.exp(log_size)

    def pullback(g: Tensor) -> Tensor:
        low, high = g[:, :2], g[:, 2:]
        free = log_size == codes[:, 2:]
        d_size = torch.where(free, 0.5 * (high - low) * new_size, 0)
        return torch.cat(((low + high) * size, d_size), 1) / coder_weights

    return torch.cat((center - 0.5 * new_size, center + 0.5 * new_size), 1), pullback


def decode_ltrb(codes: Tensor, priors: Tensor, spec: spec.LTRB) -> tuple[Tensor, Pullback]:
    size = priors[:, 2:] - priors[:, :2]
    scale = torch.cat((-size, size), 1)
    return decode_ltrb_boxes(codes, priors, spec), lambda g: g * scale


# Softmax of ATen is slow on short rows, its log-sum-exp on long ones: measured on x86 with AVX2.
LONG_ROW = 32
CHUNK = 4096  # rows whose log-softmax stays in cache and is never kept


def cross_entropy(logits: Tensor, labels: Tensor, _: Tensor, __: spec.CrossEntropy) -> Rowwise:
    """For labels that are columns."""
    y = labels[:, None]
    z_y = logits.gather(1, y)[:, 0]

    def gradient() -> Tensor:
        if logits.shape[1] < LONG_ROW:
            g = torch.sub(logits, logits.amax(1, keepdim=True)).exp_()
            g /= g.sum(1, keepdim=True)
        else:
            g = logits.softmax(1)
        return g.scatter_add_(1, y, g.new_full((1, 1), -1).expand_as(y))

    def loss() -> Tensor:
        if logits.shape[1] < LONG_ROW:
            top = logits.amax(1)
            # Not the log-sum-exp less z_y, which loses the digits where both are large.
            return (top - z_y) + torch.sub(logits, top[:, None]).exp_().sum(1).log_()
        losses = torch.empty_like(z_y)
        buffer = logits.new_empty(min(CHUNK, len(logits)), logits.shape[1])
        for i in range(0, len(logits), CHUNK):
            rows = slice(i, min(i + CHUNK, len(logits)))
            log_p = torch.log_softmax(logits[rows], 1, out=buffer[: rows.stop - i])
            losses[rows] = -log_p.gather(1, y[rows])[:, 0]
        return losses

    return loss, gradient


def wrong_columns(choice: spec.Classification) -> tuple[float, float, bool]:
    """Of factor p^gamma softplus(z): factor, gamma and whether p^gamma is a constant."""
    match choice:
        case spec.Focal(alpha, gamma):
            return 1 - alpha, gamma, False
        case spec.QualityFocal(beta):
            return 1, beta, False
        case spec.Varifocal(alpha, gamma, detach):
            return alpha, gamma, detach
        case spec.MAL(gamma, detach):
            return 1, gamma, detach
    return 1, 0, True


def with_power(slope: Tensor, gamma: float, ce: Tensor, rest: Tensor) -> Tensor:
    """slope + gamma ce rest, the second from a power's derivative; not 0 times an infinite ce."""
    return slope + gamma * ce * rest if gamma else slope


def wrong_classes(z: Tensor, choice: spec.Classification) -> Rowwise:
    """The losses of logits in columns of wrong classes."""
    factor, gamma, constant = wrong_columns(choice)
    p = z.sigmoid()
    modulation = factor * p**gamma if gamma else factor

    def gradient() -> Tensor:
        if constant or not gamma:
            return modulation * p
        return modulation * (p + gamma * softplus(z) * (-z).sigmoid())

    return lambda: modulation * softplus(z), gradient


def true_classes(z: Tensor, t: Tensor, choice: spec.Classification) -> Rowwise:
    """The losses of logits in columns of true classes, whose targets are t."""
    if isinstance(choice, spec.MAL):
        t = t**choice.gamma
    p, q, ce = z.sigmoid(), (-z).sigmoid(), binary_cross_entropy(z, t)
    slope, modulation = (1 - t) * p - t * q, torch.ones_like(z)
    match choice:
        case spec.Focal(alpha, gamma):
            wrong = t * q + (1 - t) * p  # 1 - p_t
            modulation = (alpha * t + (1 - alpha) * (1 - t)) * wrong**gamma
            rest = torch.where(wrong == 0, 0, (1 - 2 * t) * p * q / wrong)
            slope = with_power(slope, gamma, ce, rest)
        case spec.QualityFocal(beta):
            modulation = slope.abs() ** beta
            rest = torch.where(slope == 0, 0, p * q / slope)  # modulation / slope may overflow
            slope = with_power(slope, beta, ce, rest)
        case spec.Varifocal(alpha, gamma, detach, positives):
            modulation = t
            if positives == "target":
                modulation = torch.where(t > 0, t, alpha * p**gamma)
                if not detach:
                    slope = torch.where(t > 0, slope, with_power(slope, gamma, ce, q))
    return lambda: modulation * ce, lambda: modulation * slope


def sigmoid_loss(logits: Tensor, labels: Tensor, goal: Tensor, choice: Any) -> Rowwise:
    """For labels where C is the background."""
    rows = (labels < logits.shape[1]).nonzero()[:, 0]
    cells = rows, labels[rows]
    wrong = wrong_classes(logits, choice)
    true = true_classes(logits[cells], goal[rows], choice)

    def loss() -> Tensor:
        return wrong[0]().index_put_(cells, true[0]())

    def gradient() -> Tensor:
        return wrong[1]().index_put_(cells, true[1]())

    return loss, gradient


CLOSED_FORM["classification"] |= {
    spec.CrossEntropy: cross_entropy,
    spec.BCE: sigmoid_loss,
    spec.Focal: sigmoid_loss,
    spec.QualityFocal: sigmoid_loss,
    spec.Varifocal: sigmoid_loss,
    spec.MAL: sigmoid_loss,
}
CLOSED_FORM["regression"] |= {
    spec.L1: l1,
    spec.SmoothL1: smooth_l1,
    spec.L2: l2,
    spec.IoU: iou_loss,
    spec.GIoU: giou_loss,
    spec.DIoU: diou_loss,
    spec.CIoU: ciou_loss,
    spec.EIoU: eiou_loss,
}
CLOSED_FORM["location_score"] |= {
    spec.IoU: iou_score,
    spec.GIoU: giou_score,
    spec.NWD: nwd_score,
    spec.SimD: simd_score,
    spec.DotD: dotd_score,
}
CLOSED_FORM["coding"] |= {
    spec.XYXY: decode_xyxy,
    spec.Delta: decode_delta,
    spec.LTRB: decode_ltrb,
}
