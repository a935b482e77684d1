"""Device functions of the classification losses.

A sigmoid loss is one function of a tile of logits:

    f(z, is_true, goal, PARAMS) -> loss, dloss/dz        of z's shape

where is_true marks the column of a positive's true class and goal, [rows, 1], is what that column
shall become, a constant: class_targets where these are given, else the IoU of the row's box for the
soft losses, else None, which stands for 1.

Softmax couples the columns of a row, so cross entropy is built into the kernels: a row's loss is
lse - z_y, by the online log-sum-exp below, and its gradient p - delta.
"""

import triton
import triton.language as tl

from jolkernels import spec
from jolkernels.registry import KERNEL


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], good to a few ulp also where 1 + x rounds."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, its tail exact."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def binary_cross_entropy(z, target):
    """-t log p - (1 - t) log(1 - p) and its derivative, tails exact; 0 times infinity is 0."""
    tail = log1p(tl.exp(-tl.abs(z)))
    high = tl.where(target == 0, 0.0, target * (tl.maximum(-z, 0.0) + tail))
    low = tl.where(target == 1, 0.0, (1.0 - target) * (tl.maximum(z, 0.0) + tail))
    return high + low, (1.0 - target) * sigmoid(z) - target * sigmoid(-z)


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """x^EXPONENT for x >= 0, and 0^EXPONENT = 0 for EXPONENT > 0."""
    if EXPONENT == 2.0:
        y = x * x
    elif EXPONENT == 1.0:
        y = x
    elif EXPONENT == 0.0:
        y = x * 0.0 + 1.0
    else:
        y = tl.where(x == 0.0, 0.0, tl.exp(EXPONENT * tl.log(tl.where(x == 0.0, 1.0, x))))
    return y


@triton.jit
def with_power(slope, ce, rest, EXPONENT: tl.constexpr):
    """slope + EXPONENT ce rest, which a power's derivative adds; not 0 times an infinite ce."""
    if EXPONENT != 0.0:
        slope = slope + EXPONENT * ce * rest
    return slope


@triton.jit
def bce_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """Binary cross entropy with logits."""
    if goal is None:
        u = tl.where(is_true, -z, z)
        p = sigmoid(u)
        loss, d = softplus(u), tl.where(is_true, -p, p)
    else:
        loss, d = binary_cross_entropy(z, tl.where(is_true, goal, 0.0))
    return loss, d


@triton.jit
def focal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """torchvision.ops.sigmoid_focal_loss of single columns; PARAMS = alpha, gamma.

    Without a goal, with u = -z in the true column and z elsewhere: alpha_t sigmoid(u)^gamma
    softplus(u). With one, alpha_t wrong^gamma BCE(p, t), wrong = t (1 - p) + (1 - t) p.
    """
    ALPHA: tl.constexpr = PARAMS[0]
    GAMMA: tl.constexpr = PARAMS[1]
    if goal is None:
        u = tl.where(is_true, -z, z)
        p = sigmoid(u)
        ce = softplus(u)
        if GAMMA == 2.0 or GAMMA == 1.0 or GAMMA == 0.0:
            modulated = power(p, GAMMA)
        else:
            modulated = tl.exp(-GAMMA * softplus(-u))  # sigmoid(u)^gamma, by its logarithm
        modulated = tl.where(is_true, modulated * ALPHA, modulated * (1.0 - ALPHA))
        d = modulated * with_power(p, ce, sigmoid(-u), GAMMA)
        d = tl.where(is_true, -d, d)
    else:
        t = tl.where(is_true, goal, 0.0)
        ce, by_z = binary_cross_entropy(z, t)
        p, q = sigmoid(z), sigmoid(-z)
        wrong = t * q + (1.0 - t) * p
        modulated = (ALPHA * t + (1.0 - ALPHA) * (1.0 - t)) * power(wrong, GAMMA)
        slope = tl.where(wrong == 0.0, 0.0, (1.0 - 2.0 * t) * p * q / wrong)
        d = modulated * with_power(by_z, ce, slope, GAMMA)
    return modulated * ce, d


@triton.jit
def quality_focal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """|y - sigma|^beta BCE(sigma, y) with y = goal in the true column, else 0; PARAMS = beta."""
    BETA: tl.constexpr = PARAMS[0]
    y = tl.where(is_true, goal, 0.0)
    p = sigmoid(z)
    ce, by_z = binary_cross_entropy(z, y)
    d = tl.abs(p - y)  # at p = y the modulation has no slope
    modulation = power(d, BETA)
    # Not modulation / d, which may overflow.
    per = tl.where(d == 0.0, 0.0, p * sigmoid(-z) / tl.where(d == 0.0, 1.0, p - y))
    return modulation * ce, modulation * with_power(by_z, ce, per, BETA)


@triton.jit
def varifocal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """q BCE(p, q) in a positive's true column, q = goal, else alpha p^gamma BCE(p, 0).

    PARAMS = alpha, gamma, detach, positives: detach makes p^gamma a constant, and with positives
    "target" the true column counts as such only where q > 0.
    """
    ALPHA: tl.constexpr = PARAMS[0]
    GAMMA: tl.constexpr = PARAMS[1]
    q = tl.where(is_true, goal, 0.0)
    p = sigmoid(z)
    ce, by_z = binary_cross_entropy(z, q)
    negative = ALPHA * power(p, GAMMA)
    d = by_z if PARAMS[2] else with_power(by_z, ce, sigmoid(-z), GAMMA)
    positive = is_true if PARAMS[3] == "label" else q > 0
    return tl.where(positive, q * ce, negative * ce), tl.where(positive, q * by_z, negative * d)


@triton.jit
def mal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """BCE(p, goal^gamma) in the true column, else p^gamma BCE(p, 0).

    PARAMS = gamma, detach: detach makes p^gamma a constant.
    """
    GAMMA: tl.constexpr = PARAMS[0]
    ce, by_z = binary_cross_entropy(z, tl.where(is_true, power(goal, GAMMA), 0.0))
    if not PARAMS[1]:
        by_z = tl.where(is_true, by_z, with_power(by_z, ce, sigmoid(-z), GAMMA))
    factor = tl.where(is_true, 1.0, power(sigmoid(z), GAMMA))
    return factor * ce, factor * by_z


@triton.jit
def online_logsumexp(highest, total, z):
    """Add a tile of logits [rows, columns] to each row's running maximum and sum of exp."""
    new = tl.maximum(highest, tl.max(z, 1))
    shift = tl.where(new == -float("inf"), 0.0, new)  # all -inf so far: no NaN yet
    total = total * tl.exp(highest - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
    return new, total


KERNEL["classification"] |= {
    spec.CrossEntropy: None,  # built into the kernels
    spec.BCE: bce_loss,
    spec.Focal: focal_loss,
    spec.QualityFocal: quality_focal_loss,
    spec.Varifocal: varifocal_loss,
    spec.MAL: mal_loss,
}
