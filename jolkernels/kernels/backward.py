"""The backward kernel: one read of the logits, one write of their gradient.

With upstream gradients g_c, g_r, and for a positive row i its losses a_i, r_i, scores s_i, v_i,
extra weights alpha_i, beta_i and weight w_i = lam - s_i v_i (docs/mathematics.md):

    G_i = dL/dw_i = g_c (alpha_i a_i + A_neg / P) / Z_cls + g_r beta_i r_i / Z_loc
    dL/db_i = (g_r beta_i w_i / Z_loc) dr_i/db_i - G_i s_i dv_i/db_i
    softmax:  dL/dz_ik = q_i (p_ik - [k = y_i]),  q_i = g_c alpha_i w_i / Z_cls + G_i v_i s_i
    sigmoid:  dL/dz_ik = (g_c alpha_i w_i / Z_cls) a'(z_ik) - [k = y_i] G_i v_i s_i (1 - s_i)

and for a negative row the same with w_neg instead of w_i and G = 0.
"""

import triton
import triton.language as tl

from jolkernels.kernels.classification import exp, sigmoid
from jolkernels.kernels.forward import SELDOM_READ, SIZES
from jolkernels.kernels.samples import box_terms, goals, load_factors, row_kinds, weight
from jolkernels.kernels.tiles import (
    first_block,
    in_block,
    in_planes,
    load_first,
    number_of_tiles,
    over_blocks,
    tile_rows,
    to_block,
)


@triton.jit
def times(upstream, inverse):
    """upstream / Z in float64; 0 also where the inverse of a tiny Z is infinite."""
    return tl.where(upstream == 0, 0.0, upstream * inverse)


@triton.jit
def narrowed(x, pointer):
    """x for a store; to bfloat16 through float32, as in PyTorch: the interpreter knows no other."""
    if pointer.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)
    return x


@triton.jit
def load_group(scalars, upstream, group, ACC: tl.constexpr):
    """Of each row's group, or of all rows: w_neg, A_neg / P, g_c / Z_cls, g_r / Z_loc, poison."""
    g_cls, stride_cls, g_loc, stride_loc = upstream
    scalars += 5 * group
    w_neg = tl.load(scalars)
    zero = tl.zeros_like(w_neg)  # not 0 times a number, which may be NaN
    to_cls, to_loc = zero, zero
    if g_cls is not None:
        to_cls = times(tl.load(g_cls + group * stride_cls), tl.load(scalars + 2))
    if g_loc is not None:
        to_loc = times(tl.load(g_loc + group * stride_loc), tl.load(scalars + 3))
    return (
        w_neg.to(ACC), tl.load(scalars + 1).to(ACC), to_cls.to(ACC), to_loc.to(ACC),
        tl.load(scalars + 4).to(ACC),
    )  # fmt: skip


@triton.jit
def store_box_gradient(out, rows, slot, d, poison, inside, positive, WIDTH: tl.constexpr):
    """Whole rows of the [N, WIDTH] gradient: d in a positive's slot, 0 elsewhere."""
    d0, d1, d2, d3 = d
    four = tl.reshape(tl.join(tl.join(d0, d2), tl.join(d1, d3)), (d0.shape[0], 4))
    four = tl.where(positive[:, None], four, 0.0) + poison[:, None]
    cols = tl.arange(0, 4)[None, :]
    if WIDTH == 4:
        at = out + (rows * 4)[:, None] + cols
        tl.store(at, narrowed(four, out), mask=inside[:, None])
    else:
        PART: tl.constexpr = 16
        for start in range(0, WIDTH, PART):
            cols_of_all = start + tl.arange(0, PART)[None, :]
            nothing = tl.zeros([d0.shape[0], PART], d0.dtype) + poison[:, None]
            mask = inside[:, None]
            if WIDTH % PART != 0:
                mask = mask & (cols_of_all < WIDTH)
            at = out + (rows * WIDTH)[:, None] + cols_of_all
            tl.store(at, narrowed(nothing, out), mask=mask)
        if tl.max(positive.to(tl.int32), 0) > 0:
            tl.debug_barrier()  # over the zeros, after them
            at = out + (rows * WIDTH + 4 * slot)[:, None] + cols
            tl.store(at, narrowed(four, out), mask=positive[:, None])


@triton.jit
def store_in_planes(
    out, at, d, HANGS_OVER: tl.constexpr, VECTOR: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Store a block in planes, of those rows that the level has."""
    COLUMNS: tl.constexpr = SHAPE[0]
    p, inside = in_planes(out, at, VECTOR, SHAPE[3])
    if HANGS_OVER:
        inside = inside & (at < COLUMNS)
    tl.store(p, narrowed(d, p), mask=inside)


@triton.jit
def store_gradients(
    state, z, start, begin, given, HANGS_OVER: tl.constexpr, CHOICES: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A block of the logits' gradient, as if no column were a positive's true one."""
    out, class_weights, valid, inside, scale, poison, y, highest, log_total, goal = given
    SOFTMAX: tl.constexpr = CHOICES[0]
    CLASSIFY: tl.constexpr = CHOICES[1]
    PARAMS: tl.constexpr = CHOICES[2]
    COLUMNS: tl.constexpr = SHAPE[0]
    at = in_block(start, SHAPE)
    cols = begin + at
    z = z.to(scale.dtype)
    if SOFTMAX:
        d = exp((z - highest[:, None]) - log_total[:, None])
        d -= (cols == y[:, None]).to(d.dtype)
    else:
        _loss, d = CLASSIFY(z, tl.full(z.shape, False, tl.int1), goal, PARAMS)
        if class_weights[0] is not None:
            within = (cols >= 0) & (cols < COLUMNS)
            d *= load_factors(class_weights[0], class_weights[1], cols, within, d.dtype)
    d = tl.where(valid[:, None], scale[:, None] * d, poison[:, None])
    if SHAPE[2] == "planes" or SHAPE[2] == "long planes":
        if out[4]:
            store_in_planes(out, at, d, HANGS_OVER, SHAPE[4], SHAPE)
        else:
            store_in_planes(out, at, d, HANGS_OVER, 1, SHAPE)
    else:
        mask = inside[:, None]
        if HANGS_OVER:
            mask = mask & (cols >= 0) & (cols < COLUMNS)
        tl.store(out[0] + at, narrowed(d, out[0]), mask=mask)
    return state


@triton.jit
def tile_gradients(
    place, rows, boxes, targets, priors, factors, row_terms, n, of_group, grad_extras,
    CLASS: tl.constexpr, BOX: tl.constexpr, WEIGHT: tl.constexpr, CONSTANT: tl.constexpr,
    SHAPE: tl.constexpr, TOGETHER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a tile's logits and extras.

    Returns those of its positives' codes, and what is added to those of all rows: 0, or NaN.
    """
    table, blocks, begin, at_y, out, out_y = place
    samples, inside, valid, positive, bad, y = rows
    alphas, stride_alpha, betas, stride_beta, class_targets, stride_class_target = factors[:6]
    extras, stride_extra, class_weights, stride_class_weight = factors[6:]
    w_neg, mean_neg, g_cls, g_loc, poison = of_group
    SOFTMAX: tl.constexpr = CLASS[0]
    CLASSIFY: tl.constexpr = CLASS[1]
    PARAMS: tl.constexpr = CLASS[2]
    SOFT: tl.constexpr = CLASS[3]
    some = tl.max(positive.to(tl.int32), 0) > 0
    zero = tl.zeros(samples.shape, ACC)
    # By row: labels may have changed since the forward pass, whose poison is in the scalars.
    poison = tl.where(bad, float("nan"), zero + poison)
    terms = row_terms + samples
    alpha = load_factors(alphas, stride_alpha, samples, valid, ACC)
    if SOFTMAX:
        if class_weights is not None:
            alpha = alpha * load_factors(class_weights, stride_class_weight, y, valid, ACC)
        highest = tl.load(terms, mask=valid, other=0.0)
        log_total = tl.load(terms + n, mask=valid, other=0.0)
    else:
        highest, log_total = zero, zero
    scale = g_cls * alpha * w_neg

    # 1. The positives: weights, boxes, and the true column of a sigmoid loss.
    d, to_r, d_true = (zero, zero, zero, zero), zero, zero
    if some:
        z_y = tl.load(at_y, mask=positive, other=0.0).to(ACC)
        if SOFTMAX:
            a = (highest - z_y) + log_total
            s = exp(-a)
        else:
            a = tl.load(terms, mask=positive, other=0.0)
            s = sigmoid(z_y)
        r, dr, v, dv, quality = box_terms(
            boxes, targets, priors, positive, BOX, SOFT, TOGETHER, ACC
        )
        w = weight(s, v, WEIGHT[0], WEIGHT[1], WEIGHT[2])
        beta = load_factors(betas, stride_beta, samples, positive, ACC)
        if extras is not None:
            r += load_factors(extras, stride_extra, samples, positive, ACC)
        d_w = g_cls * (alpha * a + mean_neg) + g_loc * beta * r
        if CONSTANT:  # not 0 times d_w and s, which may be NaN
            to_v, d_s = zero, zero
        elif WEIGHT[2]:
            to_v, d_s = d_w * s, d_w * v * s
        else:
            to_v, d_s = d_w, zero
        to_r = g_loc * beta * w
        d = (
            to_r * dr[0] - to_v * dv[0], to_r * dr[1] - to_v * dv[1],
            to_r * dr[2] - to_v * dv[2], to_r * dr[3] - to_v * dv[3],
        )  # fmt: skip
        scale = tl.where(positive, g_cls * alpha * w, scale)
        if SOFTMAX:
            scale += tl.where(positive, d_s, 0.0)
        elif out[0] is not None:
            goal = goals(class_targets, stride_class_target, samples, positive, quality, SOFT, ACC)
            _loss, slope = CLASSIFY(z_y[:, None], positive[:, None], goal, PARAMS)
            slope = tl.sum(slope, 1)
            if class_weights is not None:
                slope *= load_factors(class_weights, stride_class_weight, y, positive, ACC)
            d_true = scale * slope - d_s * (1.0 - s)

    # 2. The extra terms of the box losses.
    if grad_extras is not None:
        extra = grad_extras + samples
        tl.store(extra, narrowed(tl.where(positive, to_r, 0.0) + poison, extra), mask=inside)

    # 3. The logits, a block of columns at a time.
    if out[0] is not None:
        given = (
            out, (class_weights, stride_class_weight),
            valid, inside, scale + poison, poison, y, highest, log_total,
            None if class_targets is None and not SOFT else zero[:, None],
        )  # fmt: skip
        CHOICES: tl.constexpr = (SOFTMAX, CLASSIFY, PARAMS)
        over_blocks(
            store_gradients, tl.full([], 0, tl.int32), blocks, table, begin, given, CHOICES, SHAPE
        )
        if not SOFTMAX:
            if some:  # over what the blocks hold there, after them
                tl.debug_barrier()
                tl.store(out_y, narrowed(d_true + poison, out_y), mask=positive)
    return d, poison


@triton.jit(do_not_specialize=[*SIZES, "stride_grad_classification", "stride_grad_regression"],
            do_not_specialize_on_alignment=[
                *SELDOM_READ, "grad_classification", "grad_regression", "grad_extras"
            ])  # fmt: skip
def gradients_kernel(
    logits, stride_row, stride_col,
    boxes, stride_box_row, stride_box_col,
    labels, stride_label,
    targets, stride_target_row, stride_target_col,
    priors, stride_prior_row, stride_prior_col,
    alphas, stride_alpha,
    betas, stride_beta,
    class_targets, stride_class_target,
    extras, stride_extra,
    class_weights, stride_class_weight,
    groups, stride_group,
    row_terms, scalars,
    grad_classification, stride_grad_classification, grad_regression, stride_grad_regression,
    grad_logits, grad_boxes, grad_extras,
    n: tl.int64, ignore, num_groups,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, BACKGROUND: tl.constexpr, LAST: tl.constexpr,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr, CONSTANT: tl.constexpr,
    ACC: tl.constexpr, DENSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Gradients: grad_logits [N, C], grad_boxes [N, WIDTH] and grad_extras [N].

    Contiguous, and each may be None. CONSTANT: the weights carry no gradient.
    """
    if DENSE:
        stride_row, stride_col, stride_box_row, stride_box_col = COLUMNS, 1, WIDTH, 1
        stride_target_row, stride_target_col, stride_prior_row, stride_prior_col = 4, 1, 4, 1
        stride_label, stride_alpha, stride_beta, stride_class_target = 1, 1, 1, 1
        stride_extra, stride_class_weight, stride_group = 1, 1, 1
    else:  # those that numbers of 32 bits are multiplied with
        stride_col, stride_box_col = stride_col.to(tl.int64), stride_box_col.to(tl.int64)
        stride_class_weight = stride_class_weight.to(tl.int64)
    SHAPE: tl.constexpr = (COLUMNS, BLOCK, KIND)
    CLASS: tl.constexpr = (SOFTMAX, CLASSIFY, CLASSIFY_PARAMS, SOFT)
    BOX: tl.constexpr = (
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS,
    )  # fmt: skip
    WEIGHT: tl.constexpr = (LAM, JOINT, CLASS_SCORE)
    upstream = (
        grad_classification, stride_grad_classification, grad_regression, stride_grad_regression
    )  # fmt: skip
    if groups is None:
        of_all = load_group(scalars, upstream, 0, ACC)

    for tile in range(tl.program_id(0), number_of_tiles(n, ROWS), tl.num_programs(0)):
        first, rows, samples, inside = tile_rows(tile, n, ROWS, DENSE)
        begin = first_block(first, COLUMNS, KIND)
        table = to_block(logits, first, begin, stride_row, stride_col, COLUMNS, KIND, DENSE)
        table = (table + (rows * stride_row)[:, None], stride_col)
        blocks = load_first(table, begin, SHAPE)
        valid, positive, bad, y, group = row_kinds(
            labels, stride_label, groups, stride_group, num_groups, samples, inside, ignore,
            BACKGROUND, LAST,
        )  # fmt: skip
        if groups is None:
            of_group = of_all
        else:
            of_group = load_group(scalars, upstream, group, ACC)
        slot = tl.where(positive, y, 0) if WIDTH > 4 else 0
        out, at_y = (None, 1), None
        if grad_logits is not None:
            out = (
                to_block(grad_logits, first, begin, COLUMNS, 1, COLUMNS, KIND, True)
                + (rows * COLUMNS)[:, None],
                1,
            )
            at_y = grad_logits + samples * COLUMNS + y
        d, poison = tile_gradients(
            (table, blocks, begin, logits + samples * stride_row + y * stride_col, out, at_y),
            (samples, inside, valid, positive, bad, y),
            (boxes + samples * stride_box_row + 4 * slot * stride_box_col, stride_box_col),
            (targets + samples * stride_target_row, stride_target_col),
            (None if priors is None else priors + samples * stride_prior_row, stride_prior_col),
            (alphas, stride_alpha, betas, stride_beta, class_targets, stride_class_target,
             extras, stride_extra, class_weights, stride_class_weight),
            row_terms, n, of_group, grad_extras, CLASS, BOX, WEIGHT, CONSTANT, SHAPE,
            (DENSE, DENSE), ACC,
        )  # fmt: skip
        if grad_boxes is not None:
            store_box_gradient(grad_boxes, samples, slot, d, poison, inside, positive, WIDTH)
