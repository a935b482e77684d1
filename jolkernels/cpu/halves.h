/* Halves: bfloat16 numbers, each the upper half of a float; included by rows.c once a type. */

INLINE REAL NAME(widened)(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearest half, of two the even one. */
INLINE uint16_t NAME(rounded)(REAL number) {
    float x = (float)number;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* What a run has of a level: its planes, or its rows, `apart` from each other and without gaps. */
struct NAME(pieces) {
    int64_t count, length, apart;
};

static inline struct NAME(pieces) NAME(pieces)(const struct place *p, int planes, int64_t columns,
                                               int64_t samples) {
    struct NAME(pieces) s = {samples, columns, p->position};
    if (planes) s = (struct NAME(pieces)){columns, samples, p->col};
    if (s.apart == s.length) s = (struct NAME(pieces)){1, s.count * s.length, 0};
    return s;
}

/* Lays pieces of a level end to end. */
static WIDE void NAME(widen)(const uint16_t *from, struct NAME(pieces) s, REAL *to) {
    for (int64_t i = 0; i < s.count; i++, from += s.apart, to += s.length) {
#pragma omp simd
        for (int64_t k = 0; k < s.length; k++) to[k] = NAME(widened)(from[k]);
    }
}

/* And back. */
static WIDE void NAME(narrow)(const REAL *from, struct NAME(pieces) s, uint16_t *to) {
    for (int64_t i = 0; i < s.count; i++, from += s.length, to += s.apart) {
#pragma omp simd
        for (int64_t k = 0; k < s.length; k++) to[k] = NAME(rounded)(from[k]);
    }
}
