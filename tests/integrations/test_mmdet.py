"""Whole detectors of MMDetection with our heads, against themselves with MMDetection's."""

import copy
import importlib
import pickle
import sys

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmdet")

from mmengine.runner import Runner
from processes import RANKS, in_processes

from bench.frameworks.mmdet_models import (
    NAMES,
    batch,
    build,
    gradients,
    joint_config,
    joint_heads,
    losses_of,
    stock_config,
)
from jolkernels import JointOptimizationLoss

DENSE = ["retinanet", "fcos", "fcos-norm", "atss"]
NEVER_ADDED = "negative_weight"


def assert_same(found, expected):
    """The losses that are expected, and all gradients, together and one by one.

    MMDetection encodes targets, and decodes FCOS's and ATSS's boxes, in float32 whatever the model
    has. So single gradients have a wider bound, and those that are next to nothing are measured by
    a thousandth of all.
    """
    (log, grads), (log0, grads0) = found, expected
    assert {k for k in log if NEVER_ADDED not in k} == set(log0)
    for name, value in log0.items():
        assert float(log[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-9), name
    assert grads.keys() == grads0.keys()
    whole, whole0 = (torch.cat([g.flatten() for g in x.values()]) for x in (grads, grads0))
    assert (whole - whole0).norm() < 1e-6 * whole0.norm()
    for name, grad in grads0.items():
        error = (grads[name] - grad).norm() / max(grad.norm(), whole0.norm() / 1000)
        assert error < 1e-5, name


@pytest.mark.parametrize("objects", [(5, 3), (0, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_without_weights_losses_and_gradients_are_mmdetections(name, objects):
    stock = build(stock_config(name), torch.float64)
    model = build(joint_config(name, weighting="none"), torch.float64)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert joint_heads(model) and not joint_heads(stock)
    assert_same(gradients(model, batch(objects)), gradients(stock, batch(objects)))


def test_atss_divides_box_losses_by_no_less_than_one():
    """A single positive off its object's centre has a centreness below that."""
    data = batch((1, 0))
    data["data_samples"][0].gt_instances.bboxes[:] = torch.tensor([33.0, 33.0, 42.0, 45.0])
    stock = build(stock_config("atss"), torch.float64)
    sums, inner = [], stock.bbox_head.centerness_target

    def centerness_target(*args):
        sums.append(inner(*args).sum())
        return inner(*args)

    stock.bbox_head.centerness_target = centerness_target
    wanted = gradients(stock, data)
    assert 0 < sum(sums) < 1
    model = build(joint_config("atss", weighting="none"), torch.float64)
    assert_same(gradients(model, data), wanted)


@pytest.mark.parametrize("name", ["faster", "retinanet", "atss"])
def test_regions_to_ignore_are_mmdetections(name):
    """And a weight of positives."""
    data, found = batch((6, 4)), []
    for sample in data["data_samples"]:
        sample.ignored_instances.bboxes = sample.gt_instances.bboxes[:3]
        sample.gt_instances = sample.gt_instances[3:]
    for config in (joint_config(name, weighting="none"), stock_config(name)):
        training = config.train_cfg.get("rcnn", config.train_cfg)
        training.pos_weight, training.assigner.ignore_iof_thr = 1.5, 0.3
        found.append(gradients(build(config, torch.float64), data))
    assert_same(*found)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_says_what_negatives_weigh(name):
    model = build(joint_config(name))
    optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
    totals = []
    for _ in range(4):
        optimizer.zero_grad()
        total, log = model.parse_losses(losses_of(model, batch()))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        parts = [float(value.detach()) for name, value in log.items() if "loss_" in name]
        assert float(total.detach()) == pytest.approx(sum(parts))
        weights = [float(v) for k, v in log.items() if k.endswith(NEVER_ADDED)]
        heads = [float(head.negative_weight) for head in joint_heads(model)]
        assert weights == heads and all(1 < w < 2 for w in weights)
        assert len(set(weights)) == (3 if name == "cascade" else 1)
        totals.append(sum(parts))
    assert totals[-1] < totals[0]


def rows_of(head, maps, samples):
    """Every row of a batch as one call without a dense entrance takes them, decoded by mmdet."""
    metas, objects = [s.metainfo for s in samples], [s.gt_instances for s in samples]
    images, classes = len(samples), head.cls_out_channels
    flat = [
        [x.permute(0, 2, 3, 1).reshape(images, -1, size) for x in levels]
        for levels, size in zip(maps, (classes, 4), strict=False)
    ]
    logits, codes = (torch.cat(levels, 1).flatten(0, 1) for levels in flat)
    sizes = [x.shape[-2:] for x in maps[0]]
    if hasattr(head, "get_anchors"):
        anchors, valid = head.get_anchors(sizes, metas, "cpu")
        priors = torch.cat([torch.cat(levels) for levels in anchors])
        *_, labels, weights, boxes, _, _ = head.get_targets(anchors, valid, objects, metas)
        join = lambda levels: torch.cat(levels, 1).flatten(0, 1)  # noqa: E731
        labels = join(labels).where(join(weights) > 0, -100)
        return logits, head.bbox_coder.decode(priors, codes), labels, join(boxes)
    points = head.prior_generator.grid_priors(sizes, device="cpu")
    labels, codes0 = head.get_targets(points, objects)
    join = lambda levels: torch.cat(  # noqa: E731
        [x.unflatten(0, (images, -1)) for x in levels], 1
    ).flatten(0, 1)
    priors = torch.cat(points).repeat(images, 1)
    decode = head.bbox_coder.decode
    return logits, decode(priors, codes), join(labels), decode(priors, join(codes0))


@pytest.mark.parametrize("name", DENSE)
def test_negatives_weigh_the_mean_of_the_batch_not_of_a_level(name):
    model = build(joint_config(name), torch.float64)
    losses_of(model, batch())
    (head,) = joint_heads(model)
    data = model.data_preprocessor(batch(), True)
    maps = head(model.extract_feat(data["inputs"].double()))
    logits, boxes, labels, targets = rows_of(head, maps, data["data_samples"])
    plain = JointOptimizationLoss(head.joint.settings.classification, "giou", lam=2.0)
    every = plain(logits, boxes, labels, targets)
    assert every.num_positives > 20
    assert score(head) == pytest.approx(score(every), rel=1e-4)
    half = len(labels) // 2
    image = plain(logits[:half], boxes[:half], labels[:half], targets[:half])
    assert score(head) != pytest.approx(score(image), rel=1e-2)


def score(found):
    """The mean of S_loc * S_cls, which w⁻ is 2 minus."""
    return 2 - float(found.negative_weight)


@pytest.mark.parametrize("name", ["cascade", "atss"])
def test_copies_and_pickles_have_the_same_losses(name):
    model = build(joint_config(name))
    expected = gradients(model, batch())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        log, grads = gradients(other, batch())
        assert log == expected[0]
        assert all(torch.equal(grads[k], g) for k, g in expected[1].items())


@pytest.mark.parametrize("name", NAMES)
def test_inference_is_mmdetections(name):
    stock, model = build(stock_config(name)).eval(), build(joint_config(name)).eval()
    for detector in (stock, model):
        detector.test_cfg.get("rcnn", detector.test_cfg).score_thr = 0.0
    found, expected = (
        detector(**detector.data_preprocessor(batch(), False), mode="predict")
        for detector in (model, stock)
    )
    for a, b in zip(found, expected, strict=True):
        assert len(b.pred_instances) > 10
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)


def test_mixed_precision_is_close_to_float32():
    model = build(joint_config("retinanet"))
    expected, _ = model.parse_losses(losses_of(model, batch()))
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch())
    total, _ = model.parse_losses(losses)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(expected), rel=0.02)


class Images(torch.utils.data.Dataset):
    """Two images, again and again."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        data = batch()
        return {key: data[key][index % 2] for key in data}


def test_the_runner_trains_and_logs_what_negatives_weigh(tmp_path):
    runner = Runner(
        build(joint_config("retinanet")),
        str(tmp_path),
        train_dataloader={
            "dataset": Images(),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 2,
            "collate_fn": {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": 6},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.002, "momentum": 0.9}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        log_level="WARNING",
        default_scope="mmdet",  # which stays that of later tests
        experiment_name="joint",
    )
    runner.train()
    values, _ = runner.message_hub.get_scalar("train/negative_weight").data
    assert len(values) == 6 and all(1 < w < 2 for w in values)
    losses, _ = runner.message_hub.get_scalar("train/loss").data
    assert losses[-1] < losses[0]
    assert "negative_weight" in next(tmp_path.rglob("scalars.json")).read_text()


def of_a_rank(rank, config):
    """The losses and gradients of one rank, whose images have objects or not."""
    return gradients(build(config, torch.float64), batch(OBJECTS[rank], seed=rank))


OBJECTS = [(5, 3), (2, 0)]


@pytest.mark.parametrize("name", ["fcos", "atss", "retinanet"])
def test_normalisers_of_two_ranks_are_mmdetections(name):
    stock = in_processes(of_a_rank, stock_config(name))
    found = in_processes(of_a_rank, joint_config(name, weighting="none"))
    for one, other in zip(found, stock, strict=True):
        assert_same(one, other)
    if name != "retinanet":  # whose normaliser is each rank's own
        alone = of_a_rank(0, stock_config(name))
        assert float(alone[0]["loss_cls"]) != pytest.approx(float(stock[0][0]["loss_cls"]))


@pytest.mark.parametrize("name", ["fcos", "atss", "retinanet"])
def test_two_ranks_share_what_negatives_weigh_if_asked(name):
    joined = {
        key: [x for rank in range(RANKS) for x in batch(OBJECTS[rank], seed=rank)[key]]
        for key in batch()
    }
    model = build(joint_config(name), torch.float64)
    if name == "retinanet":
        divide_by_rank(model)
    log, grads = gradients(model, joined)
    ranks = in_processes(of_a_rank, joint_config(name, lam=2.0, sync_group="world"))
    for one, _ in ranks:
        assert float(one[NEVER_ADDED]) == pytest.approx(float(log[NEVER_ADDED]), rel=1e-9)
    apart = in_processes(of_a_rank, joint_config(name, lam=2.0))
    assert float(apart[0][0][NEVER_ADDED]) != pytest.approx(float(log[NEVER_ADDED]), rel=1e-9)
    mean = {k: sum(g[k] for _, g in ranks) / RANKS for k in grads}
    losses = {k: sum(float(one[k]) for one, _ in ranks) / RANKS for k in log}
    assert_same((losses, mean), ({k: v for k, v in log.items() if "loss" in k}, grads))


def divide_by_rank(model):
    """Make RetinaNet's losses of the joined batch the mean of those that ranks divide themselves.

    FCOS's and ATSS's are that already: all ranks divide by the same number.
    """
    (head,) = joint_heads(model)
    dense, counts = head.joint.dense, []

    def counting(*levels, **named):
        counts.append(named["regression_normalizer"])
        return dense(*levels, **named)

    def divided(*levels, classification_weights, **named):
        sizes = torch.tensor([len(objects) for objects in OBJECTS])
        weights = (1 / (RANKS * torch.tensor(counts).double())).repeat_interleave(sizes)[:, None]
        named |= {
            "classification_weights": classification_weights * weights,
            "regression_weights": weights.expand_as(classification_weights),
            "classification_normalizer": 1.0,
            "regression_normalizer": 1.0,
        }
        return dense(*levels, **named)

    head.joint.dense = counting
    for rank, objects in enumerate(OBJECTS):
        losses_of(model, batch(objects, seed=rank))
    assert counts[0] != counts[1]
    head.joint.dense = divided


def test_without_mmdetection_the_import_says_what_to_install(monkeypatch):
    name = "jolkernels.integrations.mmdet"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmdet.models.dense_heads", None)
    with pytest.raises(ImportError, match=f"{name} needs mmdet: pip install mmdet"):
        importlib.import_module(name)
