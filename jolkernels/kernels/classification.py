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
from triton.language.target_info import current_target
from triton.runtime.jit import constexpr_function

from jolkernels import spec
from jolkernels.registry import KERNEL


@constexpr_function
def speaks_ptx():
    """Whether this is being compiled for an NVIDIA GPU."""
    target = current_target()
    return not triton.knobs.runtime.interpret and target is not None and target.backend == "cuda"


@triton.jit
def exp(x):
    """e^x; in float32 on NVIDIA GPUs by one instruction, which makes subnormal results 0."""
    if x.dtype == tl.float32 and speaks_ptx():
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * 1.4426950408889634], tl.float32, True, 1
        )
    else:
        y = tl.exp(x)
    return y


@triton.jit
def reciprocal(d):
    """1 / d for 1 <= d <= 2; in float32 on NVIDIA GPUs by one instruction, to 1 ulp."""
    if d.dtype == tl.float32 and speaks_ptx():
        r = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], tl.float32, True, 1
        )
    else:
        r = 1.0 / d
    return r


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1; in float32 by a polynomial, off by 2.3 ulp at most."""
    if x.dtype == tl.float32:
        q = 0.00523269 * x - 0.02950524
        q = (0.07822597 + x * q) * x - 0.13663248
        q = (0.19106008 + x * q) * x - 0.24842983
        q = (0.33319097 + x * q) * x - 0.49999493
        y = x * (0.99999997 + x * q)
    else:
        u = 1.0 + x
        y = tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
    return y


@triton.jit
def logistic(z):
    """sigmoid(z), sigmoid(-z) and log(1 + exp(-|z|)), without overflow, by one exponential."""
    e = exp(-tl.abs(z))
    large = reciprocal(1.0 + e)
    small = e * large
    up = z >= 0
    return tl.where(up, large, small), tl.where(up, small, large), log1p(e)


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)) without overflow."""
    p, _q, _tail = logistic(z)
    return p


@triton.jit
def binary_cross_entropy(z, target, tail):
    """-t log p - (1 - t) log(1 - p), tails exact; 0 times infinity is 0."""
    high = tl.where(target == 0, 0.0, target * (tl.maximum(-z, 0.0) + tail))
    low = tl.where(target == 1, 0.0, (1.0 - target) * (tl.maximum(z, 0.0) + tail))
    return high + low


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
        p, _q, tail = logistic(u)
        loss, d = tl.maximum(u, 0.0) + tail, tl.where(is_true, -p, p)
    else:
        t = tl.where(is_true, goal, 0.0)
        p, q, tail = logistic(z)
        loss, d = binary_cross_entropy(z, t, tail), (1.0 - t) * p - t * q
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
        p, q, tail = logistic(u)
        ce = tl.maximum(u, 0.0) + tail
        if GAMMA == 2.0 or GAMMA == 1.0 or GAMMA == 0.0:
            modulated = power(p, GAMMA)
        else:  # sigmoid(u)^gamma, by its logarithm
            modulated = exp(-GAMMA * (tl.maximum(-u, 0.0) + tail))
        modulated = tl.where(is_true, modulated * ALPHA, modulated * (1.0 - ALPHA))
        d = modulated * with_power(p, ce, q, GAMMA)
        d = tl.where(is_true, -d, d)
    else:
        t = tl.where(is_true, goal, 0.0)
        p, q, tail = logistic(z)
        ce, by_z = binary_cross_entropy(z, t, tail), (1.0 - t) * p - t * q
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
    p, q, tail = logistic(z)
    ce, by_z = binary_cross_entropy(z, y, tail), (1.0 - y) * p - y * q
    d = tl.abs(p - y)  # at p = y the modulation has no slope
    modulation = power(d, BETA)
    # Not modulation / d, which may overflow.
    per = tl.where(d == 0.0, 0.0, p * q / tl.where(d == 0.0, 1.0, p - y))
    return modulation * ce, modulation * with_power(by_z, ce, per, BETA)


@triton.jit
def varifocal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """q BCE(p, q) in a positive's true column, q = goal, else alpha p^gamma BCE(p, 0).

    PARAMS = alpha, gamma, detach, positives: detach makes p^gamma a constant, and with positives
    "target" the true column counts as such only where q > 0.
    """
    ALPHA: tl.constexpr = PARAMS[0]
    GAMMA: tl.constexpr = PARAMS[1]
    t = tl.where(is_true, goal, 0.0)
    p, q, tail = logistic(z)
    ce, by_z = binary_cross_entropy(z, t, tail), (1.0 - t) * p - t * q
    negative = ALPHA * power(p, GAMMA)
    d = by_z if PARAMS[2] else with_power(by_z, ce, q, GAMMA)
    positive = is_true if PARAMS[3] == "label" else t > 0
    return tl.where(positive, t * ce, negative * ce), tl.where(positive, t * by_z, negative * d)


@triton.jit
def mal_loss(z, is_true, goal, PARAMS: tl.constexpr):
    """BCE(p, goal^gamma) in the true column, else p^gamma BCE(p, 0).

    PARAMS = gamma, detach: detach makes p^gamma a constant.
    """
    GAMMA: tl.constexpr = PARAMS[0]
    t = tl.where(is_true, power(goal, GAMMA), 0.0)
    p, q, tail = logistic(z)
    ce, by_z = binary_cross_entropy(z, t, tail), (1.0 - t) * p - t * q
    if not PARAMS[1]:
        by_z = tl.where(is_true, by_z, with_power(by_z, ce, q, GAMMA))
    factor = tl.where(is_true, 1.0, power(p, GAMMA))
    return factor * ce, factor * by_z


KERNEL["classification"] |= {
    spec.CrossEntropy: None,  # built into the kernels
    spec.BCE: bce_loss,
    spec.Focal: focal_loss,
    spec.QualityFocal: quality_focal_loss,
    spec.Varifocal: varifocal_loss,
    spec.MAL: mal_loss,
}
