/* The passes over samples whose columns follow each other; included by rows.c once a type. */

static inline int64_t NAME(tile_rows)(const struct call *c) {
    return c->columns < TILE ? TILE / c->columns : 1;
}

/* Ask for the boxes of rows to come: those of a row's class lie far from the next row's. */
static inline void NAME(prefetch)(const struct call *c, const struct NAME(run) *r) {
    if (c->box_columns == 4) return;
    for (int64_t i = 0; i < r->count; i++) {
        struct sample s = NAME(sample)(c, r, i);
        if (s.kind == POSITIVE)
            __builtin_prefetch(r->b + i * r->b_step + NAME(slot)(c, &s) * r->b_col);
    }
}

/* Adds a run, at most tile_rows long, to the sums of its chunk. */
static void NAME(forward_rows)(const struct call *c, const struct NAME(run) *r, double *sums) {
    REAL *kept = (REAL *)c->rows + r->row, e[TILE];
    int softmax = c->classification == CROSS_ENTROPY, is_short = c->columns < TILE;
    NAME(prefetch)(c, r);
    if (softmax) {
        NAME(softmax_terms)(c, r->z, r->z_step, r->count, is_short ? e : 0, kept,
                            kept + c->count, r->anchors);
    } else if (is_short) {
        NAME(gather)(c, r->z, r->z_step, r->count, e);
        NAME(wrong_columns)(c, e, r->count * c->columns, 0);
    }
    for (int64_t i = 0; i < r->count; i++) {
        struct sample s = NAME(sample)(c, r, i);
        double wrong = 0;
        if (!softmax && counts(&s))
            wrong = NAME(wrong_sum)(c, r->z + i * r->z_step, s.y,
                                    e + (is_short ? i * c->columns : 0));
        NAME(add_sample)(c, r, i, &s, wrong, sums);
    }
}

/* The gradient of a sample for its logits, from the softmax, or the derivatives of its columns as
 * wrong ones, in g. */
INLINE void NAME(row_gradient)(const struct call *c, const REAL *z, const struct sample *s,
                                      const struct NAME(slope) *slope, REAL *g) {
    int64_t y = s->y;
    if (!counts(s)) {
        NAME(fill)(g, c->columns, slope->scale);
    } else if (c->classification == CROSS_ENTROPY) {
        REAL p = g[y], scale = slope->scale;
#pragma omp simd
        for (int64_t k = 0; k < c->columns; k++) g[k] *= scale;
        g[y] = NAME(labelled_softmax)(g[y], p, scale);
    } else {
        NAME(sigmoid_gradient)(c, z, y, slope->goal, slope->scale, g);
        if (s->kind == POSITIVE) g[y] -= slope->d_s * (1 - slope->s);
    }
}

/* The gradients of a run, at most tile_rows long. That for the logits is computed where it is
 * wanted, if there its rows follow each other. */
static void NAME(backward_rows)(struct call *c, const struct NAME(run) *r) {
    const REAL *kept = (const REAL *)c->rows + r->row;
    REAL tile[TILE], *g = r->gz;
    int elsewhere = g && r->count > 1 && r->gz_step != c->columns;
    if (elsewhere) g = tile;
    NAME(clear_boxes)(c, r);
    if (g && c->classification == CROSS_ENTROPY) {
        NAME(softmax)(c, r->z, r->z_step, r->count, g, kept, kept + c->count, r->anchors);
    } else if (g) {
        NAME(gather)(c, r->z, r->z_step, r->count, g);
        NAME(wrong_columns)(c, g, r->count * c->columns, 1);
    }
    for (int64_t i = 0; i < r->count; i++) {
        struct sample s = NAME(sample)(c, r, i);
        struct NAME(slope) slope;
        NAME(weigh_sample)(c, r, i, &s, &slope);
        if (!g) continue;
        NAME(row_gradient)(c, r->z + i * r->z_step, &s, &slope, g + i * c->columns);
        if (elsewhere)
            memcpy(r->gz + i * r->gz_step, g + i * c->columns, c->columns * sizeof *g);
    }
}
