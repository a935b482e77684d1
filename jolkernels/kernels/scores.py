"""Device functions of the location scores S_loc.

    f(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS) -> score in [0, 1], d0, d1, d2, d3

for the corners x of a predicted box and t of its target, both of positive extent: the kernels set
score and derivatives to 0 elsewhere.
"""

import triton
import triton.language as tl

from jolkernels.kernels.regression import iou


@triton.jit
def iou_score(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
    v, d0, d1, d2, d3 = iou(x0, x1, x2, x3, t0, t1, t2, t3)
    return v, d0, d1, d2, d3
