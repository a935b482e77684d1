"""What the loss of a trained detector sees: the scores, weights and losses of its positives."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detectors.data.dataset import CocoDetection
from detectors.data.object_sizes import box_sizes
from detectors.errors import DataError
from detectors.inference.detect import as_inputs, read_image
from detectors.utils.progress import Progress
from jolkernels import JointOptimizationLoss
from jolkernels.integrations.levels import LevelsInTraining


class Samples(NamedTuple):
    """Positive samples [P] of the heads that JOL weighs, and the objects [G] of their images.

    Attributes:
        object: int64, the index in `objects` of the object that the sample belongs to. Of objects
            with the same box, one has the samples of all.
        size: of the sample's object, sqrt(w h) in pixels of the image as the network sees it.
        s_loc: IoU (or other S_loc) of predicted and target box.
        s_cls: predicted probability of the true class.
        loss: weight times the sum of classification and box loss.
        own: bool, whether the sample's prior is its object's own box: torchvision adds the objects
            to the proposals in training, where they fit better than any that are ever found.
        objects: size of every object, as `size`.
    """

    object: Tensor
    size: Tensor
    s_loc: Tensor
    s_cls: Tensor
    loss: Tensor
    own: Tensor
    objects: Tensor


def collect(model: nn.Module, dataset: CocoDetection, device: str, images: int) -> Samples:
    """Run the first `images` images through a detector in training mode, without learning.

    With the base loss every weight is 1; its scores are measured all the same. The samplers draw
    from the global generator, which is seeded with 0.

    Raises:
        DataError: no sample was positive, or an image that cannot be decoded.
        LoadingError: an image that is not read in time.
    """
    found: list[list[Tensor]] = []
    boxes: list[Tensor] = []

    def look(
        criterion: JointOptimizationLoss, given: tuple[Any, ...], named: dict[str, Any], _: object
    ) -> None:
        rows = criterion.per_sample(*given, **named)
        logits, _boxes, labels, targets, priors = given[:5]
        settings = criterion.settings
        background = settings.background_label(logits.shape[1])
        at = ((labels != background) & (labels != settings.ignore_index)).nonzero()[:, 0]
        sizes = box_sizes(targets[at])
        object_ = sum(map(len, boxes[:-1])) + owners(targets[at], boxes[-1])
        loss = rows.weight[at] * (rows.classification[at] + rows.regression[at])
        scores = (rows.location_score[at], rows.class_score[at])
        own = (priors[at] == targets[at]).all(1)
        found.append([object_, sizes, *scores, loss, own])

    def note_objects(_: nn.Module, __: tuple[Any, ...], result: tuple[Any, Any]) -> None:
        boxes.append(torch.cat([target["boxes"] for target in result[1]]))

    losses = [m for m in model.modules() if isinstance(m, JointOptimizationLoss)]
    hooks = [loss.register_forward_hook(look, with_kwargs=True) for loss in losses]
    heads = [m for m in model.modules() if isinstance(m, LevelsInTraining) and m.dense]
    for head in heads:
        head.dense = False  # levels have no rows to look at
    transform = model.get_submodule("transform")
    hooks.append(transform.register_forward_hook(note_objects))
    torch.manual_seed(0)
    model.train()
    count = min(images, len(dataset))
    try:
        with torch.no_grad(), Progress("samples", 0, count, quiet=True) as progress:
            for index in range(count):
                image, target = read_image(dataset, index)
                wanted = {k: target[k].to(device) for k in ("boxes", "labels")}
                model(as_inputs([image], device), [wanted])
                progress.step(index + 1)
    finally:
        for hook in hooks:
            hook.remove()
        for head in heads:
            head.dense = True
    columns = [torch.cat(column).cpu() for column in zip(*found, strict=True)]
    if not columns or len(columns[0]) == 0:
        raise DataError(f"{dataset.source}: no positive sample in {count} images")
    object_, size, s_loc, s_cls, loss, own = columns
    objects = box_sizes(torch.cat(boxes)).float().cpu()
    return Samples(object_, size.float(), s_loc.float(), s_cls.float(), loss.float(), own, objects)


def owners(targets: Tensor, boxes: Tensor) -> Tensor:
    """For each of `targets` [P, 4] the index of the same box in `boxes` [G, 4], int64 [P].

    Raises:
        ValueError: a target that is none of the boxes.
    """
    _, group = torch.cat([boxes, targets]).cpu().unique(dim=0, return_inverse=True)
    owner = torch.full_like(group, -1)
    owner[group[: len(boxes)]] = torch.arange(len(boxes))
    found = owner[group[len(boxes) :]]
    if (found < 0).any():
        raise ValueError("a sample's target is none of the image's objects")
    return found
