"""What both row kernels compute of a sample: its kind, its box's loss and score, its weight.

`boxes`, `targets` and `priors` are tuples: pointers to the first of four numbers of each row, and
the stride of these.
"""

import triton
import triton.language as tl

from jolkernels.kernels.boxes import added, iou, scaled


@triton.jit
def row_kinds(
    labels, stride_label, groups, stride_group, num_groups, rows, inside, ignore,
    BACKGROUND: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """valid, positive, bad, and label y and group of rows, safe as indices: 0 where not valid."""
    label = tl.load(labels + rows * stride_label)
    counted = inside & (label != ignore)
    bad = counted & ((label < 0) | (label > LAST))
    group = label * 0
    if groups is not None:
        group = tl.load(groups + rows * stride_group)
        bad |= counted & ((group < 0) | (group >= num_groups))
    valid = counted & (bad == 0)
    group = tl.where(valid, group, 0)
    y = tl.where(valid, label, 0).to(tl.int32)
    return valid, valid & (label != BACKGROUND), bad, y, group


@triton.jit
def load_factors(pointer, stride, rows, mask, ACC: tl.constexpr):
    """Extra weights of rows; 1 if there are none."""
    if pointer is None:
        factors = mask.to(ACC)
    else:
        factors = tl.load(pointer + rows * stride, mask=mask, other=0.0).to(ACC)
    return factors


@triton.jit
def goals(class_targets, stride, rows, positive, quality, SOFT: tl.constexpr, ACC: tl.constexpr):
    """The goals [rows, 1] that CLASSIFY takes; None: 1."""
    goal = None
    if class_targets is not None:
        goal = load_factors(class_targets, stride, rows, positive, ACC)[:, None]
    elif SOFT:
        goal = quality[:, None]
    return goal


@triton.jit
def load_four(table, mask, TOGETHER: tl.constexpr, ACC: tl.constexpr):
    """Four numbers of some rows; TOGETHER, where they lie side by side, in one access."""
    p, stride = table
    if TOGETHER:
        cols = tl.arange(0, 4)[None, :]
        x = tl.load(p[:, None] + cols, mask=mask[:, None], other=0.0).to(ACC)
        even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
    else:
        x0 = tl.load(p, mask=mask, other=0.0).to(ACC)
        p += stride  # step by step: 3 * stride could leave 32 bits
        x1 = tl.load(p, mask=mask, other=0.0).to(ACC)
        p += stride
        x2 = tl.load(p, mask=mask, other=0.0).to(ACC)
        p += stride
        x3 = tl.load(p, mask=mask, other=0.0).to(ACC)
    return x0, x1, x2, x3


@triton.jit
def has_no_extent(x):
    return (x[2] <= x[0]) | (x[3] <= x[1])


@triton.jit
def zero_where(mask, d):
    d0, d1 = tl.where(mask, 0.0, d[0]), tl.where(mask, 0.0, d[1])
    return d0, d1, tl.where(mask, 0.0, d[2]), tl.where(mask, 0.0, d[3])


@triton.jit
def box_loss(
    b, c, x, t, p, REGRESS: tl.constexpr, PARAMS: tl.constexpr, FACTOR: tl.constexpr,
    ON_CODES: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
):  # fmt: skip
    """FACTOR times a box loss and its derivatives for the codes.

    Of codes b against those of the target c or, not ON_CODES, of boxes x against targets t.
    """
    if ON_CODES:
        r, d = REGRESS(b, c, PARAMS)
    else:
        r, g = REGRESS(x, t, PARAMS)
        d = PULL(g, b, p, CODING_PARAMS)
    return FACTOR * r, scaled(FACTOR, d)


@triton.jit
def box_terms(boxes, targets, priors, positive, BOX: tl.constexpr, SOFT: tl.constexpr,
              TOGETHER: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Box loss r and location score v of positive rows, with their derivatives for the codes.

    Returns r, dr, v, dv and, if SOFT, the IoU (else 0). The compiler drops what the caller does not
    use. Reads boxes, targets and priors of positive rows only. TOGETHER: of boxes, of the others.
    """
    REGRESS: tl.constexpr = BOX[0]
    PARAMS: tl.constexpr = BOX[1]
    FACTORS: tl.constexpr = BOX[2]
    ON_CODES: tl.constexpr = BOX[3]
    SCORE: tl.constexpr = BOX[4]
    SCORE_PARAMS: tl.constexpr = BOX[5]
    DECODE: tl.constexpr = BOX[6]
    ENCODE: tl.constexpr = BOX[7]
    PULL: tl.constexpr = BOX[8]
    CODING_PARAMS: tl.constexpr = BOX[9]
    CODED_TARGETS: tl.constexpr = BOX[10]
    b = load_four(boxes, positive, TOGETHER[0], ACC)
    c = load_four(targets, positive, TOGETHER[1], ACC)
    p = c
    if priors[0] is not None:
        p = load_four(priors, positive, TOGETHER[1], ACC)
    t = c
    if CODED_TARGETS:
        t = DECODE(c, p, CODING_PARAMS)
    dead = has_no_extent(t)
    if priors[0] is not None:
        dead |= has_no_extent(p)
    x = DECODE(b, p, CODING_PARAMS)
    dead |= has_no_extent(x)
    if ENCODE is not None:
        c = ENCODE(t, p, CODING_PARAMS)

    r, dr = box_loss(
        b, c, x, t, p, REGRESS[0], PARAMS[0], FACTORS[0], ON_CODES[0], PULL, CODING_PARAMS
    )
    for i in tl.static_range(1, len(FACTORS)):
        more, d = box_loss(
            b, c, x, t, p, REGRESS[i], PARAMS[i], FACTORS[i], ON_CODES[i], PULL, CODING_PARAMS
        )
        r, dr = r + more, added(dr, d)

    zero = tl.zeros_like(r)
    if SCORE is None:
        v, dv = zero + 1.0, (zero, zero, zero, zero)
    else:
        v, g = SCORE(x, t, SCORE_PARAMS)
        v = tl.where(dead, 0.0, v)
        dv = PULL(zero_where(dead, g), b, p, CODING_PARAMS)
    quality = zero
    if SOFT:
        overlap, _d = iou(x, t, 0.0)
        quality = tl.where(dead, 0.0, overlap)
    return r, dr, v, dv, quality


@triton.jit
def weight(s, v, LAM: tl.constexpr, JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr):
    """w_pos of Eq. 3, or 1."""
    if not JOINT:
        w = tl.zeros_like(v) + 1.0
    elif CLASS_SCORE:
        w = LAM - s * v
    else:
        w = LAM - v
    return w
