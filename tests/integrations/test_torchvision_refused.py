"""What use_joint_loss and remove_joint_loss refuse, and what the document says of them."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from scenes import K
from torch import nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead
from zoo import batch, make

from jolkernels.integrations.choices import Choices
from jolkernels.integrations.torchvision import (
    JointRetinaNetHead,
    remove_joint_loss,
    use_joint_loss,
)


class OtherHead(RetinaNetHead):
    pass


class OtherPart(RetinaNetClassificationHead):
    def compute_loss(self, targets, head_outputs, matched_idxs):
        return 2 * super().compute_loss(targets, head_outputs, matched_idxs)


def with_class(kind, path, other):
    model = make(kind)
    model.get_submodule(path).__class__ = other
    return model


def changed(kind, path, name, value):
    model = make(kind)
    setattr(model.get_submodule(path), name, value)
    return model


REFUSED = {
    "no detector": (TypeError, "model: got Linear, wanted torchvision's Faster, ",
        lambda: nn.Linear(1, 1)),
    "wrapped": (TypeError, "model: got DataParallel, wanted",
        lambda: nn.DataParallel(make("fcos"))),
    "its head": (TypeError, "model: got RoIHeads, wanted", lambda: make("faster_rcnn").roi_heads),
    "joint": (ValueError, "model.head: has a joint loss already: remove_joint_loss",
        lambda: use_joint_loss(make("fcos"))),
    "joint SSD": (ValueError, "model: has a joint loss already",
        lambda: use_joint_loss(make("ssd"))),
    "head": (TypeError, "model.head: got OtherHead, wanted one of RoIHeads, RetinaNetHead, ",
        lambda: with_class("retinanet", "head", OtherHead)),
    "part": (TypeError, "model.head.classification_head: got the loss OtherPart.compute_loss, ",
        lambda: with_class("retinanet", "head.classification_head", OtherPart)),
    "box loss": (ValueError, "model.head.regression_head: got the box loss 'huber', wanted one of ",
        lambda: changed("retinanet", "head.regression_head", "_loss_type", "huber")),
    "forward": (ValueError, "model.roi_heads: got a forward of its own",
        lambda: changed("faster_rcnn", "roi_heads", "forward", lambda *given: None)),
    "samples": (ValueError, "model.roi_heads: got a select_training_samples of its own",
        lambda: changed("mask_rcnn", "roi_heads", "select_training_samples", lambda *given: None)),
    "coder": (TypeError, "model.roi_heads.box_coder: got <object .*, wanted torchvision's BoxCoder",
        lambda: changed("faster_rcnn", "roi_heads", "box_coder", object())),
    "distances": (ValueError, r"model.head.box_coder: got .*wanted BoxLinearCoder\(normalize_by",
        lambda: changed("fcos", "head", "box_coder", BoxLinearCoder(normalize_by_size=False))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_mapped_is_refused(case):
    error, message, build = REFUSED[case]
    model = build()
    before = everything(model)
    with pytest.raises(error, match=message):
        use_joint_loss(model)
    assert everything(model) == before


def everything(model):
    """What a module and its parts are, and the names of what they have."""
    return [(type(module), list(vars(module))) for module in model.modules()]


def test_choices_are_checked():
    with pytest.raises(TypeError, match="use_joint_loss: got regression, wanted some of lam, "):
        use_joint_loss(make("fcos"), regression="l1")
    model = make("fcos")
    before = everything(model)
    with pytest.raises(ValueError, match=r"lam: got 0\.5"):
        use_joint_loss(model, lam=0.5)
    assert everything(model) == before


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_labels_that_count_from_1_are_refused(kind, dense):
    """By torchvision too; the loss would take the last one for the background's."""
    model = make(kind)
    images, targets = batch(kind, [0, 5])
    targets[1]["labels"][3] = K
    with pytest.raises(IndexError, match=f"index {K} is out of bounds"):
        model(images, targets)
    use_joint_loss(model).head.dense = dense
    with pytest.raises(ValueError, match="labels: got 3 at image 1, object 3, wanted 0 to 2"):
        model(images, targets)


def test_the_document_runs_and_has_every_choice():
    text = (Path(__file__).parents[2] / "docs/integrations/torchvision.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    exec(first + second, names)
    assert names["w_neg"] is None and type(names["model"].head) is JointRetinaNetHead
    call = re.search(r"`use_joint_loss\((.*?)\)`", text, re.S)[1]
    assert set(re.findall(r"(\w+)=", call)) == set(Choices.__annotations__)


def test_a_loss_that_was_replaced_is_refused(monkeypatch):
    monkeypatch.setattr(roi_heads, "fastrcnn_loss", lambda *given: (0.0, 0.0))
    with pytest.raises(ValueError, match=r"model.roi_heads: got the loss <function "):
        use_joint_loss(make("faster_rcnn"))


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos", "ssd"])
def test_what_is_not_there_cannot_be_removed(kind):
    with pytest.raises(ValueError, match="which has no joint loss to remove"):
        remove_joint_loss(make(kind))


def test_without_torchvision_it_says_what_to_do(monkeypatch):
    name = "jolkernels.integrations.torchvision"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=f"^{name} needs torchvision: pip install torchvision$"):
        importlib.import_module(name)
