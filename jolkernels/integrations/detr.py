"""The losses of DETR and Deformable DETR in transformers, with a JointOptimizationLoss.

Letters as in queries.py, and L decoder layers.
"""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers.loss import loss_deformable_detr as deformable
from transformers.loss import loss_for_object_detection as detr
from transformers.utils import is_accelerate_available

from jolkernels.checks import real
from jolkernels.integrations.choices import Choices
from jolkernels.integrations.levels import at_least_float32
from jolkernels.integrations.queries import (
    Head,
    Labels,
    Outputs,
    Rows,
    by_layer,
    number_of_objects,
    rows_of,
)
from jolkernels.loss import JointLoss, JointOptimizationLoss
from jolkernels.spec import Classification, CrossEntropy, Focal, GIoU, Sum

if is_accelerate_available():
    from accelerate import PartialState
    from accelerate.utils import reduce


class JointDetrLoss:
    """`loss_function` of DETR: cross entropy, a mean in which the background counts less.

    No nn.Module, so that it is no part of the model's state.

    Args:
        plain: the framework's function.
        config: the model's.
        choices: the user's.
    """

    key = "loss_ce"  # the class loss in the loss dict

    def __init__(self, plain: Callable[..., Any], config: Any, **choices: Unpack[Choices]) -> None:
        self.plain = plain
        self.base = self.make_base(config)
        self.gains = self.make_gains(config)
        self.criterion = JointOptimizationLoss(
            self.classification(),
            Sum((self.gains["loss_giou"], GIoU()), None),  # L1 has its own log: extra_regression
            "cxcywh",
            **choices,
        )
        self.negative_weight: Tensor | None = None

    def make_base(self, config: Any) -> Any:
        """The framework's criterion, as its function makes it."""
        matcher = detr.HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        return detr.ImageLoss(matcher, config.num_labels, config.eos_coefficient, [])

    def make_gains(self, config: Any) -> dict[str, float]:
        """The losses' factors in the total."""
        gains = {self.key: 1.0}
        for key in ("bbox", "giou"):
            name = f"{key}_loss_coefficient"
            gains[f"loss_{key}"] = real(f"config: {name}", getattr(config, name), 0, above=True)
        return gains

    def classification(self) -> Classification:
        """The class loss of `base`."""
        return CrossEntropy()

    def __call__(
        self,
        logits: Tensor,
        labels: Labels,
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor | None = None,
        outputs_coord: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[Outputs] | None]:
        """What the framework's function returns for the same arguments.

        Args:
            logits: [B, Q, C].
            labels: the objects.
            device: the loss's.
            pred_boxes: [B, Q, 4].
            config: the model's.
            outputs_class: logits of all layers, with auxiliary losses.
            outputs_coord: boxes of all layers, likewise.
            kwargs: what else the model predicts, see `heads`.

        Returns:
            The loss, 0-dim; its parts by name, for the log and without gradient; the outputs of the
            auxiliary heads, None without such losses.
        """
        self.base.to(device)
        last = {"logits": logits, "pred_boxes": pred_boxes}
        heads = self.heads(labels, config, last, outputs_class, outputs_coord, **kwargs)
        rows = rows_of(heads, labels, self.criterion.settings.background_label(logits.shape[-1]))
        objects = self.number_of_objects(labels, device)
        loss = self.joint_loss(rows, heads, objects)
        self.negative_weight = loss.negative_weight
        total = (self.gains[self.key] * loss.classification + loss.regression).sum()
        with torch.no_grad():
            log = self.log(loss, rows, labels)
        parts: dict[str, Tensor] = {}
        for i, head in enumerate(heads):
            parts |= {name + head.suffix: values[i] for name, values in log.items()}
            for name, value in self.local_losses(head, labels, objects).items():
                total = total + value
                parts[name + head.suffix] = value.detach()
        auxiliary = [head.outputs for head in heads if head.suffix and not head.copies]
        return total, parts, auxiliary if config.auxiliary_loss else None

    def heads(
        self,
        labels: Labels,
        config: Any,
        last: Outputs,
        outputs_class: Tensor | None,
        outputs_coord: Tensor | None,
        **kwargs: Any,
    ) -> list[Head]:
        """The last decoder layer and, with auxiliary losses, the others: [L, B, Q, C or 4]."""
        heads = {"": last}
        if config.auxiliary_loss:
            assert outputs_class is not None and outputs_coord is not None
            layers = by_layer(
                {"logits": outputs_class.unbind(), "pred_boxes": outputs_coord.unbind()}
            )
            heads |= {f"_{i}": layer for i, layer in enumerate(layers[:-1])}
        return [Head(name, x, self.base.matcher(x, labels)) for name, x in heads.items()]

    def number_of_objects(self, labels: Labels, device: torch.device) -> float | Tensor:
        """What losses are divided by, as the framework has it: of all ranks of accelerate."""
        count = number_of_objects(labels)
        in_use = is_accelerate_available() and PartialState._shared_state
        ranks = PartialState().num_processes if in_use else 1
        if ranks == 1:
            return max(1.0, count)
        return (reduce(torch.tensor([count], device=device)) / ranks).clamp(min=1)[0]

    def joint_loss(self, rows: Rows, heads: list[Head], objects: float | Tensor) -> JointLoss:
        """The losses of the heads, [H]: boxes' with their gains, classes' without."""
        copies = [max(1, head.copies) for head in heads]
        if max(copies) > 1:
            objects = objects * torch.tensor(copies, device=rows.logits.device)
        normalizer, weights = self.class_terms(rows, heads, objects)
        of_classes: dict[str, Any] = {"classification_normalizer": normalizer}
        if self.criterion.settings.sync_group is not None:  # levels.of_this_rank says why
            ones = at_least_float32(rows.logits).new_ones(len(heads))
            of_classes = {
                "classification_weights": (ones / normalizer)[rows.groups],
                "classification_normalizer": 1.0,
            }
        l1 = vector_norm(rows.boxes - rows.targets, 1, -1)
        return self.criterion(
            *rows[:4],
            groups=rows.groups,
            num_groups=len(heads),
            regression_normalizer=objects,
            class_weights=weights,
            extra_regression=self.gains["loss_bbox"] * l1,
            **of_classes,
        )

    def class_terms(
        self, rows: Rows, heads: list[Head], objects: float | Tensor
    ) -> tuple[float | Tensor, Tensor | None]:
        """The normaliser of the class loss, here the sum of the rows' weights, and the weights.

        All heads match as many queries, and have as many.
        """
        matched = sum(len(queries) for queries, _ in heads[0].matches)
        background = len(rows.labels) / len(heads) - matched
        return matched + self.base.eos_coef * background, self.base.empty_weight

    def log(self, loss: JointLoss, rows: Rows, labels: Labels) -> dict[str, Sequence[Tensor]]:
        """The parts of the loss dict: H numbers each, without gains, which the total has."""
        l1 = loss.extra_regression
        found = self.is_object(rows.logits).view(len(labels), len(l1), -1).sum(-1).float()
        counts = [[len(image["class_labels"])] for image in labels]
        wanted = torch.tensor(counts, device=found.device)
        return {
            self.key: loss.classification.detach().unbind(),
            "loss_bbox": (l1 / self.gains["loss_bbox"]).unbind(),
            "loss_giou": ((loss.regression - l1) / self.gains["loss_giou"]).unbind(),
            "cardinality_error": (found - wanted).abs().mean(0).unbind(),
        }

    def is_object(self, logits: Tensor) -> Tensor:
        """Which queries [N] the model takes for objects."""
        return logits.argmax(-1) != logits.shape[-1] - 1

    def local_losses(
        self, head: Head, labels: Labels, objects: float | Tensor
    ) -> dict[str, Tensor]:
        """Losses of a head that stay the framework's, with their gains."""
        return {}


class JointDeformableDetrLoss(JointDetrLoss):
    """`loss_function` of Deformable and Conditional DETR: the focal loss, by objects."""

    def make_base(self, config: Any) -> Any:
        """As above."""
        matcher = deformable.DeformableDetrHungarianMatcher(
            config.class_cost, config.bbox_cost, config.giou_cost
        )
        return deformable.DeformableDetrImageLoss(
            matcher, config.num_labels, config.focal_alpha, []
        )

    def classification(self) -> Classification:
        """As above; the exponent is fixed in the framework's function."""
        return Focal(self.base.focal_alpha, 2.0)

    def class_terms(
        self, rows: Rows, heads: list[Head], objects: float | Tensor
    ) -> tuple[float | Tensor, Tensor | None]:
        """The number of objects, and no weights."""
        return objects, None

    def is_object(self, logits: Tensor) -> Tensor:
        """Those with a probability above one half."""
        return logits.amax(-1).sigmoid() > 0.5
