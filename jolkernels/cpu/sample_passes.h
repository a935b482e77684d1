/* A sample's part in the two passes; included by rows.c once a type. */

/* Neighbouring positions of an image and anchor: where their numbers begin, how far apart columns
 * and positions are, and which samples they are. Of a level of halves they are there, and strides
 * those of room for their logits and gradients; boxes are read as they are. */
struct NAME(run) {
    const REAL *z, *b;
    const uint16_t *half_z, *half_b;
    REAL *gz, *gb;
    uint16_t *half_gz, *half_gb;
    int64_t z_col, z_step, b_col, b_step, gz_col, gz_step, gb_col, gb_step;
    int64_t image, index, row; /* of the first sample */
    int64_t anchors, count;    /* the next sample's number is higher by `anchors` */
};

/* A number of a sample, or 1. */
static inline REAL NAME(factor)(const void *of_samples, const struct sample *s, int64_t image,
                                int64_t row) {
    return of_samples ? ((const REAL *)of_samples)[s->image * image + s->index * row] : 1;
}

static inline void NAME(four)(const REAL *from, int64_t col, REAL *to) {
    for (int k = 0; k < 4; k++) to[k] = from[k * col];
}

static inline void NAME(four_halves)(const uint16_t *from, int64_t col, REAL *to) {
    for (int k = 0; k < 4; k++) to[k] = NAME(widened)(from[k * col]);
}

/* The first of a positive's four columns of boxes. */
static inline int64_t NAME(slot)(const struct call *c, const struct sample *s) {
    return c->box_columns > 4 ? 4 * s->y : 0;
}

/* What the boxes of a positive contribute: box loss (with its part that the caller gives as
 * `extra`) and location score, their gradients for the codes, and the labelled column's target. */
struct NAME(boxes) {
    REAL loss, d_loss[4], extra, score, d_score[4], goal;
};

/* Fills in `r` from the boxes of sample i of a run; the gradients are right only with `slopes`. Takes
 * a copy of the sample, so that its callers keep theirs in registers. */
static inline void NAME(boxes_of)(const struct call *c, struct sample s,
                                  const struct NAME(run) *of, int64_t i, int slopes,
                                  struct NAME(boxes) *r) {
    struct NAME(sizes) sizes, unused;
    REAL b[4], given[4], p[4], x[4], t[4], code[4], g[4];
    int64_t first = i * of->b_step + NAME(slot)(c, &s) * of->b_col;
    if (of->b) NAME(four)(of->b + first, of->b_col, b);
    else NAME(four_halves)(of->half_b + first, of->b_col, b);
    NAME(four)((const REAL *)c->targets + s.image * c->targets_image +
                   s.object * c->targets_row, c->targets_col, given);
    memcpy(p, given, sizeof p);
    memcpy(t, given, sizeof t);
    if (c->priors)
        NAME(four)((const REAL *)c->priors + s.image * c->priors_image +
                       s.index * c->priors_row, c->priors_col, p);
    NAME(decode)(c, b, p, x, &sizes);
    if (c->coding == CXCYWH) NAME(decode)(c, given, p, t, &unused);

    REAL loss = 0, by_codes[4] = {0}, by_corners[4] = {0};
    if (c->on_codes) {
        NAME(encode)(c, given, p, code);
        for (int64_t j = 0; j < c->terms; j++)
            if (c->term[j].kind <= L2)
                loss += NAME(code_loss)(&c->term[j], b, code, by_codes);
    }
    if (c->on_corners) {
        loss += NAME(corner_losses)(c, x, t, by_corners);
        if (slopes) NAME(pull)(c, p, &sizes, by_corners);
    }
    for (int k = 0; k < 4; k++) r->d_loss[k] = by_codes[k] + by_corners[k];
    r->extra = c->extra ? NAME(factor)(c->extra, &s, c->extra_image, c->extra_row) : 0;
    r->loss = loss + r->extra;

    r->score = 1;
    memset(r->d_score, 0, sizeof r->d_score);
    r->goal = NAME(factor)(c->class_targets, &s, c->class_targets_image, c->class_targets_row);
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

INLINE struct sample NAME(sample)(const struct call *c, const struct NAME(run) *r,
                                         int64_t i) {
    struct sample s = {.image = r->image, .index = r->index + i * r->anchors,
                       .row = r->row + i * r->anchors};
    s.kind = set_kind(c, &s);
    return s;
}

/* The classification loss of a sample from what the forward pass kept. */
static inline REAL NAME(kept_loss)(const struct call *c, const struct sample *s, const REAL *z,
                                   int64_t col) {
    const REAL *kept = (const REAL *)c->rows + s->row;
    return c->classification == CROSS_ENTROPY ? kept[0] - z[s->y * col] + kept[c->count] : kept[0];
}

/* Forward: adds sample i of a run to the sums of its chunk. `wrong` is the sum of the sigmoid
 * losses in the columns of wrong classes. */
INLINE void NAME(add_sample)(const struct call *c, const struct NAME(run) *r, int64_t i,
                                    const struct sample *sample, double wrong, double *sums) {
    REAL *kept = (REAL *)c->rows + sample->row;
    const REAL *z = r->z + i * r->z_step;
    struct NAME(boxes) boxes;
    int softmax = c->classification == CROSS_ENTROPY;
    int64_t y = sample->y;
    if (!counts(sample)) {
        if (sample->kind == OUT_OF_RANGE) sums[BAD]++;
        if (!softmax) kept[0] = 0;
        return;
    }
    if (sample->kind == POSITIVE)
        NAME(boxes_of)(c, *sample, r, i, 0, &boxes);
    REAL a, count = 1;
    if (softmax) {
        a = NAME(kept_loss)(c, sample, z, r->z_col);
        count = NAME(class_weight)(c, y);
    } else {
        REAL slope;
        if (y < c->columns)
            wrong += NAME(class_weight)(c, y) *
                     NAME(labelled)(c, z[y * r->z_col], boxes.goal, &slope);
        kept[0] = a = (REAL)wrong;
    }
    double *s = sums + sample->group * SUMS;
    REAL alpha = NAME(factor)(c->alphas, sample, c->alphas_image, c->alphas_row) * count;
    s[N]++;
    s[COUNTS] += count;
    if (sample->kind == NEGATIVE) {
        s[A_NEG] += alpha * a;
        return;
    }
    REAL beta = NAME(factor)(c->betas, sample, c->betas_image, c->betas_row);
    REAL w = 1;
    if (c->joint) w = (REAL)c->lam - NAME(class_score)(c, a, z[y * r->z_col]) * boxes.score;
    s[P]++;
    s[W] += w;
    s[A_POS] += alpha * w * a;
    s[R] += beta * w * boxes.loss;
    if (c->extra) s[EXTRA] += beta * w * boxes.extra;
}

static inline void NAME(fill)(REAL *to, int64_t count, REAL value) {
    if (value == 0) memset(to, 0, count * sizeof *to); /* knows when to bypass the caches */
    for (int64_t k = 0; value != 0 && k < count; k++) to[k] = value;
}

/* Of a sample's gradient for the logits: the factor of the derivatives of its columns; the labelled
 * column's target, and what is taken from it then with a sigmoid loss, times 1 - s. */
struct NAME(slope) {
    REAL scale, goal, d_s, s;
};

/* Backward: the gradients of a run for its boxes are 0 but for what weigh_sample writes. */
static inline void NAME(clear_boxes)(const struct call *c, const struct NAME(run) *r) {
    if (!r->gb) return;
    if (r->gb_col == 1 && r->gb_step == c->box_columns) {
        NAME(fill)(r->gb, r->count * c->box_columns, 0);
    } else if (r->gb_step == 1) {
        for (int64_t k = 0; k < c->box_columns; k++) NAME(fill)(r->gb + k * r->gb_col, r->count, 0);
    } else {
        for (int64_t i = 0; i < r->count; i++)
            for (int64_t k = 0; k < c->box_columns; k++) r->gb[i * r->gb_step + k * r->gb_col] = 0;
    }
}

/* Backward: writes the gradients of sample i of a run but that for the logits, and fills in what
 * that needs. Of a sample that does not count they are 0 or, out of range, NaN: never a silent
 * number. Those for boxes are 0 before. */
INLINE void NAME(weigh_sample)(struct call *c, const struct NAME(run) *r, int64_t i,
                                      const struct sample *sample, struct NAME(slope) *slope) {
    REAL *gb = r->gb ? r->gb + i * r->gb_step : 0;
    REAL *ge = c->grad_extra ? (REAL *)c->grad_extra + sample->row : 0;
    *slope = (struct NAME(slope)){0, 0, 0, 0};
    if (ge) *ge = 0;
    if (sample->kind == OUT_OF_RANGE) {
        slope->scale = (REAL)NAN;
        for (int64_t k = 0; gb && k < c->box_columns; k++) gb[k * r->gb_col] = (REAL)NAN;
        if (ge) *ge = (REAL)NAN;
        __atomic_fetch_add(&c->bad, 1, __ATOMIC_RELAXED);
    }
    if (!counts(sample)) return;

    int softmax = c->classification == CROSS_ENTROPY;
    const double *scalars =
        c->scalars + (c->by_image ? sample->image : sample->group) * SCALARS;
    REAL g_cls = (REAL)scalars[G_CLS], g_loc = (REAL)scalars[G_LOC], s = 0, d_s = 0;
    REAL alpha = NAME(factor)(c->alphas, sample, c->alphas_image, c->alphas_row);
    if (softmax) alpha *= NAME(class_weight)(c, sample->y);
    slope->scale = g_cls * alpha * (REAL)scalars[W_NEG];
    if (sample->kind == NEGATIVE) return;

    struct NAME(boxes) boxes;
    const REAL *z = r->z + i * r->z_step;
    REAL a = NAME(kept_loss)(c, sample, z, r->z_col);
    REAL beta = NAME(factor)(c->betas, sample, c->betas_image, c->betas_row), d_w = 0;
    NAME(boxes_of)(c, *sample, r, i, 1, &boxes);
    s = NAME(class_score)(c, a, z[sample->y * r->z_col]);
    REAL w = c->joint ? (REAL)c->lam - s * boxes.score : 1;
    if (!c->constant)
        d_w = g_cls * (alpha * a + (REAL)scalars[MEAN_NEG]) + g_loc * beta * boxes.loss;
    d_s = c->class_score && !c->constant ? d_w * boxes.score * s : 0;
    for (int k = 0; gb && k < 4; k++)
        gb[(NAME(slot)(c, sample) + k) * r->gb_col] =
            g_loc * beta * w * boxes.d_loss[k] - (c->constant ? 0 : d_w * s * boxes.d_score[k]);
    if (ge) *ge = g_loc * beta * w;
    slope->scale = g_cls * alpha * w;
    if (softmax) slope->scale += d_s;
    slope->goal = boxes.goal, slope->d_s = d_s, slope->s = s;
}

/* The gradient of the labelled column, from its softmax p and g = p times scale. */
static inline REAL NAME(labelled_softmax)(REAL g, REAL p, REAL scale) {
    return isinf(scale) ? scale * (p - 1) : g - scale; /* not infinity less itself */
}
