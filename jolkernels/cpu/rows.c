/* The row passes of the loss in C, for float and double: what kernels/forward.py and backward.py
 * compute, for the losses of the reference detectors (docs/mathematics.md has the derivation).
 *
 * native.py fills struct call and knows which settings are computed here. The file includes itself
 * once for each type. */

#ifndef REAL

#include <stdint.h>
#include <string.h>
#include <tgmath.h>

enum { CROSS_ENTROPY, FOCAL };
enum { L1, SMOOTH_L1, IOU_LOSS, GIOU_LOSS };
enum { XYXY, DELTA, LTRB };
enum { P, N, W, A_POS, A_NEG, R, BAD, SUMS }; /* as Sums of sums.py */
enum { CHUNK = 4096 }; /* rows a thread takes at a time; their sums do not depend on the threads */
enum { TILE = 2048 };  /* logits whose exp is taken in one loop */

const uint64_t jolkernels_source = SOURCE; /* of which rows.c: native.py takes no other */

struct call {
    const void *logits, *boxes, *labels, *targets, *priors, *alphas, *betas;
    void *rows, *grad_logits, *grad_boxes;
    int64_t logits_row, boxes_row, boxes_col, labels_row, targets_row, targets_col;
    int64_t priors_row, priors_col, alphas_row, betas_row;
    int64_t columns, box_columns, background, last, ignore;
    int64_t classification, regression, coding, iou_score, class_score, joint, constant;
    double lam, focal_alpha, focal_gamma, beta, code_weights[4], clip;
    double w_neg, mean_neg, g_cls, g_loc; /* backward: scalars, and upstream over normalisers */
    int64_t count, next;                  /* rows, and the first chunk that no thread has taken */
    int64_t bad;                          /* backward: labels out of range */
    double *sums;                         /* forward: SUMS numbers a chunk */
};

/* Take the next chunk of rows: its number, or -1 when there are none left. */
static int64_t take(struct call *c, int64_t *first, int64_t *end) {
    int64_t chunk = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
    *first = chunk * CHUNK;
    *end = *first + CHUNK < c->count ? *first + CHUNK : c->count;
    return *first < c->count ? chunk : -1;
}

enum kind { IGNORED, NEGATIVE, POSITIVE, OUT_OF_RANGE };

/* What a row is, and its label, read once: another thread may write to it, and it is an index. */
static inline enum kind kind_of(const struct call *c, int64_t row, int64_t *y) {
    *y = ((const volatile int64_t *)c->labels)[row * c->labels_row];
    if (*y == c->ignore) return IGNORED;
    if (*y < 0 || *y > c->last) return OUT_OF_RANGE;
    if (*y == c->background) return NEGATIVE;
    return c->box_columns > 4 && 4 * *y >= c->box_columns ? OUT_OF_RANGE : POSITIVE;
}

static int64_t tile_rows(const struct call *c) { return c->columns < TILE ? TILE / c->columns : 1; }

/* The Taylor series of exp, by Horner; a loop over the terms would not be vectorised. */
#define TERM(k, rest) (1 + r * ((REAL)1 / (REAL)k) * (rest))
#define SERIES_7 TERM(1, TERM(2, TERM(3, TERM(4, TERM(5, TERM(6, TERM(7, 1)))))))
#define SERIES_13                                                                              \
    TERM(1, TERM(2, TERM(3, TERM(4, TERM(5, TERM(6, TERM(7, TERM(8, TERM(9, TERM(10, TERM(11, \
        TERM(12, TERM(13, 1)))))))))))))

/* The series of atanh(s) / s in t = s^2, likewise. */
#define ODD(k, rest) ((REAL)1 / (REAL)(k) + t * (rest))
#define ATANH_8 ODD(1, ODD(3, ODD(5, ODD(7, ODD(9, ODD(11, ODD(13, (REAL)1 / (REAL)15)))))))
#define ATANH_17                                                                             \
    ODD(1, ODD(3, ODD(5, ODD(7, ODD(9, ODD(11, ODD(13, ODD(15, ODD(17, ODD(19, ODD(21,       \
        ODD(23, ODD(25, ODD(27, ODD(29, ODD(31, (REAL)1 / (REAL)33))))))))))))))))

#define REAL float
#define SERIES SERIES_7
#define ATANH ATANH_8
#define UINT uint32_t
#define MANTISSA 23
#define BIAS 127
#define LOWEST -88.0f
#define NAME(x) x##_f32
#include "rows.c"
#undef REAL
#undef SERIES
#undef ATANH
#undef UINT
#undef MANTISSA
#undef BIAS
#undef LOWEST
#undef NAME
#define REAL double
#define SERIES SERIES_13
#define ATANH ATANH_17
#define UINT uint64_t
#define MANTISSA 52
#define BIAS 1023
#define LOWEST -709.2
#define NAME(x) x##_f64
#include "rows.c"

#else

/* exp for x <= 0 without a branch or a call, so that loops over it vectorise: 2^n times the Taylor
 * series of the remainder r, |r| <= ln(2) / 2. At `lowest` and below, the power's bits are those of
 * 0. NaN stays NaN; n, which an integer must hold, is that of the nearest number in range. (A
 * constant in place of `lowest` makes GCC split the path, and the loop scalar.) */
static volatile REAL NAME(lowest) = (REAL)LOWEST;

static inline REAL NAME(exp_negative)(REAL x, REAL lowest) {
    REAL t = x < lowest ? lowest : x, bound = x > lowest ? x : lowest;
    bound = bound < -lowest ? bound : -lowest;
    REAL n = (REAL)(int32_t)(bound * (REAL)1.4426950408889634 - (REAL)0.5);
    REAL r = (t - n * (REAL)0.693145751953125) - n * (REAL)1.42860682030941723212e-6;
    UINT bits = (UINT)((int32_t)n + BIAS) << MANTISSA;
    REAL scale;
    memcpy(&scale, &bits, sizeof scale);
    return SERIES * scale;
}

static inline REAL NAME(sigmoid)(REAL x) {
    REAL e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

static inline REAL NAME(softplus)(REAL x) { return (x > 0 || x != x ? x : 0) + log1p(exp(-fabs(x))); }

/* The focal loss of one column and its derivative. */
static inline REAL NAME(focal)(const struct call *c, REAL z, int is_true, REAL *slope) {
    REAL u = is_true ? -z : z, p = NAME(sigmoid)(u), ce = NAME(softplus)(u);
    REAL m = c->focal_gamma == 2 ? p * p : (REAL)pow(p, c->focal_gamma);
    m *= (REAL)(is_true ? c->focal_alpha : 1 - c->focal_alpha);
    REAL d = m * (p + (REAL)c->focal_gamma * ce * NAME(sigmoid)(-u));
    *slope = is_true ? -d : d;
    return m * ce;
}

/* The focal loss, or its derivative, of logits of wrong classes, in place, for gamma = 2. Vectorises:
 * log1p(e) = 2 atanh(e / (2 + e)), whose series needs few terms for e <= 1. */
static inline void NAME(focal_wrong)(const struct call *c, REAL *z, int64_t count, int slope) {
    REAL lowest = NAME(lowest), weight = (REAL)(1 - c->focal_alpha);
#pragma omp simd
    for (int64_t k = 0; k < count; k++) {
        REAL x = z[k], e = NAME(exp_negative)(-fabs(x), lowest);
        REAL per = 1 / (1 + e), p = (x >= 0 ? 1 : e) * per, q = (x >= 0 ? e : 1) * per;
        REAL s = e / (2 + e), t = s * s;
        REAL ce = (x > 0 ? x : 0) + 2 * s * ATANH, m = weight * p * p;
        z[k] = slope ? m * (p + 2 * ce * q) : m * ce;
    }
}

static inline REAL NAME(sign)(REAL d) { return (REAL)((d > 0) - (d < 0)); }

/* Half the size of a decoded box along one axis. */
static inline REAL NAME(half_size)(const struct call *c, REAL code, REAL size, int axis) {
    REAL s = code / (REAL)c->code_weights[2 + axis];
    return (REAL)0.5 * (REAL)exp(s > c->clip ? (REAL)c->clip : s) * size;
}

static inline void NAME(decode)(const struct call *c, const REAL *b, const REAL *p, REAL *x) {
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k];
        if (c->coding == XYXY) {
            x[k] = b[k], x[k + 2] = b[k + 2];
        } else if (c->coding == DELTA) {
            REAL center = p[k] + (REAL)0.5 * size + b[k] / (REAL)c->code_weights[k] * size;
            REAL half = NAME(half_size)(c, b[k + 2], size, k);
            x[k] = center - half, x[k + 2] = center + half;
        } else {
            REAL center = (REAL)0.5 * (p[k] + p[k + 2]);
            x[k] = center - b[k] * size, x[k + 2] = center + b[k + 2] * size;
        }
    }
}

static inline void NAME(encode)(const struct call *c, const REAL *t, const REAL *p, REAL *code) {
    const REAL least = (REAL)1e-6;
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k], extent = size > least ? size : least;
        REAL t_size = t[k + 2] - t[k], t_extent = t_size > least ? t_size : least;
        if (c->coding == XYXY) {
            code[k] = t[k], code[k + 2] = t[k + 2];
        } else if (c->coding == DELTA) {
            REAL offset = (t[k] + (REAL)0.5 * t_size) - (p[k] + (REAL)0.5 * size);
            code[k] = offset / extent * (REAL)c->code_weights[k];
            code[k + 2] = (REAL)log(t_extent / extent) * (REAL)c->code_weights[k + 2];
        } else {
            REAL center = (REAL)0.5 * (p[k] + p[k + 2]);
            code[k] = (center - t[k]) / extent, code[k + 2] = (t[k + 2] - center) / extent;
        }
    }
}

/* From a gradient for the corners to the one for the codes, in place. */
static inline void NAME(pull)(const struct call *c, const REAL *b, const REAL *p, REAL *g) {
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k], low = g[k], high = g[k + 2];
        if (c->coding == DELTA) {
            REAL weight = (REAL)c->code_weights[k + 2], half = NAME(half_size)(c, b[k + 2], size, k);
            g[k] = (low + high) * size / (REAL)c->code_weights[k];
            g[k + 2] = b[k + 2] / weight <= c->clip ? (high - low) * half / weight : 0;
        } else if (c->coding == LTRB) {
            g[k] = -low * size, g[k + 2] = high * size;
        }
    }
}

/* Intersection and union of boxes with their derivatives for x; in[k] is the share of side k of x
 * in the intersection (1, a half at a tie, or 0), and 1 - in[k] its share in the hull. */
static inline void NAME(overlap)(const REAL *x, const REAL *t, REAL *i, REAL *di, REAL *u, REAL *du,
                                 REAL *in) {
    REAL side[2];
    for (int k = 0; k < 2; k++) {
        REAL low = x[k] > t[k] ? x[k] : t[k], high = x[k + 2] < t[k + 2] ? x[k + 2] : t[k + 2];
        side[k] = high - low;
        in[k] = (REAL)0.5 + (REAL)0.5 * NAME(sign)(x[k] - t[k]);
        in[k + 2] = (REAL)0.5 + (REAL)0.5 * NAME(sign)(t[k + 2] - x[k + 2]);
    }
    if (side[0] <= 0 || side[1] <= 0) side[0] = side[1] = 0;
    REAL w = x[2] - x[0], h = x[3] - x[1];
    *i = side[0] * side[1];
    *u = w * h + (t[2] - t[0]) * (t[3] - t[1]) - *i;
    for (int k = 0; k < 2; k++) {
        REAL size = k ? w : h;
        di[k] = -side[1 - k] * in[k], di[k + 2] = side[1 - k] * in[k + 2];
        du[k] = -size - di[k], du[k + 2] = size - di[k + 2];
    }
}

static inline REAL NAME(iou)(const REAL *x, const REAL *t, REAL *d) {
    REAL i, u, di[4], du[4], in[4];
    NAME(overlap)(x, t, &i, di, &u, du, in);
    REAL per = u <= 0 ? 0 : 1 / u, v = i * per;
    for (int k = 0; k < 4; k++) d[k] = (di[k] - v * du[k]) * per;
    return v;
}

static inline REAL NAME(giou_loss)(const REAL *x, const REAL *t, REAL *d) {
    REAL i, u, di[4], du[4], in[4], hull[2];
    const REAL eps = (REAL)1e-7;
    NAME(overlap)(x, t, &i, di, &u, du, in);
    for (int k = 0; k < 2; k++) {
        REAL high = x[k + 2] > t[k + 2] ? x[k + 2] : t[k + 2], low = x[k] < t[k] ? x[k] : t[k];
        hull[k] = high - low;
    }
    REAL c = hull[0] * hull[1], v = i / (u + eps), gap = (c - u) / (c + eps);
    for (int k = 0; k < 4; k++) {
        REAL dc = (k < 2 ? -hull[1 - k] : hull[3 - k]) * (1 - in[k]);
        d[k] = ((1 - gap) * dc - du[k]) / (c + eps) - (di[k] - v * du[k]) / (u + eps);
    }
    return 1 - v + gap;
}

static inline void NAME(four)(const REAL *from, int64_t col, REAL *to) {
    for (int k = 0; k < 4; k++) to[k] = from[k * col];
}

static inline int NAME(has_no_extent)(const REAL *x) { return x[2] <= x[0] || x[3] <= x[1]; }

/* Box loss and location score of a positive row, with their gradients for the codes. */
static inline REAL NAME(box_terms)(const struct call *c, int64_t row, int64_t y, REAL *dr, REAL *v,
                                   REAL *dv) {
    REAL b[4], t[4], p[4], x[4], code[4], r = 0;
    int64_t slot = c->box_columns > 4 ? 4 * y : 0;
    NAME(four)((const REAL *)c->boxes + row * c->boxes_row + slot * c->boxes_col, c->boxes_col, b);
    NAME(four)((const REAL *)c->targets + row * c->targets_row, c->targets_col, t);
    memcpy(p, t, sizeof p);
    if (c->priors)
        NAME(four)((const REAL *)c->priors + row * c->priors_row, c->priors_col, p);
    NAME(decode)(c, b, p, x);
    if (c->regression == L1 || c->regression == SMOOTH_L1) {
        NAME(encode)(c, t, p, code);
        for (int k = 0; k < 4; k++) {
            REAL d = b[k] - code[k], a = fabs(d), beta = (REAL)c->beta;
            int near = c->regression == SMOOTH_L1 && a < beta;
            r += near ? (REAL)0.5 * d * d / beta : c->regression == L1 ? a : a - (REAL)0.5 * beta;
            dr[k] = near ? d / beta : NAME(sign)(d);
        }
    } else {
        if (c->regression == GIOU_LOSS) {
            r = NAME(giou_loss)(x, t, dr);
        } else {
            r = 1 - NAME(iou)(x, t, dr);
            for (int k = 0; k < 4; k++) dr[k] = -dr[k];
        }
        NAME(pull)(c, b, p, dr);
    }
    *v = 1;
    memset(dv, 0, 4 * sizeof *dv);
    if (c->iou_score && c->joint) {
        int dead = NAME(has_no_extent)(x) || NAME(has_no_extent)(t) || NAME(has_no_extent)(p);
        *v = dead ? 0 : NAME(iou)(x, t, dv);
        NAME(pull)(c, b, p, dv);
    }
    return r;
}

static inline REAL NAME(highest)(const REAL *z, int64_t columns) {
    REAL highest = z[0];
#pragma omp simd reduction(max : highest)
    for (int64_t k = 1; k < columns; k++) highest = z[k] > highest ? z[k] : highest;
    return highest;
}

/* The maximum and log sum exp(z - max z) of some rows, whose exponentials are laid end to end in e,
 * so that short rows fill the processor's vectors too. A long row does without e. */
static inline void NAME(softmax_terms)(const struct call *c, int64_t first, int64_t rows, REAL *e,
                                       REAL *highest, REAL *log_total) {
    REAL lowest = NAME(lowest);
    for (int64_t i = 0; i < rows; i++) {
        const REAL *z = (const REAL *)c->logits + (first + i) * c->logits_row;
        REAL top = highest[i] = NAME(highest)(z, c->columns), sum = 0;
        if (e) {
            for (int64_t k = 0; k < c->columns; k++) e[i * c->columns + k] = z[k] - top;
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < c->columns; k++) sum += NAME(exp_negative)(z[k] - top, lowest);
            log_total[i] = log(sum);
        }
    }
    if (!e) return;
#pragma omp simd
    for (int64_t k = 0; k < rows * c->columns; k++) e[k] = NAME(exp_negative)(e[k], lowest);
    for (int64_t i = 0; i < rows; i++) {
        REAL sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < c->columns; k++) sum += e[i * c->columns + k];
        log_total[i] = log(sum);
    }
}

/* exp(z - max z - log_total), the softmax, of some rows laid end to end. */
static inline void NAME(softmax)(const struct call *c, int64_t first, int64_t rows, REAL *p,
                                 const REAL *highest, const REAL *log_total) {
    REAL lowest = NAME(lowest);
    for (int64_t i = 0; i < rows; i++) {
        const REAL *z = (const REAL *)c->logits + (first + i) * c->logits_row;
        for (int64_t k = 0; k < c->columns; k++)
            p[i * c->columns + k] = z[k] - highest[i] - log_total[i];
    }
#pragma omp simd
    for (int64_t k = 0; k < rows * c->columns; k++) p[k] = NAME(exp_negative)(p[k], lowest);
}

/* Logits of some rows, laid end to end. */
static inline void NAME(gather)(const struct call *c, int64_t first, int64_t rows, REAL *to) {
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * c->columns, (const REAL *)c->logits + (first + i) * c->logits_row,
               c->columns * sizeof *to);
}

/* The sum of e[0] to e[count - 1] without e[y], in double: 100,000 terms may come together. */
static inline double NAME(sum_but)(const REAL *e, int64_t count, int64_t y) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; k++) sum += k == y ? 0 : e[k];
    return sum;
}

/* The focal loss of a row. If `wrong`, e holds focal_wrong of its logits, or, of a long row, is room
 * for a piece of them; otherwise they are taken one by one. */
static inline REAL NAME(focal_loss)(const struct call *c, const REAL *z, int64_t y, REAL *e,
                                    int wrong) {
    double loss = 0;
    REAL slope;
    if (!wrong) {
        for (int64_t k = 0; k < c->columns; k++) loss += NAME(focal)(c, z[k], k == y, &slope);
        return (REAL)loss;
    }
    for (int64_t at = 0; at < c->columns; at += TILE) {
        int64_t count = c->columns - at < TILE ? c->columns - at : TILE;
        if (c->columns >= TILE) {
            memcpy(e, z + at, count * sizeof *e);
            NAME(focal_wrong)(c, e, count, 0);
        }
        loss += NAME(sum_but)(e, count, y - at);
    }
    return (REAL)(loss + (y < c->columns ? NAME(focal)(c, z[y], 1, &slope) : 0));
}

/* The classification loss of a row from what the forward pass kept. */
static inline REAL NAME(kept_loss)(const struct call *c, int64_t row, const REAL *z,
                                   int64_t y) {
    const REAL *kept = (const REAL *)c->rows + row;
    return c->classification == FOCAL ? kept[0] : kept[0] - z[y] + kept[c->count];
}

static inline REAL NAME(class_score)(const struct call *c, REAL a, REAL z_y) {
    if (!c->class_score) return 1;
    return c->classification == FOCAL ? NAME(sigmoid)(z_y) : (REAL)exp(-a);
}

/* Rows `first` to `end`, at most tile_rows of them; adds to the sums of their chunk. */
static void NAME(forward_rows)(const struct call *c, int64_t first, int64_t end, double *sums) {
    REAL *kept = c->rows, e[TILE], dr[4], dv[4], v;
    if (c->classification == CROSS_ENTROPY)
        NAME(softmax_terms)(c, first, end - first, c->columns < TILE ? e : 0, kept + first,
                            kept + c->count + first);
    int wrong = c->classification == FOCAL && c->focal_gamma == 2;
    if (wrong && c->columns < TILE) {
        NAME(gather)(c, first, end - first, e);
        NAME(focal_wrong)(c, e, (end - first) * c->columns, 0);
    }
    for (int64_t row = first; row < end; row++) {
        int64_t y;
        enum kind kind = kind_of(c, row, &y);
        if (c->classification == FOCAL) kept[row] = 0;
        if (kind == OUT_OF_RANGE) sums[BAD]++;
        if (kind == OUT_OF_RANGE || kind == IGNORED) continue;
        const REAL *z = (const REAL *)c->logits + row * c->logits_row;
        if (c->classification == FOCAL)
            kept[row] = NAME(focal_loss)(
                c, z, y, e + (c->columns < TILE ? (row - first) * c->columns : 0), wrong);
        REAL a = NAME(kept_loss)(c, row, z, y);
        REAL alpha = c->alphas ? ((const REAL *)c->alphas)[row * c->alphas_row] : 1;
        sums[N]++;
        if (kind == NEGATIVE) {
            sums[A_NEG] += alpha * a;
            continue;
        }
        REAL beta = c->betas ? ((const REAL *)c->betas)[row * c->betas_row] : 1;
        REAL r = NAME(box_terms)(c, row, y, dr, &v, dv);
        REAL w = c->joint ? (REAL)c->lam - NAME(class_score)(c, a, z[y]) * v : 1;
        sums[P]++;
        sums[W] += w;
        sums[A_POS] += alpha * w * a;
        sums[R] += beta * w * r;
    }
}

void NAME(forward)(struct call *c) {
    int64_t first, end, rows = tile_rows(c);
    for (int64_t chunk; (chunk = take(c, &first, &end)) >= 0;) {
        double *sums = c->sums + chunk * SUMS;
        memset(sums, 0, SUMS * sizeof *sums);
        for (; first < end; first += rows)
            NAME(forward_rows)(c, first, first + rows < end ? first + rows : end, sums);
    }
}

static inline void NAME(fill)(REAL *to, int64_t count, REAL value) {
    for (int64_t k = 0; to && k < count; k++) to[k] = value;
}

/* Rows `first` to `end`, at most tile_rows of them. */
static void NAME(backward_rows)(struct call *c, int64_t first, int64_t end) {
    const REAL *kept = c->rows;
    REAL dr[4], dv[4], v;
    if (c->grad_logits && c->classification == CROSS_ENTROPY)
        NAME(softmax)(c, first, end - first, (REAL *)c->grad_logits + first * c->columns,
                      kept + first, kept + c->count + first);
    int wrong = c->grad_logits && c->classification == FOCAL && c->focal_gamma == 2;
    if (wrong) {
        REAL *g = (REAL *)c->grad_logits + first * c->columns;
        NAME(gather)(c, first, end - first, g);
        NAME(focal_wrong)(c, g, (end - first) * c->columns, 1);
    }
    for (int64_t row = first; row < end; row++) {
        int64_t y;
        enum kind kind = kind_of(c, row, &y);
        REAL *g = c->grad_logits ? (REAL *)c->grad_logits + row * c->columns : 0;
        REAL *gb = c->grad_boxes ? (REAL *)c->grad_boxes + row * c->box_columns : 0;
        REAL outside = kind == OUT_OF_RANGE ? (REAL)NAN : 0; /* never a silent number */
        NAME(fill)(gb, c->box_columns, outside);
        if (kind == OUT_OF_RANGE) __atomic_fetch_add(&c->bad, 1, __ATOMIC_RELAXED);
        if (kind == OUT_OF_RANGE || kind == IGNORED) {
            NAME(fill)(g, c->columns, outside);
            continue;
        }
        const REAL *z = (const REAL *)c->logits + row * c->logits_row;
        REAL a = NAME(kept_loss)(c, row, z, y), s = 0, d_s = 0;
        REAL alpha = c->alphas ? ((const REAL *)c->alphas)[row * c->alphas_row] : 1;
        REAL scale = (REAL)c->g_cls * alpha * (REAL)c->w_neg;
        if (kind == POSITIVE) {
            REAL beta = c->betas ? ((const REAL *)c->betas)[row * c->betas_row] : 1;
            REAL r = NAME(box_terms)(c, row, y, dr, &v, dv), d_w = 0;
            s = NAME(class_score)(c, a, z[y]);
            REAL w = c->joint ? (REAL)c->lam - s * v : 1;
            if (!c->constant)
                d_w = (REAL)c->g_cls * (alpha * a + (REAL)c->mean_neg) + (REAL)c->g_loc * beta * r;
            scale = (REAL)c->g_cls * alpha * w;
            d_s = c->class_score && !c->constant ? d_w * v * s : 0;
            for (int k = 0; gb && k < 4; k++)
                gb[(c->box_columns > 4 ? 4 * y : 0) + k] =
                    (REAL)c->g_loc * beta * w * dr[k] - (c->constant ? 0 : d_w * s * dv[k]);
        }
        if (!g) continue;
        if (c->classification == FOCAL) {
            for (int64_t k = 0; k < c->columns; k++) {
                REAL slope = g[k]; /* of a wrong class, if `wrong` */
                if (!wrong || k == y) NAME(focal)(c, z[k], k == y, &slope);
                g[k] = scale * slope;
            }
            if (kind == POSITIVE) g[y] -= d_s * (1 - s);
        } else { /* g holds the softmax */
            scale += d_s;
#pragma omp simd
            for (int64_t k = 0; k < c->columns; k++) g[k] *= scale;
            g[y] -= scale;
        }
    }
}

void NAME(backward)(struct call *c) {
    int64_t first, end, rows = tile_rows(c);
    while (take(c, &first, &end) >= 0)
        for (; first < end; first += rows)
            NAME(backward_rows)(c, first, first + rows < end ? first + rows : end);
}

#endif
