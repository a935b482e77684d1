"""The loss against the reference, the reference against hand computation and torchvision."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    CLASSIFICATIONS,
    CODINGS,
    HEADS,
    REGRESSIONS,
    SCORES,
    go_together,
    gradients,
    random_batch,
    sampled,
)
from frozen import frozen

from jolkernels import JointOptimizationLoss, joint_optimization_loss, reference, spec
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels


def reference_loss(criterion: JointOptimizationLoss, batch: dict):
    return reference.joint_optimization_loss(*make_batch(criterion.settings, **batch))


def assert_equals_reference(criterion, batch, atol=1e-10):
    loss, expected = criterion(**batch), reference_loss(criterion, batch)
    assert [x.dtype for x in loss] == [x.dtype for x in expected]
    torch.testing.assert_close(tuple(loss), tuple(expected), rtol=1e-10, atol=atol)
    got, wanted = gradients(loss, batch), gradients(expected, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=atol)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in got)


PAIRS = [pair for pair in itertools.product(REGRESSIONS, CODINGS) if go_together(*pair)]


@pytest.mark.parametrize(
    ("head", "regression", "coding"),
    sampled([(head, *pair) for head, pair in itertools.product(HEADS, PAIRS)], every=13),
)
def test_values_and_gradients_equal_the_reference(head, regression, coding):
    criterion = JointOptimizationLoss(head[0], regression, coding, background=head[1])
    batch = random_batch(head, coding, class_specific=regression == "l1")
    assert_equals_reference(criterion, batch | {"regression_normalizer": "positives"})


@pytest.mark.parametrize(
    ("head", "location_score", "coding"),
    sampled(list(itertools.product(HEADS, SCORES, ["delta", "xyxy"])), every=7),
)
def test_location_scores_equal_the_reference(head, location_score, coding):
    criterion = JointOptimizationLoss(
        head[0], "smooth_l1", coding, background=head[1], location_score=location_score
    )
    batch = random_batch(head, coding)
    positive = criterion.per_sample(**batch).location_score
    assert ((positive >= 0) & (positive <= 1)).all() and positive.max() > 0.01
    assert_equals_reference(criterion, batch)


WEIGHTS = [{}, {"detach_weights": True}, {"weighting": "none"}, {"lam": 1.25}, {"lam": 3.7}]


@pytest.mark.parametrize(
    ("head", "location_score", "class_score", "weights"),
    sampled(
        list(itertools.product(HEADS[1:], ["iou", None], ["probability", None], WEIGHTS)), every=7
    ),
)
def test_weights_equal_the_reference(head, location_score, class_score, weights):
    criterion = JointOptimizationLoss(
        head[0],
        "smooth_l1",
        "delta",
        background=head[1],
        location_score=location_score,
        class_score=class_score,
        **weights,
    )
    assert_equals_reference(criterion, random_batch(head, "delta"))


@pytest.mark.parametrize(
    "choices",
    [
        {"classification": spec.Focal(alpha=0.6, gamma=1.5)},
        {"classification": spec.Focal(alpha=1.0, gamma=0.0)},
        {"classification": spec.QualityFocal(beta=1.0)},
        {"classification": spec.QualityFocal(beta=2.6)},
        {"classification": spec.Varifocal(alpha=0.4, gamma=1.5)},
        {"location_score": spec.NWD(constant=3.3)},
        {"location_score": spec.SimD(m=1.1, n=0.7)},
        {"location_score": spec.SimD(m=9.1, n=8.7)},  # far boxes reach its floor
        {"location_score": spec.DotD(size=5.3)},
        {"regression": spec.SmoothL1(beta=0.0)},
        {"regression": spec.SmoothL1(beta=2.0)},
        {"coding": spec.Delta(weights=(10, 10, 5, 5))},
        {"coding": spec.Delta(weights=(1, 2, 3, 4), clip=0.1), "regression": "giou"},
    ],
    ids=str,
)
def test_parameters_of_specs_equal_the_reference(choices):
    criterion = JointOptimizationLoss(**{"regression": "l1", "coding": "delta"} | choices)
    head = ("bce" if "classification" in choices else "cross_entropy", "last")
    assert_equals_reference(criterion, random_batch(head, "delta"))


@pytest.mark.parametrize("name", ["classification_normalizer", "regression_normalizer"])
@pytest.mark.parametrize("value", ["samples", "positives", "sum", 3, 2.5, torch.tensor(7.5)])
def test_normalizers_equal_the_reference(name, value):
    assert_equals_reference(JointOptimizationLoss(), random_batch() | {name: value})


@pytest.mark.parametrize(
    ("classes", "head"), sampled(list(itertools.product([1, 2, 80, 1500], HEADS)), 1)
)
def test_class_counts_equal_the_reference(classes, head):
    batch = random_batch(head, classes=classes, n=9, class_specific=classes < 100)
    assert_equals_reference(JointOptimizationLoss(head[0], background=head[1]), batch)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_row_counts_equal_the_reference(n):
    batch = random_batch(n=n, seed=3)
    batch["labels"][0] = 1
    for name in ("box_preds", "target_boxes"):
        batch[name].data[0] = torch.tensor([1.0, 2.0, 5.0, 7.0])
    assert_equals_reference(JointOptimizationLoss("cross_entropy", "giou"), batch)


def test_slots_without_the_background_equal_the_reference():
    batch = random_batch(slots=5)
    assert batch["box_preds"].shape[1] == 20 and batch["logits"].shape[1] == 6
    assert_equals_reference(JointOptimizationLoss(), batch)


def test_class_specific_boxes_read_the_slot_of_the_label():
    batch = random_batch(class_specific=True)
    rows = torch.arange(len(batch["labels"]))
    slot = batch["labels"].clamp(min=0)
    single = batch["box_preds"].detach().unflatten(1, (-1, 4))[rows, slot].requires_grad_()
    criterion = JointOptimizationLoss()
    a, b = criterion(**batch), criterion(**batch | {"box_preds": single})
    torch.testing.assert_close(tuple(a), tuple(b))
    (wide,) = torch.autograd.grad(a.total, batch["box_preds"])
    (narrow,) = torch.autograd.grad(b.total, single)
    torch.testing.assert_close(wide.unflatten(1, (-1, 4))[rows, slot], narrow)
    assert torch.count_nonzero(wide) == torch.count_nonzero(narrow) > 0


def test_background_first_is_background_last_with_the_column_moved():
    last = random_batch(("cross_entropy", "last"))
    logits = last["logits"].detach().roll(1, 1).requires_grad_()
    labels = torch.where(last["labels"] >= 0, (last["labels"] + 1) % 6, last["labels"])
    a = JointOptimizationLoss()(**last)
    b = JointOptimizationLoss(background="first")(**last | {"logits": logits, "labels": labels})
    torch.testing.assert_close(tuple(a), tuple(b))


def test_function_equals_module():
    batch = random_batch(coding="delta")
    a = JointOptimizationLoss("cross_entropy", "smooth_l1", "delta", lam=1.5)(**batch)
    b = joint_optimization_loss(
        **batch, classification="cross_entropy", regression="smooth_l1", coding="delta", lam=1.5
    )
    assert a == b


# By hand: plain Python numbers, no tensor operation of ours.


def hand_iou(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


HAND = {
    "logits": [[2.0, 0.5, -1.0], [0.3, 1.2, 0.1], [-0.5, 0.2, 1.5], [1.0, 0.0, 0.5]],
    "box_preds": [[0, 0, 10, 8], [3, 3, 9, 12], [0, 0, 1, 1], [5, 5, 6, 6]],
    "labels": [0, 1, 2, 2],  # two positives, two of the background (column 2)
    "target_boxes": [[1, 1, 11, 9], [3, 2, 8, 12], [0, 0, 0, 0], [0, 0, 0, 0]],
}


def hand_batch() -> dict:
    return {
        name: torch.tensor(v, dtype=torch.int64 if name == "labels" else torch.float64)
        for name, v in HAND.items()
    }


def test_equations_2_to_4_by_hand():
    def nll(i):
        z = HAND["logits"][i]
        return math.log(sum(math.exp(x) for x in z)) - z[HAND["labels"][i]]

    lam, weights, losses, l1 = 2.0, [], [], []
    for i in (0, 1):
        box, target = HAND["box_preds"][i], HAND["target_boxes"][i]
        weights.append(lam - hand_iou(box, target) * math.exp(-nll(i)))  # Eq. 3
        losses.append(weights[i] * nll(i))
        l1.append(weights[i] * sum(abs(p - q) for p, q in zip(box, target, strict=True)))
    w_neg = sum(weights) / 2  # Eq. 4
    classification = sum(losses) + w_neg * (nll(2) + nll(3))  # Eq. 2
    regression = sum(l1)

    criterion = JointOptimizationLoss()
    batch = hand_batch() | {
        "classification_normalizer": "sum",
        "regression_normalizer": "sum",
    }
    for loss in (criterion(**batch), reference_loss(criterion, batch)):
        assert [x.item() for x in loss] == pytest.approx(
            [classification, regression, w_neg, 2, 0], rel=1e-14
        )


def test_equation_6_by_hand():
    """One positive sample with cross entropy and IoU loss: (2 - p iou)(-log p + 1 - iou)."""
    z, box, target = [1.2, -0.3], [2, 1, 12, 9], [4, 2, 13, 10]
    p = math.exp(z[0]) / (math.exp(z[0]) + math.exp(z[1]))
    iou = hand_iou(box, target)
    expected = (2 - p * iou) * (-math.log(p) + 1 - iou)

    criterion = JointOptimizationLoss("cross_entropy", "iou")
    batch = {
        "logits": torch.tensor([z], dtype=torch.float64),
        "box_preds": torch.tensor([box], dtype=torch.float64),
        "labels": torch.tensor([0]),
        "target_boxes": torch.tensor([target], dtype=torch.float64),
    }
    assert criterion(**batch).total.item() == pytest.approx(expected, rel=1e-14)
    parts = reference_loss(criterion, batch)
    assert (parts[0] + parts[1]).item() == pytest.approx(expected, rel=1e-14)


def hand_eiou(a, b):
    cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    dw, dh = (a[2] - a[0]) - (b[2] - b[0]), (a[3] - a[1]) - (b[3] - b[1])
    loss = 1 - hand_iou(a, b) + (dx**2 + dy**2) / (cw**2 + ch**2)
    return loss + dw**2 / cw**2 + dh**2 / ch**2


def test_eiou_by_hand():
    boxes, targets = HAND["box_preds"][:2], HAND["target_boxes"][:2]
    expected = [hand_eiou(a, b) for a, b in zip(boxes, targets, strict=True)]
    rows = JointOptimizationLoss("cross_entropy", "eiou").per_sample(**hand_batch())
    assert rows.regression[:2].tolist() == pytest.approx(expected, rel=1e-6)  # but for eps


def test_location_scores_by_hand():
    """Boxes 0 0 10 8 and 1 1 11 9: dx = dy = 1, the same size; 3 3 9 12 and 3 2 8 12: another."""
    dx, dy, w, h, wt, ht = 0.5, 0.5, 6, 9, 5, 10  # of the second pair
    m, n, c = 6.13, 4.59, 12.7
    expected = {
        "nwd": [
            math.exp(-math.sqrt(2) / c),
            math.exp(-math.sqrt(dx**2 + dy**2 + ((w - wt) ** 2 + (h - ht) ** 2) / 4) / c),
        ],
        "dotd": [math.exp(-math.sqrt(2) / c), math.exp(-math.sqrt(dx**2 + dy**2) / c)],
        "simd": [
            math.exp(-math.sqrt((m / 20) ** 2 + (n / 16) ** 2)),
            math.exp(
                -math.sqrt((m * dx / (w + wt)) ** 2 + (n * dy / (h + ht)) ** 2)
                - math.sqrt((m * (w - wt) / (w + wt)) ** 2 + (n * (h - ht) / (h + ht)) ** 2)
            ),
        ],
        # union 160 - 63 = 97 of a hull 11 x 9; union 54 + 50 - 45 = 59 of a hull 6 x 10
        "giou": [(1 + 63 / 97 - (99 - 97) / 99) / 2, (1 + 45 / 59 - (60 - 59) / 60) / 2],
        "iou": [63 / 97, 45 / 59],
    }
    for name, scores in expected.items():
        rows = JointOptimizationLoss(location_score=name).per_sample(**hand_batch())
        assert rows.location_score.tolist() == pytest.approx([*scores, 0, 0], rel=1e-8), name


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_soft_targets_by_hand(name):
    """One positive of IoU q, true class 0 of 2, and one negative row."""
    z = [[0.7, -1.1], [0.2, 0.4]]
    box, target = [2, 1, 12, 9], [4, 2, 13, 10]
    q = hand_iou(box, target)

    def p(x):
        return 1 / (1 + math.exp(-x))

    def ce(x, y):
        return -y * math.log(p(x)) - (1 - y) * math.log(1 - p(x))

    def term(x, y):
        if name == "quality_focal":
            return abs(y - p(x)) ** 2 * ce(x, y)
        return y * ce(x, y) if y > 0 else 0.75 * p(x) ** 2 * ce(x, 0)

    batch = {
        "logits": torch.tensor(z, dtype=torch.float64),
        "box_preds": torch.tensor([box, box], dtype=torch.float64),
        "labels": torch.tensor([0, 2]),
        "target_boxes": torch.tensor([target, target], dtype=torch.float64),
    }
    for location_score in ("iou", "dotd", None):  # the target is the IoU whatever the score
        criterion = JointOptimizationLoss(name, weighting="none", location_score=location_score)
        loss = criterion(**batch, classification_normalizer="sum")
        expected = term(z[0][0], q) + term(z[0][1], 0) + term(z[1][0], 0) + term(z[1][1], 0)
        assert loss.classification.item() == pytest.approx(expected, rel=1e-12)


# Against the sources that the design names: with weighting="none" the base losses of PyTorch and
# torchvision, in float64 to 1e-12.


def base_loss_terms(head, regression, coding, batch, weights):
    """Eq. 1 by torch and torchvision's own functions: sums over rows, box loss over positives."""
    ops = pytest.importorskip("torchvision.ops")
    from torchvision.models.detection import _utils as det_utils

    logits, labels = batch["logits"], batch["labels"]
    valid = labels != -100
    positive = valid & (labels != (0 if head[1] == "first" else 5))
    one_hot = F.one_hot(labels.clamp(min=0), 6)[:, :5].to(logits)
    if head[0] == "cross_entropy":
        cls = F.cross_entropy(logits[valid], labels[valid], reduction="sum")
    elif head[0] == "bce":
        cls = F.binary_cross_entropy_with_logits(logits[valid], one_hot[valid], reduction="sum")
    else:
        cls = ops.sigmoid_focal_loss(logits[valid], one_hot[valid], reduction="sum")
    codes, targets = batch["box_preds"][positive], batch["target_boxes"][positive]
    priors = batch["priors"][positive]
    if coding == "delta":
        coder = det_utils.BoxCoder(weights)
        decoded, encoded = coder.decode_single(codes, priors), coder.encode_single(targets, priors)
    elif coding == "ltrb":
        coder = det_utils.BoxLinearCoder(normalize_by_size=True)
        decoded, encoded = coder.decode(codes, priors), coder.encode(priors, targets)
    elif coding == "cxcywh":  # targets too; the IoU losses see an image of 1024 x 1024
        encoded = targets
        decoded, targets = (ops.box_convert(1024 * b, "cxcywh", "xyxy") for b in (codes, targets))
    else:
        decoded, encoded = codes, targets
    box_losses = {
        "l1": lambda: F.l1_loss(codes, encoded, reduction="sum"),
        "smooth_l1": lambda: F.smooth_l1_loss(codes, encoded, beta=1 / 9, reduction="sum"),
        "l2": lambda: F.mse_loss(codes, encoded, reduction="sum"),
        "giou": lambda: ops.generalized_box_iou_loss(decoded, targets, reduction="sum"),
        "diou": lambda: ops.distance_box_iou_loss(decoded, targets, reduction="sum"),
        "ciou": lambda: ops.complete_box_iou_loss(decoded, targets, reduction="sum"),
    }
    return cls, box_losses[regression]()


TORCHVISION = [
    [h for h in HEADS if h[0] in ("cross_entropy", "bce", "focal")],
    ["l1", "smooth_l1", "l2", "giou", "diou", "ciou"],
    CODINGS,
]


@pytest.mark.parametrize(
    ("head", "regression", "coding"), sampled(list(itertools.product(*TORCHVISION)), every=11)
)
def test_base_loss_is_torchvisions(head, regression, coding):
    weights = (10.0, 10.0, 5.0, 5.0)
    batch = random_batch(head, coding)
    del batch["classification_weights"], batch["regression_weights"]
    if coding == "ltrb":  # torchvision encodes with the *priors* as its first argument
        batch["priors"] = batch["priors"].round()
    criterion = JointOptimizationLoss(
        head[0],
        regression,
        spec.Delta(weights) if coding == "delta" else coding,
        background=head[1],
        weighting="none",
    )
    loss = criterion(**batch, classification_normalizer="sum", regression_normalizer="sum")
    expected = base_loss_terms(head, regression, coding, batch, weights)
    torch.testing.assert_close(tuple(loss[:2]), expected, rtol=1e-12, atol=1e-12)
    assert loss.negative_weight == 1
    got, wanted = gradients(loss, batch), gradients(expected, batch)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


# Each box loss with a coding, and these together with each classification loss.
BOXES = [
    (regression, coding if go_together(regression, coding) else "xyxy")
    for regression, coding in zip(REGRESSIONS, itertools.cycle(CODINGS), strict=False)
]


@pytest.mark.parametrize(
    ("classification", "regression", "coding"),
    sampled([(c, *b) for c, b in itertools.product(CLASSIFICATIONS, BOXES)], every=11, usually=2),
)
def test_gradcheck(classification, regression, coding):
    batch = random_batch((classification, "last"), coding, n=4, classes=2, seed=5)
    assert ((batch["labels"] >= 0) & (batch["labels"] < 2)).any() and (batch["labels"] == 2).any()
    criterion = JointOptimizationLoss(classification, regression, coding)
    rest = {n: batch[n] for n in batch if n not in ("logits", "box_preds")}

    def losses(logits, box_preds):
        return criterion(logits, box_preds, **rest)[:2]

    def statement(logits, box_preds):
        return reference_loss(criterion, rest | {"logits": logits, "box_preds": box_preds})[:2]

    # Numerical differences need finite inputs everywhere, also in rows that are not read.
    box_preds = batch["box_preds"].detach().nan_to_num(0.5).requires_grad_()
    inputs = batch["logits"], box_preds
    assert torch.autograd.gradcheck(frozen(losses, statement, inputs), inputs, atol=1e-6)
