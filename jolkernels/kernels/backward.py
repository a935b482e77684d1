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

from jolkernels.kernels.classification import sigmoid
from jolkernels.kernels.samples import box_terms, goals, load_factors, row_kinds, weight


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
def store_row_gradient(gradient, rows, n, d):
    """Write a number of each row of an [N] gradient."""
    tl.store(gradient + rows, narrowed(d, gradient), mask=rows < n)


@triton.jit
def store_box_gradient(grad_boxes, rows, n, slot, positive, poison, d, width, BLOCK: tl.constexpr):
    """Write whole rows of the [N, width] gradient: d in the row's slot, 0 in the others."""
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        part = cols % 4
        low = tl.where(part == 0, d[0][:, None], d[1][:, None])
        high = tl.where(part == 2, d[2][:, None], d[3][:, None])
        e = tl.where(part < 2, low, high)
        e = tl.where(positive[:, None] & (cols // 4 == slot[:, None]), e, 0.0) + poison[:, None]
        out = grad_boxes + rows[:, None] * width + cols
        tl.store(out, narrowed(e, out), mask=(rows < n)[:, None] & (cols < width))


@triton.jit(do_not_specialize=["num_groups"])
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
    grad_logits, grad_boxes, grad_extras, box_width,
    n, columns, background, last, ignore, num_groups,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr, CONSTANT: tl.constexpr,
    CLASS_SPECIFIC: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_ROWS rows: grad_logits [N, C], grad_boxes [N, 4S] and grad_extras [N].

    Contiguous, and each may be None. CONSTANT: the weights carry no gradient.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid, positive, bad, y, group = row_kinds(
        labels, stride_label, groups, stride_group, num_groups, rows, n, background, last, ignore
    )
    if groups is not None:
        scalars += 5 * group
        grad_classification += stride_grad_classification * group
        grad_regression += stride_grad_regression * group
    w_neg, mean_neg = tl.load(scalars).to(ACC), tl.load(scalars + 1).to(ACC)
    g_cls = times(tl.load(grad_classification), tl.load(scalars + 2)).to(ACC)
    g_loc = times(tl.load(grad_regression), tl.load(scalars + 3)).to(ACC)
    # By row: labels may have changed since the forward pass, whose poison is in the scalars.
    poison = tl.load(scalars + 4).to(ACC)
    poison = tl.where(bad, poison + float("nan"), poison)

    # 1. The row: a, r, s, v and the weight.
    z_y = tl.load(logits + rows * stride_row + y * stride_col, mask=positive, other=0.0).to(ACC)
    if SOFTMAX:
        highest = tl.load(row_terms + rows, mask=rows < n, other=0.0)
        log_total = tl.load(row_terms + n + rows, mask=rows < n, other=0.0)
        a = (highest - z_y) + log_total
        s = tl.exp(-a)
    else:
        a = tl.load(row_terms + rows, mask=rows < n, other=0.0)
        s = sigmoid(z_y)
    slot = tl.where(positive, y, 0) if CLASS_SPECIFIC else y * 0
    r, dr, v, dv, quality = box_terms(
        boxes, stride_box_row, stride_box_col,
        targets, stride_target_row, stride_target_col,
        priors, stride_prior_row, stride_prior_col,
        rows, slot, positive,
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, SOFT,
        DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS, ACC,
    )  # fmt: skip
    w = weight(s, v, LAM, JOINT, CLASS_SCORE)
    alpha = load_factors(alphas, stride_alpha, rows, valid, ACC)
    if SOFTMAX and class_weights is not None:
        alpha = alpha * load_factors(class_weights, stride_class_weight, y, valid, ACC)
    beta = load_factors(betas, stride_beta, rows, positive, ACC)
    if extras is not None:
        r += load_factors(extras, stride_extra, rows, positive, ACC)
    d_w = g_cls * (alpha * a + mean_neg) + g_loc * beta * r
    if CONSTANT:  # not 0 times d_w and s, which may be NaN
        to_v, d_s = tl.zeros_like(v), tl.zeros_like(v)
    elif CLASS_SCORE:
        to_v, d_s = d_w * s, d_w * v * s
    else:
        to_v, d_s = d_w, tl.zeros_like(v)

    # 2. The boxes.
    to_r = g_loc * beta * w
    if grad_extras is not None:
        store_row_gradient(grad_extras, rows, n, tl.where(positive, to_r, 0.0) + poison)
    if grad_boxes is not None:
        store_box_gradient(
            grad_boxes, rows, n, slot, positive, poison,
            (to_r * dr[0] - to_v * dv[0], to_r * dr[1] - to_v * dv[1],
             to_r * dr[2] - to_v * dv[2], to_r * dr[3] - to_v * dv[3]),
            box_width, BLOCK=32 if CLASS_SPECIFIC else 4,
        )  # fmt: skip

    # 3. The logits, a tile of columns at a time.
    if grad_logits is not None:
        goal = goals(class_targets, stride_class_target, rows, positive, quality, SOFT, ACC)
        scale = g_cls * alpha * tl.where(positive, w, w_neg)
        if SOFTMAX:
            scale += tl.where(positive, d_s, 0.0)
        for start in range(0, columns, BLOCK_COLS):
            cols = start + tl.arange(0, BLOCK_COLS).to(tl.int64)
            z = tl.load(
                logits + rows[:, None] * stride_row + cols[None, :] * stride_col,
                mask=valid[:, None] & (cols < columns)[None, :],
                other=0.0,
            ).to(ACC)
            is_label = cols[None, :] == y[:, None]
            if SOFTMAX:
                p = tl.exp((z - highest[:, None]) - log_total[:, None])
                d = scale[:, None] * (p - is_label.to(ACC))
            else:
                is_true = is_label & positive[:, None]
                _loss, d = CLASSIFY(z, is_true, goal, CLASSIFY_PARAMS)
                if class_weights is not None:
                    factors = load_factors(
                        class_weights, stride_class_weight, cols, cols < columns, ACC
                    )
                    d = d * factors[None, :]
                d = scale[:, None] * d - tl.where(is_true, (d_s * (1.0 - s))[:, None], 0.0)
            out = grad_logits + rows[:, None] * columns + cols[None, :]
            d = narrowed(tl.where(valid[:, None], d, 0.0) + poison[:, None], out)
            tl.store(out, d, mask=(rows < n)[:, None] & (cols < columns)[None, :])
