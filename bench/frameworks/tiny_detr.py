"""Tiny models of transformers with random weights, and a batch for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    TableTransformerConfig,
    TableTransformerForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
)

SIX = ("detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2", "d_fine")
MORE = ("dab_detr", "table_transformer", "yolos")  # these have the loss of one of the six
OF_RT_DETR = SIX[3:]

PYRAMID = ["stage2", "stage3", "stage4"]
RESNET: dict[str, Any] = dict(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1])
RESNET |= dict(layer_type="basic")
COMMON: dict[str, Any] = dict(
    num_labels=4,
    d_model=32,
    encoder_layers=1,
    encoder_ffn_dim=32,
    decoder_layers=3,
    decoder_ffn_dim=32,
    decoder_attention_heads=2,
    num_queries=20,
    auxiliary_loss=True,
)
DETR = COMMON | dict(encoder_attention_heads=2, dropout=0.0)
RT_DETR = COMMON | dict(
    encoder_hidden_dim=32,
    encoder_in_channels=[16, 32, 64],
    feat_strides=[8, 16, 32],
    decoder_in_channels=[32, 32, 32],
    num_denoising=10,
    anchor_image_size=None,
)


def tiny(name: str, **changes: Any) -> nn.Module:
    """A model for images of 96 x 96 pixels, without dropout, in training mode."""
    last, pyramid = ResNetConfig(**RESNET, out_features=["stage4"]), ResNetConfig(**RESNET)
    pyramid.set_output_features_output_indices(out_features=PYRAMID, out_indices=None)
    rt = RT_DETR | dict(backbone_config=RTDetrResNetConfig(**RESNET, out_features=PYRAMID))
    detr = DETR | dict(backbone_config=last)
    deformable = DETR | dict(backbone_config=pyramid, num_feature_levels=3)
    dab = {k: v for k, v in detr.items() if k != "d_model"} | dict(hidden_size=32)
    yolos: dict[str, Any] = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    yolos |= dict(image_size=[96, 96], num_detection_tokens=20, num_labels=4)
    kinds = {
        "detr": (DetrForObjectDetection, DetrConfig, detr),
        "conditional_detr": (ConditionalDetrForObjectDetection, ConditionalDetrConfig, detr),
        "deformable_detr": (DeformableDetrForObjectDetection, DeformableDetrConfig, deformable),
        "rt_detr": (RTDetrForObjectDetection, RTDetrConfig, rt),
        "rt_detr_v2": (RTDetrV2ForObjectDetection, RTDetrV2Config, rt),
        "d_fine": (DFineForObjectDetection, DFineConfig, rt),
        "dab_detr": (DabDetrForObjectDetection, DabDetrConfig, dab),
        "table_transformer": (TableTransformerForObjectDetection, TableTransformerConfig, detr),
        "yolos": (YolosForObjectDetection, YolosConfig, yolos),
    }
    model_class, config_class, choices = kinds[name]
    torch.manual_seed(0)
    model = model_class(config_class(**choices | changes)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batch(objects: Sequence[int] = (3, 0, 1), size: int = 96, classes: int = 4) -> dict[str, Any]:
    """Images, and for each that many objects: class_labels and boxes cx cy w h."""
    torch.manual_seed(1)
    labels = []
    for count in objects:
        sizes = 0.05 + 0.3 * torch.rand(count, 2)
        centres = 0.2 + 0.6 * torch.rand(count, 2)
        classes_of = torch.randint(classes, (count,))
        labels.append({"class_labels": classes_of, "boxes": torch.cat((centres, sizes), 1)})
    return {"pixel_values": torch.randn(len(objects), 3, size, size), "labels": labels}
