"""The one-stage heads on their levels: as flattened, as torchvision's, and without its copies."""

import copy
import pickle

import pytest
import torch
from heads import GRIDS, LEVELS, head_loss
from scenes import K, losses_and_gradients, scene
from stock import KINDS, joined, stock
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from detectors.models import build_detector
from jolkernels.integrations.torchvision import (
    JointFCOSHead,
    JointRetinaNetHead,
    fcos_criterion,
    retinanet_criterion,
    roi_criterion,
)

JOINT = {"weighting": "joint"}
BASE = {"weighting": "none"}


def step(model: nn.Module, objects: list[int], sizes: list[tuple[int, int]]):
    images, targets = [], []
    for n, size in zip(objects, sizes, strict=True):
        image, target = scene([n], size, torch.float64)
        images += image
        targets += target
    return losses_and_gradients(model, images, targets)


def assert_same(got, want, rtol: float = 1e-10) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert value.isfinite().all(), key
            scale = value.abs().max().item()
            torch.testing.assert_close(a[key], value, rtol=0, atol=rtol * scale, msg=key)


SCENES = [
    ([5, 0, 3], [(64, 64), (64, 96), (80, 64)]),
    ([4], [(64, 64)]),
    ([0, 0], [(64, 64), (64, 64)]),
]


@pytest.mark.parametrize(("objects", "sizes"), SCENES)
@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_torchvisions(kind, objects, sizes):
    """Unweighted, every loss and every parameter's gradient; in both memory formats."""
    model = stock(kind)
    ours = joined(model, kind, BASE)
    nhwc = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    want = step(model, objects, sizes)
    for key, value in want[1].items():  # of a loss without objects
        want[1][key] = torch.zeros(()) if value is None else value
    if any(objects):
        assert all(loss > 0 for loss in want[0].values())
    assert_same(step(ours, objects, sizes), want)
    assert_same(step(nhwc, objects, sizes), want)


CHOICES = [
    *(("retinanet", {"normalizer": name}) for name in ("image", "batch")),
    ("retinanet-v2", {}),
    *(("fcos", {"weigh_boxes": choice}) for choice in (False, True)),
]


@pytest.mark.parametrize(("objects", "sizes"), SCENES)
@pytest.mark.parametrize(("kind", "choices"), CHOICES)
def test_levels_are_as_flattened(kind, choices, objects, sizes):
    criterion = JOINT | {"ignore_index": -1}
    flat = joined(stock(kind), kind, criterion, dense=False, **choices)
    dense = joined(flat, kind, criterion, **choices)
    want, got = step(flat, objects, sizes), step(dense, objects, sizes)
    assert_same(got, want)
    torch.testing.assert_close(
        dense.head.negative_weight, flat.head.negative_weight, rtol=1e-12, atol=0
    )
    assert not any(objects) or dense.head.negative_weight != 1


@pytest.mark.parametrize("name", LEVELS)
def test_anchors_may_differ_between_images(name):
    """Losses and the levels' gradients, of matches to ignored objects too."""
    found = []
    run, levels, (targets, anchors, matched) = head_loss(name, "jol")
    assert not torch.equal(*anchors)
    anchors = [a.double() for a in anchors]
    targets = 2 * [targets[0] | {"boxes": targets[0]["boxes"].double()}]
    matched = [matched[0], matched[0].flip(0)]
    for flat in (False, True):
        leaves = [x.detach().double().requires_grad_() for x in levels]
        given = leaves
        if flat:
            run, _, _ = head_loss(name.removesuffix("-levels"), "jol")
            given = [x.flatten(2).transpose(1, 2) for x in leaves]
            given = [torch.cat(given[i : i + len(GRIDS)], 1) for i in range(0, len(given), 2)]
        losses = run(*given, targets, anchors, matched)
        gradients = torch.autograd.grad(sum(losses), leaves)
        found.append([dict(enumerate(losses)), dict(enumerate(gradients))])
    assert_same(*found)


def test_ignored_objects_count_alike_for_the_centreness():
    run, levels, (targets, anchors, matched) = head_loss("fcos-levels", "jol")
    flat, _, _ = head_loss("fcos", "jol")
    targets = [t | {"labels": t["labels"].clone()} for t in targets]
    for t in targets:
        t["labels"][:1] = -100
    assert any((m == 0).any() for m in matched)
    rows = [x.flatten(2).transpose(1, 2) for x in levels]
    rows = [torch.cat(rows[i : i + len(GRIDS)], 1) for i in range(0, len(rows), len(GRIDS))]
    wanted = flat(*rows, targets, anchors, matched)
    for found, want in zip(run(*levels, targets, anchors, matched), wanted, strict=True):
        assert found.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("retinanet", "slim"),
        ("retinanet", "paper"),
        pytest.param("retinanet", "torchvision", marks=pytest.mark.slow),
        ("fcos", "slim"),
        ("fcos", "torchvision"),
        pytest.param("fcos", "paper", marks=pytest.mark.slow),
    ],
)
def test_the_detectors_levels_are_as_flattened(name, preset):
    torch.manual_seed(0)
    choices = {} if preset == "slim" else {"image_size": 64, "backbone": "resnet18"}
    dense = build_detector(name, K, preset=preset, backbone_weights="none", **choices)
    assert dense.head.dense
    flat = copy.deepcopy(dense.double().train())
    flat.head.dense = False
    images, targets = scene([5, 0, 3], (64, 64), torch.float64)
    want = losses_and_gradients(flat, images, targets)
    got = losses_and_gradients(dense, images, targets)
    trained = {k for k, v in want[1].items() if v is not None}
    assert {k for k, v in got[1].items() if v is not None} == trained and len(trained) > 20
    assert_same(
        [got[0], {k: got[1][k] for k in trained}], [want[0], {k: want[1][k] for k in trained}]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_outputs_are_the_convolutions_own(kind):
    """No copy; each convolution runs once a level. In inference the outputs are torchvision's."""
    model = stock(kind)
    ours = joined(model, kind, JOINT)
    assert list(ours.state_dict()) == list(model.state_dict())
    made, runs = {}, []
    for name, module in ours.head.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda *given, n=name: made.setdefault(n, []).append(given[2])
            )
            runs.append(name)
    features = list(model.backbone(torch.rand(2, 3, 64, 96).double()).values())
    found = ours.head(features)
    assert {name: len(values) for name, values in made.items()} == dict.fromkeys(runs, 5)
    layers = {
        "cls_logits": "classification_head.cls_logits",
        "bbox_regression": "regression_head.bbox_reg",
        "bbox_ctrness": "regression_head.bbox_ctrness",
    }
    assert all(x is y for x, y in zip(found["cls_logits"], made[layers["cls_logits"]], strict=True))
    want = model.head.eval()(features)
    assert found.keys() == want.keys()
    for name, levels in found.items():
        shapes = [x.shape for x in made[layers[name]]]
        assert [x.shape for x in levels] == shapes
    for got in (ours.head.eval()(features), ours.eval().head(features)):
        assert all(torch.equal(got[name], want[name]) for name in want)
    images = scene([3, 2], (64, 64), torch.float64)[0]
    with torch.no_grad():
        for a, b in zip(ours(images), model.eval()(images), strict=True):
            assert len(b["boxes"]) and all(torch.equal(a[key], b[key]) for key in b)


class Scaled(RetinaNetClassificationHead):
    """A part with a forward of its own."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return 0.5 * super().forward(x)


def test_a_part_that_does_more_is_called():
    """A forward of its own, and hooks: the losses are those of what they return."""
    model = stock("retinanet")
    part = Scaled(64, 6, K).double()
    part.load_state_dict(model.head.classification_head.state_dict())
    own = copy.deepcopy(model)
    own.head.classification_head = part
    hooked = copy.deepcopy(model)
    hooked.head.classification_head.register_forward_hook(lambda *given: 0.5 * given[2])
    losses = []
    for each in (own, hooked):
        want = step(each, *SCENES[0])
        got = step(joined(each, "retinanet", BASE), *SCENES[0])
        assert_same(got, want)
        losses.append(got[0]["classification"])
    assert losses[0] == losses[1] != step(model, *SCENES[0])[0]["classification"]


def test_a_backward_pre_hook_of_a_part_is_called():
    seen = []
    model = joined(stock("retinanet"), "retinanet", JOINT)
    part = model.head.classification_head
    part.register_full_backward_pre_hook(lambda *given: seen.append(given))
    step(model, *SCENES[0])
    assert len(seen) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_flat_outputs_have_the_flat_loss(kind):
    """Of a head in inference, whose outputs a user gives to compute_loss."""
    model = joined(stock(kind), kind, JOINT)
    found = {}
    model.head.register_forward_hook(lambda *given: found.update(out=given[2]))
    inner = model.head.compute_loss
    model.head.compute_loss = lambda *given: found.update(given=given) or inner(*given)
    images, targets = scene([4, 2], (64, 64), torch.float64)
    want = model(images, targets)
    assert isinstance(found["out"]["cls_logits"], list)
    features = list(model.backbone(model.transform(images, targets)[0].tensors).values())
    outputs = model.head.eval()(features)
    assert all(isinstance(x, Tensor) for x in outputs.values())
    targets, _, *others = found["given"]
    torch.testing.assert_close(inner(targets, outputs, *others), want, rtol=1e-10, atol=0)


def test_anchors_of_an_ignored_object_are_no_positives_of_their_image():
    images, targets = scene([4, 2], (64, 64), torch.float64)
    flat = joined(stock("retinanet"), "retinanet", JOINT, dense=False)
    dense = joined(flat, "retinanet", JOINT)
    targets[0]["labels"][1:] = -100
    want = losses_and_gradients(flat, images, targets)
    assert_same(losses_and_gradients(dense, images, targets), want)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_levels_are_as_flattened(kind):
    """The predictions are bfloat16 in both; the losses float32."""
    flat = joined(stock(kind).float(), kind, JOINT, dense=False)
    # PyTorch leaves part of the bfloat16 gradient over a map one pixel wide unwritten.
    flat.transform.min_size, flat.transform.max_size = (256,), 256
    dense = joined(flat, kind, JOINT)
    images, targets = scene([4, 2], (64, 64))
    dtypes = set()
    dense.head.register_forward_hook(
        lambda *given: dtypes.update(x.dtype for x in given[2]["cls_logits"])
    )
    found = []
    for model in (dense, flat):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, images, targets))
    assert dtypes == {torch.bfloat16}
    assert all(loss.dtype == torch.float32 for loss in found[0][0].values())
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    for key, want in found[1][1].items():  # a bit of a bfloat16 gradient may differ
        assert (found[0][1][key] - want).norm() <= 0.01 * want.norm(), key


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_train_as_well(kind):
    model = joined(stock(kind), kind, JOINT)
    want = step(model, *SCENES[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.zero_grad()
        assert other.head.dense
        assert_same(step(other, *SCENES[0]), want, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_from_head_shares_a_head(kind):
    """Its layers and their modes; no random number is drawn. A head of ours has one criterion."""
    model = stock(kind)
    model.head.classification_head.eval()
    before = torch.get_rng_state()
    kinds = {"fcos": JointFCOSHead}.get(kind, JointRetinaNetHead)
    criteria = [{"fcos": fcos_criterion}.get(kind, retinanet_criterion)() for _ in range(2)]
    head = kinds.from_head(kinds.from_head(model.head, criteria[0]), criteria[1], dense=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert not head.dense and head.criterion is criteria[1]
    assert head.training and head.regression_head.training and not head.classification_head.training
    assert not kinds.from_head(model.head.eval(), criteria[0]).training
    shared = dict(model.head.named_parameters())
    assert all(p is shared.pop(name) for name, p in head.named_parameters()) and not shared
    if kind == "fcos":
        assert head.box_coder is model.head.box_coder


def test_criteria_of_another_head_are_refused():
    made = {
        JointRetinaNetHead: stock("retinanet").head,
        JointFCOSHead: stock("fcos").head,
    }
    wrong = {
        JointRetinaNetHead: (fcos_criterion(), r"criterion: got coding LTRB\(\), wanted Delta\(\)"),
        JointFCOSHead: (retinanet_criterion(), r"criterion: got coding Delta\(.*, wanted LTRB\(\)"),
    }
    for kind, head in made.items():
        criterion, message = wrong[kind]
        with pytest.raises(ValueError, match=message):
            kind.from_head(head, criterion)
        with pytest.raises(ValueError, match="criterion: got classification CrossEntropy"):
            kind.from_head(head, roi_criterion())
    coded = retinanet_criterion()
    with pytest.raises(ValueError, match="normalizer: got 'mean'"):
        JointRetinaNetHead.from_head(made[JointRetinaNetHead], coded, normalizer="mean")
