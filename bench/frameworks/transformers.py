"""DETR-type models of transformers: from the outputs of all their heads, matching included."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from bench.frameworks import tiny_detr
from bench.frameworks.cases import CLASSES, Case, Models, Name, Outputs
from bench.loss.providers import Loss
from jolkernels.integrations.transformers import use_joint_loss

OBJECTS = {"15": (12, 3), "1000": (250, 250, 250, 250)}
"""Of images."""
SIZES = {"decoder_layers": 6, "num_queries": 300}
PREDICTED = (
    "logits",
    "pred_boxes",
    "outputs_class",
    "outputs_coord",
    "enc_topk_logits",
    "enc_topk_bboxes",
    "predicted_corners",
    "initial_reference_points",
)
"""What loss functions are given of a model's outputs."""


def make(name: str) -> Case:
    """The case of a model and a number of objects; everything but the queries is tiny."""
    kind, objects = name.rsplit("-", 1)
    of_rt_detr = kind in tiny_detr.OF_RT_DETR
    size, denoising = (320, {"num_denoising": 100}) if of_rt_detr else (96, {})
    model = tiny_detr.tiny(kind, num_labels=CLASSES, **SIZES, **denoising)
    arguments = given(model, tiny_detr.batch(OBJECTS[objects], size, CLASSES))
    outputs = {n: arguments.pop(n) for n in PREDICTED if arguments.get(n) is not None}
    if of_rt_detr:  # these are the last of the layers
        del outputs["logits"], outputs["pred_boxes"]
    joint: Any = use_joint_loss(copy.deepcopy(model)).loss_function
    unweighted: Any = use_joint_loss(copy.deepcopy(model), weighting="none").loss_function

    def loss(function: Any) -> Loss:
        def of(x: Outputs) -> Tensor:
            found = dict(x.tree)
            if of_rt_detr:
                found["logits"] = found["outputs_class"][:, -1]
                found["pred_boxes"] = found["outputs_coord"][:, -1]
            total: Tensor = function(**found, **arguments)[0]
            return total

        return of

    functions: Models = {Name.BASE: model.loss_function, Name.OURS: joint, Name.NONE: unweighted}
    columns = outputs["outputs_class"].shape[-1]
    rows = sum(outputs[n].numel() // columns for n in ("outputs_class", "enc_topk_logits")
               if n in outputs)  # fmt: skip
    return Case(
        Outputs(outputs),
        {name: loss(function) for name, function in functions.items()},
        rows,
        columns,
        ((type(joint.base.matcher), "forward"),),
    )


def given(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a model hands to its loss function, by name."""
    plain, found = model.loss_function, {}

    def seen(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(plain).bind(*args, **kwargs).arguments
        found.update({name: x for name, x in bound.items() if name != "kwargs"})
        found.update(bound.get("kwargs", {}))
        return plain(*args, **kwargs)

    model.loss_function = seen
    with torch.no_grad():
        model(**batch)
    model.loss_function = plain
    return found
