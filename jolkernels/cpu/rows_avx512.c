/* rows.c for processors with AVX-512: as for those with AVX2, which give the same bits, but that the
 * loops over all logits take vectors of twice the width. */

#define WIDE __attribute__((noinline, target("avx512f,avx512dq,prefer-vector-width=512")))
#include "rows.c"
