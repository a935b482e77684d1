"""What commands warn of: data that do not suit a detector."""

import sys
from typing import TYPE_CHECKING

from detectors.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from detectors.data.dataset import CocoDetection


def warn_of_crowds(
    dataset: "CocoDetection", detections: int, protocol: str, counted: int | None
) -> None:
    """Say how many objects cannot be found because their image holds too many.

    Args:
        dataset: what to evaluate on or, to warn early, to learn from.
        detections: most detections of an image that the detector reports.
        protocol: of the evaluation.
        counted: detections of a class and image that it counts; None: as many as `protocol` says.
    """
    import torch

    limit = counted or PROTOCOLS[protocol].max_dets
    images = objects = lost = most = 0
    for index in range(len(dataset)):
        labels = dataset.annotated(index)["labels"]
        found = min(detections, int(torch.bincount(labels).clamp(max=limit).sum()))
        objects += len(labels)
        if found < len(labels):
            images, lost, most = images + 1, lost + len(labels) - found, max(most, len(labels))
    if images:
        warn(
            f"{dataset.source}: {images:,} of {len(dataset):,} images hold more objects than the "
            f"{detections:,} detections of an image that are reported, or the {limit:,} of a class "
            f"that count: {100 * lost / objects:.1f} % of the objects cannot be found; "
            f"--detections {most} takes all"
        )


def warn_of_slow_bfloat16(amp: str, device: str) -> None:
    """Say that a CPU without units for bfloat16 computes in it more slowly than in float32."""
    import torch

    if (amp, device) == ("bf16", "cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warn(
            "--amp bf16: this CPU has no units for bfloat16, so a step takes longer than with "
            "--amp off"
        )


def warn(text: str) -> None:
    """Print a warning."""
    print(f"warning: {text}", file=sys.stderr)
