"""Anchors, pooling, backbones and assigned targets: the parts of the detectors."""

import pytest
import torch
from scenes import QUICK, K, losses_and_gradients, scene
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from detectors.assigners import IGNORED, Level
from detectors.models import DETECTORS, TWO_STAGE, build_detector, joint_head
from detectors.models.anchors import LevelledAnchors, PlainAnchors
from detectors.models.backbones import EvalBatchNorm2d, resnet
from detectors.models.roi_pooling import AlignedRoIAlign, with_strides
from jolkernels import spec


def maps(size, strides, channels=1):
    return [torch.zeros(1, channels, -(-size[0] // s), -(-size[1] // s)) for s in strides]


def test_plain_anchors_are_not_rounded_and_know_their_strides():
    generator = PlainAnchors((4, 64), (2.0,), (0.5, 1.0), offset=0.5)
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    (anchors,) = generator(images, maps((96, 160), (4, 64)))
    w = 8 * 2**0.5  # ratio 0.5: twice as wide as high
    expected = [[6 - w / 2, 2 - w / 4, 6 + w / 2, 2 + w / 4], [2.0, -2, 10, 6]]
    torch.testing.assert_close(anchors[2:4], torch.tensor(expected))  # row 0, column 1
    fields = {4: 45.0, 64: 555.0}
    levels = [Level(24 * 40 * 2, 2, fields[4]), Level(2 * 3 * 2, 2, fields[64])]
    assert generator.levels == levels and len(anchors) == sum(level.priors for level in levels)
    last = anchors[-1]  # torchvision would divide 160 by 3 columns for the stride
    torch.testing.assert_close((last[:2] + last[2:]) / 2, torch.tensor([160.0, 96.0]))


def test_levelled_anchors_are_torchvisions():
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes, ratios = ((6, 10), (15, 22)), (0.5, 1.0, 2.0)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    ours = LevelledAnchors((4, 8), sizes, ratios)
    want = AnchorGenerator(sizes, (ratios,) * 2)(images, maps((64, 96), (4, 8)))
    got = ours(images, maps((64, 96), (4, 8)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and len(got) == 2
    assert [level.priors for level in ours.levels] == [16 * 24 * 6, 8 * 12 * 6]


def ramp(size, stride):
    """A map whose pixels hold the x and y, in pixels of the image, of their centres."""
    y = (torch.arange(size[0] // stride) + 0.5) * stride
    x = (torch.arange(size[1] // stride) + 0.5) * stride
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def test_aligned_pooling_reads_where_the_box_is():
    """Of a ramp each bin gives its own centre; torchvision's pooler is half a map's pixel off."""
    strides = (4, 8, 16, 32)
    features = {str(i): ramp((512, 512), s) for i, s in enumerate(strides)}
    boxes = [torch.tensor([[100.0, 60, 128, 116], [33, 47, 361, 375]])]
    aligned = with_strides(AlignedRoIAlign(list("0123"), 7, 0), strides)(
        features, boxes, [(512, 512)]
    )
    plain = MultiScaleRoIAlign(list("0123"), 7, 2)(features, boxes, [(512, 512)])
    centres = (torch.arange(7) + 0.5) / 7
    for i, (x1, y1, x2, y2) in enumerate(boxes[0].tolist()):
        torch.testing.assert_close(aligned[i, 0, 0], x1 + (x2 - x1) * centres)
        torch.testing.assert_close(aligned[i, 1, :, 0], y1 + (y2 - y1) * centres)
    assert ((plain - aligned)[0].mean() - 2).abs() < 1e-3  # half of stride 4


def test_aligned_pooling_picks_the_level_that_torchvision_picks():
    strides = (4, 8, 16, 32)
    levels = [torch.full((2, 1, 1024 // s, 1024 // s), float(i)) for i, s in enumerate(strides)]
    features = dict(zip("0123", levels, strict=True))
    g = torch.Generator().manual_seed(0)
    corner, side = (
        100 * torch.rand(300, 2, generator=g),
        2 ** (9.6 * torch.rand(300, 2, generator=g)),
    )
    boxes = torch.cat([corner, corner + side], 1)
    split = [boxes[:100], boxes[100:]]
    shapes = [(1024, 1024), (1024, 1024)]
    got = with_strides(AlignedRoIAlign(list("0123"), 1, 0), strides)(features, split, shapes)
    want = MultiScaleRoIAlign(list("0123"), 1, 2)(features, split, shapes)
    inside = (boxes[:, 2:] < 1000).all(1)
    assert torch.equal(got[inside], want[inside].round()) and len(got[inside].unique()) == 4


def test_aligned_pooling_without_boxes_keeps_the_graph():
    features = {str(i): torch.ones(1, 2, 8, 8, requires_grad=True) for i in range(2)}
    pooled = with_strides(AlignedRoIAlign(["0", "1"], 3, 0), (4, 8))(
        features, [torch.zeros(0, 4)], [(32, 32)]
    )
    assert pooled.shape == (0, 2, 3, 3)
    pooled.sum().backward()


@pytest.mark.parametrize("kind", [AlignedRoIAlign, MultiScaleRoIAlign])
@pytest.mark.parametrize("height", [33, 65, 96])
def test_pooling_knows_its_strides_whatever_the_first_image(kind, height):
    """65 pixels padded to 96 give maps of 24, 12 and 6: a quarter, not a half."""
    features = {str(i): ramp((96, 96), s) for i, s in enumerate((4, 8, 16))}
    pool = with_strides(kind(list("012"), 1, 2), (4, 8, 16))
    pooled = pool(features, [torch.tensor([[10.0, 6, 22, 26]])], [(height, 96)])
    half = 0 if kind is AlignedRoIAlign else 2
    torch.testing.assert_close(
        pooled.flatten(), torch.tensor([16.0, 16.0]) + half, atol=0.01, rtol=0
    )


def test_targets_keep_their_digits_next_to_half_precision():
    """bfloat16 would round x of 1001 to 1000 and 1010 to 1008."""
    from jolkernels.integrations.torchvision import JointRoIHeads

    model = build_detector("faster_rcnn", K, "jol", preset="slim")
    heads = model.roi_heads
    assert isinstance(heads, JointRoIHeads)
    caught = []
    heads.criterion.register_forward_pre_hook(lambda _, args: caught.append(args))
    box = torch.tensor([[1001.0, 13, 1010, 21]])
    logits, deltas = torch.zeros(1, K + 1).bfloat16(), torch.zeros(1, 4 * (K + 1)).bfloat16()
    heads.joint_loss(logits, deltas, [box], [torch.tensor([1])], [box])
    assert torch.equal(caught[0][3], box) and torch.equal(caught[0][4], box)
    generator = PlainAnchors((4,), (2.0,), (1.0,))
    images = ImageList(torch.zeros(1, 3, 8, 1024), [(8, 1024)])
    (anchors,) = generator(images, [torch.zeros(1, 1, 2, 256).bfloat16()])
    assert anchors.dtype == torch.float32 and anchors[255, 0] == 1016


def test_statistics_of_the_papers_batch_norm_stay():
    torch.manual_seed(0)
    norm = EvalBatchNorm2d(4).train()
    x = torch.randn(2, 4, 5, 5) * 3 + 1
    assert torch.equal(norm(x), norm.eval()(x)) and norm.running_mean.abs().max() == 0
    assert all(p.requires_grad for p in norm.parameters())


def test_weights_freeze_the_stem_and_the_first_layer_alone(tmp_path):
    torch.save(resnet("resnet50", "none", "torchvision").state_dict(), tmp_path / "r50.pth")
    body = resnet("resnet50", str(tmp_path / "r50.pth"), "paper")
    frozen = {k.split(".")[0] for k, p in body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    learned = [m for m in body.layer2.modules() if isinstance(m, nn.BatchNorm2d)]
    assert learned and all(m.weight.requires_grad for m in learned)
    state = torch.load(tmp_path / "r50.pth", weights_only=True)
    state["layer3.0.conv1.weight"] = state["layer3.0.conv1.weight"][:8]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"layer3.0.conv1.weight has shape \[8, 512, 1, 1\], want"):
        resnet("resnet50", str(tmp_path / "cut.pth"), "paper")


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_the_iou_assigner_is_torchvisions_matcher(name):
    """Same losses and gradients as with the matching used where no assigner is named."""
    torch.manual_seed(0)
    settings = {"min_low_quality": 0.0}
    own = build_detector(name, K, "jol", preset="slim").train()
    other = build_detector(name, K, "jol", "iou", assigner_settings=settings, preset="slim").train()
    other.load_state_dict(own.state_dict())
    images, targets = scene([9, 0, 4])
    (a, da), (b, db) = (losses_and_gradients(m, images, targets) for m in (own, other))
    for key in a:
        assert torch.equal(a[key], b[key]), key
    assert all(torch.equal(da[key], db[key]) for key in da)


CHOICES = [
    *(("faster_rcnn", name) for name in ("simd", "nwd", "nwd-rka", "dotd", "rfla", "atss")),
    *(("retinanet", name) for name in ("simd", "nwd", "nwd-rka", "dotd", "rfla", "atss")),
    ("fcos", "atss"),
    ("fcos", "rfla"),
    ("cascade_rcnn", "simd"),
]


slow = pytest.mark.slow
PRESETS = ["slim", pytest.param("paper", marks=slow)]


@pytest.mark.parametrize(("name", "assigner"), CHOICES)
@pytest.mark.parametrize("preset", PRESETS)
def test_assigners_train_the_detectors_that_take_them(name, assigner, preset):
    if name == "fcos" and preset == "slim" and assigner == "rfla":
        preset = "torchvision"
    torch.manual_seed(0)
    model = build_detector(
        name, K, "jol", assigner, preset=preset, backbone_weights="none", image_size=96,
        backbone="resnet18", anchor_scale=None if name == "fcos" or preset == "slim" else 2.0,
    ).train()  # fmt: skip
    losses, gradients = losses_and_gradients(model, *scene([7, 0, 1], (96, 128)))
    assert all(v.isfinite() for v in losses.values())
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    assert losses["loss_rpn_box_reg" if name in TWO_STAGE else "bbox_regression"] > 0
    assert 1 < joint_head(model).negative_weight < 2


def test_ignored_points_and_points_outside_their_box_do_not_train_fcos():
    model = build_detector("fcos", K, "base", "rfla", preset="paper", backbone_weights="none")
    seen = []

    def assigner(boxes, priors, levels):
        seen.append((priors, levels))
        matches = torch.full((len(priors),), -1)
        matches[0], matches[1] = 0, IGNORED  # the first point lies outside the box
        matches[500] = 0
        return matches

    model.assigner = assigner
    caught = []
    model.head.compute_loss = lambda *arguments: caught.append(arguments[3]) or {}
    counts = [625, 169, 49, 16, 4]
    boxes = [torch.tensor([[100.0, 100, 180, 180]])]
    points = model.anchor_generator(
        ImageList(torch.zeros(1, 3, 200, 200), [(200, 200)]),
        maps((200, 200), (8, 16, 32, 64, 128)),
    )
    centre = (points[0][500, :2] + points[0][500, 2:]) / 2
    assert centre.tolist() == [4.0, 164.0]
    boxes[0] = torch.tensor([[0.0, 100, 80, 180]])
    model.compute_loss([{"boxes": boxes[0]}], {}, points, counts)
    (matched,) = caught[0]
    assert matched[0] == IGNORED and matched[1] == IGNORED and matched[500] == 0
    priors, levels = seen[0]
    assert (priors[0, 2:] - priors[0, :2]).tolist() == [64.0, 64.0]
    assert [level.priors for level in levels] == counts and levels[0].receptive_field == 91


def test_weighing_boxes_by_centreness_divides_by_its_sum():
    """MMDetection's: sum of centreness times (1 - GIoU) over the sum of centreness."""
    torch.manual_seed(0)
    model = build_detector("fcos", K, preset="slim").double().train()
    images, targets = scene([5], dtype=torch.float64)
    caught = []
    criterion = model.head.criterion
    criterion.register_forward_pre_hook(lambda _, args: caught.append(args))
    model.head.weigh_boxes, model.head.dense = True, False
    losses = model(images, targets)
    _, _, labels, target_boxes, priors = caught[0]
    r = criterion.per_sample(*caught[0]).regression
    centre = (priors[:, :2] + priors[:, 2:]) / 2
    l, t = (centre - target_boxes[:, :2]).unbind(1)  # noqa: E741
    right, bottom = (target_boxes[:, 2:] - centre).unbind(1)
    centreness = (
        torch.minimum(l, right) / torch.maximum(l, right)
        * torch.minimum(t, bottom) / torch.maximum(t, bottom)
    ).sqrt()  # fmt: skip
    positive = labels < K
    expected = (centreness * r)[positive].sum() / centreness[positive].sum()
    torch.testing.assert_close(losses["bbox_regression"], expected, rtol=1e-10, atol=0)


def test_retinanet_divides_by_the_batchs_positives_in_preset_paper():
    torch.manual_seed(0)
    model = build_detector("retinanet", K, preset="slim").double().train()
    images, targets = scene([9, 1], dtype=torch.float64)
    with torch.no_grad():
        per_image = model(images, targets)
        singles = [model([i], [t]) for i, t in zip(images, targets, strict=True)]
        model.head.normalizer = "batch"
        whole = model(images, targets)
    for key in per_image:
        mean = (singles[0][key] + singles[1][key]) / 2
        torch.testing.assert_close(per_image[key], mean, rtol=1e-9, atol=0)
        assert (whole[key] - mean).abs() > 1e-4 * mean  # 9 objects and 1: another mean
    with pytest.raises(ValueError, match="normalizer: got 'mean', wanted one of image, batch"):
        type(model.head)(64, 3, K, criterion=model.head.criterion, normalizer="mean")


@pytest.mark.parametrize("name", [d for d in DETECTORS if d != "detectors"])
def test_preset_paper_has_the_papers_numbers(name):
    model = build_detector(name, K, preset="paper", backbone_weights="none").eval()
    head = joint_head(model)
    if name == "faster_rcnn":
        assert head.criterion.settings.regression == spec.L1()
    if name == "retinanet":
        assert head.normalizer == "batch"
        assert model.backbone.fpn.extra_blocks.p6.in_channels == 2048
    if name == "fcos":
        assert head.weigh_boxes and model.nms_thresh == 0.5
        assert model.anchor_generator.offset == 0.5
        plain = build_detector(
            name, K, preset="paper", backbone_weights="none", centreness_weights=False
        )
        assert not joint_head(plain).weigh_boxes
    if name in TWO_STAGE:
        assert model.rpn._pre_nms_top_n == model.rpn._post_nms_top_n
        assert model.rpn._post_nms_top_n == {"training": 3000, "testing": 3000}
        heads = getattr(model.roi_heads, "stages", [model.roi_heads])
        assert all(h.detections_per_img == 3000 and h.score_thresh == 0.05 for h in heads)
        assert all(isinstance(h.box_roi_pool, AlignedRoIAlign) for h in heads)
        assert model.rpn.anchor_generator.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    else:
        assert model.detections_per_img == 3000 and model.score_thresh == 0.05
    tiny = build_detector(
        "retinanet",
        K,
        preset="paper",
        backbone_weights="none",
        anchor_scale=2.0,
        anchor_ratios=(1,),
    ).anchor_generator
    assert tiny.num_anchors_per_location() == [3] * 5
    assert tiny.sizes[0] == pytest.approx((16, 16 * 2 ** (1 / 3), 16 * 2 ** (2 / 3)))


@pytest.mark.parametrize("name", QUICK)
def test_fifteen_hundred_objects_in_an_image(name):
    torch.manual_seed(0)
    model = build_detector(name, K, "jol", preset="slim").train()
    losses, gradients = losses_and_gradients(model, *scene([1500]))
    assert all(v.isfinite() for v in losses.values())
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("preset", [pytest.param("torchvision", marks=pytest.mark.slow), "slim"])
@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("retinanet", (4, 8, 16, 32, 64, 128)),
        ("retinanet", (8, 16)),
        ("fcos", (4, 8, 16, 32)),
        ("faster_rcnn", (8, 16, 32, 64)),
        ("cascade_rcnn", (4, 8, 16, 32)),
    ],
)
def test_strides_are_a_setting(name, strides, preset):
    """The maps have these strides, and every one of them gets a gradient."""
    weights = {"backbone": "resnet18", "backbone_weights": "none"}
    model = build_detector(name, K, preset=preset, strides=strides, image_size=128, **weights)
    seen = {}
    model.backbone.register_forward_hook(lambda _module, _given, maps: seen.update(maps))
    model.train()
    losses = model(*scene([2, 3], (128, 128)))
    assert tuple(128 // m.shape[-1] for m in seen.values()) == strides
    for m in seen.values():
        m.retain_grad()
    sum(v for k, v in losses.items() if v.requires_grad).backward()
    used = list(seen.values()) if name in ("retinanet", "fcos") else list(seen.values())[:1]
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in used)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("label", [-1, K])
def test_labels_off_by_one_are_named(name, label):
    model = build_detector(name, K, preset="slim").train()
    images, targets = scene([2, 3])
    targets[1]["labels"][2] = label
    with pytest.raises(ValueError, match=rf"targets\[1\]\['labels'\]: got {label}, wanted 0 to"):
        model(images, targets=targets)
    model.eval()(images)


def test_one_of_several_sizes_is_drawn_for_an_image():
    sizes = (96, 64, 128)
    model = build_detector("retinanet", K, preset="slim", image_size=sizes)
    images, targets = scene([2] * 12, (50, 60))
    torch.manual_seed(0)
    model.transform.train()
    seen = {min(size) for size in model.transform(images, targets)[0].image_sizes}
    assert seen == set(sizes)
    model.transform.eval()
    assert model.transform(images)[0].image_sizes == [(128, 153)] * 12
    with pytest.raises(ValueError, match="image_size: got 0, wanted at least 1"):
        build_detector("retinanet", K, preset="slim", image_size=(64, 0))


@pytest.mark.parametrize("size", [(1, 3000), (2000, 1)])
def test_an_image_too_thin_to_be_resized_is_padded(size):
    """Its shorter side would have no pixels; one such file must not end a run."""
    model = build_detector("retinanet", K, preset="slim", image_size=96)
    images, targets = [torch.rand(3, *size)], [{"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}]
    batch, wanted = model.transform(images, targets)
    assert min(batch.image_sizes[0]) == 1 and max(batch.image_sizes[0]) <= 160
    assert (wanted[0]["boxes"][0, 2:] > 0).all()
    found = model.eval()(images)[0]["boxes"]
    assert (found >= 0).all() and (found <= torch.tensor([*size[::-1], *size[::-1]])).all()
