"""Cascade R-CNN's heads against their definition, written out."""

import pytest
import torch
import torch.nn.functional as F
from scenes import K, losses_and_gradients, scene
from torchvision.models.detection._utils import BoxCoder

from detectors.models import build_detector
from detectors.models.cascade_rcnn import (
    CODERS,
    LOSS_WEIGHTS,
    THRESHOLDS,
    CascadeRoIHeads,
    is_appended,
    refine,
)


def heads_and_features(loss="base"):
    """The heads of a slim detector in float64, features, proposals and targets of two images."""
    torch.manual_seed(0)
    model = build_detector("cascade_rcnn", K, loss, preset="slim").double().train()
    for stage in model.roi_heads.stages:  # untrained layers move no box and know no class
        torch.nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.02)
        torch.nn.init.normal_(stage.box_predictor.cls_score.weight, std=0.2)
    images, targets = scene([6, 3], dtype=torch.float64)
    targets = [{**t, "labels": t["labels"] + 1} for t in targets]
    features = model.backbone(torch.stack(images))
    noise = torch.Generator().manual_seed(1)
    proposals = [
        (t["boxes"].repeat(30, 1) + 3 * torch.randn(30 * len(t["boxes"]), 4, generator=noise))
        for t in targets
    ]
    for p in proposals:  # corners in order
        p[:, 2:] = torch.maximum(p[:, 2:], p[:, :2] + 1)
    return model, features, proposals, targets, [(96, 128)] * 2


def test_losses_are_the_weighted_sum_of_three_stages():
    model, features, proposals, targets, shapes = heads_and_features()
    heads = model.roi_heads
    torch.manual_seed(5)
    _, losses = heads(features, proposals, shapes, targets)

    torch.manual_seed(5)  # the samplers draw as they did
    classification = regression = 0.0
    for t, stage in enumerate(heads.stages):
        assert stage.proposal_matcher.high_threshold == THRESHOLDS[t] == (0.5, 0.6, 0.7)[t]
        proposals, matches, labels, _ = stage.select_training_samples(proposals, targets)
        pooled = stage.box_roi_pool(features, proposals, shapes)
        logits, deltas = stage.box_predictor(stage.box_head(pooled))
        y = torch.cat(labels)
        classification += (1, 0.5, 0.25)[t] * F.cross_entropy(logits, y)
        coder = BoxCoder(CODERS[t])
        boxes = torch.cat([g["boxes"][m] for g, m in zip(targets, matches, strict=True)])
        encoded = coder.encode_single(boxes, torch.cat(proposals))
        box = F.smooth_l1_loss(deltas[y > 0], encoded[y > 0], beta=1.0, reduction="sum")
        regression += (1, 0.5, 0.25)[t] * box / len(y)
        assert (y > 0).any()
        refined = coder.decode_single(deltas.detach(), torch.cat(proposals))
        refined[:, 0::2].clamp_(0, 128), refined[:, 1::2].clamp_(0, 96)
        kept = []
        for new, old, g in zip(
            refined.split([len(p) for p in proposals]), proposals, targets, strict=True
        ):
            is_object = (old[:, None] == g["boxes"]).all(2).any(1)
            assert is_object.any()
            kept.append(new[~is_object])
        proposals = kept
    torch.testing.assert_close(losses["loss_classifier"], classification, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses["loss_box_reg"], regression, rtol=1e-12, atol=0)
    assert LOSS_WEIGHTS == (1, 0.5, 0.25) and heads.negative_weight == 1


def test_every_stage_weighs_by_its_own_joint_loss():
    model, features, proposals, targets, shapes = heads_and_features("jol")
    model.roi_heads(features, proposals, shapes, targets)
    weights = [s.negative_weight.item() for s in model.roi_heads.stages]
    assert len(set(weights)) == 3 and all(1 < w < 2 for w in weights)
    assert model.roi_heads.negative_weight == pytest.approx(sum(weights) / 3)


def test_refined_boxes_carry_no_gradient():
    model, features, proposals, _, shapes = heads_and_features()
    stage = model.roi_heads.stages[0]
    _, deltas = stage.predict(features, proposals, shapes)
    boxes = refine(stage, deltas, proposals, shapes)
    assert deltas.requires_grad and not boxes[0].requires_grad
    assert all((b >= 0).all() and (b[:, 2] <= 128).all() and (b[:, 3] <= 96).all() for b in boxes)


def test_appended_objects_are_known():
    box = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]])
    matched = torch.tensor([[1.0, 2, 3, 4]]).expand(3, 4)
    found = is_appended(box, matched, torch.tensor([1, 1, 0]))
    assert found.tolist() == [True, False, False]


def test_inference_averages_the_logits_and_takes_the_last_boxes():
    model, features, proposals, _, shapes = heads_and_features()
    heads = model.eval().roi_heads
    with torch.no_grad():
        found, losses = heads(features, proposals, shapes)
        every, boxes = [], proposals
        for t, stage in enumerate(heads.stages):
            logits, deltas = stage.predict(features, boxes, shapes)
            every.append(logits)
            if t < 2:
                boxes = refine(stage, deltas, boxes, shapes)
        last = BoxCoder(CODERS[2]).decode_single(deltas, torch.cat(boxes))
        scores = (sum(every) / 3).softmax(1)
    assert losses == {} and len(found) == 2 and len(found[0]["boxes"]) > 0
    best = found[0]["scores"].argmax()
    row = (scores[: len(proposals[0]), 1:] == found[0]["scores"][best]).nonzero()
    assert len(row) == 1 and row[0, 1] + 1 == found[0]["labels"][best]
    expected = last[row[0, 0]]
    expected[0::2].clamp_(0, 128), expected[1::2].clamp_(0, 96)
    torch.testing.assert_close(found[0]["boxes"][best], expected)


def test_its_layers_start_as_the_release_does():
    torch.manual_seed(0)
    model = build_detector("cascade_rcnn", K, backbone_weights="none", preset="paper")
    assert isinstance(model.roi_heads, CascadeRoIHeads)
    for stage in model.roi_heads.stages:
        shapes = [tuple(p.shape) for p in stage.box_predictor.parameters()]
        assert shapes == [(K + 1, 1024), (K + 1,), (4, 1024), (4,)]
        assert stage.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert stage.box_predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
        bound = (6 / (12544 + 1024)) ** 0.5  # xavier-uniform
        assert stage.box_head.fc6.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        sampler = stage.fg_bg_sampler
        assert (sampler.batch_size_per_image, sampler.positive_fraction) == (512, 0.25)


def test_a_step_trains_all_three_heads():
    torch.manual_seed(0)
    model = build_detector("cascade_rcnn", K, "jol", preset="slim").train()
    _, gradients = losses_and_gradients(model, *scene([8, 5]))
    for key, gradient in gradients.items():
        if "roi_heads" in key:
            assert gradient is not None and gradient.abs().max() > 0, key
