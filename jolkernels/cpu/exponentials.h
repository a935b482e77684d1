/* Elementary functions; included by rows.c once a type. */

/* exp for x <= 0 without a branch or a call, so that loops over it vectorise: 2^n times the Taylor
 * series of the remainder r, |r| <= ln(2) / 2. At `lowest` and below, the power's bits are those of
 * 0. NaN stays NaN; n, which an integer must hold, is that of the nearest number in range. (A
 * constant in place of `lowest` makes GCC split the path, and the loop scalar.) */
static volatile REAL NAME(lowest) = (REAL)LOWEST;

INLINE REAL NAME(exp_negative)(REAL x, REAL lowest) {
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

static inline REAL NAME(sign)(REAL d) { return (REAL)((d > 0) - (d < 0)); }
