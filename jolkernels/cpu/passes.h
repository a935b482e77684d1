/* The forward and the backward pass over all levels; included by rows.c once a type. */

/* Samples of a run at most. */
static inline int64_t NAME(longest)(const struct call *c, const struct level *level) {
    int64_t most = level->planes ? RUN : NAME(tile_rows)(c);
    return level->positions < most ? level->positions : most;
}

/* Room of a thread for the logits of a run of halves and for its gradients, which lie there end to
 * end: planes or rows, as in their level. */
struct NAME(room) {
    REAL *z, *gz, *gb;
};

/* Room for any run, to be freed at z; 0 if no level has halves. Returns 0 if there is no memory. */
static int NAME(make_room)(const struct call *c, const struct level *levels,
                           struct NAME(room) *room) {
    int64_t most = 0, each = 2 * c->columns + c->box_columns;
    for (const struct level *level = levels; level < levels + c->num_levels; level++) {
        int64_t samples = NAME(longest)(c, level);
        if ((level->logits.half || level->boxes.half) && samples > most) most = samples;
    }
    *room = (struct NAME(room)){0, 0, 0};
    if (!most) return 1;
    room->z = malloc(most * each * sizeof *room->z);
    if (!room->z) return 0;
    room->gz = room->z + most * c->columns;
    room->gb = room->gz + most * c->columns;
    return 1;
}

/* Where numbers of a level begin, or 0. */
static inline void *NAME(at)(const struct place *p, int64_t image, int64_t col, int64_t position) {
    if (!p->at) return 0;
    int64_t number = image * p->image + col * p->col + position * p->position;
    return (char *)p->at + number * (int64_t)(p->half ? sizeof(uint16_t) : sizeof(REAL));
}

/* The run of an anchor that begins at a position. */
static inline struct NAME(run) NAME(run_of)(const struct call *c, const struct chunk *taken,
                                            int64_t anchor, int64_t position, int64_t count) {
    const struct level *l = taken->level;
    int64_t image = taken->image, index = l->first + position * l->anchors + anchor;
    int64_t first_z = anchor * c->columns, first_b = anchor * c->box_columns;
    void *z = NAME(at)(&l->logits, image, first_z, position);
    void *b = NAME(at)(&l->boxes, image, first_b, position);
    void *gz = NAME(at)(&l->grad_logits, image, first_z, position);
    void *gb = NAME(at)(&l->grad_boxes, image, first_b, position);
    return (struct NAME(run)){
        .z = l->logits.half ? 0 : z, .half_z = l->logits.half ? z : 0,
        .b = l->boxes.half ? 0 : b, .half_b = l->boxes.half ? b : 0,
        .gz = l->grad_logits.half ? 0 : gz, .half_gz = l->grad_logits.half ? gz : 0,
        .gb = l->grad_boxes.half ? 0 : gb, .half_gb = l->grad_boxes.half ? gb : 0,
        .z_col = l->logits.col, .z_step = l->logits.position,
        .b_col = l->boxes.col, .b_step = l->boxes.position,
        .gz_col = l->grad_logits.col, .gz_step = l->grad_logits.position,
        .gb_col = l->grad_boxes.col, .gb_step = l->grad_boxes.position,
        .image = image, .index = index, .row = image * c->samples + index,
        .anchors = l->anchors, .count = count,
    };
}

/* Widen the logits of a run of halves, and find its gradients room. */
static inline void NAME(enter)(const struct call *c, const struct level *l,
                               const struct NAME(room) *room, struct NAME(run) *r) {
    int64_t col = l->planes ? r->count : 1, step = l->planes ? 1 : c->columns;
    if (r->half_z) {
        NAME(widen)(r->half_z, NAME(pieces)(&l->logits, l->planes, c->columns, r->count), room->z);
        r->z = room->z, r->z_col = col, r->z_step = step;
    }
    if (r->half_gz) r->gz = room->gz, r->gz_col = col, r->gz_step = step;
    if (r->half_gb) {
        int planes = l->grad_boxes.col != 1;
        r->gb = room->gb;
        r->gb_col = planes ? r->count : 1, r->gb_step = planes ? 1 : c->box_columns;
    }
}

/* Round its gradients to where they belong. */
static inline void NAME(leave)(const struct call *c, const struct level *l,
                               const struct NAME(run) *r) {
    const struct place *gz = &l->grad_logits, *gb = &l->grad_boxes;
    if (r->half_gz)
        NAME(narrow)(r->gz, NAME(pieces)(gz, l->planes, c->columns, r->count), r->half_gz);
    if (r->half_gb)
        NAME(narrow)(r->gb, NAME(pieces)(gb, gb->col != 1, c->box_columns, r->count), r->half_gb);
}

/* The next run of a chunk, which begins at `position` of `anchor`; 0: there are none left. */
static inline int NAME(next_run)(const struct call *c, const struct chunk *taken,
                                 const struct NAME(room) *room, int64_t *anchor,
                                 int64_t *position, struct NAME(run) *r) {
    int64_t most = NAME(longest)(c, taken->level);
    if (*position >= taken->end) *position = taken->position, ++*anchor;
    if (*anchor == taken->level->anchors) return 0;
    int64_t count = taken->end - *position < most ? taken->end - *position : most;
    *r = NAME(run_of)(c, taken, *anchor, *position, count);
    NAME(enter)(c, taken->level, room, r);
    *position += count;
    return 1;
}

/* A thread without memory for its room takes no chunk: Python sees those that are left. */
void NAME(forward)(struct call *c) {
    struct level flat;
    const struct level *levels = levels_of(c, &flat);
    struct chunk taken;
    struct NAME(room) room;
    if (!NAME(make_room)(c, levels, &room)) return;
    for (int64_t chunk; (chunk = take(c, levels, &taken)) >= 0;) {
        double *sums = c->sums + chunk * c->num_groups * SUMS;
        memset(sums, 0, c->num_groups * SUMS * sizeof *sums);
        struct NAME(run) r;
        int64_t anchor = 0, at = taken.position;
        while (NAME(next_run)(c, &taken, &room, &anchor, &at, &r))
            if (taken.level->planes) NAME(forward_planes)(c, &r, sums);
            else NAME(forward_rows)(c, &r, sums);
    }
    free(room.z);
}

void NAME(backward)(struct call *c) {
    struct level flat;
    const struct level *levels = levels_of(c, &flat);
    struct chunk taken;
    struct NAME(room) room;
    if (!NAME(make_room)(c, levels, &room)) return;
    while (take(c, levels, &taken) >= 0) {
        struct NAME(run) r;
        int64_t anchor = 0, at = taken.position;
        while (NAME(next_run)(c, &taken, &room, &anchor, &at, &r)) {
            if (taken.level->planes) NAME(backward_planes)(c, &r);
            else NAME(backward_rows)(c, &r);
            NAME(leave)(c, taken.level, &r);
        }
    }
    free(room.z);
}
