"""The forward kernels: a pass over the rows that leaves partial sums, and their finish.

Per program of `rows_kernel`, over its rows (docs/mathematics.md derives why this is enough):

    P = #positives    N = #valid    W = sum_pos w_i    bad = #labels or groups out of range
    A_pos = sum_pos alpha_i w_i a_i    A_neg = sum_neg alpha_j a_j    R = sum_pos beta_i w_i r_i

with the rows' classification losses a and box losses r, and two more where these can differ from N
and 0: the sum of the rows' class weights, and of R the part of extra_regression. With groups as
many sums, and `bad` the same in all. `finish_kernel` adds the programs' sums in a fixed order, so
the same input gives the same bits:

    w_neg = W / P    L_cls = (A_pos + w_neg A_neg) / Z_cls    L_loc = R / Z_loc
"""

import triton
import triton.language as tl

from jolkernels.kernels.classification import online_logsumexp, sigmoid
from jolkernels.kernels.samples import box_terms, goals, load_factors, row_kinds, weight


@triton.jit
def store_sums(
    out, step, valid, positive, bad, w, a, r, counts, extra, ACC: tl.constexpr, SUMS: tl.constexpr
):
    """The sums of the rows that are `valid` or `positive`, `step` apart; a and r are weighted."""
    tl.store(out, tl.sum(positive.to(ACC)))
    tl.store(out + step, tl.sum(valid.to(ACC)))
    tl.store(out + 2 * step, tl.sum(tl.where(positive, w, 0.0)))
    tl.store(out + 3 * step, tl.sum(tl.where(positive, w * a, 0.0)))
    tl.store(out + 4 * step, tl.sum(tl.where(valid & (positive == 0), a, 0.0)))
    tl.store(out + 5 * step, tl.sum(tl.where(positive, w * r, 0.0)))
    tl.store(out + 6 * step, tl.sum(bad.to(ACC)))
    if SUMS > 7:
        tl.store(out + 7 * step, tl.sum(tl.where(valid, counts, 0.0)))
        tl.store(out + 8 * step, tl.sum(tl.where(positive, w * extra, 0.0)))


@triton.jit(do_not_specialize=["num_groups"])
def rows_kernel(
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
    row_terms, partial_sums,
    n, columns, background, last, ignore, num_groups,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr,
    CLASS_SPECIFIC: tl.constexpr, SUMS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Partial sums of BLOCK_ROWS rows, and in row_terms [kept, n] what the backward needs of each.

    With softmax the highest logit and log sum exp(z - highest), else the classification loss.
    """
    program = tl.program_id(0).to(tl.int64)
    rows = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid, positive, bad, y, group = row_kinds(
        labels, stride_label, groups, stride_group, num_groups, rows, n, background, last, ignore
    )
    z_y = tl.load(
        logits + rows * stride_row + y * stride_col, mask=valid & (y < columns), other=0.0
    ).to(ACC)

    # 1. Box loss and scores of the positives.
    slot = tl.where(positive, y, 0) if CLASS_SPECIFIC else y * 0
    r, _dr, v, _dv, quality = box_terms(
        boxes, stride_box_row, stride_box_col,
        targets, stride_target_row, stride_target_col,
        priors, stride_prior_row, stride_prior_col,
        rows, slot, positive,
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, SOFT,
        DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS, ACC,
    )  # fmt: skip

    # 2. The classification loss a of each row: one read of the logits, a tile of columns at a time.
    goal = goals(class_targets, stride_class_target, rows, positive, quality, SOFT, ACC)
    highest = tl.full([BLOCK_ROWS], -float("inf"), ACC)
    total = tl.zeros([BLOCK_ROWS], ACC)
    for start in range(0, columns, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS).to(tl.int64)
        inside = valid[:, None] & (cols < columns)[None, :]
        z = tl.load(
            logits + rows[:, None] * stride_row + cols[None, :] * stride_col,
            mask=inside,
            other=0.0,
        ).to(ACC)
        if SOFTMAX:
            z = tl.where((cols < columns)[None, :], z, -float("inf"))
            highest, total = online_logsumexp(highest, total, z)
        else:
            is_true = positive[:, None] & (cols[None, :] == y[:, None])
            loss, _d = CLASSIFY(z, is_true, goal, CLASSIFY_PARAMS)
            if class_weights is not None:
                factors = load_factors(
                    class_weights, stride_class_weight, cols, cols < columns, ACC
                )
                loss = loss * factors[None, :]
            total += tl.sum(tl.where(inside, loss, 0.0), 1)
    if SOFTMAX:
        highest = tl.where(highest == -float("inf"), 0.0, highest)
        log_total = tl.log(total)
        a = (highest - z_y) + log_total
        s = tl.exp(-a)
        tl.store(row_terms + rows, highest, mask=rows < n)
        tl.store(row_terms + n + rows, log_total, mask=rows < n)
    else:
        a = total
        s = sigmoid(z_y)
        tl.store(row_terms + rows, a, mask=rows < n)

    # 3. The weights and the sums.
    w = weight(s, v, LAM, JOINT, CLASS_SCORE)
    a = a * load_factors(alphas, stride_alpha, rows, valid, ACC)
    beta = load_factors(betas, stride_beta, rows, positive, ACC)
    counts = valid.to(ACC)
    if SOFTMAX and class_weights is not None:
        counts = load_factors(class_weights, stride_class_weight, y, valid, ACC)
        a = a * counts
    extra = tl.zeros_like(r)
    if extras is not None:
        extra = load_factors(extras, stride_extra, rows, positive, ACC)
        r = r + extra
    r, extra = r * beta, extra * beta
    programs, out = tl.num_programs(0), partial_sums + program
    if groups is None:
        store_sums(out, programs, valid, positive, bad, w, a, r, counts, extra, ACC, SUMS)
    else:
        step = num_groups * programs.to(tl.int64)
        for g in range(num_groups):
            mine = group == g
            store_sums(
                out, step, valid & mine, positive & mine, bad, w, a, r, counts, extra, ACC, SUMS
            )
            out += programs


@triton.jit
def normalizer(value, stride, group, counts, positives, ranks, KIND: tl.constexpr):
    """A normaliser of a group in float64: the number at `value`, as it is, or by name over `ranks`.

    By name "samples", "positives" or "sum".
    """
    if KIND == "samples":
        z = tl.where(counts > 0, counts, 1.0) / ranks
    elif KIND == "positives":
        z = tl.maximum(positives, 1.0) / ranks
    elif KIND == "sum":
        z = (tl.zeros_like(positives) + 1.0) / ranks
    else:
        z = tl.load(value + group * stride).to(tl.float64)
    return z


@triton.jit
def one_sum(sums, kind, INDEX: tl.constexpr):
    """One of the rows of [KINDS, 1] sums."""
    return tl.sum(tl.where(kind == INDEX, sums, 0.0))


@triton.jit
def finish_kernel(
    partial_sums, programs, totals, ranks, z_cls, stride_z_cls, z_loc, stride_z_loc,
    classification, regression, negative_weight, num_positives, extra_regression, scalars,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
    KINDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a group's sums in float64, in a fixed order, and form the results (a program a group).

    totals: the sums over the `ranks` ranks of a process group, or None without one. KINDS: SUMS
    rounded up to a power of two.
    """
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    local = tl.zeros([KINDS, BLOCK], tl.float64)
    kind = tl.arange(0, KINDS)[:, None]
    for start in range(0, programs, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]
        mask = (kind < SUMS) & (i < programs)
        at = (kind * groups + group) * programs + i
        local += tl.load(partial_sums + at, mask=mask, other=0.0).to(tl.float64)
    local = tl.sum(local, 1)[:, None]
    if totals is None:
        total = local
    else:
        total = tl.load(totals + kind * groups + group, mask=kind < SUMS, other=0.0)
    positives, samples = one_sum(total, kind, 0), one_sum(total, kind, 1)
    weights, bad = one_sum(total, kind, 2), one_sum(total, kind, 6)
    a_pos, a_neg, r = one_sum(local, kind, 3), one_sum(local, kind, 4), one_sum(local, kind, 5)
    counts, extra = samples, tl.zeros_like(r)
    if SUMS > 7:
        counts, extra = one_sum(total, kind, 7), one_sum(local, kind, 8)

    poison = tl.where(bad > 0, bad * float("nan"), bad * 0.0)
    some = tl.maximum(positives, 1.0)
    w_neg = tl.where((positives > 0) & JOINT, weights / some, 1.0)
    over_cls = normalizer(z_cls, stride_z_cls, group, counts, positives, ranks, Z_CLS)
    over_loc = normalizer(z_loc, stride_z_loc, group, samples, positives, ranks, Z_LOC)
    tl.store(classification + group, (a_pos + w_neg * a_neg) / over_cls + poison)
    tl.store(regression + group, r / over_loc + poison)
    tl.store(negative_weight + group, w_neg)
    tl.store(num_positives + group, positives.to(tl.int64))
    tl.store(extra_regression + group, extra / over_loc + poison)
    scalars += 5 * group
    tl.store(scalars, w_neg)
    tl.store(scalars + 1, one_sum(total, kind, 4) / some)
    tl.store(scalars + 2, 1.0 / over_cls)
    tl.store(scalars + 3, 1.0 / over_loc)
    tl.store(scalars + 4, poison)
