"""`jol export`: a detector as a program of torch.export, for one image of a fixed size.

    import torch, torchvision  # torchvision brings the operators: nms, roi_align, deform_conv2d
    names = {"classes.json": ""}
    program = torch.export.load("detector.pt2", extra_files=names)  # names: label → class
    boxes, scores, labels = program.module()(image)  # float32 [3, H, W], RGB in 0..1

The results are the detector's own: boxes [n, 4] x1 y1 x2 y2 in pixels of that image, scores [n],
0-based labels [n]. n differs from image to image, and torch.export follows no choice in Python that
depends on such a number. torchvision makes two: which of two ways to suppress overlaps, and how
many proposals to pool features for. So while a program is made, the first is replaced by a way that
needs no choice, and the proposals are filled up to the most there can be.
"""

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.export import ExportedProgram

from detectors.data.synthetic import draw_scene
from detectors.errors import JolError
from detectors.models.build import detector_of
from detectors.utils import files

Detections = tuple[Tensor, Tensor, Tensor]
APART = 2.0**20
"""Pixels, more than a picture is wide: how far from each other classes are moved."""
TOLERANCE = 1e-2
"""Pixels, and hundredths of a score."""


class ExportError(JolError, RuntimeError):
    """The detector cannot be exported; or it can, and gives other numbers."""


class OneImage(nn.Module):
    """A detector with tensors in and out: image [3, H, W] to boxes, scores, labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Detections:
        """The detections of one image."""
        found = self.model([image])[0]
        return found["boxes"], found["scores"], found["labels"]


def export(model: nn.Module, size: tuple[int, int]) -> ExportedProgram:
    """The program of a detector on the CPU, for images of this (height, width).

    The detector is put into evaluation, its parameters need no gradient any more.

    Raises:
        ExportError: torch.export cannot, with the first line of its reason.
    """
    try:
        # torch prints the whole graph when it fails, and warns of torchvision's use of it.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with _filled_up(model), _one_way_to_suppress():
                return torch.export.export(
                    OneImage(model.eval().requires_grad_(False)), (torch.rand(3, *size),)
                )
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"torch.export cannot: {reason[0]}") from error


@contextmanager
def _filled_up(model: nn.Module) -> Iterator[None]:
    """The second choice of the module's docstring is not met."""
    if detector_of(model).one_stage:
        yield
        return
    hook = model.get_submodule("rpn").register_forward_hook(_fill_up)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _one_way_to_suppress() -> Iterator[None]:
    """The first choice is not met."""
    operations = torchvision.ops.boxes
    before = operations.batched_nms
    operations.batched_nms = _batched_nms
    try:
        yield
    finally:
        operations.batched_nms = before


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's batched_nms without its choice; in float64, as offsets would round float32.

    To torch.export torchvision's nms keeps at least two boxes, and the program would fail on an
    image with fewer: two that are far from all others and come last are added, and dropped again.
    """
    moved = boxes.double() + APART * idxs.double()[:, None]
    added = moved.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]]) * APART
    ranks = torch.cat([scores.double(), moved.new_full((2,), -torch.inf)])
    kept: Tensor = torchvision.ops.nms(torch.cat([moved, added]), ranks, iou_threshold)
    return kept[:-2]


def _fill_up(
    rpn: nn.Module, given: tuple[object, ...], result: tuple[list[Tensor], dict[str, Tensor]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Proposals of no size behind the others; what is made of them is dropped as too small."""
    proposals, losses = result
    most = rpn.post_nms_top_n()  # type: ignore[operator]
    return [torch.cat([p, p.new_zeros(most, 4)])[:most] for p in proposals], losses


@torch.no_grad()
def check(program: ExportedProgram, model: nn.Module, size: tuple[int, int]) -> tuple[int, float]:
    """Compare the program with the detector on a picture that it was not made with.

    The detector suppresses overlaps in float64 for once: torchvision rounds the boxes of many
    classes on large pictures by up to a hundredth of a pixel, which may decide a close case.

    Returns:
        The number of detections, and the largest difference of a coordinate or of 100 x a score.

    Raises:
        ExportError: other detections, by more than TOLERANCE.
    """
    scene = draw_scene(np.random.default_rng(0), max(48, *size)).image
    image = torch.from_numpy(np.ascontiguousarray(scene.transpose(2, 0, 1))) / 255
    image = image[:, : size[0], : size[1]].contiguous()
    with _one_way_to_suppress():
        wanted = OneImage(model.eval())(image)
    got = program.module()(image)
    apart = difference(wanted, got)
    if not apart <= TOLERANCE:
        raise ExportError(
            f"the program gives {len(got[0])} detections where the detector gives "
            f"{len(wanted[0])}, apart by {apart:.2g}, wanted at most {TOLERANCE:g}"
        )
    return len(got[0]), apart


def difference(one: Detections, other: Detections) -> float:
    """How far detections are apart, in whatever order: pixels, or hundredths of a score.

    Each is compared with the nearest of the same class; infinity for different numbers of them.
    """
    if len(one[0]) != len(other[0]):
        return float("inf")
    if not len(one[0]):
        return 0.0
    rows = [torch.cat([boxes, 100 * scores[:, None]], 1) for boxes, scores, _ in (one, other)]
    apart = torch.cdist(rows[0].double(), rows[1].double(), p=float("inf"))
    apart = apart.masked_fill(one[2][:, None] != other[2], float("inf"))
    return float(torch.maximum(apart.amin(0).amax(), apart.amin(1).amax()))


def save(program: ExportedProgram, class_names: Sequence[str], path: Path) -> None:
    """Write the program, and in it the class names as classes.json."""
    names = {"classes.json": json.dumps(list(class_names))}
    with warnings.catch_warnings():  # of weights that are not on the CPU; these are
        warnings.simplefilter("ignore")
        files.replace(path, lambda file: torch.export.save(program, file, extra_files=names))
