"""RetinaNet with the joint loss in its head."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.resnet import ResNet

from detectors.assigners.priors import Assigner
from detectors.assigners.regions import ignore_boxes
from detectors.assigners.threshold import chunked
from detectors.models.anchors import make_anchors
from detectors.models.backbones import NORMS
from detectors.models.plan import Plan, detections_kept
from detectors.models.pyramids import one_stage_pyramid
from jolkernels.integrations.torchvision import (
    JointRetinaNetHead,
    retinanet_criterion,
)


class AssignedRetinaNet(RetinaNet):
    """RetinaNet with this assigner, or torchvision's rule; it ignores regions."""

    def __init__(self, *args: Any, assigner: Assigner | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.assigner = assigner or chunked(self.proposal_matcher)

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """As RetinaNet's; the head ignores anchors matched to IGNORED."""
        levels = self.anchor_generator.levels
        matches = [
            ignore_boxes(self.assigner(t["boxes"], a, levels), a, t.get("ignored"))
            for t, a in zip(targets, anchors, strict=True)
        ]
        return self.head.compute_loss(targets, head_outputs, anchors, matches)


def build(bodies: list[ResNet], plan: Plan) -> nn.Module:
    """RetinaNet on this ResNet."""
    paper = plan.preset == "paper"
    # MMDetection makes P6 from C5, torchvision from P5.
    fpn = one_stage_pyramid(bodies[0], plan, p6_of_c5=paper)
    anchors = make_anchors(plan.anchors)
    head = JointRetinaNetHead(
        fpn.out_channels,
        anchors.num_anchors_per_location()[0],
        plan.num_classes,
        # Plain towers start at std 0.01: from random weights their outputs stay near 0 for
        # hundreds of steps.
        norm_layer=NORMS["slim"] if plan.preset == "slim" else None,
        criterion=retinanet_criterion(**plan.choices),
        normalizer="batch" if paper else "image",
    )
    settings = detections_kept(plan) | {"score_thresh": plan.score_threshold}
    arguments: Any = (fpn, plan.num_classes)
    return AssignedRetinaNet(
        *arguments, anchor_generator=anchors, head=head, assigner=plan.assign, **settings
    )
