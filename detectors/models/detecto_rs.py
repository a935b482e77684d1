"""DetectoRS: Cascade R-CNN on a recursive pyramid."""

from functools import partial

from torch import nn
from torchvision.models.resnet import ResNet

from detectors.models.cascade_rcnn import CascadeRoIHeads
from detectors.models.plan import Plan
from detectors.models.recursive_pyramid import RecursivePyramid
from detectors.models.two_stage import two_stage


def build(bodies: list[ResNet], plan: Plan) -> nn.Module:
    """DetectoRS on these two ResNets."""
    make_heads = partial(CascadeRoIHeads.from_roi_heads, **plan.choices)
    return two_stage(RecursivePyramid(*bodies), plan, make_heads)
