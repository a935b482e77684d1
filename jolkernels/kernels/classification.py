"""Device functions of the classification losses.

A sigmoid loss is one function of a tile of logits:

    f(z, is_true, quality, PARAMS) -> loss, dloss/dz        of z's shape

where is_true marks the column of a positive's true class and quality is the IoU of its box, [rows,
1], a constant that two of the losses take as the target of that column.

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
def focal_loss(z, is_true, quality, PARAMS: tl.constexpr):
    """torchvision.ops.sigmoid_focal_loss of single columns; PARAMS = alpha, gamma.

    With u = -z in the true column and z elsewhere: alpha_t sigmoid(u)^gamma softplus(u).
    """
    ALPHA: tl.constexpr = PARAMS[0]
    GAMMA: tl.constexpr = PARAMS[1]
    u = tl.where(is_true, -z, z)
    p = sigmoid(u)
    ce = softplus(u)
    if GAMMA == 2.0:
        modulated = p * p
    else:
        modulated = tl.exp(-GAMMA * softplus(-u))  # sigmoid(u)^gamma, by its logarithm
    modulated = tl.where(is_true, modulated * ALPHA, modulated * (1.0 - ALPHA))
    d = modulated * (p + GAMMA * ce * sigmoid(-u))
    return modulated * ce, tl.where(is_true, -d, d)


@triton.jit
def bce_loss(z, is_true, quality, PARAMS: tl.constexpr):
    """Binary cross entropy with logits."""
    u = tl.where(is_true, -z, z)
    p = sigmoid(u)
    return softplus(u), tl.where(is_true, -p, p)


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
def quality_focal_loss(z, is_true, quality, PARAMS: tl.constexpr):
    """|y - sigma|^beta BCE(sigma, y) with y = quality in the true column, else 0; PARAMS = beta."""
    BETA: tl.constexpr = PARAMS[0]
    y = tl.where(is_true, quality, 0.0)
    p = sigmoid(z)
    ce = softplus(z) - y * z
    # p - y without cancellation in the other columns; at p = y the modulation has no slope
    d = tl.abs(p - y)
    modulation = power(d, BETA)
    slope = tl.where(d == 0.0, 0.0, BETA * modulation / tl.where(d == 0.0, 1.0, p - y))
    return modulation * ce, modulation * (p - y) + slope * ce * p * sigmoid(-z)


@triton.jit
def varifocal_loss(z, is_true, quality, PARAMS: tl.constexpr):
    """q BCE(p, q) in a true column of quality q > 0, else alpha p^gamma BCE(p, 0).

    PARAMS = alpha, gamma.
    """
    ALPHA: tl.constexpr = PARAMS[0]
    GAMMA: tl.constexpr = PARAMS[1]
    q = tl.where(is_true, quality, 0.0)
    p = sigmoid(z)
    ce = softplus(z)
    negative = ALPHA * power(p, GAMMA)
    loss = tl.where(q > 0, q * (ce - q * z), negative * ce)
    return loss, tl.where(q > 0, q * (p - q), negative * (p + GAMMA * ce * sigmoid(-z)))


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
}
