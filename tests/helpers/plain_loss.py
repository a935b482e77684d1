"""The loss once more, row by row, in Python and float64: what the fuzz test holds every path to.

Written from the paper's Eq. 2 to 4 and the definitions of the losses in docs/mathematics.md and the
sources that jolkernels.spec names, and not from jolkernels.reference: a fault of one is not a fault
of the other. Numbers are 0-dim float64 tensors, so that autograd differentiates the statement.
"""

import torch
import torch.nn.functional as F
from plain_boxes import Box, box_loss, decode, encode, iou, location_score

from jolkernels import spec


def column_loss(choice, z, true, goal):
    """Of a logit of a sigmoid loss; `goal` is the target of the column of the true class."""
    t = goal if true else 0.0
    p, log_p, log_not = z.sigmoid(), F.logsigmoid(z), F.logsigmoid(-z)

    def bce(target):
        return -(target * log_p if target else 0) - ((1 - target) * log_not if target != 1 else 0)

    match choice:
        case spec.BCE():
            return bce(t)
        case spec.Focal(alpha, gamma):
            missed = t * (-z).sigmoid() + (1 - t) * p  # 1 - p_t
            return (alpha * t + (1 - alpha) * (1 - t)) * missed**gamma * bce(t)
        case spec.QualityFocal(beta):
            return abs(t - p) ** beta * bce(t)
        case spec.Varifocal(alpha, gamma, detach, positives):
            negative = alpha * (p.detach() if detach else p) ** gamma
            return (t if (true and positives == "label") or t > 0 else negative) * bce(t)
        case spec.MAL(gamma, detach):
            return bce(goal**gamma) if true else (p.detach() if detach else p) ** gamma * bce(0.0)
    raise NotImplementedError(choice)


def classification_loss(choice, z, label, goal, class_weights):
    """Of one row. Label C of a sigmoid loss: background."""
    weights = [1.0] * len(z) if class_weights is None else class_weights
    if isinstance(choice, spec.CrossEntropy):
        return -weights[label] * z.log_softmax(0)[label]
    columns = [w * column_loss(choice, z[k], k == label, goal) for k, w in enumerate(weights)]
    return sum(columns)


def divisor(choice, samples, positives):
    """What a sum is divided by; the samples' number, or the sum of their class weights."""
    if isinstance(choice, str):
        samples = samples if samples > 0 else 1
        return {"samples": samples, "positives": max(1, positives), "sum": 1}[choice]
    return float(choice)


def plain_loss(s, batch):
    """The fields of a JointLoss, as a list, for Settings `s`.

    `batch` is what the loss takes, by name; its floating tensors are float64 here.
    """
    groups = batch.get("groups")
    if groups is None:
        return one_loss(s, batch, range(len(batch["labels"])))
    results = []
    for g in range(batch["num_groups"]):
        numbers = {
            name: batch[name][g]
            for name in ("classification_normalizer", "regression_normalizer")
            if isinstance(batch[name], torch.Tensor) and batch[name].ndim
        }
        members = [i for i, group in enumerate(groups.tolist()) if group == g]
        results.append(one_loss(s, batch | numbers, members))
    parts = [list(part) for part in zip(*results, strict=True)]
    return [torch.stack(p) if isinstance(p[0], torch.Tensor) else torch.tensor(p) for p in parts]


def one_loss(s, batch, members):
    """Of the rows `members`."""
    logits, softmax = batch["logits"], isinstance(s.classification, spec.CrossEntropy)
    columns = logits.shape[1]
    background = columns if not softmax else 0 if s.background == "first" else columns - 1
    labels = batch["labels"].tolist()
    rows = [(i, labels[i]) for i in members if labels[i] != s.ignore_index]
    positives = sum(y != background for _, y in rows)

    weights, of_positives, of_negatives = [], [], []
    class_weights = batch.get("class_weights")
    samples = sum(1 if class_weights is None or not softmax else class_weights[y] for _, y in rows)
    zero = 0 * logits[:0].sum() + 0 * batch["box_preds"][:0].sum()
    regression = of_extra = zero
    for i, y in rows:
        alpha, beta = (
            1 if batch[name] is None else batch[name][i]
            for name in ("classification_weights", "regression_weights")
        )
        if y == background:
            l_cls = classification_loss(s.classification, logits[i], y, 0.0, class_weights)
            of_negatives.append(alpha * l_cls)
            continue
        l_loc, s_loc, quality = location(s, batch, i, y)
        extra = zero if batch.get("extra_regression") is None else batch["extra_regression"][i]
        goal = quality if s.classification.soft else 1.0
        if batch.get("class_targets") is not None:
            goal = batch["class_targets"][i].item()
        l_cls = classification_loss(s.classification, logits[i], y, goal, class_weights)
        s_cls = logits.new_ones(())
        if s.class_score is not None:
            s_cls = (logits[i].softmax(0) if softmax else logits[i].sigmoid())[y]
        w = s.lam - s_loc * s_cls if s.weighting == "joint" else logits.new_ones(())  # Eq. 3
        w = w.detach() if s.detach_weights else w
        weights.append(w)
        of_positives.append(w * alpha * l_cls)
        regression = regression + w * beta * (l_loc + extra)
        of_extra = of_extra + w * beta * extra

    w_neg = sum(weights) / positives if positives else logits.new_ones(())  # Eq. 4
    classification = zero + sum(of_positives) + w_neg * (zero + sum(of_negatives))  # Eq. 2
    z_cls = divisor(batch["classification_normalizer"], samples, positives)
    z_loc = divisor(batch["regression_normalizer"], len(rows), positives)
    return [classification / z_cls, regression / z_loc, w_neg, positives, of_extra / z_loc]


def location(s, batch, i, y):
    """Of a positive row i with label y: box loss, S_loc and, a number, the IoU."""
    slot = 4 * y if batch["box_preds"].shape[1] > 4 else 0
    code = batch["box_preds"][i, slot : slot + 4].unbind()
    given = batch["target_boxes"][i].unbind()
    if isinstance(s.coding, spec.CXCYWH):
        target, wanted, used = decode(s.coding, given, None), given, []
        box = decode(s.coding, code, None)
    else:
        target, used = Box(*given), []
        prior = target
        if s.coding.uses_priors:
            prior = Box(*batch["priors"][i].unbind())
            used = [prior]
        box, wanted = decode(s.coding, code, prior), encode(s.coding, target, prior)
    l_loc = box_loss(s.regression, code, wanted, box, target)
    degenerate = any(b.w <= 0 or b.h <= 0 for b in (box, target, *used))
    quality = 0.0 if degenerate else iou(box, target).item()
    if s.location_score is None:
        return l_loc, torch.ones_like(l_loc), quality
    if degenerate:
        return l_loc, torch.zeros_like(l_loc), quality
    return l_loc, location_score(s.location_score, box, target), quality
