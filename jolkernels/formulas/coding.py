"""Codings, [P, 4] all: decode(codes, priors, spec) -> boxes; encode(boxes, priors, spec) -> codes.

Targets of a coding with `coded_targets` come as codes: they are decoded, and never encoded.
"""

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.formulas.boxes import MIN_EXTENT, center_and_size, from_center_and_size, limited
from jolkernels.registry import REFERENCE


def decode_xyxy(codes: Tensor, _: Tensor, __: spec.XYXY) -> Tensor:
    return codes


def encode_xyxy(boxes: Tensor, _: Tensor, __: spec.XYXY) -> Tensor:
    return boxes


def decode_delta(codes: Tensor, priors: Tensor, spec: spec.Delta) -> Tensor:
    """torchvision's BoxCoder.decode_single, and mmdet's delta2bbox where low_clip is given."""
    center, size = center_and_size(priors)
    codes = codes / codes.new_tensor(spec.weights)
    center = center + codes[:, :2] * size
    log_size = limited(codes[:, 2:], spec.low_clip, spec.clip)
    return from_center_and_size(center, size * torch.exp(log_size))


def encode_delta(boxes: Tensor, priors: Tensor, spec: spec.Delta) -> Tensor:
    """torchvision's BoxCoder.encode_single."""
    prior_center, prior_size = center_and_size(priors)
    center, size = center_and_size(boxes)
    prior_size, size = prior_size.clamp(min=MIN_EXTENT), size.clamp(min=MIN_EXTENT)
    codes = torch.cat(((center - prior_center) / prior_size, torch.log(size / prior_size)), 1)
    return codes * codes.new_tensor(spec.weights)


def decode_ltrb(codes: Tensor, priors: Tensor, _: spec.LTRB) -> Tensor:
    """torchvision's BoxLinearCoder.decode with normalize_by_size."""
    center, size = 0.5 * (priors[:, :2] + priors[:, 2:]), priors[:, 2:] - priors[:, :2]
    return torch.cat((center - codes[:, :2] * size, center + codes[:, 2:] * size), 1)


def encode_ltrb(boxes: Tensor, priors: Tensor, _: spec.LTRB) -> Tensor:
    """torchvision's BoxLinearCoder.encode with normalize_by_size."""
    center = 0.5 * (priors[:, :2] + priors[:, 2:])
    size = (priors[:, 2:] - priors[:, :2]).clamp(min=MIN_EXTENT)
    return torch.cat(((center - boxes[:, :2]) / size, (boxes[:, 2:] - center) / size), 1)


def decode_cxcywh(codes: Tensor, _: Tensor, spec: spec.CXCYWH) -> Tensor:
    codes = codes * codes.new_tensor(spec.pixels).repeat(2)
    return from_center_and_size(codes[:, :2], codes[:, 2:])


def encode_cxcywh(boxes: Tensor, _: Tensor, spec: spec.CXCYWH) -> Tensor:
    return torch.cat(center_and_size(boxes), 1) / boxes.new_tensor(spec.pixels).repeat(2)


REFERENCE["coding"] |= {
    spec.XYXY: (decode_xyxy, encode_xyxy),
    spec.Delta: (decode_delta, encode_delta),
    spec.LTRB: (decode_ltrb, encode_ltrb),
    spec.CXCYWH: (decode_cxcywh, encode_cxcywh),
}
