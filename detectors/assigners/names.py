"""The names of the assigners. Nothing here imports torch: the command line lists them."""

ASSIGNERS = {
    "iou": "detectors.assigners.threshold.iou",
    "simd": "detectors.assigners.threshold.simd",
    "nwd": "detectors.assigners.threshold.nwd",
    "nwd-rka": "detectors.assigners.ranking.nwd_rka",
    "dotd": "detectors.assigners.threshold.dotd",
    "rfla": "detectors.assigners.ranking.rfla",
    "atss": "detectors.assigners.atss.atss",
}
"""Name → the function; its keyword-only arguments are the assigner's settings."""
