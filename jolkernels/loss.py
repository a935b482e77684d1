"""The loss as users import it: a module, a function and their results.

Letters in shapes: N rows (samples), C class columns, K = C - 1 (cross entropy) or C (sigmoid
losses) foreground classes, S = 1 or as many box slots a row as there are classes.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from jolkernels import ops, reference
from jolkernels.autograd import joint_optimization
from jolkernels.batch import make_batch
from jolkernels.settings import Arguments, Settings, hands_on, same_arguments, show_arguments


class JointLoss(NamedTuple):
    """The two parts of the loss, divided by their normalisers, and two numbers to log."""

    classification: Tensor
    regression: Tensor
    negative_weight: Tensor
    """w_neg, the mean weight of the positives; no gradient."""
    num_positives: Tensor
    """int64; no gradient."""

    @property
    def total(self) -> Tensor:
        """classification + regression: call backward on it."""
        return self.classification + self.regression


class PerSample(NamedTuple):
    """What each row contributes, [N] each, no gradient; see JointOptimizationLoss.per_sample.

    Scores and regression are 0 in rows that are not positive, weight is w_neg in negatives, and
    everything is 0 in ignored rows. Losses are without weights and normalisers.
    """

    location_score: Tensor
    class_score: Tensor
    weight: Tensor
    classification: Tensor
    regression: Tensor


class JointOptimizationLoss(nn.Module):
    """Joint Optimization Loss (Shi, Fang, Xu; Remote Sens. 2025, 17, 1476, Eq. 2 to 4).

    Every positive sample has the weight w = lam - S_loc * S_cls, every negative the mean weight of
    the batch's positives, in both the classification and the box loss.

    Args:
        classification: "cross_entropy", "bce", "focal", "quality_focal", "varifocal" or a spec
            such as Focal(alpha=.25, gamma=2) from jolkernels.spec.
        regression: "l1", "smooth_l1", "l2", "iou", "giou", "diou", "ciou", "eiou" or a spec.
        coding: how box predictions are coded: "xyxy", "delta", "ltrb" or a spec such as
            Delta(weights=(10, 10, 5, 5)).
        location_score: S_loc: "iou", "giou", "nwd", "simd", "dotd", a spec, or None: S_loc = 1.
        class_score: S_cls: "probability" of the true class, or None: S_cls = 1.
        lam: the paper's lambda, at least 1.
        weighting: "joint", or "none": every weight is 1, the base loss of Eq. 1.
        detach_weights: True: no gradient flows through the weights.
        background: "last" or "first", the background's column with cross entropy.
        ignore_index: the label of rows to ignore.
        sync_group: a torch.distributed ProcessGroup: w_neg and the normalisers are those of all its
            ranks' samples.

    Raises:
        ValueError, TypeError: an argument is none of the above; the message names it.
    """

    @hands_on(Arguments)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.settings = Settings(*args, **kwargs)

    def forward(
        self,
        logits: Tensor,
        box_preds: Tensor,
        labels: Tensor,
        target_boxes: Tensor,
        priors: Tensor | None = None,
        classification_weights: Tensor | None = None,
        regression_weights: Tensor | None = None,
        classification_normalizer: float | Tensor | str = "samples",
        regression_normalizer: float | Tensor | str = "samples",
    ) -> JointLoss:
        """The loss of a batch of samples (anchors, points or proposals).

        Args:
            logits: [N, C] floating.
            box_preds: [N, 4 * S] floating, coded as `coding` says. S is 1, or one slot a class,
                slot = label: C or K with background "last" and with the sigmoid losses, C with
                "first".
            labels: [N] int64: a foreground class, the background (0 or C - 1 with cross entropy,
                K with the sigmoid losses) or ignore_index.
            target_boxes: [N, 4] x1 y1 x2 y2 in pixels, read for positives only.
            priors: [N, 4] x1 y1 x2 y2 in pixels, anchors or proposals, for "delta" and "ltrb".
            classification_weights: [N] floating, constant factors of the classification losses.
            regression_weights: [N] floating, constant factors of the box losses.
            classification_normalizer: what the sum is divided by: "samples" (max(1, valid rows)),
                "positives" (max(1, positives)), "sum" (1), a number or a 0-dim tensor.
            regression_normalizer: the same for the box loss.

        Raises:
            ValueError, TypeError: a wrong shape, dtype, device or name; the message names it.
            ValueError: a label out of range, on the CPU or with JOLKERNELS_VALIDATE=1; the message
                has its index. Otherwise losses and gradients on a GPU are NaN.
        """
        batch, call = make_batch(
            self.settings,
            logits,
            box_preds,
            labels,
            target_boxes,
            priors,
            classification_weights,
            regression_weights,
            classification_normalizer,
            regression_normalizer,
        )
        return JointLoss(*joint_optimization(batch, call))

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's returns Any

    @same_arguments(forward)
    @torch.no_grad()
    def per_sample(self, *args: Any, **kwargs: Any) -> PerSample:
        """Scores, weights and unweighted losses of single rows, for figures and debugging.

        Takes the arguments of `forward`. Runs the plain reference, not the kernels.
        """
        batch, _ = make_batch(self.settings, *args, **kwargs)
        ops.check_labels(batch, self.settings)
        r = reference.rows(batch, self.settings)
        w_pos, w_neg = reference.weights(r, self.settings)

        def of_positives(values: Tensor) -> Tensor:
            return torch.zeros_like(r.l_cls).index_put_((r.positive,), values)

        return PerSample(
            location_score=of_positives(r.s_loc),
            class_score=of_positives(r.s_cls),
            weight=of_positives(w_pos).index_put_((r.negative,), w_neg),
            classification=r.l_cls,
            regression=of_positives(r.l_loc),
        )

    def extra_repr(self) -> str:
        """The choices, for repr."""
        return repr(self.settings).removeprefix("Settings(").removesuffix(")")


def joint_optimization_loss(
    logits: Tensor,
    box_preds: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    *,
    priors: Tensor | None = None,
    classification_weights: Tensor | None = None,
    regression_weights: Tensor | None = None,
    classification_normalizer: float | Tensor | str = "samples",
    regression_normalizer: float | Tensor | str = "samples",
    **choices: Any,
) -> JointLoss:
    """JointOptimizationLoss as a function: see there for arguments, shapes and errors."""
    return JointOptimizationLoss(**choices)(
        logits,
        box_preds,
        labels,
        target_boxes,
        priors,
        classification_weights,
        regression_weights,
        classification_normalizer,
        regression_normalizer,
    )


show_arguments(joint_optimization_loss, Arguments)
