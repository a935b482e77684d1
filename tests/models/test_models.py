"""The detectors: equal to torchvision's where they must be, and all of them train."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scenes import QUICK, K, losses_and_gradients, scene
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)

from detectors.models import DETECTORS, TWO_STAGE, build_detector, joint_head
from detectors.models.backbones import resnet
from jolkernels import spec
from jolkernels.integrations.torchvision import JointRoIHeads, fcos_criterion, roi_criterion
from jolkernels.registry import resolve
from jolkernels.spec import CHOICES

STOCK: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn": fasterrcnn_resnet50_fpn,
    "fcos": fcos_resnet50_fpn,
    "retinanet": retinanet_resnet50_fpn,
}
ROI_LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
LOSSES = {
    **dict.fromkeys(TWO_STAGE, ROI_LOSSES),
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
    "retinanet": {"classification", "bbox_regression"},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "faster_rcnn" else n for n in STOCK],
)
def test_base_equals_torchvision(name: str) -> None:
    """Losses and the gradient of every parameter in float64; one image has no objects."""
    torch.manual_seed(0)
    shift = 1 if name == "faster_rcnn" else 0
    stock = STOCK[name](
        weights=None, weights_backbone=None, num_classes=K + shift, min_size=96, max_size=160
    ).double()
    # An untrained class layer gives almost equal probabilities: spread them out.
    for key, p in stock.named_parameters():
        if "cls_" in key and key.endswith("weight"):
            nn.init.normal_(p, std=0.05)
    if name == "faster_rcnn":  # its RPN's labels are float32, and so is its loss
        labelled = stock.rpn.assign_targets_to_anchors
        stock.rpn.assign_targets_to_anchors = lambda *given: [
            [t.double() for t in each] for each in labelled(*given)
        ]
    ours = build_detector(name, K, "base", backbone_weights="none", image_size=96).double()
    ours.load_state_dict(stock.state_dict())  # the same parameters by the same names

    images, targets = scene([5, 0, 1], dtype=torch.float64)
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] + shift} for t in targets]
    want, want_grad = losses_and_gradients(stock.train(), images, shifted)
    got, got_grad = losses_and_gradients(ours.train(), images, targets)

    assert got.keys() == want.keys() == LOSSES[name]
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-12, atol=1e-12)
        assert want[key] > 0, f"{key} tests nothing"
    for key, expected in want_grad.items():
        assert expected is not None, key
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(got_grad[key], expected, rtol=0, atol=1e-12 * scale)
    assert joint_head(ours).negative_weight == 1


@pytest.mark.parametrize("name", STOCK)
def test_inference_equals_torchvision(name: str) -> None:
    torch.manual_seed(0)
    shift = 1 if name == "faster_rcnn" else 0
    stock = STOCK[name](
        weights=None, weights_backbone=None, num_classes=K + shift, min_size=96, max_size=160
    )
    ours = build_detector(name, K, "jol", backbone_weights="none", image_size=96)
    ours.load_state_dict(stock.state_dict())
    for model in (stock, ours):
        (model.roi_heads if name == "faster_rcnn" else model).score_thresh = 0.0
    images, _ = scene([1, 2])
    with torch.no_grad():
        want, got = stock.eval()(images), ours.eval()(images)
    assert len(want[0]["boxes"]) > 0
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g["boxes"], w["boxes"])
        torch.testing.assert_close(g["scores"], w["scores"])
        assert torch.equal(g["labels"] + shift, w["labels"])


@pytest.mark.parametrize("name", QUICK)
def test_joint_weights_change_the_losses_as_they_should(name: str) -> None:
    """From the same weights: 1 <= w_neg <= lam, joint losses between base and lam times base."""
    torch.manual_seed(0)
    base = build_detector(name, K, "base", preset="slim").train()
    joint = build_detector(name, K, "jol", preset="slim", lam=2.0).train()
    joint.load_state_dict(base.state_dict())
    images, targets = scene([6, 3])
    want, _ = losses_and_gradients(base, images, targets)
    got, _ = losses_and_gradients(joint, images, targets)
    weight = joint_head(joint).negative_weight
    assert weight is not None and not weight.requires_grad
    assert 1 < weight < 2
    for key in LOSSES[name] - {"loss_objectness", "loss_rpn_box_reg", "bbox_ctrness"}:
        assert want[key] < got[key] < 2 * want[key]
    for key in LOSSES[name] & {"loss_objectness", "loss_rpn_box_reg", "bbox_ctrness"}:
        torch.testing.assert_close(got[key], want[key])


@pytest.mark.parametrize("name", QUICK)
def test_every_location_score_reaches_the_loss(name: str) -> None:
    images, targets = scene([6])
    torch.manual_seed(0)
    weights = build_detector(name, K, "jol", preset="slim").state_dict()
    found = {}
    for score in (*CHOICES["location_score"], None):
        model = build_detector(name, K, "jol", preset="slim", location_score=score).train()
        model.load_state_dict(weights)
        losses, _ = losses_and_gradients(model, images, targets)
        assert all(math.isfinite(v.item()) for v in losses.values())
        found[score] = joint_head(model).negative_weight.item()
    assert [score for score in found if found[score] == found["iou"]] == ["iou"]


@pytest.mark.parametrize(
    ("name", "preset", "wanted"),
    [
        ("retinanet", "torchvision", (spec.Focal(), spec.L1())),
        ("fcos", "torchvision", (spec.Focal(), spec.GIoU())),
        ("fcos", "paper", (spec.Focal(), spec.IoU(mode="log"))),
        ("faster_rcnn", "slim", (spec.CrossEntropy(), spec.SmoothL1(1 / 9))),
        ("faster_rcnn", "paper", (spec.CrossEntropy(), spec.L1())),
    ],
)
def test_a_head_has_the_losses_of_its_preset(
    name: str, preset: str, wanted: tuple[object, object]
) -> None:
    settings = joint_head(build_detector(name, K, preset=preset, backbone_weights="none"))
    settings = settings.criterion.settings
    assert (settings.classification, settings.regression) == wanted


@pytest.mark.parametrize("name", QUICK)
def test_chosen_losses_reach_the_head(name: str) -> None:
    own = DETECTORS[name].classification["slim"]
    other = "quality_focal:beta=1" if own == "focal" else own
    model = build_detector(
        name, K, "jol", preset="slim", classification=other, regression="5*l1+2*giou"
    ).train()
    losses, _ = losses_and_gradients(model, *scene([6]))
    assert all(math.isfinite(v.item()) for v in losses.values())
    head = joint_head(model)
    for criterion in [h.criterion for h in getattr(head, "heads", [head])]:
        assert criterion.settings.regression == spec.Sum((5, spec.L1()), (2, spec.GIoU()))
        assert criterion.settings.classification == resolve("classification", other)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("size", [(96, 96), (70, 150)])
def test_slim_trains_every_parameter(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_detector(name, K, "jol", preset="slim").train()
    if name == "detectors":  # parameters that start at 0 hide the gradients of those before them
        for parameter in model.backbone.parameters():
            if parameter.abs().max() == 0:
                nn.init.normal_(parameter, std=0.01)
    images, targets = scene([8, 5], size)
    # Large objects as well, so that every level of the pyramid has positives.
    targets[0]["boxes"] = torch.cat([targets[0]["boxes"], torch.tensor([[2.0, 2, 66, 66]])])
    targets[0]["labels"] = torch.cat([targets[0]["labels"], torch.tensor([1])])
    losses, gradients = losses_and_gradients(model, images, targets)
    assert losses.keys() == LOSSES[name]
    for key, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("loss", ["base", "jol"])
@pytest.mark.parametrize("objects", [[0, 0], [1, 0], [1]])
def test_few_objects_or_none(name: str, loss: str, objects: list[int]) -> None:
    torch.manual_seed(0)
    model = build_detector(name, K, loss, preset="slim").train()
    images, targets = scene(objects)
    losses, gradients = losses_and_gradients(model, images, targets)
    assert all(math.isfinite(v.item()) for v in losses.values())
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    box = "loss_box_reg" if name in TWO_STAGE else "bbox_regression"
    assert (losses[box] > 0) == (sum(objects) > 0)
    weight = joint_head(model).negative_weight
    assert weight is not None
    assert weight == 1 if loss == "base" or sum(objects) == 0 else 1 < weight < 2


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("size", [(96, 96), (70, 150), (192, 160)])
def test_slim_predicts_in_pixels_of_the_image(name: str, size: tuple[int, int]) -> None:
    """Native resolution, boxes inside the image, labels 0 to K - 1, up to 1500 detections."""
    torch.manual_seed(0)
    model = build_detector(name, K, "jol", preset="slim", score_threshold=0.0).eval()
    images, _ = scene([1], size)
    seen: list[tuple[int, ...]] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        found = model(images)[0]
    assert seen == [(1, 3, math.ceil(size[0] / 32) * 32, math.ceil(size[1] / 32) * 32)]
    boxes = found["boxes"]
    assert 0 < len(boxes) <= 1500 and boxes.shape == (len(boxes), 4)
    assert (boxes >= 0).all() and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()
    assert found["labels"].unique().tolist() == list(range(K))
    assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()


@pytest.mark.parametrize(
    "name",
    [d if d == "fcos" else pytest.param(d, marks=pytest.mark.slow) for d in DETECTORS],
)
def test_a_few_steps_learn_one_image(name: str) -> None:
    """Losses fall and objects are found: labels and boxes come out as they went in."""
    torch.manual_seed(0)
    model = build_detector(name, K, "jol", preset="slim").train()
    image = torch.full((3, 96, 96), 0.4)
    boxes = torch.tensor([[10.0, 10, 22, 22], [50, 12, 66, 28], [20, 60, 34, 74], [60, 60, 78, 78]])
    labels = torch.tensor([0, 1, 2, 0])
    for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = 0.0
        image[label, y1:y2, x1:x2] = 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.001 if step >= 100 else 0.01 * min(1, (step + 1) / 10)
        losses = model([image], [{"boxes": boxes, "labels": labels}])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    with torch.no_grad():
        found = model.eval()([image])[0]
    top = found["scores"].argsort(descending=True)[:4]
    order = found["boxes"][top].sum(1).argsort()
    wanted = boxes.sum(1).argsort()
    torch.testing.assert_close(found["boxes"][top][order], boxes[wanted], atol=3.0, rtol=0)
    assert torch.equal(found["labels"][top][order], labels[wanted])


@pytest.mark.slow
def test_detectors_takes_small_images() -> None:
    """Padded to the least size that its reflection needs, in training and at inference."""
    torch.manual_seed(0)
    model = build_detector("detectors", K, "jol", preset="slim").train()
    images, targets = scene([2], (40, 64))
    losses, _ = losses_and_gradients(model, images, targets)
    assert all(v.isfinite() for v in losses.values())
    with torch.no_grad():
        found = model.eval()(images)[0]
    assert (found["boxes"][:, 3] <= 40).all()


@pytest.mark.parametrize("name", QUICK)
def test_state_survives_saving(name: str, tmp_path: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    one = build_detector(name, K, "jol", preset="slim", score_threshold=0.0).eval()
    other = build_detector(name, K, "base", preset="slim", score_threshold=0.0).eval()
    path = f"{tmp_path}/model.pt"
    torch.save(one.state_dict(), path)
    other.load_state_dict(torch.load(path, weights_only=True))
    images, _ = scene([1])
    with torch.no_grad():
        want, got = one(images)[0], other(images)[0]
    assert all(torch.equal(want[k], got[k]) for k in want) and len(want["boxes"]) > 0
    assert copy.deepcopy(one)(images)[0]["boxes"].shape == want["boxes"].shape


def test_backbone_weights_from_a_file(tmp_path: pytest.TempPathFactory) -> None:
    """Loaded, and frozen like torchvision's pretrained backbones."""
    torch.manual_seed(1)
    body = resnet18()
    path = f"{tmp_path}/resnet18.pth"
    torch.save(body.state_dict(), path)
    model = build_detector("faster_rcnn", K, backbone="resnet18", backbone_weights=path)
    parameters = dict(model.backbone.body.named_parameters())
    assert torch.equal(parameters["layer3.0.conv1.weight"], body.layer3[0].conv1.weight)
    frozen = {k for k, p in parameters.items() if not p.requires_grad}
    assert "conv1.weight" in frozen and "layer1.0.conv1.weight" in frozen
    assert not any(k.startswith(("layer2", "layer3", "layer4")) for k in frozen)

    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"backbone_weights: .* does not fit resnet18"):
        build_detector("fcos", K, backbone="resnet18", backbone_weights=path)
    good = resnet("resnet18", "none", "paper").state_dict()
    good["layer2.0.conv1.weight"][0] = torch.nan
    torch.save(good, path)
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1\.weight holds numbers that are not"):
        build_detector("fcos", K, backbone="resnet18", backbone_weights=path)
    for written in ("no checkpoint", [1, 2], {0: torch.zeros(1)}):
        if isinstance(written, str):
            Path(path).write_text(written)
        else:
            torch.save(written, path)
        with pytest.raises(ValueError, match=r"backbone_weights: .* holds (more than tensors|no)"):
            build_detector("fcos", K, backbone="resnet18", backbone_weights=path)
    with pytest.raises(ValueError, match="backbone_weights: no such file: nowhere"):
        build_detector("fcos", K, backbone_weights="nowhere.pth")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"name": "yolo"}, ValueError, "detector: got 'yolo', wanted one of retinanet, fcos"),
        ({"name": "detectors", "backbone": "resnet18"}, ValueError, "wanted one of resnet14, "),
        ({"assigner": "simd"}, ValueError, "assigner: got 'simd' with fcos, wanted one of atss"),
        ({"assigner": "giou"}, ValueError, "assigner: got 'giou', wanted one of iou, simd"),
        ({"num_classes": 0}, ValueError, "num_classes: got 0, wanted at least 1"),
        ({"image_size": 0}, ValueError, "image_size: got 0, wanted at least 1"),
        ({"score_threshold": 1.0}, ValueError, "score_threshold: got 1.0, wanted at least 0 and"),
        ({"anchor_ratios": [1.0]}, ValueError, "anchor_ratios: got .* wanted none with fcos"),
        ({"name": "retinanet", "anchor_ratios": [0.0]}, ValueError, "anchor_ratios: got"),
        ({"name": "retinanet", "anchor_scale": 0.1}, ValueError, "anchor_scale: got 0.1"),
        ({"name": "retinanet", "centreness_weights": True}, ValueError, "but with fcos"),
        ({"strides": 8}, ValueError, r"strides: got \(8,\), wanted two or more"),
        ({"strides": [4.0, 8.0, 16.0]}, ValueError, "strides: got"),
        ({"name": "retinanet", "anchor_ratios": 1.0}, ValueError, "anchor_ratios: got 1.0"),
        ({"strides": [4]}, ValueError, r"strides: got \(4,\), wanted two or more, each twice"),
        ({"strides": [8, 16, 32, 64]}, ValueError, "from 4 or 8 to 16, 32 or 128 with fcos"),
        ({"name": "faster_rcnn", "strides": [2, 4, 8, 16, 32]}, ValueError, "strides: got"),
        ({"name": "detectors", "strides": [4, 8, 16, 32]}, ValueError, "wanted none with det"),
        ({"anchor_scale": 2.0}, ValueError, "anchor_scale: got 2.0, wanted none: fcos"),
        ({"name": "retinanet", "anchor_scale": 0.0}, ValueError, "anchor_scale: got 0.0"),
        ({"assigner_settings": {"m": 5}}, ValueError, "assigner_settings: got .* without"),
        (
            {"name": "retinanet", "assigner": "iou", "assigner_settings": {"m": 5}},
            ValueError,
            "setting of assigner iou: got 'm'",
        ),
        ({"loss": "plain"}, ValueError, "loss: got 'plain', wanted one of base, jol"),
        ({"preset": "large"}, ValueError, "preset: got 'large'"),
        ({"backbone": "vgg"}, ValueError, "backbone: got 'vgg'"),
        ({"preset": "slim", "backbone_weights": "imagenet"}, ValueError, "GroupNorm"),
        ({"lam": 0.5}, ValueError, "lam: got 0.5"),
        ({"location_score": "area"}, ValueError, "location_score: got 'area'"),
        ({"regression": "iou:mode=cubic"}, ValueError, "IoU: mode: got 'cubic'"),
        ({"classification": "cross_entropy"}, ValueError, "with fcos, wanted one of bce, focal"),
        (
            {"name": "cascade_rcnn", "classification": "bce"},
            ValueError,
            "with cascade_rcnn, wanted one of cross_entropy",
        ),
    ],
)
def test_unusable_choices_are_named(
    change: dict[str, object], error: type[Exception], match: str
) -> None:
    arguments: dict[str, object] = {"name": "fcos", "num_classes": K, "backbone_weights": "none"}
    with pytest.raises(error, match=match):
        build_detector(**(arguments | change))  # type: ignore[arg-type]


def test_roi_heads_take_over_torchvisions_settings() -> None:
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        box_score_thresh=0.2,
        box_nms_thresh=0.4,
        box_detections_per_img=7,
        box_fg_iou_thresh=0.6,
        box_bg_iou_thresh=0.4,
        box_batch_size_per_image=64,
        box_positive_fraction=0.5,
    )
    assert isinstance(model, FasterRCNN)
    heads = JointRoIHeads.from_roi_heads(model.roi_heads, roi_criterion())
    assert heads.box_head is model.roi_heads.box_head
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.2, 0.4, 7)
    matcher, sampler = heads.proposal_matcher, heads.fg_bg_sampler
    assert (matcher.high_threshold, matcher.low_threshold) == (0.6, 0.4)
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (64, 0.5)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)


def test_roi_heads_refuse_other_coders() -> None:
    boxes = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    with pytest.raises(ValueError, match=r"coding LTRB\(\)"):
        JointRoIHeads.from_roi_heads(boxes.roi_heads, fcos_criterion())
    boxes.roi_heads.box_coder.weights = (1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="wanted Delta with the heads' weights"):
        JointRoIHeads.from_roi_heads(boxes.roi_heads, roi_criterion())
