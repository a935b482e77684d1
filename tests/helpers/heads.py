"""The heads' own losses alone, on predictions made beforehand."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    JointRoIHeads,
    fcos_criterion,
    retinanet_criterion,
    roi_criterion,
)

FLAT = ("retinanet", "retinanet-batch", "fcos", "fcos-weighed", "roi", "roi-agnostic")
LEVELS = tuple(f"{name}-levels" for name in FLAT if not name.startswith("roi"))
HEADS = FLAT + LEVELS
LOSSES = ("jol", "base")
K = 3
GRIDS = ((4, 7), (3, 4))


def head_loss(
    name: str, loss: str, device: str = "cpu"
) -> tuple[Callable[..., list[Tensor]], list[Tensor], list]:
    """A head's loss as run(*leaves, *rest) -> losses; the leaves are its predictions."""
    random = torch.Generator().manual_seed(5)
    images, priors = 2, sum(h * w for h, w in GRIDS)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        made = scale * torch.randn(*shape, generator=random)
        return made.to(device).requires_grad_()

    corners = torch.rand(images, priors, 2, generator=random) * 60
    sides = 4 + torch.rand(images, priors, 2, generator=random) * 16
    boxes = torch.cat([corners, corners + sides], -1)
    matches = torch.randint(
        -2 if name.startswith("r") else -1, 2, (images, priors), generator=random
    )
    matches[1] = matches[1].clamp(max=-1)  # an image without objects
    # Around every prior: a point of FCOS lies inside its object.
    objects = torch.tensor([[-1.0, -1, 90, 90], [-5, -5, 85, 85]]).to(device)
    targets = [
        {"boxes": objects, "labels": torch.tensor([1, 2]).to(device)},
        {"boxes": torch.zeros(0, 4).to(device), "labels": torch.zeros(0).long().to(device)},
    ]
    given = [b.to(device) for b in boxes]
    matched = [m.to(device) for m in matches]
    choices = {"weighting": "joint" if loss == "jol" else "none"}
    if name.startswith("roi"):
        predictor, mlp = FastRCNNPredictor(8, K + 1), TwoMLPHead(8, 8)
        heads = JointRoIHeads(
            MultiScaleRoIAlign(["0"], 1, 1), mlp, predictor,
            0.5, 0.5, 8, 0.25, None, 0.05, 0.5, 10, criterion=roi_criterion(**choices),
        )  # fmt: skip
        slots = 1 if name == "roi-agnostic" else K + 1
        leaves = [leaf(images * priors, K + 1), leaf(images * priors, 4 * slots)]
        labels = [(m + 1).clamp(min=0) for m in matched]
        wanted = [objects[m.clamp(min=0)] for m in matched]

        def joint(logits, deltas, given, labels, wanted):
            return list(heads.joint_loss(logits, deltas, given, labels, wanted)[:2])

        return joint, leaves, [given, labels, wanted]
    in_levels = name.endswith("-levels")
    columns = {"cls_logits": (K, 1.0), "bbox_regression": (4, 0.3), "bbox_ctrness": (1, 1.0)}
    if name.startswith("fcos"):
        head = JointFCOSHead(
            32, 1, K, 1, criterion=fcos_criterion(**choices), weigh_boxes="weighed" in name
        )
    else:
        del columns["bbox_ctrness"]
        normalizer = "batch" if "batch" in name else "image"
        head = JointRetinaNetHead(
            8, 1, K, criterion=retinanet_criterion(**choices), normalizer=normalizer
        )
    leaves = [
        leaf(images, *shape, scale=scale)
        for c, scale in columns.values()
        for shape in ([(c, *grid) for grid in GRIDS] if in_levels else [(priors, c)])
    ]

    def dense(*everything):
        *predictions, targets, given, matched = everything
        if in_levels:
            predictions = [
                predictions[i : i + len(GRIDS)] for i in range(0, len(leaves), len(GRIDS))
            ]
        outputs = dict(zip(columns, predictions, strict=True))
        return list(head.compute_loss(targets, outputs, given, matched).values())

    return dense, leaves, [targets, given, matched]
