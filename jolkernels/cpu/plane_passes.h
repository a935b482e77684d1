/* The passes over samples whose columns are planes apart, and neighbours in each plane; included by
 * rows.c once a type. A run is taken some columns at a time, its samples side by side. */

/* What is known of the samples of a run. */
struct NAME(plane_run) {
    struct sample sample[RUN];
    int64_t labelled[RUN], num_labelled; /* which have a labelled column, and count */
};

static inline void NAME(look)(const struct call *c, const struct NAME(run) *r,
                              struct NAME(plane_run) *known) {
    known->num_labelled = 0;
    for (int64_t i = 0; i < r->count; i++) {
        struct sample *s = &known->sample[i];
        *s = NAME(sample)(c, r, i);
        if (counts(s) && s->y < c->columns) known->labelled[known->num_labelled++] = i;
    }
}

/* The next columns, of whose logits a tile has room, but no more than are added up without double;
 * 0: there are none left. */
static inline int NAME(next)(const struct call *c, const struct NAME(run) *r, struct columns *k) {
    int64_t room = TILE / r->count < 64 ? TILE / r->count : 64;
    k->first = k->end;
    k->end = k->first + room < c->columns ? k->first + room : c->columns;
    return k->first < k->end;
}

/* Their logits, less what is given of each sample, end to end. */
static inline void NAME(gather_planes)(const struct NAME(run) *r, struct columns k,
                                       const REAL *less, REAL *e) {
    for (int64_t j = k.first; j < k.end; j++, e += r->count) {
        const REAL *z = r->z + j * r->z_col;
        if (less) for (int64_t i = 0; i < r->count; i++) e[i] = z[i] - less[i];
        else memcpy(e, z, r->count * sizeof *e);
    }
}

/* Where the labelled column of a sample is in a tile; 0: not among these columns. */
static inline REAL *NAME(label_in)(const struct NAME(run) *r, const struct NAME(plane_run) *known,
                                   struct columns k, int64_t i, REAL *e) {
    int64_t y = known->sample[i].y;
    return y >= k.first && y < k.end ? e + (y - k.first) * r->count + i : 0;
}

/* Adds up a tile over its columns, in double from one tile to the next. */
static inline void NAME(add_columns)(const struct call *c, const struct NAME(run) *r,
                                     struct columns k, int weighted, const REAL *e, double *sums) {
    REAL some[RUN] = {0};
    for (int64_t j = k.first; j < k.end; j++, e += r->count) {
        REAL weight = weighted ? NAME(class_weight)(c, j) : 1;
#pragma omp simd
        for (int64_t i = 0; i < r->count; i++) some[i] += weight * e[i];
    }
    for (int64_t i = 0; i < r->count; i++) sums[i] += some[i];
}

static inline void NAME(plane_softmax_terms)(const struct call *c, const struct NAME(run) *r,
                                             REAL *e) {
    REAL *kept = (REAL *)c->rows + r->row, top[RUN];
    double totals[RUN] = {0};
    memcpy(top, r->z, r->count * sizeof *top);
    for (int64_t j = 1; j < c->columns; j++) {
        const REAL *z = r->z + j * r->z_col;
        for (int64_t i = 0; i < r->count; i++) top[i] = z[i] > top[i] ? z[i] : top[i];
    }
    for (struct columns k = {0}; NAME(next)(c, r, &k);) {
        NAME(gather_planes)(r, k, top, e);
        NAME(exp_all)(e, (k.end - k.first) * r->count);
        NAME(add_columns)(c, r, k, 0, e, totals);
    }
    for (int64_t i = 0; i < r->count; i++) {
        kept[i * r->anchors] = top[i];
        kept[i * r->anchors + c->count] = log((REAL)totals[i]);
    }
}

/* Adds a run, at most RUN long, to the sums of its chunk. */
static void NAME(forward_planes)(const struct call *c, const struct NAME(run) *r, double *sums) {
    struct NAME(plane_run) known;
    REAL e[TILE], *at;
    double wrong[RUN] = {0};
    NAME(look)(c, r, &known);
    if (c->classification == CROSS_ENTROPY) {
        NAME(plane_softmax_terms)(c, r, e);
    } else {
        for (struct columns k = {0}; NAME(next)(c, r, &k);) {
            NAME(gather_planes)(r, k, 0, e);
            NAME(wrong_columns)(c, e, (k.end - k.first) * r->count, 0);
            for (int64_t j = 0; j < known.num_labelled; j++)
                if ((at = NAME(label_in)(r, &known, k, known.labelled[j], e))) *at = 0;
            NAME(add_columns)(c, r, k, 1, e, wrong);
        }
    }
    for (int64_t i = 0; i < r->count; i++)
        NAME(add_sample)(c, r, i, &known.sample[i], wrong[i], sums);
}

/* The softmax of some columns, or their derivatives as wrong ones. */
static inline void NAME(plane_slopes)(const struct call *c, const struct NAME(run) *r,
                                      struct columns k, REAL *e) {
    int64_t count = (k.end - k.first) * r->count;
    if (c->classification != CROSS_ENTROPY) {
        NAME(gather_planes)(r, k, 0, e);
        NAME(wrong_columns)(c, e, count, 1);
        return;
    }
    const REAL *kept = (const REAL *)c->rows + r->row;
    REAL top[RUN], *to = e;
    for (int64_t i = 0; i < r->count; i++) top[i] = kept[i * r->anchors];
    NAME(gather_planes)(r, k, top, e);
    for (int64_t i = 0; i < r->count; i++) top[i] = kept[i * r->anchors + c->count];
    for (int64_t j = k.first; j < k.end; j++, to += r->count)
        for (int64_t i = 0; i < r->count; i++) to[i] -= top[i];
    NAME(exp_all)(e, count);
}

/* The gradients of a run, at most RUN long. */
static void NAME(backward_planes)(struct call *c, const struct NAME(run) *r) {
    struct NAME(plane_run) known;
    struct NAME(slope) slope[RUN];
    REAL e[TILE], scale[RUN], used[RUN], *at;
    int softmax = c->classification == CROSS_ENTROPY;
    NAME(look)(c, r, &known);
    NAME(clear_boxes)(c, r);
    for (int64_t i = 0; i < r->count; i++) {
        NAME(weigh_sample)(c, r, i, &known.sample[i], &slope[i]);
        scale[i] = slope[i].scale, used[i] = counts(&known.sample[i]);
    }
    if (!r->gz) return;
    for (struct columns k = {0}; NAME(next)(c, r, &k);) {
        NAME(plane_slopes)(c, r, k, e);
        for (int64_t j = k.first; j < k.end; j++) {
            REAL weight = softmax ? 1 : NAME(class_weight)(c, j), *g = r->gz + j * r->gz_col;
            const REAL *from = e + (j - k.first) * r->count;
#pragma omp simd
            for (int64_t i = 0; i < r->count; i++)
                g[i] = used[i] != 0 ? from[i] * (scale[i] * weight) : scale[i];
        }
        for (int64_t j = 0; j < known.num_labelled; j++) {
            int64_t i = known.labelled[j], y = known.sample[i].y;
            if (!(at = NAME(label_in)(r, &known, k, i, e))) continue;
            REAL *g = r->gz + y * r->gz_col + i, per = scale[i] * NAME(class_weight)(c, y);
            if (softmax) {
                *g = NAME(labelled_softmax)(*g, *at, scale[i]);
            } else {
                NAME(labelled)(c, r->z[y * r->z_col + i], slope[i].goal, at);
                *g = *at * per - slope[i].d_s * (1 - slope[i].s);
            }
        }
    }
}
