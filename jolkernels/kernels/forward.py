"""The forward kernel: one pass over the samples, whose sums the last program makes the loss.

Per program, over the rows of its tiles (docs/mathematics.md derives why this is enough):

    P = #positives    N = #valid    W = sum_pos w_i    bad = #labels or groups out of range
    A_pos = sum_pos alpha_i w_i a_i    A_neg = sum_neg alpha_j a_j    R = sum_pos beta_i w_i r_i

with the rows' classification losses a and box losses r, and two more where these can differ from N
and 0: the sum of the rows' class weights, and of R the part of extra_regression. With groups as
many sums, and `bad` the same in all.
"""

import triton
import triton.language as tl

from jolkernels.kernels.classification import exp, sigmoid
from jolkernels.kernels.finish import BAD, finish_if_last, in_order
from jolkernels.kernels.samples import box_terms, goals, load_factors, row_kinds, weight
from jolkernels.kernels.tiles import (
    LANE,
    first_block,
    in_block,
    load_block,
    load_first,
    number_of_tiles,
    over_blocks,
    over_columns,
    tile_rows,
    to_block,
)

STRIDES = [
    "stride_row", "stride_col", "stride_box_row", "stride_box_col", "stride_label",
    "stride_target_row", "stride_target_col", "stride_prior_row", "stride_prior_col",
    "stride_alpha", "stride_beta", "stride_class_target", "stride_extra", "stride_class_weight",
    "stride_group",
]  # fmt: skip
SIZES = ["n", "ignore", "num_groups", *STRIDES]
"""May change without a new kernel, which would be compiled in the middle of training."""
SELDOM_READ = [
    "labels", "alphas", "betas", "class_targets", "extras", "class_weights", "groups", "row_terms",
    "scalars", "z_cls", "z_loc",
]  # fmt: skip
"""Tensors read a number a thread, for which it makes no difference where they begin."""


@triton.jit
def add_losses(
    total, z, start, begin, given, HANGS_OVER: tl.constexpr, CHOICES: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """`total` and a block's sigmoid losses; not LABELED: as if no column were true."""
    class_weights, y, positive, goal = given
    CLASSIFY: tl.constexpr = CHOICES[0]
    PARAMS: tl.constexpr = CHOICES[1]
    LABELED: tl.constexpr = CHOICES[2]
    COLUMNS: tl.constexpr = SHAPE[0]
    cols = begin + in_block(start, SHAPE)
    z = z.to(total.dtype)
    if LABELED:
        is_true = positive[:, None] & (cols == y[:, None])
    else:
        is_true = tl.full(z.shape, False, tl.int1)
    loss, _d = CLASSIFY(z, is_true, goal, PARAMS)
    inside = (cols >= 0) & (cols < COLUMNS)
    if class_weights[0] is not None:
        loss *= load_factors(class_weights[0], class_weights[1], cols, inside, total.dtype)
    if HANGS_OVER:
        loss = tl.where(inside, loss, 0.0)
    return total + loss


@triton.jit
def sigmoid_losses(
    blocks, table, begin, class_weights, y, positive, goal, CLASSIFY: tl.constexpr,
    PARAMS: tl.constexpr, LABELED: tl.constexpr, SHAPE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The classification losses of a tile's rows; not LABELED: as if all were negative."""
    given = (class_weights, y, positive, goal)
    COLUMNS: tl.constexpr = SHAPE[0]
    BLOCK: tl.constexpr = SHAPE[1]
    KIND: tl.constexpr = SHAPE[2]
    total = tl.zeros((y[:, None] + in_block(0, SHAPE)).shape, ACC)
    CHOICES: tl.constexpr = (CLASSIFY, PARAMS, LABELED)
    ONE: tl.constexpr = KIND != "wide" and COLUMNS <= BLOCK
    if LABELED and not ONE:  # in a dense head seldom: a loop, not unrolled
        HANGS_OVER: tl.constexpr = KIND == "wide" or COLUMNS % BLOCK != 0
        for start in range(0, COLUMNS - begin, BLOCK):
            z = load_block(table, start, begin, HANGS_OVER, SHAPE)
            total = add_losses(total, z, start, begin, given, HANGS_OVER, CHOICES, SHAPE)
    else:
        total = over_blocks(add_losses, total, blocks, table, begin, given, CHOICES, SHAPE)
    return over_columns(total, KIND)


@triton.jit
def add_exponentials(
    state, z, start, begin, given, HANGS_OVER: tl.constexpr, CHOICES: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A block added to the running maxima and sums of exponentials of its lines."""
    highest, total = state
    z = z.to(total.dtype)
    new = tl.maximum(highest, tl.max(z, 1))
    shift = tl.where(new == -float("inf"), 0.0, new)  # all -inf so far: no NaN yet
    return new, total * exp(highest - shift) + tl.sum(exp(z - shift[:, None]), 1)


@triton.jit
def logsumexp(blocks, table, begin, SHAPE: tl.constexpr, ACC: tl.constexpr):
    """The highest logit of a tile's rows and log sum exp(z - highest)."""
    KIND: tl.constexpr = SHAPE[2]
    if KIND == "narrow" or KIND == "planes":
        top = blocks[0].to(ACC)
        for i in tl.static_range(1, len(blocks)):
            top = tl.maximum(top, blocks[i].to(ACC))
        highest = tl.max(top, 1)
        sums = exp(blocks[0].to(ACC) - highest[:, None])
        for i in tl.static_range(1, len(blocks)):
            sums += exp(blocks[i].to(ACC) - highest[:, None])
        total = tl.sum(sums, 1)
    else:
        LINES: tl.constexpr = SHAPE[1] // LANE if KIND == "wide" else SHAPE[3]
        state = (tl.full([LINES], -float("inf"), ACC), tl.zeros([LINES], ACC))
        state = over_blocks(add_exponentials, state, blocks, table, begin, (), (), SHAPE)
        highest, total = state
        if KIND == "wide":
            highest = tl.max(state[0], 0, keep_dims=True)
            total = tl.sum(state[1] * exp(state[0] - highest), 0, keep_dims=True)
    return highest, tl.log(total)


@triton.jit
def add_each(sums, numbers):
    """Tuples of equally many numbers, added one by one."""
    total = ()
    for i in tl.static_range(len(sums)):
        total = total + (sums[i] + numbers[i],)
    return total


@triton.jit
def add_to_groups(
    partial_sums,
    group,
    valid,
    bad,
    sums,
    num_groups,
    SUMS: tl.constexpr,
    KINDS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Add a tile's numbers to the program's sums, which lie at partial_sums, of their groups.

    Bad rows count in all groups.
    """
    step = tl.num_programs(0).to(tl.int64) * KINDS
    lowest = tl.min(tl.where(valid, group, num_groups), 0)
    highest = tl.max(tl.where(valid, group, -1), 0)
    wrong = tl.sum(bad.to(tl.int32), 0)
    if wrong > 0:
        lowest, highest = lowest * 0, highest * 0 + num_groups - 1
    for g in range(lowest, highest + 1):
        mine = valid & (group == g)
        added = ()
        for i in tl.static_range(SUMS):
            if i == BAD:
                added = added + (wrong.to(ACC),)
            else:
                added = added + (tl.sum(tl.where(mine, sums[i], 0), 0).to(ACC),)
        out = partial_sums + g * step + tl.arange(0, KINDS)
        before = tl.load(out)
        tl.debug_barrier()  # several threads have read what one writes
        tl.store(out, before + in_order(added, KINDS))
        tl.debug_barrier()  # before the next tile reads it


@triton.jit
def tile_numbers(
    place, rows, boxes, targets, priors, factors, row_terms, n, CLASS: tl.constexpr,
    BOX: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, SHAPE: tl.constexpr,
    TOGETHER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What each row of a tile adds to the sums: SUMS tensors [ROWS]. Writes the rows' terms."""
    table, blocks, begin, at_y = place
    samples, inside, valid, positive, bad, y = rows
    alphas, stride_alpha, betas, stride_beta, class_targets, stride_class_target = factors[:6]
    extras, stride_extra, class_weights, stride_class_weight = factors[6:]
    SOFTMAX: tl.constexpr = CLASS[0]
    CLASSIFY: tl.constexpr = CLASS[1]
    PARAMS: tl.constexpr = CLASS[2]
    SOFT: tl.constexpr = CLASS[3]
    some = tl.max(positive.to(tl.int32), 0) > 0
    terms = row_terms + samples
    zero = tl.zeros(samples.shape, ACC)

    # 1. The classification loss a of each row, and s: one read of the logits.
    a, s = zero, zero
    if SOFTMAX:
        z_y = tl.load(at_y, mask=valid, other=0.0).to(ACC)
        highest, log_total = logsumexp(blocks, table, begin, SHAPE, ACC)
        a = (highest - z_y) + log_total
        s = exp(-a)
        tl.store(terms, highest, mask=inside)
        tl.store(terms + n, log_total, mask=inside)

    # 2. Box loss, scores and weights of the positives.
    w, r, extra, a_pos = zero, zero, zero, zero
    if some:
        r, _dr, v, _dv, quality = box_terms(
            boxes, targets, priors, positive, BOX, SOFT, TOGETHER, ACC
        )
        if not SOFTMAX:
            goal = goals(class_targets, stride_class_target, samples, positive, quality, SOFT, ACC)
            a = sigmoid_losses(
                blocks, table, begin, (class_weights, stride_class_weight), y, positive, goal,
                CLASSIFY, PARAMS, True, SHAPE, ACC,
            )  # fmt: skip
            s = sigmoid(tl.load(at_y, mask=positive, other=0.0).to(ACC))
        w = weight(s, v, WEIGHT[0], WEIGHT[1], WEIGHT[2])
        if extras is not None:
            extra = load_factors(extras, stride_extra, samples, positive, ACC)
            r += extra
        w = tl.where(positive, w, 0.0)
        to_r = w * load_factors(betas, stride_beta, samples, positive, ACC)
        r, extra = tl.where(positive, to_r * r, 0.0), tl.where(positive, to_r * extra, 0.0)
    elif not SOFTMAX:  # in an if of its own the logits' loads could move there, behind the labels'
        no_goal = None if class_targets is None and not SOFT else zero[:, None]
        a = sigmoid_losses(
            blocks, table, begin, (class_weights, stride_class_weight), y, positive, no_goal,
            CLASSIFY, PARAMS, False, SHAPE, ACC,
        )  # fmt: skip

    # 3. The sums. The backward reads positives' losses; the others make the output repeatable.
    if not SOFTMAX:
        tl.store(terms, tl.where(valid, a, 0.0), mask=inside)
    if alphas is not None:
        a = a * load_factors(alphas, stride_alpha, samples, valid, ACC)
    counts = valid.to(ACC)
    if SOFTMAX and class_weights is not None:
        counts = load_factors(class_weights, stride_class_weight, y, valid, ACC)
        a = a * counts
    if some:
        a_pos = tl.where(positive, w * a, 0.0)
    a_neg = tl.where(valid & (positive == 0), a, 0.0)
    numbers = (positive.to(tl.int32), valid.to(tl.int32), w, a_pos, a_neg, r, bad.to(tl.int32))
    if SUMS > 7:
        numbers = numbers + (counts, extra)
    return numbers


@triton.jit(do_not_specialize=[*SIZES, "ranks", "stride_z_cls", "stride_z_loc"],
            do_not_specialize_on_alignment=SELDOM_READ)  # fmt: skip
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
    row_terms, partial_sums, team_sums, counters,
    classification, regression, negative_weight, num_positives, extra_regression, scalars,
    z_cls, stride_z_cls, z_loc, stride_z_loc,
    z_cls_number: tl.float64, z_loc_number: tl.float64, ranks,
    n: tl.int64, ignore, num_groups,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, BACKGROUND: tl.constexpr, LAST: tl.constexpr,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, SUMS: tl.constexpr, KINDS: tl.constexpr,
    FINISH: tl.constexpr, ACC: tl.constexpr, DENSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The loss, and in row_terms [kept, n] what the backward needs of each row.

    With softmax the highest logit and log sum exp(z - highest), else the classification loss.
    Without FINISH only the programs' sums.
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
    zero = tl.zeros([ROWS], ACC)
    none = tl.zeros([ROWS], tl.int32)
    sums = (none, none, zero, zero, zero, zero, none)
    if SUMS > 7:
        sums = sums + (zero, zero)
    program = tl.program_id(0)
    if groups is not None:
        partial_sums += program.to(tl.int64) * KINDS
        step = tl.num_programs(0).to(tl.int64) * KINDS
        for g in range(num_groups):
            tl.store(partial_sums + g * step + tl.arange(0, KINDS), tl.zeros([KINDS], ACC))
        tl.debug_barrier()

    for tile in range(program, number_of_tiles(n, ROWS), tl.num_programs(0)):
        first, rows, samples, inside = tile_rows(tile, n, ROWS, DENSE)
        begin = first_block(first, COLUMNS, KIND)
        table = to_block(logits, first, begin, stride_row, stride_col, COLUMNS, KIND, DENSE)
        table = (table + (rows * stride_row)[:, None], stride_col)
        blocks = load_first(table, begin, SHAPE)
        valid, positive, bad, y, group = row_kinds(
            labels, stride_label, groups, stride_group, num_groups, samples, inside, ignore,
            BACKGROUND, LAST,
        )  # fmt: skip
        at_y = logits + samples * stride_row + y * stride_col
        slot = tl.where(positive, y, 0) if WIDTH > 4 else 0
        numbers = tile_numbers(
            (table, blocks, begin, at_y), (samples, inside, valid, positive, bad, y),
            (boxes + samples * stride_box_row + 4 * slot * stride_box_col, stride_box_col),
            (targets + samples * stride_target_row, stride_target_col),
            (None if priors is None else priors + samples * stride_prior_row, stride_prior_col),
            (alphas, stride_alpha, betas, stride_beta, class_targets, stride_class_target,
             extras, stride_extra, class_weights, stride_class_weight),
            row_terms, n, CLASS, BOX, WEIGHT, SUMS, SHAPE, (DENSE, DENSE), ACC,
        )  # fmt: skip
        if groups is None:
            sums = add_each(sums, numbers)
        else:
            add_to_groups(partial_sums, group, valid, bad, numbers, num_groups, SUMS, KINDS, ACC)

    if groups is None:
        total = ()
        for i in tl.static_range(SUMS):
            total = total + (tl.sum(sums[i], 0).to(ACC),)
        out = partial_sums + program * KINDS + tl.arange(0, KINDS)
        tl.store(out, in_order(total, KINDS))
    else:
        partial_sums -= program.to(tl.int64) * KINDS
    if FINISH:
        results = (
            classification, regression, negative_weight, num_positives, extra_regression, scalars
        )  # fmt: skip
        finish_if_last(
            partial_sums, team_sums, counters, 1 if groups is None else num_groups, results,
            (z_cls, stride_z_cls), (z_loc, stride_z_loc), z_cls_number, z_loc_number, ranks,
            Z_CLS, Z_LOC, JOINT, SUMS, KINDS,
        )  # fmt: skip
