"""Detection: queries, boxes and the scores they are chosen by."""

from __future__ import annotations

import transformers as T

from tests.models.listing import Case, architecture
from tests.models.making import vision
from tests.models.vision_transformers import VIT

DETR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
    "num_labels": 3,
}


@architecture("detection")
def detr() -> Case:
    backbone = T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = T.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **DETR)
    return vision(T.DetrForObjectDetection(config))


@architecture("detection")
def conditional_detr() -> Case:
    backbone = T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = T.ConditionalDetrConfig(use_timm_backbone=False, backbone_config=backbone, **DETR)
    return vision(T.ConditionalDetrForObjectDetection(config))


@architecture("detection")
def deformable_detr() -> Case:
    backbone = T.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = T.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, num_feature_levels=3, **DETR
    )
    return vision(T.DeformableDetrForObjectDetection(config))


@architecture("detection")
def rt_detr() -> Case:
    backbone = T.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = T.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        feat_strides=[8, 16, 32],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_queries=10,
        num_labels=3,
        num_denoising=0,
    )
    return vision(T.RTDetrForObjectDetection(config))


@architecture("detection")
def yolos() -> Case:
    config = T.YolosConfig(
        **VIT | {"image_size": [64, 64], "patch_size": 16}, num_detection_tokens=5
    )
    return vision(T.YolosForObjectDetection(config))
