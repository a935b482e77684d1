/* The forward and the backward pass over all levels; included by rows.c once a type. */

/* Where numbers begin, or 0. */
static inline REAL *NAME(at)(const struct place *p, int64_t image, int64_t col, int64_t position) {
    if (!p->at) return 0;
    return (REAL *)p->at + image * p->image + col * p->col + position * p->position;
}

/* The run of an anchor that begins at a position. */
static inline struct NAME(run) NAME(run_of)(const struct call *c, const struct chunk *taken,
                                            int64_t anchor, int64_t position, int64_t count) {
    const struct level *l = taken->level;
    int64_t image = taken->image, index = l->first + position * l->anchors + anchor;
    int64_t z = anchor * c->columns, b = anchor * c->box_columns;
    return (struct NAME(run)){
        .z = NAME(at)(&l->logits, image, z, position),
        .b = NAME(at)(&l->boxes, image, b, position),
        .gz = NAME(at)(&l->grad_logits, image, z, position),
        .gb = NAME(at)(&l->grad_boxes, image, b, position),
        .z_col = l->logits.col, .z_step = l->logits.position,
        .b_col = l->boxes.col, .b_step = l->boxes.position,
        .gz_col = l->grad_logits.col, .gz_step = l->grad_logits.position,
        .gb_col = l->grad_boxes.col, .gb_step = l->grad_boxes.position,
        .image = image, .index = index, .row = image * c->samples + index,
        .anchors = l->anchors, .count = count,
    };
}

/* The next run of a chunk, which begins at `position` of `anchor`; 0: there are none left. */
static inline int NAME(next_run)(const struct call *c, const struct chunk *taken, int64_t *anchor,
                                 int64_t *position, struct NAME(run) *r) {
    int64_t most = taken->level->planes ? RUN : NAME(tile_rows)(c);
    if (*position >= taken->end) *position = taken->position, ++*anchor;
    if (*anchor == taken->level->anchors) return 0;
    int64_t count = taken->end - *position < most ? taken->end - *position : most;
    *r = NAME(run_of)(c, taken, *anchor, *position, count);
    *position += count;
    return 1;
}

void NAME(forward)(struct call *c) {
    struct level flat;
    const struct level *levels = levels_of(c, &flat);
    struct chunk taken;
    for (int64_t chunk; (chunk = take(c, levels, &taken)) >= 0;) {
        double *sums = c->sums + chunk * c->num_groups * SUMS;
        memset(sums, 0, c->num_groups * SUMS * sizeof *sums);
        struct NAME(run) r;
        for (int64_t anchor = 0, at = taken.position; NAME(next_run)(c, &taken, &anchor, &at, &r);)
            if (taken.level->planes) NAME(forward_planes)(c, &r, sums);
            else NAME(forward_rows)(c, &r, sums);
    }
}

void NAME(backward)(struct call *c) {
    struct level flat;
    const struct level *levels = levels_of(c, &flat);
    struct chunk taken;
    while (take(c, levels, &taken) >= 0) {
        struct NAME(run) r;
        for (int64_t anchor = 0, at = taken.position; NAME(next_run)(c, &taken, &anchor, &at, &r);)
            if (taken.level->planes) NAME(backward_planes)(c, &r);
            else NAME(backward_rows)(c, &r);
    }
}
