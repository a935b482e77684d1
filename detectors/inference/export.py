"""`jol export`: a detector as a program of torch.export, for one image of a fixed size.

    import torch, torchvision  # torchvision brings the operators: nms, roi_align, deform_conv2d
    names = {"classes.json": ""}
    program = torch.export.load("detector.pt2", extra_files=names)  # names: label → class
    boxes, scores, labels = program.module()(image)  # float32 [3, H, W], RGB in 0..1

The results are the detector's own: boxes [n, 4] x1 y1 x2 y2 in pixels of that image, scores [n],
0-based labels [n]. n differs from image to image, and torch.export cannot follow branches in Python
that depend on such a number. torchvision has two: which of two ways to suppress overlaps, and how
many proposals to pool features for. So while exporting, suppression is replaced by one without a
branch, and the proposals are padded to their largest number.
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
from detectors.errors import JolError, means_no_memory
from detectors.utils import files

Detections = tuple[Tensor, Tensor, Tensor]
APART = 2.0**20
"""Pixels that boxes of different classes are moved apart: more than a picture is wide."""
TOLERANCE = 1e-2
"""In pixels, and in hundredths of a score."""
IN_RANGE = (-0.25, 1.25)
"""Pixels that a program takes; those of an image in 0..1, also where its resizing overshot."""
OUT_OF_RANGE = "image: its values are not RGB in 0 to 1; divide pixels of 0 to 255 by 255"


class ExportError(JolError, RuntimeError):
    """The detector cannot be exported, or the program gives other results."""


class OneImage(nn.Module):
    """A detector with tensors as arguments and results: image [3, H, W] → Detections."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Detections:
        """Boxes, scores and labels of one image.

        The checks become part of the program: pixels in 0..255 would be detections of nothing. The
        size is torch.export's own check, "Guard failed: image.size()[1] == 800".
        """
        # a metadata check that fails says what came and what was wanted
        torch.ops.aten._assert_tensor_metadata(image, dtype=torch.float32)
        low, high = IN_RANGE
        torch._assert_async(((image >= low) & (image <= high)).all(), OUT_OF_RANGE)
        found = self.model([image])[0]
        return found["boxes"], found["scores"], found["labels"]


def export(model: nn.Module, size: tuple[int, int]) -> ExportedProgram:
    """The program of a detector on the CPU, for images of this (height, width).

    Puts the detector into eval mode and turns off its parameters' gradients.

    Raises:
        ExportError: torch.export fails; with the first line of its reason.
    """
    try:
        # torch prints the whole graph when it fails, and warns about torchvision.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with _filled_up(model), _one_way_to_suppress():
                return torch.export.export(
                    OneImage(model.eval().requires_grad_(False)), (torch.rand(3, *size),)
                )
    except Exception as error:  # torch raises many kinds
        if means_no_memory(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"torch.export cannot: {reason[0]}") from error


@contextmanager
def _filled_up(model: nn.Module) -> Iterator[None]:
    """Proposals are padded, so that the second branch (see the module's docstring) is gone."""
    rpn = getattr(model, "rpn", None)
    hook = None if rpn is None else rpn.register_forward_hook(_fill_up)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def _one_way_to_suppress() -> Iterator[None]:
    """Overlaps are suppressed without the first branch (see the module's docstring)."""
    operations = torchvision.ops.boxes
    before = operations.batched_nms
    operations.batched_nms = _batched_nms
    try:
        yield
    finally:
        operations.batched_nms = before


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's batched_nms without its branch, in float64: offsets would round float32.

    torch.export assumes that nms keeps at least two boxes, and the program would fail on an image
    with fewer. So two boxes far from all others, with the lowest score, are added and then dropped.
    """
    moved = boxes.double() + APART * idxs.double()[:, None]
    added = moved.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]]) * APART
    ranks = torch.cat([scores.double(), moved.new_full((2,), -torch.inf)])
    kept: Tensor = torchvision.ops.nms(torch.cat([moved, added]), ranks, iou_threshold)
    return kept[:-2]


def _fill_up(
    rpn: nn.Module, given: tuple[object, ...], result: tuple[list[Tensor], dict[str, Tensor]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Append empty proposals; the detections made from them are dropped as too small."""
    proposals, losses = result
    most = rpn.post_nms_top_n()  # type: ignore[operator]
    return [torch.cat([p, p.new_zeros(most, 4)])[:most] for p in proposals], losses


@torch.no_grad()
def check(program: ExportedProgram, model: nn.Module, size: tuple[int, int]) -> tuple[int, float]:
    """Compare the program with the detector on another image than it was exported with.

    The detector suppresses overlaps in float64 for once: torchvision rounds the boxes of many
    classes on large pictures by up to a hundredth of a pixel, which may decide a close case.

    Returns:
        The number of detections, and the largest difference of a coordinate or of 100 x a score.

    Raises:
        ExportError: they differ by more than TOLERANCE.
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
    """The largest difference of two sets of detections: in pixels, or hundredths of a score.

    Each is compared with the nearest of its class. Infinite if their numbers differ.
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
    """Write the program with the class names in it, as classes.json."""
    names = {"classes.json": json.dumps(list(class_names))}
    with warnings.catch_warnings():  # about weights that are not on the CPU; ours are
        warnings.simplefilter("ignore")
        files.replace(path, lambda file: torch.export.save(program, file, extra_files=names))
