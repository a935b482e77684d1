"""DETR-type models of transformers, trained with the Joint Optimization Loss.

    model = AutoModelForObjectDetection.from_pretrained(...)
    use_joint_loss(model, lam=2.0)

In its forward a model calls its public attribute `loss_function`. The objects here take the place
of the framework's functions: they match head by head with the framework's matcher, then hand the
queries of all heads to one call of the criterion. Names, gains and normalisers are the framework's,
whose losses are those of `weighting="none"`.
"""

from typing import Any, TypeVar, Unpack

from jolkernels.integrations.choices import Choices, check_choices, missing

try:
    from transformers import PreTrainedModel
    from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
except ImportError as error:
    raise missing(__name__, "transformers") from error

from jolkernels.integrations.detr import JointDeformableDetrLoss, JointDetrLoss
from jolkernels.integrations.rt_detr import JointDFineLoss, JointRTDetrLoss

Model = TypeVar("Model", bound=PreTrainedModel)

JOINT: dict[Any, type[JointDetrLoss]] = {
    ForObjectDetectionLoss: JointDetrLoss,
    DeformableDetrForObjectDetectionLoss: JointDeformableDetrLoss,
    RTDetrForObjectDetectionLoss: JointRTDetrLoss,
    DFineForObjectDetectionLoss: JointDFineLoss,
}
"""The framework's functions and what takes their place."""


def use_joint_loss(model: Model, **choices: Unpack[Choices]) -> Model:
    """Train `model` with the Joint Optimization Loss: sets `model.loss_function`.

    `model.loss_function.negative_weight` is then w⁻ of the last batch, one number for each head:
    the last decoder layer, then the others in the order of the loss dict; without gradient.

    Args:
        model: a DETR, Conditional DETR, Deformable DETR, RT-DETR, RT-DETRv2 or D-FINE for object
            detection, or another model with the loss of one of these; not wrapped. Its config is
            read now.
        choices: see JointOptimizationLoss. Boxes are shares of the image, so the location scores
            "nwd" and "dotd", which are in pixels, are refused.

    Returns:
        The model, changed in place.

    Raises:
        TypeError: a name that is no choice.
        ValueError: a model with another loss, or a value of choices or config that is none; the
            message names it.
    """
    check_choices(choices, "use_joint_loss")
    plain = loss_function(model)
    if isinstance(plain, JointDetrLoss):
        plain = plain.plain
    if plain not in JOINT:
        wanted = ", ".join(function.__name__ for function in JOINT)
        raise ValueError(
            f"model: got {type(model).__name__} with loss_function "
            f"{getattr(plain, '__name__', plain)}, wanted a model with one of {wanted}, "
            "and no wrapper of one"
        )
    model.loss_function = JOINT[plain](plain, model.config, **choices)
    return model


def remove_joint_loss(model: Model) -> Model:
    """Give `model` back the loss that it had before `use_joint_loss`.

    Raises:
        ValueError: it has no loss of use_joint_loss.
    """
    joint = loss_function(model)
    if not isinstance(joint, JointDetrLoss):
        raise ValueError(f"model: got {type(model).__name__} without a loss of use_joint_loss")
    model.loss_function = joint.plain
    return model


def loss_function(model: Any) -> Any:
    """The loss that `model` calls, or None.

    A wrapper, as peft's, hands on what it is asked for, but keeps to itself what it is given.
    """
    return model.loss_function if isinstance(model, PreTrainedModel) else None
