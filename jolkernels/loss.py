"""The loss as users import it: a module, a function and their results.

Letters in shapes: N rows (samples), C class columns, K = C - 1 (cross entropy) or C (sigmoid
losses) foreground classes, S = 1 or as many box slots a row as there are classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from jolkernels import reference
from jolkernels.autograd import dense_joint_optimization, joint_optimization
from jolkernels.batch import Inputs, check_labels, make_batch
from jolkernels.dense import DenseInputs, make_dense_batch
from jolkernels.settings import Arguments, Settings, hands_on, show_arguments


class JointLoss(NamedTuple):
    """The two parts of the loss, divided by their normalisers, and what to log.

    0-dim tensors; of a call with groups [G].
    """

    classification: Tensor
    regression: Tensor
    """With the part of `extra_regression`."""
    negative_weight: Tensor
    """w_neg, the mean weight of the positives; no gradient."""
    num_positives: Tensor
    """int64; no gradient."""
    extra_regression: Tensor
    """The part of `regression` that the call's extra_regression makes up, or 0; no gradient."""

    @property
    def total(self) -> Tensor:
        """classification + regression: call backward on it, with groups on its sum."""
        return self.classification + self.regression


class PerSample(NamedTuple):
    """What each row contributes, [N] each, no gradient; see JointOptimizationLoss.per_sample.

    Scores and regression are 0 in rows that are not positive, weight is w_neg in negatives, and
    everything is 0 in ignored rows. Losses are without the rows' weights and normalisers;
    classification has class_weights in it, and regression extra_regression.
    """

    location_score: Tensor
    class_score: Tensor
    weight: Tensor
    classification: Tensor
    regression: Tensor


class JointOptimizationLoss(nn.Module):
    """Joint Optimization Loss (Shi, Fang, Xu; Remote Sens. 2025, 17, 1476, Eq. 2 to 4).

    Every positive sample has the weight w = lam - S_loc * S_cls, every negative the mean weight of
    the batch's positives, in both the classification and the box loss. A call takes rows of
    samples, `dense` the levels of a one-stage head.

    Args:
        classification: "cross_entropy", "bce", "focal", "quality_focal", "varifocal", "mal" or a
            spec such as Focal(alpha=.25, gamma=2) from jolkernels.spec.
        regression: "l1", "smooth_l1", "l2", "iou", "giou", "diou", "ciou", "eiou", "siou",
            "shape_iou", "wiou", "nwd", a spec such as IoU(mode="log"), Inner, Focaler or Sum around
            these, or text such as `iou:mode=log` and `5*l1+2*giou` (registry.parse).
        coding: how box predictions are coded: "xyxy", "delta", "ltrb", "cxcywh" or a spec such as
            Delta(weights=(10, 10, 5, 5)).
        location_score: S_loc: "iou", "giou", "nwd", "simd", "dotd", a spec, or None: S_loc = 1.
        class_score: S_cls: "probability" of the true class, or None: S_cls = 1.
        lam: the paper's lambda, at least 1.
        weighting: "joint", or "none": every weight is 1, the base loss of Eq. 1.
        detach_weights: True: no gradient flows through the weights.
        background: "last" or "first", the background's column with cross entropy.
        ignore_index: the label of rows to ignore.
        sync_group: a torch.distributed ProcessGroup: w_neg and the normalisers by name are those of
            all its ranks' samples; a number is taken as it is.

    Raises:
        ValueError, TypeError: an argument is none of the above; the message names it.
    """

    @hands_on(Arguments)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.settings = Settings(*args, **kwargs)

    @hands_on(Inputs)
    def forward(self, *args: Any, **kwargs: Any) -> JointLoss:  # noqa: D417  those of Inputs
        """The loss of a batch of samples (anchors, points or proposals).

        Args:
            logits: [N, C] floating.
            box_preds: [N, 4 * S] floating, coded as `coding` says. S is 1, or one slot a class,
                slot = label: C or K with background "last" and with the sigmoid losses, C with
                "first". Boxes of IoU losses must not have negative sizes: see spec.LTRB.
            labels: [N] int64: a foreground class, the background (0 or C - 1 with cross entropy,
                K with the sigmoid losses) or ignore_index.
            target_boxes: [N, 4] x1 y1 x2 y2 in pixels, read for positives only; with "cxcywh"
                coded as box_preds are.
            priors: [N, 4] x1 y1 x2 y2 in pixels, anchors or proposals, for "delta" and "ltrb".
            classification_weights: [N] floating, constant factors of the classification losses.
            regression_weights: [N] floating, constant factors of the box losses.
            classification_normalizer: what the sum is divided by: "samples" (max(1, valid rows)),
                "positives" (max(1, positives)), "sum" (1), a number or a 0-dim tensor; with groups
                also [G].
            regression_normalizer: the same for the box loss.
            class_targets: [N] floating, constants from 0 to 1: the target of a positive's labelled
                column with a sigmoid loss, in place of 1, or of the box's IoU with the soft ones.
            extra_regression: [N] floating, differentiable: added to the positives' box losses, and
                so under their weights.
            class_weights: [C] floating, constants >= 0: factors of the columns with the sigmoid
                losses, of rows by their label with cross entropy; as classification_normalizer
                "samples" then means the sum of the valid rows' factors (1 if it is 0), as in
                torch.nn.functional.cross_entropy.
            groups: [N] int64: each of G = num_groups groups has its own w_neg, positives and
                normalisers, as if the loss were called for each; results are [G].
            num_groups: G, with groups.

        Raises:
            ValueError, TypeError: a wrong shape, dtype, device or name; the message names it.
            ValueError: a label or group out of range, on the CPU or with JOLKERNELS_VALIDATE=1; the
                message has its index. Otherwise losses and gradients on a GPU are NaN.
            ValueError: with JOLKERNELS_VALIDATE=1, class_targets of positives outside 0 to 1,
                class_weights that are negative or not finite, or a predicted box of negative size
                in an IoU loss.
        """
        return JointLoss(*joint_optimization(*make_batch(self.settings, *args, **kwargs)))

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's returns Any

    @hands_on(DenseInputs)
    def dense(self, *args: Any, **kwargs: Any) -> JointLoss:  # noqa: D417  those of DenseInputs
        """The loss of a dense head's predictions, read where they lie: no flattened copies.

        It is that of `forward` with all levels permuted, reshaped and joined to [B * M, C] and
        [B * M, 4]: one box for all classes, and no groups.

        Letters: B images, L levels, A anchors of a position, C class columns; M samples of an
        image, the sum of H * W * A over the levels; G objects of an image. Samples are in
        torchvision's order: level, position (row by row), anchor.

        Args:
            logits: list of L tensors [B, A * C, H, W], or [B, A * C, P] with P positions, floating,
                of one dtype, in any memory format. Channel a * C + c is column c of anchor a.
                Gradients have the memory format of their level.
            box_preds: list of L tensors [B, A * 4, H, W] or [B, A * 4, P] floating, coded as
                `coding` says. Their channels say what A is, which may differ by level.
            labels: [B, M] of int8, uint8, int16, int32 or int64, as in `forward`. With `matched`
                also the objects': [B, G], or a list of B tensors [G_i] where target_boxes are a
                list. A tensor that has the shape of `matched` is the samples'.
            target_boxes: [B, M, 4] x1 y1 x2 y2 in pixels, as in `forward`. With `matched` the
                objects': [B, G, 4] or a list of B tensors [G_i, 4].
            priors: [M, 4] for all images, [B, M, 4] or a list of B tensors [M, 4], x1 y1 x2 y2 in
                pixels, for "delta" and "ltrb". A list of one tensor B times is read as that one.
            matched: [B, M] of an integer dtype, or a list of B tensors [M]: the object, counted
                from 0 in its image, whose box a sample has. With the objects' labels it has that
                object's label, too; -1 is then the background and -2 an ignored sample, as in
                torchvision's Matcher. With the samples' labels it is read for positives only.
            classification_weights: [B, M] floating, as in `forward`; so are all others below.
            regression_weights: [B, M] floating.
            classification_normalizer: as in `forward`, or "image": the sum over an image is divided
                by max(1, positives of the image), then the mean is taken over the images, as in
                torchvision's RetinaNet; w_neg stays that of the whole batch.
            regression_normalizer: the same for the box loss.
            class_targets: [B, M] floating.
            extra_regression: [B, M] floating, differentiable.
            class_weights: [C] floating.

        Raises:
            ValueError, TypeError: a wrong shape, dtype, device or name; the message names it.
            ValueError: a label or an index of `matched` out of range, on the CPU or with
                JOLKERNELS_VALIDATE=1; the message has its image and sample. Otherwise losses and
                gradients on a GPU are NaN.
            ValueError: with JOLKERNELS_VALIDATE=1, what `forward` refuses then; an index in the
                message is image * M + sample.
        """
        return JointLoss(
            *dense_joint_optimization(*make_dense_batch(self.settings, *args, **kwargs))
        )

    @hands_on(Inputs)
    @torch.no_grad()
    def per_sample(self, *args: Any, **kwargs: Any) -> PerSample:
        """Scores, weights and unweighted losses of single rows, for figures and debugging.

        Takes the arguments of `forward`. Runs the plain reference, not the kernels.
        """
        batch, call = make_batch(self.settings, *args, **kwargs)
        check_labels(batch, call)
        return PerSample(*reference.per_sample(batch, call))

    def extra_repr(self) -> str:
        """The choices, for repr."""
        return repr(self.settings).removeprefix("Settings(").removesuffix(")")


def joint_optimization_loss(
    logits: Tensor,
    box_preds: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    **others: Any,
) -> JointLoss:
    """JointOptimizationLoss as a function: see there for arguments, shapes and errors.

    By name it takes both those of JointOptimizationLoss and the others of its `forward`.
    """
    inputs = {name: others.pop(name) for name in Inputs._fields[4:] if name in others}
    return JointOptimizationLoss(**others)(logits, box_preds, labels, target_boxes, **inputs)


show_arguments(joint_optimization_loss, Inputs, Arguments)


def joint_optimization_loss_dense(
    logits: Sequence[Tensor],
    box_preds: Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    target_boxes: Tensor | Sequence[Tensor],
    **others: Any,
) -> JointLoss:
    """JointOptimizationLoss.dense as a function: see there for arguments, shapes and errors.

    By name it takes both those of JointOptimizationLoss and the others of its `dense`.
    """
    inputs = {name: others.pop(name) for name in DenseInputs._fields[4:] if name in others}
    return JointOptimizationLoss(**others).dense(logits, box_preds, labels, target_boxes, **inputs)


show_arguments(joint_optimization_loss_dense, DenseInputs, Arguments)
