"""The reference detectors, built from torchvision's parts with the joint loss in their heads.

Outside, labels are 0-based, K classes, and everything else is torchvision's detection interface:
in training model(images, targets) returns a dict of losses, in eval model(images) returns dicts
of boxes, labels and scores. A target may also hold "ignored", regions [n, 4] of crowds or of
objects that were not annotated; build_detector's `ignore_regions` says what becomes of them.

Three presets. `torchvision`: its stock settings. `paper`: section 4.2 of the paper, with the
conventions of MMDetection. `slim`: small enough to train on a CPU from random weights, for objects
of 4 to 64 pixels.
"""

from detectors.utils.lazy import names_of

__getattr__, __all__ = names_of(
    __name__,
    {
        "build": "build_detector joint_head",
        "presets": "BACKBONES DETECTORS LOSSES ONE_STAGE PRESETS TWO_STAGE default_backbone",
    },
)
