"""The loss as users import it: a module, a function and their results.

Letters in shapes: N rows (samples), C class columns, K = C - 1 (cross entropy) or C (sigmoid
losses) foreground classes, S = 1 or as many box slots a row as there are classes.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jolkernels import ops, reference, spec
from jolkernels.autograd import JointOptimizationFunction
from jolkernels.batch import make_batch
from jolkernels.spec import Settings, one_of


class JointLoss(NamedTuple):
    """The two parts of the loss, divided by their normalisers, and two numbers to watch."""

    classification: Tensor
    regression: Tensor
    negative_weight: Tensor
    """w_neg, the mean weight of the positives; no gradient."""
    num_positives: Tensor
    """int64; no gradient."""

    @property
    def total(self) -> Tensor:
        """classification + regression, what to call backward on."""
        return self.classification + self.regression


class PerSample(NamedTuple):
    """What each row contributes, [N] each, without gradient; see JointOptimizationLoss.per_sample.

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
        detach_weights: whether the weights are constants for the gradient.
        background: "last" or "first", the background's column with cross entropy.
        ignore_index: the label of rows that count for nothing.
        sync_group: a torch.distributed ProcessGroup over whose ranks w_neg and the normalisers are
            taken.

    Raises:
        ValueError, TypeError: an argument that is none of the above, by name.
    """

    def __init__(
        self,
        classification: str | spec.Classification = "cross_entropy",
        regression: str | spec.Regression = "l1",
        coding: str | spec.Coding = "xyxy",
        location_score: str | spec.Score | None = "iou",
        class_score: str | None = "probability",
        lam: float = 2.0,
        weighting: str = "joint",
        detach_weights: bool = False,
        background: str = "last",
        ignore_index: int = -100,
        sync_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.settings = make_settings(
            classification,
            regression,
            coding,
            location_score,
            class_score,
            lam,
            weighting,
            detach_weights,
            background,
            ignore_index,
            sync_group,
        )
        self.encoded = self.settings.encode()

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
            regression_normalizer: likewise for the box loss.

        Raises:
            ValueError, TypeError: a shape, dtype, device or name that does not fit, by name; a
                label out of range, by index, on the CPU or with JOLKERNELS_VALIDATE=1 (otherwise
                losses and gradients on a GPU are NaN).
        """
        batch = make_batch(
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
        tensors, key = ops.pack(batch, self.encoded)
        return JointLoss(*JointOptimizationFunction.apply(key, *tensors))

    @torch.no_grad()
    def per_sample(self, *args: Any, **kwargs: Any) -> PerSample:
        """Scores, weights and unweighted losses of single rows, for figures and debugging.

        Takes what `forward` takes. Runs the plain reference, not the kernels.
        """
        batch = make_batch(self.settings, *args, **kwargs)
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
        """The settings, as repr shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.settings).items())


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
    classification: str | spec.Classification = "cross_entropy",
    regression: str | spec.Regression = "l1",
    coding: str | spec.Coding = "xyxy",
    location_score: str | spec.Score | None = "iou",
    class_score: str | None = "probability",
    lam: float = 2.0,
    weighting: str = "joint",
    detach_weights: bool = False,
    background: str = "last",
    ignore_index: int = -100,
    sync_group: dist.ProcessGroup | None = None,
) -> JointLoss:
    """JointOptimizationLoss as a function: see there for arguments, shapes and errors."""
    criterion = JointOptimizationLoss(
        classification,
        regression,
        coding,
        location_score,
        class_score,
        lam,
        weighting,
        detach_weights,
        background,
        ignore_index,
        sync_group,
    )
    return criterion(
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


def make_settings(
    classification: str | spec.Classification,
    regression: str | spec.Regression,
    coding: str | spec.Coding,
    location_score: str | spec.Score | None,
    class_score: str | None,
    lam: float,
    weighting: str,
    detach_weights: bool,
    background: str,
    ignore_index: int,
    sync_group: dist.ProcessGroup | None,
) -> Settings:
    """Check the choices of a loss; errors as JointOptimizationLoss says."""
    weighting = one_of("weighting", weighting, ("joint", "none"))
    background = one_of("background", background, ("last", "first"))
    if class_score is not None:
        class_score = one_of("class_score", class_score, ("probability",))
    if not isinstance(detach_weights, bool):
        raise TypeError(f"detach_weights: got {detach_weights!r}, wanted True or False")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: got {ignore_index!r}, wanted an int")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}, wanted an int of 64 bits")
    if sync_group is not None and not isinstance(sync_group, dist.ProcessGroup):
        raise TypeError(f"sync_group: got {sync_group!r}, wanted a torch.distributed ProcessGroup")
    settings = Settings(
        classification=spec.resolve("classification", classification),
        regression=spec.resolve("regression", regression),
        coding=spec.resolve("coding", coding),
        location_score=(
            None if location_score is None else spec.resolve("location_score", location_score)
        ),
        class_score=class_score,
        lam=spec.real("lam", lam, 1),
        weighting=weighting,
        detach_weights=detach_weights,
        background=background,
        ignore_index=int(ignore_index),
        sync_group=None if sync_group is None else sync_group.group_name,
    )
    if background == "first" and not settings.classification.softmax:
        raise ValueError(
            f"background: got 'first' with {settings.classification}, wanted 'last': "
            "a sigmoid loss has no background column"
        )
    return settings
