"""Faster R-CNN with the joint loss in its second stage."""

from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.resnet import ResNet

from detectors.models.plan import Plan
from detectors.models.pyramids import two_stage_pyramid
from detectors.models.roi_heads import AssignedRoIHeads
from detectors.models.two_stage import two_stage
from jolkernels.integrations.torchvision import roi_criterion


def build(bodies: list[ResNet], plan: Plan) -> nn.Module:
    """Faster R-CNN on this ResNet."""

    def make_heads(plain: RoIHeads) -> nn.Module:
        return AssignedRoIHeads.from_roi_heads(plain, roi_criterion(**plan.choices))

    return two_stage(two_stage_pyramid(bodies[0], plan), plan, make_heads)
