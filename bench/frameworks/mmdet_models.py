"""Whole detectors of MMDetection, small, from the configs in examples/mmdet and their bases.

mmcv-lite has no compiled operators. A stand-in takes their place: `nms` is torchvision's, and the
others, which these detectors do not call, say so. RoIAlign is torchvision's by mmcv's own option.
"""

import copy
import functools
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision

EXAMPLES = Path(__file__).parents[2] / "examples" / "mmdet"
NAMES = {
    "faster": "joint-faster-rcnn_r50_fpn_1x_coco",
    "cascade": "joint-cascade-rcnn_r50_fpn_1x_coco",
    "retinanet": "joint-retinanet_r50_fpn_1x_coco",
    "fcos": "joint-fcos_r50-caffe_fpn_gn-head_1x_coco",
    "fcos-norm": "joint-fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco",
    "atss": "joint-atss_r50_fpn_1x_coco",
}
SIZE = 128
CLASSES = 3


class StandIn(ModuleType):
    """A module in which every name is an operator."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"mmcv's {name} is not compiled")

        return operator


def stand_in_for_compiled_operators() -> None:
    """Put it where mmcv looks for its extension, unless mmcv has one."""
    if importlib.util.find_spec("mmcv._ext") is None:
        module: Any = StandIn("mmcv._ext")
        module.__spec__ = ModuleSpec("mmcv._ext", None)  # no loader: mmcv counts as lite
        module.nms = lambda boxes, scores, iou_threshold, offset: torchvision.ops.nms(
            boxes, scores, iou_threshold
        )
        sys.modules["mmcv._ext"] = module


stand_in_for_compiled_operators()

from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

register_all_modules(init_default_scope=True)
MMLogger.get_current_instance().setLevel("WARNING")  # it names every weight


def joint_config(name: str, **joint: Any) -> Any:
    """The model of a config in examples/mmdet, small; `joint` in place of its choices."""
    config = small(read(Config.fromfile, EXAMPLES / f"{NAMES[name]}.py").model)
    for head in heads_of(config):
        head.joint = joint or head.joint
    return config


def stock_config(name: str) -> Any:
    """The model of the config that it inherits, small."""
    source = (EXAMPLES / f"{NAMES[name]}.py").read_text()
    (base,) = [line for line in source.splitlines() if line.startswith("_base_")]
    return small(read(Config.fromstring, base, ".py").model)


@functools.cache
def read(reader: Any, *source: Any) -> Any:
    """What a function reads, once: official configs inherit many."""
    return reader(*source)


def small(model: Any) -> Any:
    """A copy with a ResNet-18 of an eighth of the channels, pyramid and heads of 32."""
    model = copy.deepcopy(model)
    model.backbone.update(depth=18, stem_channels=8, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    for head in heads_of(model):
        head.num_classes = CLASSES
        head.in_channels = 32
        if "feat_channels" in head:
            head.update(feat_channels=32, stacked_convs=1)
        if "fc_out_channels" in head:
            head.fc_out_channels = 32
    if "rpn_head" in model:
        model.rpn_head.update(in_channels=32, feat_channels=32)
        regions = model.roi_head.bbox_roi_extractor
        regions.update(out_channels=32)
        regions.roi_layer.use_torchvision = True
        model.train_cfg.rpn_proposal.max_per_img = 200
    return model


def heads_of(model: Any) -> list[Any]:
    """The configs of the heads that JOL trains."""
    head = model.bbox_head if "bbox_head" in model else model.roi_head.bbox_head
    return head if isinstance(head, list) else [head]


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A detector with weights that depend on its layers alone; scores are not small."""
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("cls.bias"):
                weight.zero_()
            weight.add_(torch.randn(weight.shape), alpha=0.03)
    return model.to(dtype).train()


def joint_heads(model: Any) -> list[Any]:
    """The heads with a loss of ours."""
    return [module for module in model.modules() if hasattr(module, "joint")]


def batch(
    objects: Sequence[int] = (5, 3), seed: int = 1, size: int = SIZE, classes: int = CLASSES
) -> dict[str, Any]:
    """Images with squares of three colours, as a data loader of MMDetection gives them."""
    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for count in objects:
        image = torch.randint(90, 130, (3, size, size), generator=generator).float()
        sizes = torch.rand(count, 2, generator=generator) * 30 + 12
        corners = torch.rand(count, 2, generator=generator) * (size - 44)
        labels = torch.randint(classes, (count,), generator=generator)
        boxes = torch.cat((corners, corners + sizes), 1)
        for label, (left, top, right, bottom) in zip(labels, boxes.int().tolist(), strict=True):
            image[label % 3, top:bottom, left:right] = 255
        shape = (size, size)
        sample = DetDataSample(
            metainfo={
                "img_shape": shape,
                "ori_shape": shape,
                "pad_shape": shape,
                "batch_input_shape": shape,
                "scale_factor": (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(bboxes=boxes[:0])
        inputs.append(image)
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def losses_of(model: Any, data: Any, seed: int = 3) -> dict[str, Any]:
    """The losses that a detector returns for a batch, samplers seeded."""
    torch.manual_seed(seed)
    data = model.data_preprocessor(data, True)
    dtype = next(model.parameters()).dtype
    return model(data["inputs"].to(dtype), data["data_samples"], mode="loss")


def gradients(model: Any, data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parsed log of a batch, and the gradient of each parameter that has one."""
    model.zero_grad()
    total, log = model.parse_losses(losses_of(model, data))
    total.backward()
    log = {name: value.detach() for name, value in log.items()}
    return log, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
