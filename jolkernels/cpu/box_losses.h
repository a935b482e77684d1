/* Box losses and location scores with their derivatives, those of formulas/regression.py and
 * scores.py; included by rows.c once a type. */

#ifndef EPS
#define EPS (REAL)1e-7        /* torchvision's, in the places where its box losses have it */
#define MIN_EXTENT (REAL)1e-6 /* in aspect ratios boxes are at least this wide and high */
#endif

/* A box loss that compares codes; adds its factor times its derivative to g. */
static inline REAL NAME(code_loss)(const struct term *term, const REAL *b, const REAL *code,
                                   REAL *g) {
    REAL r = 0, beta = (REAL)term->a, factor = (REAL)term->factor;
    for (int k = 0; k < 4; k++) {
        REAL d = b[k] - code[k], a = fabs(d);
        if (term->kind == L2) {
            r += d * d, g[k] += factor * (2 * d);
        } else {
            int near = term->kind == SMOOTH_L1 && a < beta;
            r += near ? (REAL)0.5 * d * d / beta : term->kind == L1 ? a : a - (REAL)0.5 * beta;
            g[k] += factor * (near ? d / beta : NAME(sign)(d));
        }
    }
    return factor * r;
}

static inline REAL NAME(iou)(const struct NAME(pair) *o, REAL *g) {
    REAL per = o->u <= 0 ? 0 : 1 / o->u, v = o->i * per;
    for (int k = 0; k < 4; k++) g[k] = (o->di[k] - v * o->du[k]) * per;
    return v;
}

static inline REAL NAME(giou_loss)(const struct NAME(pair) *o, REAL *g) {
    const REAL hull[2] = {NAME(hull)(o, 0), NAME(hull)(o, 1)}, eps = EPS;
    REAL c = hull[0] * hull[1], u = o->u, v = o->i / (u + eps), gap = (c - u) / (c + eps);
    for (int k = 0; k < 4; k++) {
        REAL dc = (k < 2 ? -hull[1 - k] : hull[3 - k]) * (1 - o->in[k]);
        g[k] = ((1 - gap) * dc - o->du[k]) / (c + eps) - (o->di[k] - v * o->du[k]) / (u + eps);
    }
    return 1 - v + gap;
}

/* Derivatives for intersection, union, offset of the centres, sizes of x and hull. */
struct NAME(parts) {
    REAL i, u, offset[2], size[2], hull[2];
};

/* Those for the corners of x, from `parts`. */
static inline void NAME(to_corners)(const struct NAME(pair) *o, const struct NAME(parts) *d,
                                    REAL *g) {
    for (int k = 0; k < 2; k++) {
        REAL low = (REAL)0.5 * d->offset[k] - d->size[k];
        REAL high = (REAL)0.5 * d->offset[k] + d->size[k];
        g[k] = d->i * o->di[k] + d->u * o->du[k] + low - d->hull[k] * (1 - o->in[k]);
        g[k + 2] = d->i * o->di[k + 2] + d->u * o->du[k + 2] + high + d->hull[k] * (1 - o->in[k + 2]);
    }
}

/* Adds `factor` times the derivatives of IoU; with torchvision's eps in its divisor, or none. */
static inline REAL NAME(iou_part)(const struct NAME(pair) *o, REAL eps, REAL factor,
                                  struct NAME(parts) *d) {
    REAL u = o->u + eps, per = eps == 0 && u <= 0 ? 0 : 1 / u, v = o->i * per;
    d->i += factor * per, d->u -= factor * v * per;
    return v;
}

/* 1 - IoU + (x dx^2 + y dy^2) / diagonal^2 of the hull. */
INLINE REAL NAME(distance_loss)(const struct NAME(pair) *o, REAL x, REAL y,
                                       struct NAME(parts) *d) {
    REAL weight[2] = {x, y}, sum = 0;
    REAL diagonal = NAME(hull)(o, 0) * NAME(hull)(o, 0) + NAME(hull)(o, 1) * NAME(hull)(o, 1) + EPS;
    for (int k = 0; k < 2; k++) {
        sum += weight[k] * NAME(offset)(o, k) * NAME(offset)(o, k);
        d->offset[k] += 2 * weight[k] * NAME(offset)(o, k) / diagonal;
    }
    REAL distance = sum / diagonal;
    for (int k = 0; k < 2; k++) d->hull[k] -= 2 * distance * NAME(hull)(o, k) / diagonal;
    return 1 - NAME(iou_part)(o, EPS, -1, d) + distance;
}

/* An extent moved to at least MIN_EXTENT from 0. */
static inline REAL NAME(off_zero)(REAL extent) {
    if (extent < 0) return extent > -MIN_EXTENT ? -MIN_EXTENT : extent;
    return extent < MIN_EXTENT ? MIN_EXTENT : extent;
}

/* CIoU's term of the aspect ratios; its factor is a constant for the derivative. */
static inline REAL NAME(aspect_cost)(const struct NAME(pair) *o, struct NAME(parts) *d) {
    const REAL per_square = (REAL)0.40528473456935108577551785; /* 4 / pi^2 */
    REAL w = NAME(off_zero)(o->size[0]), h = NAME(off_zero)(o->size[1]);
    REAL target = NAME(off_zero)(o->t_size[0]) / NAME(off_zero)(o->t_size[1]);
    REAL angle = (REAL)atan(target) - (REAL)atan(w / h), aspect = per_square * angle * angle;
    REAL factor = aspect / (1 - o->i / (o->u + EPS) + aspect + EPS);
    REAL slope = 2 * per_square * factor * angle / (w * w + h * h);
    if (w == o->size[0]) d->size[0] -= slope * h;
    if (h == o->size[1]) d->size[1] += slope * w;
    return factor * aspect;
}

/* EIoU's term: squared differences of width and height against the hull's. */
static inline REAL NAME(sides_cost)(const struct NAME(pair) *o, struct NAME(parts) *d) {
    REAL cost = 0;
    for (int k = 0; k < 2; k++) {
        REAL e = o->size[k] - o->t_size[k], square = NAME(hull)(o, k) * NAME(hull)(o, k) + EPS;
        cost += e * e / square;
        d->size[k] += 2 * e / square;
        d->hull[k] -= 2 * (e * e / square) * NAME(hull)(o, k) / square;
    }
    return cost;
}

/* (1 - exp(-rate |w - w_t| / max(w, w_t)))^4 of widths (axis 0) or heights, over 2. */
static inline REAL NAME(size_cost)(const struct NAME(pair) *o, int k, REAL rate,
                                   struct NAME(parts) *d) {
    REAL w = o->size[k], t = o->t_size[k], larger = w > t ? w : t, sign = NAME(sign)(w - t);
    REAL grows = larger < MIN_EXTENT ? 0 : (REAL)0.5 + (REAL)0.5 * sign;
    if (larger < MIN_EXTENT) larger = MIN_EXTENT;
    REAL a = fabs(w - t) / larger, e = exp(-rate * a), rest = 1 - e;
    d->size[k] += 2 * rest * rest * rest * e * rate * (sign - a * grows) / larger;
    return (REAL)0.5 * rest * rest * rest * rest;
}

static inline REAL NAME(siou_loss)(const struct NAME(pair) *o, struct NAME(parts) *d) {
    REAL x = NAME(offset)(o, 0), y = NAME(offset)(o, 1), squares = x * x + y * y, loss = 1;
    REAL per = squares > 0 ? 1 / squares : 1, angle = 2 * fabs(x * y) * per;
    REAL by_rate = 0, rate = angle - 2;
    for (int k = 0; k < 2; k++) {
        REAL hull = NAME(hull)(o, k) * NAME(hull)(o, k) + EPS, rho = NAME(offset)(o, k) * NAME(offset)(o, k) / hull;
        REAL e = exp(rate * rho);
        loss -= (REAL)0.5 * e;
        by_rate -= (REAL)0.5 * e * rho;
        d->offset[k] -= e * rate * NAME(offset)(o, k) / hull;
        d->hull[k] += e * rate * rho * NAME(hull)(o, k) / hull;
        loss += NAME(size_cost)(o, k, 1, d);
    }
    for (int k = 0; k < 2; k++) {
        REAL turn = NAME(sign)(x * y) * NAME(offset)(o, 1 - k) - angle * NAME(offset)(o, k);
        d->offset[k] += 2 * by_rate * turn * per;
    }
    return loss + (1 - NAME(iou_part)(o, EPS, -1, d));
}

static inline REAL NAME(shape_iou_loss)(const struct NAME(pair) *o, REAL scale,
                                        struct NAME(parts) *d) {
    REAL w = o->t_size[0], h = o->t_size[1];
    REAL ratio = (w < MIN_EXTENT ? MIN_EXTENT : w) / (h < MIN_EXTENT ? MIN_EXTENT : h);
    REAL by_w = 2 / (1 + pow(ratio, -scale)), by_h = 2 / (1 + pow(ratio, scale));
    REAL shape = NAME(size_cost)(o, 0, by_h, d) + NAME(size_cost)(o, 1, by_w, d);
    return NAME(distance_loss)(o, by_h, by_w, d) + shape;
}

static inline REAL NAME(wiou_loss)(const struct NAME(pair) *o, struct NAME(parts) *d) {
    REAL x = NAME(offset)(o, 0), y = NAME(offset)(o, 1);
    REAL diagonal = NAME(hull)(o, 0) * NAME(hull)(o, 0) + NAME(hull)(o, 1) * NAME(hull)(o, 1) + EPS; /* a constant */
    REAL e = exp((x * x + y * y) / diagonal), rest = 1 - NAME(iou_part)(o, 0, -e, d);
    for (int k = 0; k < 2; k++) d->offset[k] += 2 * rest * e * NAME(offset)(o, k) / diagonal;
    return e * rest;
}

/* exp(-distance / scale), and adds `factor` times its derivative; the distance is the root of the
 * offset's square and, with `shape`, of a quarter of the size difference's. */
static inline REAL NAME(distance_score)(const struct NAME(pair) *o, REAL scale, int shape,
                                        REAL factor, struct NAME(parts) *d) {
    REAL squares = NAME(offset)(o, 0) * NAME(offset)(o, 0) + NAME(offset)(o, 1) * NAME(offset)(o, 1);
    REAL e[2] = {o->size[0] - o->t_size[0], o->size[1] - o->t_size[1]};
    if (shape) squares += (e[0] * e[0] + e[1] * e[1]) * (REAL)0.25;
    REAL distance = sqrt(squares), score = exp(-distance / scale);
    REAL slope = squares > 0 ? -factor * score / (scale * distance) : 0;
    for (int k = 0; k < 2; k++) {
        d->offset[k] += slope * NAME(offset)(o, k);
        if (shape) d->size[k] += (REAL)0.25 * slope * e[k];
    }
    return score;
}

static inline REAL NAME(nwd_loss)(const struct NAME(pair) *o, REAL constant, REAL mix,
                                  struct NAME(parts) *d) {
    REAL loss = 1 - NAME(distance_score)(o, constant, 1, -mix, d);
    if (mix == 1) return loss;
    return mix * loss + (1 - mix) * (1 - NAME(iou_part)(o, 0, mix - 1, d));
}

/* IoU - IoU of both boxes with their sides scaled by `ratio`. */
static inline REAL NAME(inner_gap)(const struct NAME(pair) *o, REAL ratio, struct NAME(parts) *d) {
    struct NAME(pair) inner;
    REAL x[4], t[4], g[4];
    for (int k = 0; k < 2; k++) {
        REAL half = (REAL)0.5 * (ratio * o->size[k]), t_half = (REAL)0.5 * (ratio * o->t_size[k]);
        REAL center = o->x[k] + (REAL)0.5 * o->size[k], target = o->t[k] + (REAL)0.5 * o->t_size[k];
        x[k] = center - half, x[k + 2] = center + half;
        t[k] = target - t_half, t[k + 2] = target + t_half;
    }
    NAME(compare)(&inner, x, t);
    REAL gap = NAME(iou_part)(o, 0, 1, d) - NAME(iou)(&inner, g);
    for (int k = 0; k < 2; k++) {
        d->offset[k] -= g[k] + g[k + 2];
        d->size[k] -= (REAL)0.5 * ratio * (g[k + 2] - g[k]);
    }
    return gap;
}

/* A function of IoU, and its slope there: a box loss, or IoU - IoU mapped from a..b to 0..1. */
static inline REAL NAME(of_iou)(const struct term *term, REAL v, REAL *slope) {
    const REAL least = (REAL)1e-6; /* LEAST_IOU */
    REAL low = (REAL)term->a, range = (REAL)(term->b - term->a), mapped = (v - low) / range;
    switch (term->kind) {
    case IOU_LOG:
        *slope = v < least ? 0 : -1 / v;
        return -(REAL)log(v < least ? least : v);
    case IOU_SQUARE:
        *slope = -2 * v;
        return 1 - v * v;
    case FOCALER_GAP:
        *slope = mapped < 0 || mapped > 1 ? 1 : 1 - 1 / range;
        return v - (mapped < 0 ? 0 : mapped > 1 ? 1 : mapped);
    default:
        *slope = -1;
        return 1 - v;
    }
}

/* A box loss that compares corners, and its derivative. */
static inline REAL NAME(corner_loss)(const struct term *term, const struct NAME(pair) *o, REAL *g) {
    struct NAME(parts) d = {0};
    REAL loss, a = (REAL)term->a, b = (REAL)term->b, slope;
    switch (term->kind) {
    case IOU_LINEAR:
    case IOU_LOG:
    case IOU_SQUARE:
    case FOCALER_GAP:
        loss = NAME(of_iou)(term, NAME(iou)(o, g), &slope);
        for (int k = 0; k < 4; k++) g[k] *= slope;
        return loss;
    case GIOU: return NAME(giou_loss)(o, g);
    case DIOU: loss = NAME(distance_loss)(o, 1, 1, &d); break;
    case CIOU: loss = NAME(distance_loss)(o, 1, 1, &d) + NAME(aspect_cost)(o, &d); break;
    case EIOU: loss = NAME(distance_loss)(o, 1, 1, &d) + NAME(sides_cost)(o, &d); break;
    case SIOU: loss = NAME(siou_loss)(o, &d); break;
    case SHAPE_IOU: loss = NAME(shape_iou_loss)(o, a, &d); break;
    case WIOU: loss = NAME(wiou_loss)(o, &d); break;
    case NWD: loss = NAME(nwd_loss)(o, a, b, &d); break;
    default: loss = NAME(inner_gap)(o, a, &d); break;
    }
    NAME(to_corners)(o, &d, g);
    return loss;
}

/* The sum of the box losses that compare corners, and its derivative. Not inlined, as next to it
 * the losses of codes would take a third more time. */
static __attribute__((noinline)) REAL NAME(corner_losses)(const struct call *c, const REAL *x,
                                                          const REAL *t, REAL *g) {
    struct NAME(pair) o;
    REAL loss = 0, d[4];
    NAME(compare)(&o, x, t);
    for (int k = 0; k < 4; k++) g[k] = 0;
    for (int64_t i = 0; i < c->terms; i++) {
        const struct term *term = &c->term[i];
        if (term->kind <= L2) continue;
        loss += (REAL)term->factor * NAME(corner_loss)(term, &o, d);
        for (int k = 0; k < 4; k++) g[k] += (REAL)term->factor * d[k];
    }
    return loss;
}

/* SimD: distances over the sum of both boxes' sizes; at least 1e-6, with no derivative there. */
static inline REAL NAME(simd_score)(const struct NAME(pair) *o, REAL m, REAL n,
                                    struct NAME(parts) *d) {
    REAL scale[2] = {m, n}, a[2], e[2], per[2], location = 0, shape = 0;
    for (int k = 0; k < 2; k++) {
        per[k] = 1 / (o->size[k] + o->t_size[k]);
        a[k] = scale[k] * NAME(offset)(o, k) * per[k];
        e[k] = scale[k] * (o->size[k] - o->t_size[k]) * per[k];
        location += a[k] * a[k], shape += e[k] * e[k];
    }
    location = sqrt(location), shape = sqrt(shape);
    REAL score = exp(-(location + shape));
    if (score < (REAL)1e-6) return (REAL)1e-6;
    for (int k = 0; k < 2; k++) {
        REAL by_a = location > 0 ? -score * a[k] / location * per[k] : 0;
        REAL by_e = shape > 0 ? -score * e[k] / shape * per[k] : 0;
        d->offset[k] += by_a * scale[k];
        d->size[k] += by_e * (scale[k] - e[k]) - by_a * a[k];
    }
    return score;
}

/* A location score, other than IoU, of boxes that have an extent, and its derivative. */
static __attribute__((noinline)) REAL NAME(other_score)(const struct call *c, const REAL *x,
                                                        const REAL *t, REAL *g) {
    struct NAME(pair) o;
    struct NAME(parts) d = {0};
    REAL score, a = (REAL)c->score_a, b = (REAL)c->score_b;
    NAME(compare)(&o, x, t);
    switch (c->score) {
    case GIOU_SCORE:
        score = 1 - (REAL)0.5 * NAME(giou_loss)(&o, g);
        for (int k = 0; k < 4; k++) g[k] *= (REAL)-0.5;
        return score;
    case NWD_SCORE: score = NAME(distance_score)(&o, a, 1, 1, &d); break;
    case SIMD_SCORE: score = NAME(simd_score)(&o, a, b, &d); break;
    default: score = NAME(distance_score)(&o, a, 0, 1, &d); break;
    }
    NAME(to_corners)(&o, &d, g);
    return score;
}
