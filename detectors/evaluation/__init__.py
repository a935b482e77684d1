"""Evaluation: average precision and oLRP by the benchmarks' protocols, files, curves.

protocols.py          the benchmarks' rules by name
average_precision.py  AP over IoU thresholds and object sizes
matching.py           detections matched to objects at one IoU threshold
olrp.py               optimal localisation recall precision
arrays.py             objects and detections as arrays
model_evaluation.py   a detector run on a data set and evaluated, by one process or several
report.py             results.json, per_class.csv and what is printed
curves.py             precision-recall curves
prior_coverage.py     which priors objects of each size get; SimD's constants
"""

from detectors.utils.lazy import names_of

__getattr__, __all__ = names_of(
    __name__,
    {
        "average_precision": "Evaluation evaluate",
        "model_evaluation": "evaluate_model",
        "protocols": "EVALUATORS METRICS PROTOCOLS",
    },
)
