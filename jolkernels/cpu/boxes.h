/* Codings, and what two boxes have in common; included by rows.c once a type. */

/* Half the size of a box that DELTA decodes over its prior's, by axis, and whether the code is free
 * to change it. */
struct NAME(sizes) {
    REAL half[2];
    int is_free[2];
};

static inline void NAME(decode)(const struct call *c, const REAL *b, const REAL *p, REAL *x,
                                struct NAME(sizes) *s) {
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k];
        if (c->coding == XYXY) {
            x[k] = b[k], x[k + 2] = b[k + 2];
        } else if (c->coding == DELTA) {
            REAL center = p[k] + (REAL)0.5 * size + b[k] / (REAL)c->code_weights[k] * size;
            REAL log = b[k + 2] / (REAL)c->code_weights[k + 2];
            REAL high = (REAL)c->clip, low = (REAL)c->low_clip;
            s->is_free[k] = log <= high && log >= low;
            s->half[k] = (REAL)0.5 * (REAL)exp(log > high ? high : log < low ? low : log);
            REAL half = s->half[k] * size;
            x[k] = center - half, x[k + 2] = center + half;
        } else if (c->coding == LTRB) {
            REAL center = (REAL)0.5 * (p[k] + p[k + 2]);
            x[k] = center - b[k] * size, x[k + 2] = center + b[k + 2] * size;
        } else { /* CXCYWH: the weights are the numbers of pixels */
            REAL pixels = (REAL)c->code_weights[k], half = (REAL)0.5 * (b[k + 2] * pixels);
            x[k] = b[k] * pixels - half, x[k + 2] = b[k] * pixels + half;
        }
    }
}

/* The code of a target, which with CXCYWH it is already. */
static inline void NAME(encode)(const struct call *c, const REAL *t, const REAL *p, REAL *code) {
    const REAL least = (REAL)1e-6;
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k], extent = size > least ? size : least;
        REAL t_size = t[k + 2] - t[k], t_extent = t_size > least ? t_size : least;
        if (c->coding == DELTA) {
            REAL offset = (t[k] + (REAL)0.5 * t_size) - (p[k] + (REAL)0.5 * size);
            code[k] = offset / extent * (REAL)c->code_weights[k];
            code[k + 2] = (REAL)log(t_extent / extent) * (REAL)c->code_weights[k + 2];
        } else if (c->coding == LTRB) {
            REAL center = (REAL)0.5 * (p[k] + p[k + 2]);
            code[k] = (center - t[k]) / extent, code[k + 2] = (t[k + 2] - center) / extent;
        } else {
            code[k] = t[k], code[k + 2] = t[k + 2];
        }
    }
}

/* From a gradient for the corners to the one for the codes, in place. */
static inline void NAME(pull)(const struct call *c, const REAL *p, const struct NAME(sizes) *s,
                              REAL *g) {
    for (int k = 0; k < 2; k++) {
        REAL size = p[k + 2] - p[k], low = g[k], high = g[k + 2];
        if (c->coding == DELTA) {
            REAL half = s->half[k] * size;
            g[k] = (low + high) * size / (REAL)c->code_weights[k];
            g[k + 2] = s->is_free[k] ? (high - low) * half / (REAL)c->code_weights[k + 2] : 0;
        } else if (c->coding == LTRB) {
            g[k] = -low * size, g[k + 2] = high * size;
        } else if (c->coding == CXCYWH) {
            REAL pixels = (REAL)c->code_weights[k];
            g[k] = (low + high) * pixels, g[k + 2] = (REAL)0.5 * (high - low) * pixels;
        }
    }
}

/* A predicted box x and its target t: intersection and union with their derivatives for x, and the
 * boxes' sizes. in[k] is the share of side k of x in the intersection (1, a half at a tie, or 0), and
 * 1 - in[k] its share in the hull, the smallest box around both. */
struct NAME(pair) {
    REAL x[4], t[4];
    REAL i, u, di[4], du[4], in[4];
    REAL size[2], t_size[2];
};

static inline void NAME(compare)(struct NAME(pair) *o, const REAL *x, const REAL *t) {
    REAL side[2];
    memcpy(o->x, x, sizeof o->x);
    memcpy(o->t, t, sizeof o->t);
    for (int k = 0; k < 2; k++) {
        REAL low = x[k] > t[k] ? x[k] : t[k], high = x[k + 2] < t[k + 2] ? x[k + 2] : t[k + 2];
        side[k] = high - low;
        o->in[k] = (REAL)0.5 + (REAL)0.5 * NAME(sign)(x[k] - t[k]);
        o->in[k + 2] = (REAL)0.5 + (REAL)0.5 * NAME(sign)(t[k + 2] - x[k + 2]);
        o->size[k] = x[k + 2] - x[k], o->t_size[k] = t[k + 2] - t[k];
    }
    if (side[0] <= 0 || side[1] <= 0) side[0] = side[1] = 0;
    o->i = side[0] * side[1];
    o->u = o->size[0] * o->size[1] + o->t_size[0] * o->t_size[1] - o->i;
    for (int k = 0; k < 2; k++) {
        REAL size = o->size[1 - k];
        o->di[k] = -side[1 - k] * o->in[k], o->di[k + 2] = side[1 - k] * o->in[k + 2];
        o->du[k] = -size - o->di[k], o->du[k + 2] = size - o->di[k + 2];
    }
}

/* The hull's width (axis 0) or height. */
static inline REAL NAME(hull)(const struct NAME(pair) *o, int k) {
    REAL high = o->x[k + 2] > o->t[k + 2] ? o->x[k + 2] : o->t[k + 2];
    return high - (o->x[k] < o->t[k] ? o->x[k] : o->t[k]);
}

/* How far the centres are apart along an axis. */
static inline REAL NAME(offset)(const struct NAME(pair) *o, int k) {
    return (REAL)0.5 * ((o->x[k] - o->t[k]) + (o->x[k + 2] - o->t[k + 2]));
}

static inline int NAME(has_no_extent)(const REAL *x) { return x[2] <= x[0] || x[3] <= x[1]; }
