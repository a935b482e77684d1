"""DETR-type models of transformers against the framework's own losses."""

import copy
import importlib
import inspect
import math
import os
import pickle
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # the Trainer's

from accelerate import PartialState
from processes import RANKS, in_processes
from transformers import Trainer, TrainingArguments
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import box_iou

from bench.frameworks.tiny_detr import MORE, OF_RT_DETR, SIX, batch, tiny
from jolkernels.integrations.transformers import remove_joint_loss, use_joint_loss


@pytest.fixture
def double(monkeypatch):
    """Arithmetic in float64, in D-FINE's loss too, which asks for float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(model, data, seed=5):
    """The model's output, and all parameter gradients in one tensor."""
    model.zero_grad()
    torch.manual_seed(seed)  # of denoising queries
    output = model(**data)
    output.loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return output, torch.cat(gradients)


def assert_same_as_plain(model, data):
    wanted, wanted_gradients = run(model, data)
    got, gradients = run(use_joint_loss(model, weighting="none"), data)
    assert list(got.loss_dict) == list(wanted.loss_dict)
    close = dict(rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(got.loss, wanted.loss, **close)
    for name, value in wanted.loss_dict.items():
        torch.testing.assert_close(got.loss_dict[name], value.detach(), **close, msg=name)
    assert len(gradients) == len(wanted_gradients)
    assert (gradients - wanted_gradients).norm() <= 1e-6 * wanted_gradients.norm()
    assert (got.auxiliary_outputs is None) == (wanted.auxiliary_outputs is None)
    for ours, theirs in zip(
        got.auxiliary_outputs or [], wanted.auxiliary_outputs or [], strict=True
    ):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", (*SIX, *MORE))
def test_none_is_the_frameworks_loss(name, double):
    assert_same_as_plain(tiny(name), batch())


@pytest.mark.parametrize("name", SIX)
def test_none_is_the_frameworks_loss_without_objects(name, double):
    assert_same_as_plain(tiny(name), batch(objects=(0, 0)))


@pytest.mark.parametrize("name", SIX)
def test_none_is_the_frameworks_loss_of_the_last_layer_alone(name, double):
    assert_same_as_plain(tiny(name, auxiliary_loss=False), batch())


def test_none_is_the_frameworks_loss_of_a_single_layer(double):
    assert_same_as_plain(tiny("detr", decoder_layers=1), batch())


@pytest.mark.parametrize("name", SIX)
def test_none_is_the_frameworks_loss_in_evaluation(name, double):
    assert_same_as_plain(tiny(name).eval(), batch())


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_none_is_the_frameworks_loss_with_more_objects_than_queries(name, double):
    assert_same_as_plain(tiny(name, num_queries=5), batch(objects=(8, 2)))


def test_gains_and_parameters_are_the_configs(double):
    detr = dict(eos_coefficient=0.3, bbox_loss_coefficient=3, giou_loss_coefficient=4)
    assert_same_as_plain(tiny("detr", **detr, class_cost=3, bbox_cost=1, giou_cost=7), batch())
    assert_same_as_plain(tiny("deformable_detr", focal_alpha=0.6), batch())
    rt_detr = dict(weight_loss_vfl=2.0, weight_loss_bbox=0.0, weight_loss_giou=0.7)
    rt_detr |= dict(focal_loss_alpha=0.5, focal_loss_gamma=1.5, matcher_bbox_cost=1.0)
    assert_same_as_plain(tiny("rt_detr", **rt_detr), batch())
    assert_same_as_plain(tiny("d_fine", weight_loss_fgl=0.4, weight_loss_ddf=3.0), batch())


def mean_weight(outputs, labels, matches, softmax, lam):
    """Eq. 3 and 4 of one head, by the framework's functions."""
    queries = [(image, query) for image, (qs, _) in enumerate(matches) for query in qs]
    found = [(image, j) for image, (_, js) in enumerate(matches) for j in js]
    weights = []
    for (image, query), (_, j) in zip(queries, found, strict=True):
        logits, label = outputs["logits"][image, query], labels[image]["class_labels"][j]
        s_cls = logits.softmax(-1)[label] if softmax else logits[label].sigmoid()
        pair = outputs["pred_boxes"][image, query], labels[image]["boxes"][j]
        corners = [center_to_corners_format(box[None]) for box in pair]
        weights.append(lam - s_cls * box_iou(*corners)[0][0, 0])
    return torch.stack(weights).mean()


@pytest.mark.parametrize("name", SIX)
def test_each_head_has_the_mean_weight_of_its_own_pairs(name, double):
    """Those of all images at once, denoising queries and the encoder's apart."""
    model, data = tiny(name), batch()
    labels = data["labels"]
    joint = use_joint_loss(model, lam=1.5).loss_function
    with torch.no_grad():
        torch.manual_seed(5)
        output = model(**data)
        meta = output.denoising_meta_values if name in OF_RT_DETR else None
        first = 0 if meta is None else meta["dn_num_split"][0]
        last = {"logits": output.logits, "pred_boxes": output.pred_boxes}
        last = {key: x[:, first:] for key, x in last.items()}
        heads = [(x, joint.base.matcher(x, labels)) for x in (last, *output.auxiliary_outputs)]
        if meta is not None:
            copied = joint.base.get_cdn_matched_indices(meta, labels)
            layers = zip(
                output.intermediate_logits[:, :, :first].unbind(1),
                output.intermediate_reference_points[:, :, :first].unbind(1),
                strict=True,
            )
            noisy = [({"logits": z, "pred_boxes": b}, copied) for z, b in layers]
            heads += noisy[:3]  # D-FINE's loss leaves out the last of its four
        wanted = [mean_weight(*head[:1], labels, head[1], name == "detr", 1.5) for head in heads]
    torch.testing.assert_close(joint.negative_weight, torch.stack(wanted))
    assert joint.negative_weight.std() > 1e-9


@pytest.mark.parametrize("name", SIX)
def test_training_lowers_the_loss(name):
    model, data = use_joint_loss(tiny(name), lam=2.0), batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        output, gradients = run(model, data)
        assert gradients.isfinite().all()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]


def test_the_log_adds_up_to_the_loss():
    for name in SIX:
        model = use_joint_loss(tiny(name))
        output, _ = run(model, batch())
        total = sum(output.loss_dict.values())
        if name not in OF_RT_DETR:  # whose log has no gains in it
            gains = {"ce": 1, "bbox": 5, "giou": 2, "error": 0}
            total = sum(gains[key.split("_")[1]] * x for key, x in output.loss_dict.items())
        torch.testing.assert_close(total, output.loss.detach())
        assert not any(x.requires_grad for x in output.loss_dict.values())


def trained(model, tmp_path):
    """The model after two steps of the Trainer, and the Trainer's log."""
    images = [batch(objects=(n,)) for n in (2, 1, 3, 1)]
    data = [{"pixel_values": x["pixel_values"][0], "labels": x["labels"][0]} for x in images]

    def collate(rows):
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": [row["labels"] for row in rows]}

    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    return [x["loss"] for x in trainer.state.log_history if "loss" in x]


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_the_trainer_is_unchanged(name, tmp_path):
    plain, none, joint = tiny(name), tiny(name), tiny(name)
    use_joint_loss(none, weighting="none")
    use_joint_loss(joint)
    losses = [trained(model, tmp_path) for model in (plain, none, joint)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(j > 1.5 * p for j, p in zip(losses[2], losses[0], strict=True))
    assert 1 < joint.loss_function.negative_weight[0] < 2


@pytest.mark.parametrize("name", SIX)
def test_removal_gives_the_same_bits_as_before(name):
    model, data = tiny(name), batch()
    state = list(model.state_dict())
    before, gradients = run(model, data)
    use_joint_loss(use_joint_loss(model), lam=3.0)
    assert list(model.state_dict()) == state
    assert not torch.equal(run(model, data)[0].loss, before.loss)
    after, gradients_after = run(remove_joint_loss(model), data)
    assert torch.equal(before.loss, after.loss) and torch.equal(gradients, gradients_after)
    with pytest.raises(ValueError, match="without a loss of use_joint_loss"):
        remove_joint_loss(model)


@pytest.mark.parametrize("name", SIX)
def test_copies_of_a_model(name, tmp_path):
    model, data = use_joint_loss(tiny(name), lam=1.5, detach_weights=True), batch()
    wanted, gradients = run(model, data)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        got, gradients_got = run(twin, data)
        assert torch.equal(got.loss, wanted.loss) and torch.equal(gradients_got, gradients)
        assert twin.loss_function is not model.loss_function
    model.save_pretrained(tmp_path)
    assert not any(b"jolkernels" in file.read_bytes() for file in tmp_path.iterdir())
    loaded = type(model).from_pretrained(tmp_path).train()
    assert loaded.loss_function is model.loss_function.plain
    plain, _ = run(remove_joint_loss(model), data)
    assert torch.equal(run(loaded, data)[0].loss, plain.loss)


class Counting(TorchDispatchMode):
    """Counts dispatched calls but views, and keeps the size of the largest result."""

    def __init__(self):
        super().__init__()
        self.calls = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        view = any(x.alias_info is not None for x in function._schema.returns)
        self.calls += not view
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def arguments(model, data):
    """What the model calls its loss with, by name, cut off from the model."""
    got, loss = {}, model.loss_function

    def spy(*args, **kwargs):
        got.update(inspect.signature(loss).bind(*args, **kwargs).arguments)
        return loss(*args, **kwargs)

    model.loss_function = spy
    torch.manual_seed(5)
    model(**data)
    model.loss_function = loss
    got |= got.pop("kwargs", {})
    return {
        name: x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
        for name, x in got.items()
    }


def counted(loss, given):
    """The counts of the loss of these arguments, forward and backward."""
    inputs = [x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    with Counting() as counting:
        torch.autograd.grad(loss(**given)[0], inputs, allow_unused=True)
    return counting


def test_d_fine_with_boxes_beyond_the_image_and_layers_that_differ(double):
    """A model that starts has the same corners in all layers, from which no layer could learn."""
    model = tiny("d_fine")
    given = arguments(model, batch())
    for name in ("outputs_coord", "enc_topk_bboxes"):
        given[name] = (2 * given[name].detach()).requires_grad_()
        assert (given[name] > 1).any()
    corners = torch.randn(given["predicted_corners"].shape)
    given["predicted_corners"] = corners.requires_grad_()
    layers = given["outputs_class"], given["outputs_coord"]
    given["logits"], given["pred_boxes"] = (x[:, -1] for x in layers)
    leaves = [*layers, corners, given["enc_topk_logits"], given["enc_topk_bboxes"]]
    found = []
    for loss in (model.loss_function, use_joint_loss(model, weighting="none").loss_function):
        total, parts, _ = loss(**given)
        found.append((total, *torch.autograd.grad(total, leaves)))
    assert parts["loss_ddf_aux_0"] > 0 and parts["loss_ddf_dn_0"] > 0
    for wanted, got in zip(*found, strict=True):
        assert (got - wanted).norm() <= 1e-6 * wanted.norm() > 0


@pytest.mark.parametrize("name", SIX)
def test_at_most_half_of_the_frameworks_calls(name):
    """Most of what is left are the matcher's and, of D-FINE, those of its local losses."""
    model = tiny(name, decoder_layers=6)
    given = arguments(model, batch())
    plain = counted(model.loss_function, given).calls
    joint = counted(use_joint_loss(model).loss_function, given).calls
    assert joint <= plain * (0.5 if name == "d_fine" else 0.3), (joint, plain)


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr"])
def test_pairs_are_compared_one_by_one(name):
    """But for the matcher's, no tensor has an entry for each object with each other."""
    model, data = tiny(name, num_queries=100), batch(objects=(80, 80))
    given = arguments(model, data)
    plain, joint = model.loss_function, use_joint_loss(model).loss_function
    matched = {name: given[name][:, -100:] for name in ("logits", "pred_boxes")}
    matches = joint.base.matcher(matched, data["labels"])
    joint.base.matcher.forward = lambda outputs, labels: matches
    assert counted(joint, given).largest < 160**2 <= counted(plain, given).largest


def test_refusals_name_what_came():
    with pytest.raises(ValueError, match="got Linear with loss_function None, wanted a model with"):
        use_joint_loss(torch.nn.Linear(1, 1))
    model = tiny("detr")
    with pytest.raises(TypeError, match="use_joint_loss: got coding, wanted some of lam"):
        use_joint_loss(model, coding="xyxy")
    with pytest.raises(ValueError, match="location_score: got NWD"):
        use_joint_loss(model, location_score="nwd")
    model.loss_function = math.fsum
    with pytest.raises(ValueError, match="DetrForObjectDetection with loss_function fsum"):
        use_joint_loss(model)
    with pytest.raises(ValueError, match="config: bbox_loss_coefficient: got 0"):
        use_joint_loss(tiny("detr", bbox_loss_coefficient=0))
    with pytest.raises(ValueError, match="Focal: alpha: got -1"):
        use_joint_loss(tiny("conditional_detr", focal_alpha=-1.0))


class Wrapper(torch.nn.Module):
    """As peft's: attributes are the inner model's to read, and its own when set."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def test_a_wrapper_is_refused_as_its_model_would_not_see_the_loss():
    model = tiny("detr")
    wanted = "model: got Wrapper with loss_function None, wanted a model with"
    with pytest.raises(ValueError, match=wanted):
        use_joint_loss(Wrapper(model))
    use_joint_loss(model)
    with pytest.raises(ValueError, match="got Wrapper without a loss of use_joint_loss"):
        remove_joint_loss(Wrapper(model))


def test_without_transformers(monkeypatch):
    name = "jolkernels.integrations.transformers"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=f"{name} needs transformers: pip install transformers"):
        importlib.import_module(name)


def on_two_ranks(rank):
    """Puts this process under accelerate."""
    torch.set_default_dtype(torch.float64)
    PartialState._reset_state()  # that of a Trainer in the parent process
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(RANKS))
    assert PartialState(cpu=True).num_processes == RANKS


def numbers_of(loss, call):
    """The two normalisers that a call of the loss gives to its criterion."""
    inner, given = loss.criterion.forward, {}

    def forward(*args, **named):
        given.update(named)
        return inner(*args, **named)

    loss.criterion.forward = forward
    call()
    loss.criterion.forward = inner
    names = "classification_normalizer", "regression_normalizer"
    return torch.tensor([float(given[name]) for name in names])


def divide(loss, numbers):
    """Makes a loss of all images divide those of each rank by the rank's numbers [2, RANKS]."""
    inner = loss.criterion.forward

    def forward(logits, *args, **named):
        rows = len(logits) // RANKS  # image by image, and rank by rank
        names = "classification", "regression"
        for name, weights in zip(names, 1 / numbers / RANKS, strict=True):
            named[f"{name}_weights"] = weights.repeat_interleave(rows)
            named[f"{name}_normalizer"] = 1.0
        return inner(logits, *args, **named)

    loss.criterion.forward = forward


def of_a_rank(rank, name, objects):
    """What two of four images give on a rank, and all four in one process; ranks' means."""
    on_two_ranks(rank)
    more = dict(num_denoising=0) if name in OF_RT_DETR else {}
    model, data = tiny(name, **more).eval(), batch(objects)  # batch statistics are no loss
    half = slice(2 * rank, 2 * rank + 2)
    own = {"pixel_values": data["pixel_values"][half], "labels": data["labels"][half]}
    plain, wanted = run(model, own)
    group = torch.distributed.group.WORLD
    got, gradients = run(use_joint_loss(model, weighting="none", sync_group=group), own)
    same = torch.allclose(got.loss, plain.loss) and torch.allclose(gradients, wanted, atol=1e-9)

    joint = use_joint_loss(model).loss_function
    numbers = [torch.empty(2) for _ in range(RANKS)]
    torch.distributed.all_gather(numbers, numbers_of(joint, lambda: run(model, own)))
    found, mean = run(use_joint_loss(model, sync_group=group), own)
    loss, negative_weight = found.loss.detach(), model.loss_function.negative_weight
    for x in (loss, mean):
        torch.distributed.all_reduce(x)
    joint = use_joint_loss(model).loss_function
    divide(joint, torch.stack(numbers, 1))
    of_all, wanted = run(model, data)
    return (
        same,
        (loss / RANKS, mean / RANKS, negative_weight),
        (of_all.loss.detach(), wanted, joint.negative_weight),
    )


@pytest.mark.parametrize("objects", [(4, 0, 2, 1), (0, 1, 0, 0)])
@pytest.mark.parametrize("name", SIX)
def test_two_ranks(name, objects):
    """Each divides by the framework's numbers; w⁻, and the gradient through it, are of both."""
    for same, got, wanted in in_processes(of_a_rank, name, objects):
        assert same
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
