"""Label assigners: which object each prior is trained on.

A prior is an anchor box or, for RFLA, its location. All assigners have one signature,

    assign(boxes [G, 4], priors [A, 4], levels, *, settings) → int64 [A],

with boxes and priors as x1 y1 x2 y2 in pixels. They return torchvision's convention: the index of
the object, BACKGROUND or IGNORED. Without objects all priors are background. Assigners are pure
functions; pass boxes without gradient.

Memory: no [G, A] matrix is held. Objects are processed in chunks of at most PAIRS (object, prior)
pairs: 1,500 objects and 160,000 priors take 0.4 GB (the matrix alone would take 1 GB, several
times). Only [A], and the positive pairs of ATSS, outlive a chunk. Detectors that are given no
assigner match as torchvision does, in the same chunks (threshold.chunked).

Sources:
    iou: Faster R-CNN, arXiv 1506.01497; torchvision's Matcher
    simd: Similarity Distance-Based Label Assignment, arXiv 2407.02394
    nwd: Normalized Gaussian Wasserstein Distance, arXiv 2110.13389
    nwd-rka: Detecting Tiny Objects in Aerial Images, arXiv 2206.13996
    dotd: Dot Distance for Tiny Object Detection, CVPR Workshops 2021
    rfla: Gaussian Receptive Field based Label Assignment, arXiv 2208.08738
    atss: Adaptive Training Sample Selection, arXiv 1912.02424
"""

from detectors.utils.lazy import names_of

__getattr__, __all__ = names_of(
    __name__,
    {
        "make": "make_assigner",
        "names": "ASSIGNERS",
        "priors": "BACKGROUND IGNORED RECEPTIVE_FIELDS Assigner Level",
    },
)
