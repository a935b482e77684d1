"""The choices of the loss, by name: frozen dataclasses that loss, kernels and tests share.

A string means the choice with its defaults: "focal" is Focal(), "smooth_l1" is SmoothL1().
Parameters can follow: "iou:mode=log", "delta:weights=(10, 10, 5, 5)", "5*l1+2*giou" (registry.parse
has the grammar).

Class variables say how a choice is used: whether classes are exclusive (`softmax`), whether the
target of the true class is the box's IoU (`soft`), whether a box loss compares codes or corners
(`on_codes`), whether a coding needs priors (`uses_priors`).

`register` adds a choice of your own.
"""

from jolkernels.registry import (
    CHOICES,
    CLASS_SCORES,
    Classification,
    Coding,
    Regression,
    Score,
    register,
)
from jolkernels.spec.classification import BCE, MAL, CrossEntropy, Focal, QualityFocal, Varifocal
from jolkernels.spec.coding import CXCYWH, LTRB, XYXY, Delta
from jolkernels.spec.regression import (
    L1,
    L2,
    CIoU,
    DIoU,
    EIoU,
    Focaler,
    FocalerGap,
    GIoU,
    Inner,
    InnerGap,
    IoU,
    ShapeIoU,
    SIoU,
    SmoothL1,
    Sum,
    WIoU,
)
from jolkernels.spec.scores import NWD, DotD, SimD

__all__ = [
    "BCE",
    "CHOICES",
    "CLASS_SCORES",
    "CXCYWH",
    "L1",
    "L2",
    "LTRB",
    "MAL",
    "NWD",
    "XYXY",
    "CIoU",
    "Classification",
    "Coding",
    "CrossEntropy",
    "DIoU",
    "Delta",
    "DotD",
    "EIoU",
    "Focal",
    "Focaler",
    "FocalerGap",
    "GIoU",
    "Inner",
    "InnerGap",
    "IoU",
    "QualityFocal",
    "Regression",
    "SIoU",
    "Score",
    "ShapeIoU",
    "SimD",
    "SmoothL1",
    "Sum",
    "Varifocal",
    "WIoU",
    "register",
]

# Here, so that the tables have the order in which a reader looks for a choice.
CHOICES["classification"] |= {
    "cross_entropy": CrossEntropy,
    "bce": BCE,
    "focal": Focal,
    "quality_focal": QualityFocal,
    "varifocal": Varifocal,
    "mal": MAL,
}
CHOICES["regression"] |= {
    "l1": L1,
    "smooth_l1": SmoothL1,
    "l2": L2,
    "iou": IoU,
    "giou": GIoU,
    "diou": DIoU,
    "ciou": CIoU,
    "eiou": EIoU,
    "siou": SIoU,
    "shape_iou": ShapeIoU,
    "wiou": WIoU,
    "nwd": NWD,
    "inner": Inner,
    "focaler": Focaler,
    "sum": Sum,
}
CHOICES["coding"] |= {"xyxy": XYXY, "delta": Delta, "ltrb": LTRB, "cxcywh": CXCYWH}
CHOICES["location_score"] |= {"iou": IoU, "giou": GIoU, "nwd": NWD, "simd": SimD, "dotd": DotD}
