/* The row passes of the loss in C, for float and double: what kernels/forward.py and backward.py
 * compute (docs/mathematics.md has the derivation).
 *
 * rows_call.py fills struct call and knows which settings are computed here. The file includes itself
 * once for each type, and with it the headers, which hold a concern each:
 *
 *     exponentials.h      exp, sigmoid, softplus
 *     boxes.h             codings; what two boxes have in common
 *     box_losses.h        box losses and location scores
 *     classification.h    classification losses
 *     passes.h            the two passes over the rows */

#ifndef REAL

#ifndef WIDE
#define WIDE /* of loops over all logits; see rows_avx512.c */
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

/* The orders of the tables in rows_call.py. Up to L2, box losses compare codes. */
enum { CROSS_ENTROPY, BCE, FOCAL, QUALITY_FOCAL, VARIFOCAL, MAL };
enum { L1, SMOOTH_L1, L2, IOU_LINEAR, IOU_LOG, IOU_SQUARE, GIOU, DIOU, CIOU, EIOU, SIOU, SHAPE_IOU,
       WIOU, NWD, INNER_GAP, FOCALER_GAP };
enum { XYXY, DELTA, LTRB, CXCYWH };
enum { NO_SCORE, IOU_SCORE, GIOU_SCORE, NWD_SCORE, SIMD_SCORE, DOTD_SCORE };

enum { P, N, W, A_POS, A_NEG, R, BAD, COUNTS, EXTRA, SUMS }; /* as Sums of sums.py */
enum { W_NEG, MEAN_NEG, G_CLS, G_LOC, SCALARS }; /* the last two: upstream over normalisers */
enum { TERMS = 4 }; /* MOST_TERMS of registry.py */
enum { TILE = 2048 };  /* logits whose exp is taken in one loop */

const uint64_t jolkernels_source = SOURCE; /* of which files: native.py takes no other */

/* One loss of the sum that is the box loss; a and b are its parameters. */
struct term {
    double factor;
    int64_t kind;
    double a, b;
};

/* Tensors that were not given, and gradients that are not needed, are 0; strides count numbers. */
struct call {
    const void *logits, *boxes, *labels, *targets, *priors, *alphas, *betas;
    const void *class_targets, *extra, *class_weights, *groups;
    void *rows, *grad_logits, *grad_boxes, *grad_extra;
    int64_t logits_row, boxes_row, boxes_col, labels_row, targets_row, targets_col;
    int64_t priors_row, priors_col, alphas_row, betas_row;
    int64_t class_targets_row, extra_row, class_weights_row, groups_row;
    int64_t columns, box_columns, background, last, ignore, num_groups;
    int64_t classification, soft, detached, by_label, coding, score, class_score, joint, constant;
    int64_t terms, on_codes, on_corners; /* how many, and whether any compares codes or corners */
    double lam, wrong_factor, gamma, alpha; /* of the classification loss; see classification.h */
    double code_weights[4], clip, low_clip; /* of the coding */
    double score_a, score_b;
    struct term term[TERMS];
    int64_t count, chunk;  /* rows, and how many a thread takes at a time */
    int64_t next;          /* the first chunk that no thread has taken */
    int64_t bad;           /* backward: labels and groups out of range */
    double *sums;          /* forward: SUMS numbers a chunk and group */
    const double *scalars; /* backward: SCALARS numbers a group */
};

/* Take the next chunk of rows: its number, or -1 when there are none left. */
static int64_t take(struct call *c, int64_t *first, int64_t *end) {
    int64_t chunk = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
    *first = chunk * c->chunk;
    *end = *first + c->chunk < c->count ? *first + c->chunk : c->count;
    return *first < c->count ? chunk : -1;
}

enum kind { IGNORED, NEGATIVE, POSITIVE, OUT_OF_RANGE };

/* What a row is, its label and its group, read once: another thread may write to them, and they are
 * indices. Of a row that does not count the group is 0. */
static inline enum kind kind_of(const struct call *c, int64_t row, int64_t *y, int64_t *group) {
    *y = ((const volatile int64_t *)c->labels)[row * c->labels_row];
    *group = 0;
    if (*y == c->ignore) return IGNORED;
    if (*y < 0 || *y > c->last) return OUT_OF_RANGE;
    if (c->groups) {
        int64_t g = ((const volatile int64_t *)c->groups)[row * c->groups_row];
        if (g < 0 || g >= c->num_groups) return OUT_OF_RANGE;
        *group = g;
    }
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

#include "exponentials.h"
#include "boxes.h"
#include "box_losses.h"
#include "classification.h"
#include "passes.h"

#endif
