/* Classification losses with their derivatives, those of formulas/classification.py; included by
 * rows.c once a type.
 *
 * The columns of wrong classes are alike in all sigmoid losses: wrong_factor p^gamma softplus(z),
 * where p^gamma is a constant if `detached`. What tells the losses apart is the labelled column. */

static inline REAL NAME(highest)(const REAL *z, int64_t columns) {
    REAL highest = z[0];
    if (columns < SHORT) {
        for (int64_t k = 1; k < columns; k++) highest = z[k] > highest ? z[k] : highest;
        return highest;
    }
#pragma omp simd reduction(max : highest)
    for (int64_t k = 1; k < columns; k++) highest = z[k] > highest ? z[k] : highest;
    return highest;
}

static inline REAL NAME(total)(const REAL *x, int64_t count) {
    REAL sum = 0;
    if (count < SHORT) {
        for (int64_t k = 0; k < count; k++) sum += x[k];
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; k++) sum += x[k];
    return sum;
}

static WIDE void NAME(exp_all)(REAL *x, int64_t count) {
    REAL lowest = NAME(lowest);
#pragma omp simd
    for (int64_t k = 0; k < count; k++) x[k] = NAME(exp_negative)(x[k], lowest);
}

/* The maximum and log sum exp(z - max z) of some rows, whose exponentials are laid end to end in e,
 * so that short rows fill the processor's vectors too. A long row does without e. The results of
 * a row and the next are `kept` numbers apart. */
static inline void NAME(softmax_terms)(const struct call *c, const REAL *first, int64_t stride,
                                       int64_t rows, REAL *e, REAL *highest, REAL *log_total,
                                       int64_t kept) {
    REAL lowest = NAME(lowest);
    for (int64_t i = 0; i < rows; i++) {
        const REAL *z = first + i * stride;
        REAL top = highest[i * kept] = NAME(highest)(z, c->columns), sum = 0;
        if (e) {
            for (int64_t k = 0; k < c->columns; k++) e[i * c->columns + k] = z[k] - top;
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < c->columns; k++) sum += NAME(exp_negative)(z[k] - top, lowest);
            log_total[i * kept] = log(sum);
        }
    }
    if (!e) return;
    NAME(exp_all)(e, rows * c->columns);
    for (int64_t i = 0; i < rows; i++)
        log_total[i * kept] = log(NAME(total)(e + i * c->columns, c->columns));
}

/* exp(z - max z - log_total), the softmax, of some rows laid end to end. */
static inline void NAME(softmax)(const struct call *c, const REAL *first, int64_t stride,
                                 int64_t rows, REAL *p, const REAL *highest,
                                 const REAL *log_total, int64_t kept) {
    for (int64_t i = 0; i < rows; i++) {
        const REAL *z = first + i * stride, top = highest[i * kept], log = log_total[i * kept];
        for (int64_t k = 0; k < c->columns; k++) p[i * c->columns + k] = z[k] - top - log;
    }
    NAME(exp_all)(p, rows * c->columns);
}

/* -t log p - (1 - t) log(1 - p), its tails exact, and 0 times an infinite part 0. */
static inline REAL NAME(bce)(REAL z, REAL t, REAL *slope) {
    *slope = (1 - t) * NAME(sigmoid)(z) - t * NAME(sigmoid)(-z);
    return (t == 0 ? 0 : t * NAME(softplus)(-z)) + (t == 1 ? 0 : (1 - t) * NAME(softplus)(z));
}

static inline REAL NAME(power)(REAL p, double gamma) {
    return gamma == 2 ? p * p : (REAL)pow(p, gamma);
}

/* slope + gamma ce s, the second from a power's derivative; not 0 times an infinite ce. */
static inline REAL NAME(with_power)(const struct call *c, REAL slope, REAL ce, REAL s) {
    return c->gamma == 0 ? slope : slope + (REAL)c->gamma * ce * s;
}

/* wrong_factor p^gamma BCE(p, t) of one column. */
static inline REAL NAME(modulated)(const struct call *c, REAL z, REAL t, REAL *slope) {
    REAL p = NAME(sigmoid)(z), ce = NAME(bce)(z, t, slope);
    REAL m = NAME(power)(p, c->gamma) * (REAL)c->wrong_factor;
    if (!c->detached) *slope = NAME(with_power)(c, *slope, ce, NAME(sigmoid)(-z));
    *slope *= m;
    return m * ce;
}

/* The focal loss of the labelled column; t = 1 is apart because 1 - p_t can be very small there. */
static inline REAL NAME(focal)(const struct call *c, REAL z, REAL t, REAL *slope) {
    if (t == 0) return NAME(modulated)(c, z, 0, slope);
    if (t == 1) {
        REAL u = -z, p = NAME(sigmoid)(u), ce = NAME(softplus)(u);
        REAL m = NAME(power)(p, c->gamma) * (REAL)c->alpha;
        *slope = -(m * NAME(with_power)(c, p, ce, NAME(sigmoid)(-u)));
        return m * ce;
    }
    REAL p = NAME(sigmoid)(z), q = NAME(sigmoid)(-z), ce = NAME(bce)(z, t, slope);
    REAL wrong = t * q + (1 - t) * p; /* 1 - p_t */
    REAL m = NAME(power)(wrong, c->gamma);
    m *= (REAL)c->alpha * t + (REAL)(1 - c->alpha) * (1 - t);
    *slope = m * NAME(with_power)(c, *slope, ce, (1 - 2 * t) * p * q / wrong);
    return m * ce;
}

/* |t - p|^beta BCE(p, t), with beta in gamma. */
static inline REAL NAME(quality_focal)(const struct call *c, REAL z, REAL t, REAL *slope) {
    REAL p = NAME(sigmoid)(z), q = NAME(sigmoid)(-z), d = t * q - (1 - t) * p;
    REAL ce = NAME(bce)(z, t, slope), m = NAME(power)(fabs(d), c->gamma);
    REAL per = d == 0 ? 0 : p * q / d; /* m / d alone can leave the range */
    *slope = NAME(with_power)(c, m * *slope, ce, -m * per);
    return m * ce;
}

static inline REAL NAME(varifocal)(const struct call *c, REAL z, REAL t, REAL *slope) {
    if (!c->by_label && !(t > 0)) return NAME(modulated)(c, z, t, slope);
    REAL ce = NAME(bce)(z, t, slope);
    *slope *= t;
    return t * ce;
}

/* The loss of the labelled column, whose target is t, and its derivative. */
static inline REAL NAME(labelled)(const struct call *c, REAL z, REAL t, REAL *slope) {
    switch (c->classification) {
    case FOCAL: return NAME(focal)(c, z, t, slope);
    case QUALITY_FOCAL: return NAME(quality_focal)(c, z, t, slope);
    case VARIFOCAL: return NAME(varifocal)(c, z, t, slope);
    case MAL: t = NAME(power)(t, c->gamma); /* fall through */
    default: return NAME(bce)(z, t, slope);
    }
}

/* The losses of wrong columns, or their derivatives, in place, for a gamma that is known when this
 * is compiled. Vectorises: log1p(e) = 2 atanh(e / (2 + e)), whose series needs few terms for
 * e <= 1. */
static inline __attribute__((always_inline)) void NAME(wrong_loop)(REAL *z, int64_t count,
                                                                   REAL factor, double gamma,
                                                                   int detached, int slope) {
    REAL lowest = NAME(lowest);
#pragma omp simd
    for (int64_t k = 0; k < count; k++) {
        REAL x = z[k], e = NAME(exp_negative)(-fabs(x), lowest);
        REAL per = 1 / (1 + e), p = (x >= 0 ? 1 : e) * per, q = (x >= 0 ? e : 1) * per;
        REAL s = e / (2 + e), t = s * s;
        REAL ce = (x > 0 ? x : 0) + 2 * s * ATANH;
        REAL m = gamma == 0 ? factor : factor * p * (gamma == 2 ? p : sqrt(p));
        z[k] = m * (!slope ? ce : detached || gamma == 0 ? p : p + (REAL)gamma * ce * q);
    }
}

#define WRONG(gamma, detached)                                                          \
    (slope ? NAME(wrong_loop)(z, count, factor, gamma, detached, 1)                     \
           : NAME(wrong_loop)(z, count, factor, gamma, detached, 0))

/* The losses of wrong columns, or their derivatives, in place. */
static WIDE void NAME(wrong_columns)(const struct call *c, REAL *z, int64_t count, int slope) {
    REAL factor = (REAL)c->wrong_factor, d;
    if (c->gamma == 0) {
        WRONG(0, 1);
    } else if (c->gamma == 2) {
        if (c->detached) WRONG(2, 1);
        else WRONG(2, 0);
    } else if (c->gamma == 1.5) {
        if (c->detached) WRONG(1.5, 1);
        else WRONG(1.5, 0);
    } else {
        for (int64_t k = 0; k < count; k++) {
            REAL loss = NAME(modulated)(c, z[k], 0, &d);
            z[k] = slope ? d : loss;
        }
    }
}
#undef WRONG

/* Logits of some rows, laid end to end. Of short rows that lie so already some are copied at once:
 * a call costs as much as a row. */
static inline void NAME(gather)(const struct call *c, const REAL *first, int64_t stride,
                                int64_t rows, REAL *to) {
    int64_t some = stride == c->columns && c->columns < 64 ? 512 / c->columns : 1;
    for (int64_t i = 0; i < rows; i += some) {
        int64_t count = rows - i < some ? rows - i : some;
        memcpy(to + i * c->columns, first + i * stride, count * c->columns * sizeof *to);
    }
}

static inline REAL NAME(class_weight)(const struct call *c, int64_t k) {
    return c->class_weights ? ((const REAL *)c->class_weights)[k * c->class_weights_row] : 1;
}

/* The sum of e[0] to e[count - 1], in double: 100,000 terms may come together. The columns' weights
 * are those from column `at` on. */
static inline double NAME(sum_of)(const struct call *c, const REAL *e, int64_t count, int64_t at) {
    double sum = 0;
    if (c->class_weights) {
        for (int64_t k = 0; k < count; k++) sum += NAME(class_weight)(c, at + k) * e[k];
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; k++) sum += e[k];
    return sum;
}

/* The sum of a row's losses in the columns of wrong classes. e holds the losses of its columns as
 * wrong ones, or, of a long row, is room for a piece of them. */
static inline double NAME(wrong_sum)(const struct call *c, const REAL *z, int64_t y, REAL *e) {
    double loss = 0;
    for (int64_t at = 0; at < c->columns; at += TILE) {
        int64_t count = c->columns - at < TILE ? c->columns - at : TILE;
        if (c->columns >= TILE) {
            memcpy(e, z + at, count * sizeof *e);
            NAME(wrong_columns)(c, e, count, 0);
        }
        if (y >= at && y < at + count) e[y - at] = 0;
        loss += NAME(sum_of)(c, e, count, at);
    }
    return loss;
}

/* The gradient of a row, times `scale`, in place of the derivatives of its columns as wrong ones. */
static inline void NAME(sigmoid_gradient)(const struct call *c, const REAL *z, int64_t y, REAL t,
                                          REAL scale, REAL *g) {
    if (y < c->columns) NAME(labelled)(c, z[y], t, &g[y]);
    if (c->class_weights) {
        for (int64_t k = 0; k < c->columns; k++) g[k] *= scale * NAME(class_weight)(c, k);
    } else {
        for (int64_t k = 0; k < c->columns; k++) g[k] *= scale;
    }
}

static inline REAL NAME(class_score)(const struct call *c, REAL a, REAL z_y) {
    if (!c->class_score) return 1;
    return c->classification == CROSS_ENTROPY ? (REAL)exp(-a) : NAME(sigmoid)(z_y);
}
