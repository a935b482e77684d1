"""Single heads of MMDetection with each loss that a config may have, and those it may not."""

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmdet")

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from processes import in_processes

from bench.frameworks.mmdet_models import CLASSES, SIZE, batch
from jolkernels.integrations import mmdet  # noqa: F401  registers

ROWS = 40
CODES = [{"type": "L1Loss"}, {"type": "SmoothL1Loss", "beta": 0.3}, {"type": "MSELoss"}]
DECODED = [
    {"type": "IoULoss"},
    {"type": "IoULoss", "mode": "linear"},
    {"type": "IoULoss", "mode": "square"},
    {"type": "GIoULoss", "loss_weight": 10.0},
    {"type": "DIoULoss"},
]
BOX_LOSSES = [(loss, False) for loss in CODES] + [(loss, True) for loss in DECODED]
CODER = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "alpha": 0.4, "gamma": 1.5, "loss_weight": 3.0}
BRANCHES = {"num_shared_convs": 1, "num_cls_fcs": 1, "num_reg_convs": 1, "conv_out_channels": 4}
SHARED = {"type": "Shared2FCBBoxHead"}


def text(value):
    return value["type"] + value.get("mode", "") if isinstance(value, dict) else str(value)


def bbox_head(**choices):
    config = {"num_classes": CLASSES, "in_channels": 4, "fc_out_channels": 8, "bbox_coder": CODER}
    return MODELS.build(ConfigDict(config | SHARED | choices))


def retina_head(**choices):
    config = {
        "type": "RetinaHead",
        "num_classes": CLASSES,
        "in_channels": 4,
        "stacked_convs": 0,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 3,
            "scales_per_octave": 2,
            "ratios": [0.5, 1.0],
            "strides": [8, 16],
        },
        "bbox_coder": CODER,
        "loss_cls": FOCAL,
        "loss_bbox": CODES[0],
        "train_cfg": {
            "assigner": {
                "type": "MaxIoUAssigner",
                "pos_iou_thr": 0.5,
                "neg_iou_thr": 0.4,
                "min_pos_iou": 0,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }
    return MODELS.build(ConfigDict(config | choices))


def joint(head, **choices):
    """The head with JOL of the same config."""
    choices.setdefault("weighting", "none")
    return {"type": f"Joint{head}", "joint": choices}


def proposals(agnostic=False):
    """Logits, predictions far beyond what decoding clips, rois, labels and boxes."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(ROWS, 2, generator=generator) * 80
    sizes = torch.rand(2, ROWS, 2, generator=generator) * 30 + 8
    shift = torch.randn(ROWS, 2, generator=generator) * 3
    rois = torch.cat((corners, corners + sizes[0]), 1)
    boxes = torch.cat((corners + shift, corners + shift + sizes[1]), 1)
    codes = torch.randn(ROWS, 4 * (1 if agnostic else CLASSES), generator=generator)
    codes[:6, 2::4] = 30  # log sizes of 6 and -6; they are clipped at 4.1
    codes[6:12, 3::4] = -30
    logits = torch.randn(ROWS, CLASSES + 1, generator=generator)
    labels = torch.randint(CLASSES + 1, (ROWS,), generator=generator)
    labels[:12] = 1
    return logits.double(), codes.double(), rois.double(), labels, boxes.double()


def loss_of_proposals(head, agnostic=False, weights=None, rows=None):
    """The head's losses, and the gradients of logits and codes."""
    logits, codes, rois, labels, boxes = rows or proposals(agnostic)
    logits.requires_grad_()
    codes.requires_grad_()
    weights = torch.ones(len(labels)) if weights is None else weights
    targets = boxes if head.reg_decoded_bbox else head.bbox_coder.encode(rois, boxes)
    of_boxes = (labels < CLASSES).float()[:, None].expand(-1, 4)
    rois = torch.cat((rois[:, :1] * 0, rois), 1)
    losses = head.loss(logits, codes, rois, labels, weights, targets, of_boxes)
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    return losses, logits.grad, codes.grad


def loss_of_levels(head):
    """The head's losses of random levels, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    samples = batch()["data_samples"]
    maps = [
        [
            torch.randn(2, 4 * size, SIZE // s, SIZE // s, generator=generator).double()
            for s in (8, 16)
        ]
        for size in (head.cls_out_channels, 4)
    ]
    leaves = [x.requires_grad_() for levels in maps for x in levels]
    losses = head.loss_by_feat(
        *maps, [s.gt_instances for s in samples], [s.metainfo for s in samples]
    )
    losses = {k: sum(v) if isinstance(v, list) else v for k, v in losses.items()}
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    return losses, *(x.grad for x in leaves)


def assert_same(found, expected):
    """Losses and gradients; MMDetection's targets are encoded in float32."""
    for name, value in expected[0].items():
        assert float(found[0][name].detach()) == pytest.approx(float(value.detach()), rel=1e-6)
    grads, grads0 = (torch.cat([g.flatten() for g in x[1:]]) for x in (found, expected))
    assert grads0.norm() > 0
    assert (grads - grads0).norm() < 1e-6 * grads0.norm()


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("loss", "decoded"), BOX_LOSSES, ids=text)
def test_each_box_loss_of_a_second_stage_is_mmdetections(loss, decoded, agnostic):
    config = {
        "loss_bbox": loss,
        "reg_decoded_bbox": decoded,
        "reg_class_agnostic": agnostic,
        "loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 0.5},
    }
    stock = bbox_head(**config)
    head = bbox_head(**config, **joint("Shared2FCBBoxHead"))
    assert_same(loss_of_proposals(head, agnostic), loss_of_proposals(stock, agnostic))


@pytest.mark.parametrize(("loss", "decoded"), BOX_LOSSES, ids=text)
def test_each_box_loss_on_anchors_is_mmdetections(loss, decoded):
    config = {"loss_bbox": loss, "reg_decoded_bbox": decoded}
    stock, head = retina_head(**config), retina_head(**config, **joint("RetinaHead"))
    assert_same(loss_of_levels(head), loss_of_levels(stock))


@pytest.mark.parametrize("pos_weight", [-1, 2.5])
@pytest.mark.parametrize(
    "loss",
    [
        FOCAL,
        {"type": "CrossEntropyLoss", "use_sigmoid": True},
        {"type": "CrossEntropyLoss", "use_sigmoid": False},
    ],
)
def test_each_class_loss_on_anchors_is_mmdetections(loss, pos_weight):
    stock = retina_head(loss_cls=loss)
    head = retina_head(loss_cls=loss, **joint("RetinaHead"))
    stock.train_cfg.pos_weight = head.train_cfg.pos_weight = pos_weight
    assert_same(loss_of_levels(head), loss_of_levels(stock))


def test_a_head_with_branches_of_its_own_has_the_same_layers():
    stock = bbox_head(**BRANCHES, type="ConvFCBBoxHead")
    head = bbox_head(**BRANCHES, **joint("ConvFCBBoxHead", weighting="none"))
    assert list(head.state_dict()) == list(stock.state_dict())
    assert_same(loss_of_proposals(head), loss_of_proposals(stock))


def test_rows_without_weight_are_none_of_the_positives():
    head = bbox_head(**joint("Shared2FCBBoxHead", weighting="joint"))
    logits, codes, rois, labels, boxes = proposals()
    weights = torch.arange(ROWS).remainder(3).clamp(max=1).float()
    losses, logits_grad, codes_grad = loss_of_proposals(head, weights=weights)
    kept = weights > 0
    assert not logits_grad[~kept].any() and not codes_grad[~kept].any()
    expected = head.joint(logits[kept], codes[kept], labels[kept], boxes[kept], rois[kept])
    assert head.negative_weight == losses["negative_weight"]
    assert float(head.negative_weight) == pytest.approx(float(expected.negative_weight), rel=1e-12)
    assert float(losses["loss_cls"].detach()) == pytest.approx(float(expected.classification))


SHARES = slice(0, 26), slice(26, ROWS)
WEIGHTS = torch.arange(ROWS).remainder(5).clamp(max=1).float()


def of_a_rank(rank):
    """w⁻, and the gradients of the logits and codes of one rank's rows."""
    head = bbox_head(**joint("Shared2FCBBoxHead", weighting="joint", sync_group="world"))
    rows = [x[SHARES[rank]] for x in (*proposals(), WEIGHTS)]
    losses, *grads = loss_of_proposals(head, rows=rows[:-1], weights=rows[-1])
    return losses["negative_weight"], *grads


def test_two_ranks_have_the_gradient_of_the_mean_of_their_losses():
    """Through w⁻, too, which is that of both, while each divides by its own numbers."""
    logits, codes, rois, labels, boxes = proposals()
    valid, rows = torch.empty(2, ROWS, dtype=torch.float64)
    for share in SHARES:
        valid[share], rows[share] = (WEIGHTS[share] > 0).sum(), len(labels[share])
    head = bbox_head(**joint("Shared2FCBBoxHead", weighting="joint"))
    loss = head.joint(
        logits.requires_grad_(),
        codes.requires_grad_(),
        head.valid_labels(labels, WEIGHTS),
        boxes,
        rois,
        classification_weights=WEIGHTS / valid / len(SHARES),
        regression_weights=1 / rows / len(SHARES),
        classification_normalizer=1.0,
        regression_normalizer=1.0,
    )
    loss.total.backward()
    weights, *grads = zip(*in_processes(of_a_rank), strict=True)
    for weight in weights:
        torch.testing.assert_close(weight, loss.negative_weight)
    for found, leaf in zip(grads, (logits, codes), strict=True):
        mean = torch.cat(found) / len(SHARES)  # a row is one rank's
        assert (mean - leaf.grad).norm() < 1e-6 * leaf.grad.norm()


def test_a_batch_without_proposals_has_losses_of_nought():
    head = bbox_head(**joint("Shared2FCBBoxHead", weighting="joint"))
    logits, codes = (torch.zeros(0, n, requires_grad=True) for n in (CLASSES + 1, 4 * CLASSES))
    none = torch.zeros(0)
    losses = head.loss(logits, codes, torch.zeros(0, 5), none.long(), none, *torch.zeros(2, 0, 4))
    total = losses["loss_cls"] + losses["loss_bbox"]
    total.backward()
    assert float(total) == 0 and logits.grad.shape == logits.shape


CROSS = {"type": "CrossEntropyLoss"}
SLOPPY = {"type": "FocalLoss"}  # MMDetection takes use_sigmoid from the text of the config
MEANS, CLAMP = {"target_means": [0, 0, 0, 0.1]}, {"add_ctr_clamp": True}
WRONG = [
    (retina_head, {"loss_cls": {"type": "QualityFocalLoss"}}, "loss_cls: got QualityFocalLoss"),
    (retina_head, {"loss_cls": {"type": "GHMC"}}, "loss_cls: got GHMC, wanted one of CrossEnt"),
    (retina_head, {"loss_cls": FOCAL | {"activated": True}}, "FocalLoss: activated: got True"),
    (retina_head, {"loss_cls": FOCAL | {"reduction": "sum"}}, "FocalLoss: reduction: got 'sum'"),
    (retina_head, {"loss_cls": SLOPPY}, "FocalLoss as Focal.* with 4 columns, wanted 3: num"),
    (bbox_head, {"loss_cls": FOCAL}, "FocalLoss as Focal.* with 4 columns, wanted 3: num"),
    (bbox_head, {"loss_cls": CROSS | {"use_sigmoid": True}}, "as BCE.* with 4 columns, wanted 3"),
    (bbox_head, {"loss_cls": CROSS | {"class_weight": [1.0] * 4}}, "class_weight: got .*, wanted"),
    (bbox_head, {"loss_cls": CROSS | {"ignore_index": 3}}, "ignore_index: got 3, wanted None"),
    (bbox_head, {"loss_bbox": {"type": "CIoULoss"}}, "loss_bbox: got CIoULoss, wanted one of L1"),
    (bbox_head, {"loss_bbox": {"type": "BalancedL1Loss"}}, "loss_bbox: got BalancedL1Loss, want"),
    (bbox_head, {"loss_bbox": DECODED[0] | {"eps": 1e-3}}, "IoULoss: eps: got 0.001, wanted 1e-0"),
    (bbox_head, {"loss_bbox": DECODED[3] | {"eps": 0.1}}, "GIoULoss: eps: got 0.1, wanted 1e-06"),
    (bbox_head, {"loss_bbox": DECODED[4] | {"eps": 0.1}}, "DIoULoss: eps: got 0.1, wanted 1e-06"),
    (bbox_head, {"loss_bbox": DECODED[3]}, "GIoULoss with reg_decoded_bbox=False, wanted True"),
    (bbox_head, {"reg_decoded_bbox": True}, "SmoothL1Loss with reg_decoded_bbox=True, wanted F"),
    (bbox_head, {"bbox_coder": CODER | MEANS}, "DeltaXYWHBBoxCoder: means: got .*, wanted"),
    (bbox_head, {"bbox_coder": CODER | CLAMP}, "add_ctr_clamp: got True, wanted False"),
    (retina_head, {"bbox_coder": {"type": "TBLRBBoxCoder"}}, "got TBLRBBoxCoder, wanted one of"),
    (bbox_head, {"with_cls": False}, "JointShared2FCBBoxHead: with_cls: got False, wanted True"),
]


@pytest.mark.parametrize(("make", "config", "message"), WRONG)
def test_what_cannot_be_mapped_is_refused_by_name(make, config, message):
    kind = "RetinaHead" if make is retina_head else "Shared2FCBBoxHead"
    make(**config)  # is right as MMDetection's
    with pytest.raises((TypeError, ValueError), match=message):
        make(**config, **joint(kind))


def test_wrong_choices_are_refused_by_name():
    with pytest.raises(TypeError, match="joint: got regression, wanted some of lam"):
        bbox_head(**joint("Shared2FCBBoxHead", regression="l1"))
    with pytest.raises(ValueError, match="lam: got"):
        bbox_head(**joint("Shared2FCBBoxHead", lam=0.5))
    head = bbox_head(**joint("Shared2FCBBoxHead"))
    with pytest.raises(ValueError, match="reduction_override: got 'none', wanted None"):
        head.loss(*[torch.zeros(1)] * 7, reduction_override="none")


def test_choices_reach_the_loss_as_a_config_can_write_them():
    head = retina_head(**joint("RetinaHead", lam=1.5, location_score="nwd", sync_group="world"))
    assert head.joint.settings.lam == 1.5 and head.joint.settings.sync_group is None
    assert type(head.joint.settings.location_score).__name__ == "NWD"
    assert retina_head(type="JointRetinaHead").joint.settings.weighting == "joint"
