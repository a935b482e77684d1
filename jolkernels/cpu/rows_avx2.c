/* rows.c for processors with AVX2 and FMA: setup.py has the flags. A file of its own, so that its
 * object file is another. */

#include "rows.c"
