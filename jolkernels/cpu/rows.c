/* The row passes of the loss in C, for float and double: what kernels/forward.py and backward.py
 * compute (docs/mathematics.md has the derivation).
 *
 * rows_call.py and dense_call.py fill struct call; the first knows which settings are computed here.
 * The file includes itself once for each type, and with it the headers, which hold a concern each:
 *
 *     samples.h           the call, its levels, what a sample is (once for both types)
 *     exponentials.h      exp, sigmoid, softplus
 *     halves.h            to and from bfloat16
 *     boxes.h             codings; what two boxes have in common
 *     box_losses.h        box losses and location scores
 *     classification.h    classification losses
 *     sample_passes.h     a sample's part in the two passes
 *     row_passes.h        samples whose columns follow each other
 *     plane_passes.h      samples whose columns are planes apart
 *     passes.h            the two passes over all levels */

#ifndef REAL

#ifndef WIDE
#define WIDE /* of loops over all logits; see rows_avx512.c */
#endif

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

/* Of what GCC would call instead, in loops over rows or logits, in a file of this size. */
#define INLINE static inline __attribute__((always_inline))

#include "samples.h"

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
#include "halves.h"
#include "boxes.h"
#include "box_losses.h"
#include "classification.h"
#include "sample_passes.h"
#include "row_passes.h"
#include "plane_passes.h"
#include "passes.h"

#endif
