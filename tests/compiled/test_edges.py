"""What kernels meet at the edges: labels, logits and boxes that are none; the further inputs."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from cases import INTERPRETED, gradients, random_batch
from exact import assert_exact
from inputs import CASES, case, results, with_inputs

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import compiled_kernels, in_all_orders
from jolkernels import JointOptimizationLoss
from jolkernels.kernels import launch

pytestmark = pytest.mark.compiled

HEADS = [("cross_entropy", "first"), ("focal", "last")]


def loss_of(head: tuple[str, str], **choices) -> JointOptimizationLoss:
    given = {"regression": "giou", "coding": "delta"} | choices
    return JointOptimizationLoss(head[0], background=head[1], **given)


def batch_of(head: tuple[str, str], **given) -> dict:
    return random_batch(head, "delta", **{"n": 70, "dtype": torch.float32} | given)


@pytest.mark.parametrize("head", HEADS)
def test_no_positives(head) -> None:
    batch = batch_of(head)
    batch["labels"][batch["labels"] >= 0] = 0 if head[1] == "first" else 5
    assert_exact(loss_of(head), batch)


@pytest.mark.parametrize("head", HEADS)
def test_all_ignored(head) -> None:
    """Their logits and boxes, NaN here, are not read."""
    batch = batch_of(head)
    batch["labels"][:] = -100
    for name in ("logits", "box_preds"):
        batch[name] = torch.full_like(batch[name], torch.nan).requires_grad_()
    criterion = loss_of(head)
    loss = criterion(**batch)
    assert loss.total == 0 and loss.num_positives == 0 and loss.negative_weight == 1
    assert all((g == 0).all() for g in gradients(loss, batch))


@pytest.mark.parametrize("label", [-1, 2**31, 2**40, -(2**40)])
@pytest.mark.parametrize("head", HEADS)
def test_a_bad_label_makes_everything_nan(head, label, monkeypatch) -> None:
    """And reads nothing by it; on the CPU, where looking costs nothing, it would be an error."""
    monkeypatch.setattr("jolkernels.ops.math.isnan", lambda x: False)
    batch = batch_of(head)
    batch["labels"][3] = label
    loss = loss_of(head)(**batch)
    assert loss.classification.isnan() and loss.regression.isnan()
    assert all(g.isnan().all() for g in gradients(loss, batch))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", ["true", "other"])
@pytest.mark.parametrize("head", HEADS)
def test_logits_that_are_no_numbers(head, column, value) -> None:
    batch = batch_of(head)
    labels = batch["labels"]
    background = 0 if head[1] == "first" else 5
    i = int(((labels >= 0) & (labels != background)).nonzero()[0, 0])
    at = int(labels[i]) if column == "true" else (int(labels[i]) + 1) % 5
    with torch.no_grad():
        batch["logits"][i, at] = value
    assert_exact(loss_of(head), batch)


@pytest.mark.parametrize("regression", ["giou", "smooth_l1"])
def test_a_box_of_nan(regression) -> None:
    """Of a positive row: its losses and gradients are NaN. `random_batch` has them elsewhere."""
    head = HEADS[0]
    batch = batch_of(head)
    i = int((batch["labels"] > 0).nonzero()[0, 0])
    with torch.no_grad():
        batch["box_preds"][i, 2] = torch.nan
    criterion = loss_of(head, regression=regression)
    loss = criterion(**batch)
    assert loss.classification.isnan() and loss.regression.isnan()
    assert_exact(criterion, batch)


@pytest.mark.parametrize("score", ["nwd", "dotd", "giou", "simd"])
def test_no_score_hides_a_box_of_nan(score) -> None:
    criterion = JointOptimizationLoss("cross_entropy", "l1", "xyxy", location_score=score)
    batch = random_batch(n=8, dtype=torch.float32)
    i = int(((batch["labels"] >= 0) & (batch["labels"] < 5)).nonzero()[0, 0])
    with torch.no_grad():
        batch["box_preds"][i, 2] = torch.nan
    loss = criterion(**batch)
    assert loss.classification.isnan() and loss.negative_weight.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_passes_where_the_iou_is_focalers_low(dtype) -> None:
    """12 * (1 / 48) - 0.25, fused, is below 0 in float64."""
    box = torch.tensor([[1.0, 1, 5, 4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, 0, 8, 6]], dtype=dtype)
    criterion = JointOptimizationLoss("bce", "focaler:low=0.25,high=1", weighting="none")
    labels = torch.zeros(1, dtype=torch.int64)
    loss = criterion(torch.zeros(1, 1, dtype=dtype), box, labels, target)
    assert loss.regression == 1
    loss.regression.backward()
    slopes = torch.tensor([[3.0, 4, -3, -4]], dtype=dtype)  # minus the IoU's, times the union
    torch.testing.assert_close(box.grad, slopes / 48 / 0.75)


@pytest.mark.parametrize("name", CASES)
def test_further_inputs(name) -> None:
    assert_exact(*case(name, n=70, dtype=torch.float32))


@pytest.mark.parametrize("normalizer", ["positives", "sum", 3.5, torch.tensor(2.5)])
def test_normalizers(normalizer) -> None:
    batch = batch_of(HEADS[1])
    batch |= {"classification_normalizer": normalizer, "regression_normalizer": "samples"}
    assert_exact(loss_of(HEADS[1]), batch)


@pytest.fixture
def process_group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("names", [(), ("groups",)])
def test_of_a_process_group_the_results_are_a_launch_of_their_own(names, process_group) -> None:
    batch = with_inputs(batch_of(HEADS[1]), *names)
    criterion = loss_of(HEADS[1], sync_group=process_group)
    assert_exact(criterion, batch)
    with compiled_kernels() as ran:
        criterion(**batch)
    assert [each.name for each in ran] == ["rows_kernel", "finish_kernel"]


def test_many_groups_have_a_launch_of_their_own() -> None:
    groups = launch.GROUPS_IN_ONE + 1
    batch = with_inputs(batch_of(HEADS[0]), "groups", groups=groups)
    assert_exact(loss_of(HEADS[0]), batch)
    with compiled_kernels() as ran:
        loss_of(HEADS[0])(**batch)
    assert [each.name for each in ran] == ["rows_kernel", "finish_kernel"]
    assert ran[1].programs == groups


WEIGHTS = [{"detach_weights": True}, {"weighting": "none"}, {"class_score": None}, {"lam": 1.25}]


@pytest.mark.parametrize("choices", WEIGHTS)
def test_weights(choices) -> None:
    assert_exact(loss_of(HEADS[0], **choices), batch_of(HEADS[0]))


@pytest.mark.parametrize("name", ["rcnn", "detr"])
def test_no_order_of_the_programs_changes_a_bit(name) -> None:
    """Nor what was in registers and memory before."""
    criterion, batch = case(name, n=300, dtype=torch.float32)

    def compute(**options):
        with compiled_kernels(**options) as ran:
            found = results(criterion(**batch), batch)
        assert max(execution.programs for execution in ran) > 3
        return found, None

    in_all_orders(compute)
