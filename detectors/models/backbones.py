"""ResNets, with their normalisation and weights."""

import pickle
import socket
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

FROZEN_WITH_WEIGHTS = ("conv1", "bn1", "layer1")
"""Parts of a pretrained backbone that both torchvision and MMDetection freeze."""
SILENCE = 60.0
"""Seconds that a download waits for the next bytes."""


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with fixed statistics but learned scale and shift: MMDetection's norm_eval."""

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        """Stay in eval mode."""
        super().train(False)
        return self


NORMS: dict[str, Callable[..., nn.Module]] = {
    "torchvision": FrozenBatchNorm2d,
    "paper": EvalBatchNorm2d,
    "slim": partial(nn.GroupNorm, 32),
}
"""Preset → normalisation of a backbone with weights; with slim also of one without."""


def resnet(name: str, weights: str, preset: str, *, load: bool = True) -> ResNet:
    """A torchvision ResNet.

    Args:
        name: one of BACKBONES.
        weights: "imagenet" (downloaded by torchvision), "none", or a file with a state dict.
        preset: a key of NORMS. Without weights, torchvision and paper train plain batch norm.
        load: False: build the layers for `weights` but leave them random.

    Raises:
        ValueError: the weights do not fit.
    """
    slim = preset == "slim"
    norm = NORMS[preset] if slim or weights != "none" else nn.BatchNorm2d
    if name == "resnet14":
        body = ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=norm)
    else:
        body = get_model(name, weights=None, norm_layer=norm)
    if weights == "none":
        return body
    if load:
        load_weights(body, name, weights)
    for key, parameter in body.named_parameters():
        if not slim and key.startswith(FROZEN_WITH_WEIGHTS):
            parameter.requires_grad_(False)
    return body


def load_weights(body: ResNet, name: str, weights: str) -> None:
    """Load torchvision's ImageNet weights or a file into `body`, except for the classifier.

    Raises:
        ValueError: no such file, one that cannot be downloaded, or its parameters have other names
            or shapes.
    """
    if weights == "imagenet":
        if name == "resnet14":
            raise ValueError("backbone_weights: there are no ImageNet weights of resnet14")
        state = _imagenet(name)
    else:
        if not Path(weights).is_file():
            raise ValueError(f"backbone_weights: no such file: {weights}")
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own text is a page on security
            raise ValueError(
                f"backbone_weights: {weights} holds more than tensors and plain values, or is "
                "damaged; wanted what torch.save(model.state_dict(), FILE) writes"
            ) from error
        except Exception as error:  # torch documents no class for a file that is no checkpoint
            raise ValueError(
                f"backbone_weights: {weights} is no file of torch.save, or is damaged"
            ) from error
        if not isinstance(state, dict) or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
        ):
            raise ValueError(f"backbone_weights: {weights} holds no state dict of tensors")
    own = {k: v for k, v in state.items() if not k.startswith("fc.")}
    wanted = {k: v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    wrong = sorted(k for k in own.keys() ^ wanted.keys() if not k.endswith("num_batches_tracked"))
    if wrong:
        raise ValueError(
            f"backbone_weights: {weights} does not fit {name}: "
            f"{len(wrong)} parameters missing or unknown, first {wrong[0]}"
        )
    for key, value in own.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise ValueError(
                f"backbone_weights: {weights} does not fit {name}: {key} has shape "
                f"{list(value.shape)}, wanted {list(wanted[key].shape)}"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"backbone_weights: {weights}: {key} holds numbers that are not finite"
            )
    body.load_state_dict(own, strict=False)


def _imagenet(name: str) -> Mapping[str, torch.Tensor]:
    """torchvision's state dict of this ResNet, downloaded unless it was before.

    Raises:
        ValueError: it cannot be.
    """
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)  # torch.hub waits for a network that says nothing for ever
    try:
        return weights.get_state_dict(progress=True)
    except (OSError, HTTPException, RuntimeError) as error:  # torch.hub's own: a wrong hash
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        reason = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
        raise ValueError(
            f"backbone_weights: {file} is missing and cannot be downloaded from {weights.url} "
            f"({' '.join(reason.split())}); put it there, or give --backbone-weights none|FILE or "
            "--preset slim, which needs none"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
