/* What the passes know of a call, and of a sample of it; included by rows.c.
 *
 * A batch is images, each of which has levels, whose positions have some anchors: a sample is an
 * anchor of a position. A flat batch is one image of one level, whose rows are its positions. */

/* The orders of the tables in rows_call.py. Up to L2, box losses compare codes. */
enum { CROSS_ENTROPY, BCE, FOCAL, QUALITY_FOCAL, VARIFOCAL, MAL };
enum { L1, SMOOTH_L1, L2, IOU_LINEAR, IOU_LOG, IOU_SQUARE, GIOU, DIOU, CIOU, EIOU, SIOU, SHAPE_IOU,
       WIOU, NWD, INNER_GAP, FOCALER_GAP };
enum { XYXY, DELTA, LTRB, CXCYWH };
enum { NO_SCORE, IOU_SCORE, GIOU_SCORE, NWD_SCORE, SIMD_SCORE, DOTD_SCORE };

enum { P, N, W, A_POS, A_NEG, R, BAD, COUNTS, EXTRA, SUMS }; /* as Sums of sums.py */
enum { W_NEG, MEAN_NEG, G_CLS, G_LOC, SCALARS }; /* the last two: upstream over normalisers */
enum { TERMS = 4 }; /* MOST_TERMS of registry.py */
enum { TILE = 2048 }; /* logits whose exp is taken in one loop */
enum { SHORT = 16 };  /* columns of a row from which vectors pay for it alone */
enum { RUN = 128 };   /* neighbouring positions in planes that are taken together */
enum { INT64, INT32, INT16, INT8, UINT8 };

const uint64_t jolkernels_source = SOURCE; /* of which files: native.py takes no other */

/* One loss of the sum that is the box loss; a and b are its parameters. */
struct term {
    double factor;
    int64_t kind;
    double a, b;
};

/* Where the numbers of a level begin; strides count numbers. 0: not given, or not needed. A half is
 * a bfloat16, as a level of floats may have them. */
struct place {
    void *at;
    int64_t image, col, position, half;
};

/* The logits of a level lie in planes (positions follow each other) or in rows (columns do), and
 * its gradient likewise. */
struct level {
    struct place logits, boxes, grad_logits, grad_boxes;
    int64_t first, positions, anchors; /* its first sample in an image */
    int64_t planes;
    int64_t chunk; /* positions that a thread takes at a time */
};

/* Tensors that were not given, and gradients that are not needed, are 0; strides count numbers.
 * Those of a flat batch come first, which has no table of levels. */
struct call {
    void *logits, *boxes, *grad_logits, *grad_boxes;
    const void *labels, *matched, *targets, *priors, *alphas, *betas;
    const void *class_targets, *extra, *class_weights, *groups;
    void *rows, *grad_extra;
    const struct level *levels;
    int64_t logits_row, boxes_row, boxes_col, labels_row, targets_row, targets_col;
    int64_t priors_row, priors_col, alphas_row, betas_row;
    int64_t class_targets_row, extra_row, class_weights_row, groups_row, matched_row;
    int64_t labels_image, matched_image, targets_image, priors_image, alphas_image, betas_image;
    int64_t class_targets_image, extra_image;
    int64_t labels_type, matched_type;
    int64_t of_objects, objects; /* whether labels are those of objects; how many with `matched` */
    int64_t num_levels, images, samples, by_image; /* the last: whether each image has scalars */
    int64_t columns, box_columns, background, last, ignore, num_groups;
    int64_t classification, soft, detached, by_label, coding, score, class_score, joint, constant;
    int64_t terms, on_codes, on_corners; /* how many, and whether any compares codes or corners */
    double lam, wrong_factor, gamma, alpha; /* of the classification loss; see classification.h */
    double code_weights[4], clip, low_clip; /* of the coding */
    double score_a, score_b;
    struct term term[TERMS];
    int64_t count, chunk;  /* rows, and of a flat batch how many a thread takes at a time */
    int64_t next;          /* the first chunk that no thread has taken */
    int64_t bad;           /* backward: samples whose label, group or object is out of range */
    double *sums;          /* forward: SUMS numbers a chunk and group */
    const double *scalars; /* backward: SCALARS numbers a group or image */
};

/* The levels of a call: its table, or `flat` filled in for a flat batch. */
static inline const struct level *levels_of(struct call *c, struct level *flat) {
    if (c->levels) return c->levels;
    flat->logits = (struct place){c->logits, 0, 1, c->logits_row, 0};
    flat->boxes = (struct place){c->boxes, 0, c->boxes_col, c->boxes_row, 0};
    flat->grad_logits = (struct place){c->grad_logits, 0, 1, c->columns, 0};
    flat->grad_boxes = (struct place){c->grad_boxes, 0, 1, c->box_columns, 0};
    flat->positions = c->count, flat->anchors = 1, flat->chunk = c->chunk;
    flat->first = flat->planes = 0;
    return flat;
}

/* Positions of a level and image that a thread has taken. */
struct chunk {
    const struct level *level;
    int64_t image, position, end;
};

/* Take the next chunk: its number, or -1 when there are none left. */
static int64_t take(struct call *c, const struct level *levels, struct chunk *taken) {
    int64_t number = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED), left = number;
    int64_t images = c->levels ? c->images : 1, num_levels = c->levels ? c->num_levels : 1;
    for (const struct level *level = levels; level < levels + num_levels; level++) {
        int64_t each = (level->positions + level->chunk - 1) / level->chunk;
        if (left >= each * images) {
            left -= each * images;
            continue;
        }
        int64_t position = left % each * level->chunk, end = position + level->chunk;
        if (end > level->positions) end = level->positions;
        *taken = (struct chunk){level, left / each, position, end};
        return number;
    }
    return -1;
}

/* An integer, read once: another thread may write to it, and it is an index. */
INLINE int64_t integer(const void *from, int64_t type, int64_t i) {
    if (type == INT64) return ((const volatile int64_t *)from)[i];
    switch (type) {
    case INT32: return ((const volatile int32_t *)from)[i];
    case INT16: return ((const volatile int16_t *)from)[i];
    case INT8: return ((const volatile int8_t *)from)[i];
    default: return ((const volatile uint8_t *)from)[i];
    }
}

enum kind { IGNORED, NEGATIVE, POSITIVE, OUT_OF_RANGE };

/* A sample: its image, its number there and in all, which target box it has, its label and group (0
 * unless it counts). */
struct sample {
    int64_t image, index, row, object, y, group;
    enum kind kind;
};

/* Set the sample's object and label. Returns 0 if its object is out of range. */
INLINE int set_label(const struct call *c, struct sample *s) {
    int64_t i = s->index;
    s->object = i;
    if (c->matched) {
        s->object = integer(c->matched, c->matched_type,
                            s->image * c->matched_image + i * c->matched_row);
        if (c->of_objects) {
            i = s->object;
            s->y = i == -1 ? c->background : c->ignore;
            if (i == -1 || i == -2) return 1;
            if (i < 0 || i >= c->objects) return 0;
        }
    }
    s->y = integer(c->labels, c->labels_type, s->image * c->labels_image + i * c->labels_row);
    return 1;
}

/* Fill in what a sample is, from its image and its number there. */
INLINE enum kind set_kind(const struct call *c, struct sample *s) {
    s->group = 0;
    if (!set_label(c, s)) return OUT_OF_RANGE;
    if (s->y == c->ignore) return IGNORED;
    if (s->y < 0 || s->y > c->last) return OUT_OF_RANGE;
    if (c->groups) {
        int64_t g = integer(c->groups, INT64, s->index * c->groups_row);
        if (g < 0 || g >= c->num_groups) return OUT_OF_RANGE;
        s->group = g;
    }
    if (s->y == c->background) return NEGATIVE;
    if (c->matched && (s->object < 0 || s->object >= c->objects)) return OUT_OF_RANGE;
    return c->box_columns > 4 && 4 * s->y >= c->box_columns ? OUT_OF_RANGE : POSITIVE;
}

static inline int counts(const struct sample *s) {
    return s->kind == NEGATIVE || s->kind == POSITIVE;
}

/* Some columns of the logits, from `first` to before `end`. */
struct columns {
    int64_t first, end;
};
