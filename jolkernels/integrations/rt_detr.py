"""The losses of RT-DETR and D-FINE in transformers, with a JointOptimizationLoss.

Letters as in detr.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.loss import loss_d_fine as d_fine
from transformers.loss import loss_rt_detr as rt_detr

from jolkernels.integrations.detr import JointDeformableDetrLoss
from jolkernels.integrations.queries import (
    Head,
    Labels,
    Outputs,
    Rows,
    by_layer,
    denoising_matches,
    number_of_objects,
)
from jolkernels.loss import JointLoss
from jolkernels.spec import Classification, Varifocal


class JointRTDetrLoss(JointDeformableDetrLoss):
    """`loss_function` of RT-DETR: the varifocal loss, with the encoder's and denoising queries."""

    key = "loss_vfl"

    def make_base(self, config: Any) -> Any:
        """As above."""
        return rt_detr.RTDetrLoss(config)

    def make_gains(self, config: Any) -> dict[str, float]:
        """As above."""
        return self.base.weight_dict

    def classification(self) -> Classification:
        """As above."""
        return Varifocal(self.base.alpha, self.base.gamma, detach=True, positives="label")

    def heads(
        self,
        labels: Labels,
        config: Any,
        last: Outputs,
        outputs_class: Tensor | None,
        outputs_coord: Tensor | None,
        enc_topk_logits: Tensor | None = None,
        enc_topk_bboxes: Tensor | None = None,
        denoising_meta_values: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Head]:
        """The last decoder layer and, with auxiliary losses, the others, encoder and denoising.

        Layers are [B, L, D + Q, C or 4], D denoising queries before the Q matched ones.
        """
        outputs, meta = self.outputs(outputs_class, outputs_coord, **kwargs), denoising_meta_values
        denoising: Outputs = {}
        if meta is not None:
            halves = {name: x.split(meta["dn_num_split"], 2) for name, x in outputs.items()}
            denoising = {name: x for name, (x, _) in halves.items()}
            outputs = {name: x for name, (_, x) in halves.items()}
        layers = {name: x.unbind(1) for name, x in outputs.items()}
        heads = {"": {name: layers[name][-1] for name in last}}
        if config.auxiliary_loss:
            others = [*self.layers(layers)[:-1], self.outputs(enc_topk_logits, enc_topk_bboxes)]
            heads |= {f"_aux_{i}": x for i, x in enumerate(others)}
        matched = [Head(name, x, self.base.matcher(x, labels)) for name, x in heads.items()]
        if meta is None or not config.auxiliary_loss:
            return matched
        copies = meta["dn_num_group"]
        matches = denoising_matches(labels, meta["dn_positive_idx"], copies)
        others = self.layers({name: x.unbind(1) for name, x in denoising.items()})
        return matched + [Head(f"_dn_{i}", x, matches, copies) for i, x in enumerate(others)]

    def outputs(self, logits: Any, boxes: Any, **others: Any) -> Outputs:
        """What the losses read of the model's outputs."""
        return {"logits": logits, "pred_boxes": boxes}

    def layers(self, outputs: Mapping[str, Sequence[Tensor]]) -> list[Outputs]:
        """The outputs of each of the layers, given by name."""
        return by_layer(outputs)

    def number_of_objects(self, labels: Labels, device: torch.device) -> float | Tensor:
        """As above, but of this rank alone, as the framework has it."""
        return max(1.0, number_of_objects(labels))

    def log(self, loss: JointLoss, rows: Rows, labels: Labels) -> dict[str, Sequence[Tensor]]:
        """The parts of the loss dict: H numbers each, with their gains."""
        l1 = loss.extra_regression
        return {
            self.key: (self.gains[self.key] * loss.classification).unbind(),
            "loss_bbox": l1.unbind(),
            "loss_giou": (loss.regression - l1).unbind(),
        }


class JointDFineLoss(JointRTDetrLoss):
    """`loss_function` of D-FINE: RT-DETR's, with FGL and DDF, which stay the framework's."""

    def make_base(self, config: Any) -> Any:
        """As above."""
        return d_fine.DFineLoss(config)

    def outputs(
        self,
        logits: Any,
        boxes: Any,
        predicted_corners: Tensor | None = None,
        initial_reference_points: Tensor | None = None,
        **others: Any,
    ) -> Outputs:
        """As above; boxes within the image, and of layers what FGL and DDF read."""
        outputs = {"logits": logits, "pred_boxes": boxes.clamp(0, 1)}
        if predicted_corners is None or initial_reference_points is None:
            return outputs
        local = {"pred_corners": predicted_corners, "ref_points": initial_reference_points}
        return outputs | local

    def layers(self, outputs: Mapping[str, Sequence[Tensor]]) -> list[Outputs]:
        """As above; the last layer teaches the others.

        In training there is one more layer of logits and boxes than of corners. The framework pairs
        them from the first on, and so are they here.
        """
        corners, logits = outputs["pred_corners"][-1], outputs["logits"][-1]
        teacher = {"teacher_corners": corners, "teacher_logits": logits}
        return [layer | teacher for layer in by_layer(outputs)]

    def local_losses(
        self, head: Head, labels: Labels, objects: float | Tensor
    ) -> dict[str, Tensor]:
        """FGL and DDF of decoder layers but the last."""
        objects = objects * max(1, head.copies)
        losses = self.base.loss_local(head.outputs, labels, head.matches, objects)
        return {name: self.gains[name] * loss for name, loss in losses.items()}
