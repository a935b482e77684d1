"""MMDetection's heads, from their outputs, with the targets that they make themselves.

Assigners are counted apart; a second stage's assignment and sampling come before and are in no
figure. The models are the configs of examples/mmdet and those that they inherit, with small layers.
"""

from typing import Any

import torch
from torch import Tensor

from bench.frameworks import mmdet_models as models
from bench.frameworks.cases import CLASSES, Case, Models, Name, Outputs, arguments_of, total
from bench.loss.providers import Loss

SIZE, OBJECTS, PROPOSALS = 320, (20, 20), 1000
KINDS = {"faster_rcnn": "faster", "cascade_rcnn": "cascade"}


def make(name: str) -> Case:
    """The case of a model: two images."""
    kind = KINDS.get(name, name)
    configs = {
        Name.BASE: models.stock_config(kind),
        Name.OURS: models.joint_config(kind),
        Name.NONE: models.joint_config(kind, weighting="none"),
    }
    for config in configs.values():
        for head in models.heads_of(config):
            head.num_classes = CLASSES
        if "rpn_head" in config:
            config.train_cfg.rpn_proposal.max_per_img = PROPOSALS
    made = {name: models.build(config) for name, config in configs.items()}
    return second_stage(made) if name in KINDS else one_stage(made)


def second_stage(made: Models) -> Case:
    """From the predictions for the sampled proposals, of a cascade in all stages."""
    heads = {name: stages(model) for name, model in made.items()}
    given = []
    for head in heads[Name.BASE]:
        _, arguments = arguments_of(head, "loss_and_target", lambda: run(made[Name.BASE]))
        given.append(arguments)
    names = "cls_score", "bbox_pred"
    outputs = [{name: arguments.pop(name) for name in names} for arguments in given]

    def loss(heads: list[Any]) -> Loss:
        def of(x: Outputs) -> Tensor:
            return total(
                summed(head.loss_and_target(**found, **arguments)["loss_bbox"])
                for head, found, arguments in zip(heads, x.tree, given, strict=True)
            )

        return of

    losses = {name: loss(of_model) for name, of_model in heads.items()}
    rows = sum(len(found["cls_score"]) for found in outputs)
    return Case(Outputs(outputs), losses, rows, CLASSES + 1)


def one_stage(made: Models) -> Case:
    """From the levels of a head."""
    heads = {name: model.bbox_head for name, model in made.items()}
    base = heads[Name.BASE]
    arguments, others = arguments_of(base, "loss_by_feat", lambda: run(made[Name.BASE]))
    *maps, objects, metas, ignored = arguments

    def loss(head: Any) -> Loss:
        return lambda x: summed(head.loss_by_feat(*x.tree, objects, metas, ignored, **others))

    assigner = getattr(base, "assigner", None)
    apart = (type(base), "get_targets") if assigner is None else (type(assigner), "assign")
    losses = {name: loss(head) for name, head in heads.items()}
    rows = sum(level.numel() for level in maps[0]) // CLASSES
    return Case(Outputs(maps), losses, rows, assigner=(apart,))


def stages(model: Any) -> list[Any]:
    """The heads of a second stage."""
    heads = model.roi_head.bbox_head
    return list(heads) if isinstance(heads, torch.nn.ModuleList) else [heads]


def run(model: Any) -> None:
    """Compute the losses of a batch."""
    models.losses_of(model, models.batch(OBJECTS, size=SIZE, classes=CLASSES))


def summed(losses: dict[str, Any]) -> Tensor:
    """What MMDetection trains on of what a head returns."""
    return total(loss for name, loss in losses.items() if "loss" in name)
