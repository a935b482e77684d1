/* The forward and the backward pass over the rows; included by rows.c once a type. */

/* A number of a row, or 1. */
static inline REAL NAME(factor)(const void *of_rows, int64_t row, int64_t stride) {
    return of_rows ? ((const REAL *)of_rows)[row * stride] : 1;
}

static inline void NAME(four)(const REAL *from, int64_t col, REAL *to) {
    for (int k = 0; k < 4; k++) to[k] = from[k * col];
}

/* What the boxes of a positive row contribute: box loss (with its part that the caller gives as
 * `extra`) and location score, their gradients for the codes, and the labelled column's target. */
struct NAME(boxes) {
    REAL loss, d_loss[4], extra, score, d_score[4], goal;
};

/* Fills in `r`; the gradients are right only with `slopes`. */
static inline void NAME(boxes_of)(const struct call *c, int64_t row, int64_t y, int slopes,
                                  struct NAME(boxes) *r) {
    struct NAME(sizes) sizes, unused;
    REAL b[4], given[4], p[4], x[4], t[4], code[4], g[4];
    int64_t slot = c->box_columns > 4 ? 4 * y : 0;
    NAME(four)((const REAL *)c->boxes + row * c->boxes_row + slot * c->boxes_col, c->boxes_col, b);
    NAME(four)((const REAL *)c->targets + row * c->targets_row, c->targets_col, given);
    memcpy(p, given, sizeof p);
    memcpy(t, given, sizeof t);
    if (c->priors)
        NAME(four)((const REAL *)c->priors + row * c->priors_row, c->priors_col, p);
    NAME(decode)(c, b, p, x, &sizes);
    if (c->coding == CXCYWH) NAME(decode)(c, given, p, t, &unused);

    REAL loss = 0, by_codes[4] = {0}, by_corners[4] = {0};
    if (c->on_codes) {
        NAME(encode)(c, given, p, code);
        for (int64_t i = 0; i < c->terms; i++)
            if (c->term[i].kind <= L2)
                loss += NAME(code_loss)(&c->term[i], b, code, by_codes);
    }
    if (c->on_corners) {
        loss += NAME(corner_losses)(c, x, t, by_corners);
        if (slopes) NAME(pull)(c, p, &sizes, by_corners);
    }
    for (int k = 0; k < 4; k++) r->d_loss[k] = by_codes[k] + by_corners[k];
    r->extra = c->extra ? ((const REAL *)c->extra)[row * c->extra_row] : 0;
    r->loss = loss + r->extra;

    r->score = 1;
    memset(r->d_score, 0, sizeof r->d_score);
    r->goal = NAME(factor)(c->class_targets, row, c->class_targets_row);
    int scored = c->score && c->joint, soft = c->soft && !c->class_targets;
    if (!scored && !soft) return;
    int dead = NAME(has_no_extent)(x) || NAME(has_no_extent)(t) ||
               (c->priors && NAME(has_no_extent)(p));
    struct NAME(pair) o;
    NAME(compare)(&o, x, t);
    REAL score = NAME(iou)(&o, g);
    if (soft) r->goal = dead ? 0 : score;
    if (!scored) return;
    if (c->score != IOU_SCORE) score = NAME(other_score)(c, x, t, g);
    r->score = dead ? 0 : score;
    if (!slopes) return;
    for (int k = 0; k < 4; k++) r->d_score[k] = dead ? 0 : g[k];
    NAME(pull)(c, p, &sizes, r->d_score);
}

/* Ask for the boxes of rows to come: those of a row's class lie far from the next row's. */
static inline void NAME(prefetch)(const struct call *c, int64_t first, int64_t end) {
    if (c->box_columns == 4) return;
    for (int64_t row = first; row < end; row++) {
        int64_t y, group;
        if (kind_of(c, row, &y, &group) == POSITIVE)
            __builtin_prefetch((const REAL *)c->boxes + row * c->boxes_row + 4 * y * c->boxes_col);
    }
}

/* Rows `first` to `end`, at most tile_rows of them; adds to the sums of their chunk. */
static void NAME(forward_rows)(const struct call *c, int64_t first, int64_t end, double *sums) {
    REAL *kept = c->rows, e[TILE];
    struct NAME(boxes) boxes = {0};
    int softmax = c->classification == CROSS_ENTROPY, is_short = c->columns < TILE;
    NAME(prefetch)(c, first, end);
    if (softmax) {
        NAME(softmax_terms)(c, first, end - first, is_short ? e : 0, kept + first,
                            kept + c->count + first);
    } else if (is_short) {
        NAME(gather)(c, first, end - first, e);
        NAME(wrong_columns)(c, e, (end - first) * c->columns, 0);
    }
    for (int64_t row = first; row < end; row++) {
        int64_t y, group;
        enum kind kind = kind_of(c, row, &y, &group);
        if (!softmax) kept[row] = 0;
        if (kind == OUT_OF_RANGE) sums[BAD]++;
        if (kind == OUT_OF_RANGE || kind == IGNORED) continue;
        double *s = sums + group * SUMS;
        const REAL *z = (const REAL *)c->logits + row * c->logits_row;
        if (kind == POSITIVE) NAME(boxes_of)(c, row, y, 0, &boxes);
        if (!softmax)
            kept[row] = NAME(sigmoid_loss)(c, z, y, boxes.goal,
                                           e + (is_short ? (row - first) * c->columns : 0));
        REAL a = NAME(kept_loss)(c, row, z, y), count = softmax ? NAME(class_weight)(c, y) : 1;
        REAL alpha = NAME(factor)(c->alphas, row, c->alphas_row) * count;
        s[N]++;
        s[COUNTS] += count;
        if (kind == NEGATIVE) {
            s[A_NEG] += alpha * a;
            continue;
        }
        REAL beta = NAME(factor)(c->betas, row, c->betas_row);
        REAL w = c->joint ? (REAL)c->lam - NAME(class_score)(c, a, z[y]) * boxes.score : 1;
        s[P]++;
        s[W] += w;
        s[A_POS] += alpha * w * a;
        s[R] += beta * w * boxes.loss;
        if (c->extra) s[EXTRA] += beta * w * boxes.extra;
    }
}

void NAME(forward)(struct call *c) {
    int64_t first, end, rows = tile_rows(c);
    for (int64_t chunk; (chunk = take(c, &first, &end)) >= 0;) {
        double *sums = c->sums + chunk * c->num_groups * SUMS;
        memset(sums, 0, c->num_groups * SUMS * sizeof *sums);
        for (; first < end; first += rows)
            NAME(forward_rows)(c, first, first + rows < end ? first + rows : end, sums);
    }
}

static inline void NAME(fill)(REAL *to, int64_t count, REAL value) {
    if (to && value == 0) memset(to, 0, count * sizeof *to); /* knows when to bypass the caches */
    for (int64_t k = 0; to && value != 0 && k < count; k++) to[k] = value;
}

/* Rows `first` to `end`, at most tile_rows of them. */
static void NAME(backward_rows)(struct call *c, int64_t first, int64_t end) {
    const REAL *kept = c->rows;
    struct NAME(boxes) boxes = {0};
    int softmax = c->classification == CROSS_ENTROPY;
    if (c->grad_logits) { /* the softmax, or the derivatives of all columns as wrong ones */
        REAL *g = (REAL *)c->grad_logits + first * c->columns;
        if (softmax) {
            NAME(softmax)(c, first, end - first, g, kept + first, kept + c->count + first);
        } else {
            NAME(gather)(c, first, end - first, g);
            NAME(wrong_columns)(c, g, (end - first) * c->columns, 1);
        }
    }
    for (int64_t row = first; row < end; row++) {
        int64_t y, group;
        enum kind kind = kind_of(c, row, &y, &group);
        REAL *g = c->grad_logits ? (REAL *)c->grad_logits + row * c->columns : 0;
        REAL *gb = c->grad_boxes ? (REAL *)c->grad_boxes + row * c->box_columns : 0;
        REAL *ge = c->grad_extra ? (REAL *)c->grad_extra + row : 0;
        REAL outside = kind == OUT_OF_RANGE ? (REAL)NAN : 0; /* never a silent number */
        NAME(fill)(gb, c->box_columns, outside);
        NAME(fill)(ge, 1, outside);
        if (kind == OUT_OF_RANGE) __atomic_fetch_add(&c->bad, 1, __ATOMIC_RELAXED);
        if (kind == OUT_OF_RANGE || kind == IGNORED) {
            NAME(fill)(g, c->columns, outside);
            continue;
        }
        const double *scalars = c->scalars + group * SCALARS;
        const REAL *z = (const REAL *)c->logits + row * c->logits_row;
        REAL g_cls = (REAL)scalars[G_CLS], g_loc = (REAL)scalars[G_LOC];
        REAL a = NAME(kept_loss)(c, row, z, y), s = 0, d_s = 0;
        REAL alpha = NAME(factor)(c->alphas, row, c->alphas_row);
        if (softmax) alpha *= NAME(class_weight)(c, y);
        REAL scale = g_cls * alpha * (REAL)scalars[W_NEG];
        if (kind == POSITIVE) {
            REAL beta = NAME(factor)(c->betas, row, c->betas_row), d_w = 0;
            NAME(boxes_of)(c, row, y, 1, &boxes);
            s = NAME(class_score)(c, a, z[y]);
            REAL w = c->joint ? (REAL)c->lam - s * boxes.score : 1;
            if (!c->constant)
                d_w = g_cls * (alpha * a + (REAL)scalars[MEAN_NEG]) + g_loc * beta * boxes.loss;
            scale = g_cls * alpha * w;
            d_s = c->class_score && !c->constant ? d_w * boxes.score * s : 0;
            for (int k = 0; gb && k < 4; k++)
                gb[(c->box_columns > 4 ? 4 * y : 0) + k] =
                    g_loc * beta * w * boxes.d_loss[k] -
                    (c->constant ? 0 : d_w * s * boxes.d_score[k]);
            if (ge) *ge = g_loc * beta * w;
        }
        if (!g) continue;
        if (!softmax) {
            NAME(sigmoid_gradient)(c, z, y, boxes.goal, scale, g);
            if (kind == POSITIVE) g[y] -= d_s * (1 - s);
        } else { /* g holds the softmax */
            REAL p = g[y];
            scale += d_s;
#pragma omp simd
            for (int64_t k = 0; k < c->columns; k++) g[k] *= scale;
            g[y] = isinf(scale) ? scale * (p - 1) : g[y] - scale; /* not infinity less itself */
        }
    }
}

void NAME(backward)(struct call *c) {
    int64_t first, end, rows = tile_rows(c);
    while (take(c, &first, &end) >= 0)
        for (; first < end; first += rows)
            NAME(backward_rows)(c, first, first + rows < end ? first + rows : end);
}
